from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skelact.data.media import MediaStore
from skelact.data.modalities import describe, media_paths, open_modalities, pair, pair_stores
from skelact.data.prepare import prepare_dataset
from skelact.data.readers.media_utd import UTDMedia
from skelact.data.store import Store, StoreError
from skelact.errors import SkelactError

from .conftest import write_store
from .originals import write_utd
from .pictures import write_utd_media

lists = st.dictionaries(
    st.sampled_from(["skeleton", "rgb", "depth", "ir"]),
    st.lists(st.text("abc", min_size=1, max_size=2), unique=True, max_size=8),
    min_size=1,
)


@given(lists)
def test_pairing(names):
    pairing = pair(names)
    assert pairing.modalities == tuple(names)
    assert pairing.names.tolist() == sorted(set().union(*names.values()))
    for column, (modality, given_names) in enumerate(names.items()):
        for position, name in enumerate(pairing.names):
            row = int(pairing.rows[position, column])
            assert (row >= 0) == (name in given_names) == bool(pairing.availability[position, column])
            assert row < 0 or given_names[row] == name
        lacking = [name for name in given_names if any(name not in other for other in names.values())]
        assert pairing.unpaired[modality] == sorted(lacking)
    everywhere = set.intersection(*(set(given_names) for given_names in names.values()))
    assert set(pairing.names[pairing.complete].tolist()) == everywhere
    assert all(any(row) for row in pairing.availability.tolist())
    assert f"{len(pairing.names)} clips, {len(everywhere)} of them in all" in str(pairing)


@given(lists, st.randoms())
def test_pairing_does_not_depend_on_order(names, random):
    shuffled = {modality: random.sample(given_names, len(given_names)) for modality, given_names in names.items()}
    first, second = pair(names), pair(shuffled)
    np.testing.assert_array_equal(first.names, second.names)
    np.testing.assert_array_equal(first.availability, second.availability)
    assert first.unpaired == second.unpaired


def test_names_twice_and_no_modality():
    with pytest.raises(SkelactError, match="rgb has clip a twice"):
        pair({"rgb": ["a", "b", "a"]})
    with pytest.raises(SkelactError, match="no modality"):
        pair({})


def test_stores_that_do_not_belong_together(tmp_path):
    write_store(tmp_path / "a", count=6)
    shifted = write_store(tmp_path / "b", count=6)
    pair_stores({"a": Store(tmp_path / "a"), "b": shifted})
    shifted.columns["label"] = (shifted.label + 1) % 3
    with pytest.raises(SkelactError, match=r"clip clip000 has different labels: \{'a': 0, 'b': 1\}"):
        pair_stores({"a": Store(tmp_path / "a"), "b": shifted})
    shifted.columns["label"] = np.full(6, -1)  # unknown is no contradiction
    pair_stores({"b": shifted, "a": Store(tmp_path / "a")})


def test_where_the_stores_lie(tmp_path):
    paths = media_paths(tmp_path / "x.y", {"rgb": {}, "depth": {}})
    assert paths == {"rgb": tmp_path / "x.y.rgb", "depth": tmp_path / "x.y.depth"}
    assert media_paths(tmp_path / "ntu60_energy", {"store": f"{tmp_path}/ntu60", "ir": {}}) == {
        "ir": tmp_path / "ntu60.ir"
    }


def test_a_dataset_whose_clips_have_different_modalities(tmp_path):
    write_utd_media(tmp_path / "raw", clips=((1, 1, 1), (27, 1, 1), (27, 8, 2)))
    write_utd(tmp_path / "raw")
    (tmp_path / "raw" / "RGB" / "a27_s1_t1_color.avi").unlink()
    media = {"inertial": {}, "depth": {}, "rgb": {}}
    assert open_modalities(tmp_path / "utd", media) == {}
    from skelact.data.readers.utd_mhad import UTDMHADReader

    prepare_dataset(UTDMHADReader(), tmp_path / "raw", tmp_path / "utd", progress=False)
    for name in media:
        prepare_dataset(UTDMedia(name), tmp_path / "raw", tmp_path / f"utd.{name}", progress=False)
    stores = open_modalities(tmp_path / "utd", media)
    assert list(stores) == ["skeleton", "inertial", "depth", "rgb"]
    assert not isinstance(stores["skeleton"], MediaStore) and isinstance(stores["rgb"], MediaStore)
    pairing = pair_stores(stores)
    assert len(pairing.names) == 32 and pairing.names[pairing.complete].tolist() == ["a1_s1_t1", "a27_s8_t2"]
    row = pairing.names.tolist().index("a27_s1_t1")
    assert pairing.availability[row].tolist() == [True, True, True, False]
    assert stores["inertial"].names[pairing.rows[row, 1]] == "a27_s1_t1"
    table = describe(stores)
    assert table.row_count == 4 and "32 clips, 2 in all" in str(table.title)
    (tmp_path / "utd.rgb" / "sizes.npy").unlink(missing_ok=True)
    (tmp_path / "utd.rgb" / "frames.npy").unlink()
    with pytest.raises(StoreError, match="missing"):
        open_modalities(tmp_path / "utd", media)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    from skelact.cli import main

    monkeypatch.setenv("SKELACT_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    write_utd_media(tmp_path / "raw", clips=((1, 1, 1), (27, 1, 1)))
    write_utd(tmp_path / "raw")

    def call(*arguments):
        code = main(list(arguments))
        text = capsys.readouterr()
        return code, text.out + text.err

    return call


def test_prepare_and_info(command, tmp_path):
    prepare = ("prepare", "data=utd_mhad", f"source={tmp_path / 'raw'}")
    code, text = command(*prepare)
    assert code == 0 and [path.name for path in (tmp_path / "data").iterdir() if path.is_dir()] == ["utd_mhad"]
    code, text = command(*prepare, "modalities=[inertial,rgb]", "data.media.rgb.size=12", "data.media.rgb.frames=5")
    assert code == 0 and "lacks 30 (a1_s1_t2, a1_s2_t1, a1_s2_t2, ...)" in text
    store = MediaStore(tmp_path / "data" / "utd_mhad.rgb")
    assert store.read(0).shape == (5, 12, 16, 3) and store.card["media"]["size"] == 12
    code, text = command(*prepare, "modalities=[depth]", f"target={tmp_path / 'mine'}")
    assert code == 0 and len(MediaStore(tmp_path / "mine.depth")) == 2
    code, text = command("info", "data=utd_mhad", "verify=true")
    assert code == 0 and "modalities: 32 clips, 2 in all, 30 in some" in text and "every byte fits" in text
    code, text = command("info")
    assert code == 0 and "utd_mhad.rgb" in text and "damaged" not in text
    content = bytearray((tmp_path / "data" / "utd_mhad.rgb" / "frames.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "data" / "utd_mhad.rgb" / "frames.npy").write_bytes(content)
    code, text = command("info", "data=utd_mhad")
    assert code != 0 and "utd_mhad.rgb" in text and "changed" in text and "Traceback" not in text


def test_prepare_all_leaves_out_what_is_not_there(command, tmp_path):
    shutil.rmtree(tmp_path / "raw" / "RGB")
    prepare = ("prepare", "data=utd_mhad", f"source={tmp_path / 'raw'}")
    code, text = command(*prepare, "modalities=all")
    assert code == 0 and "utd_mhad rgb: not in" in text and "2 of them in all of skeleton, inertial, depth" in text
    code, text = command(*prepare, "modalities=[rgb]")
    assert code != 0 and "utd_mhad rgb: no clips found" in text
    code, text = command(*prepare, "modalities=[ir]")
    assert code != 0 and "no modality ir; modalities=[skeleton,inertial,depth,rgb]" in text
    (tmp_path / "raw" / "Inertial" / "a1_s1_t1_inertial.mat").write_bytes(b"")
    code, text = command(*prepare, "modalities=[inertial]", "strict=true")
    assert code != 0 and "strict: 1 clips of inertial are damaged" in text
    assert len(MediaStore(tmp_path / "data" / "utd_mhad.inertial")) == 1
