from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from skelact.data.prepare import prepare_dataset
from skelact.data.readers.base import DamagedClip
from skelact.data.readers.nw_ucla import NWUCLAReader
from skelact.data.splits import resolve
from skelact.data.store import Store

from ..conftest import shared
from ..originals import write_ucla


def test_reads_what_was_written(tmp_path):
    write_ucla(tmp_path / "all_sqe")
    reader = NWUCLAReader()
    items = reader.scan(tmp_path)
    assert len(items) == 12
    for item in items:
        content = json.loads(item.path.read_text())
        clip = reader.read(item)
        np.testing.assert_array_equal(clip.frames[:, 0], np.array(content["skeletons"], np.float32))
        assert clip.mask is None and item.label == content["label"] - 1
        stem = item.name
        numbers = (int(stem[at : at + 2]) for at in (1, 5, 9, 13))
        assert item.columns == dict(zip(("action", "subject", "repetition", "camera"), numbers, strict=True))


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (lambda c: c["skeletons"][1][3].__setitem__(2, float("nan")), "frame 1, joint head: "),
        (lambda c: c["skeletons"][1].pop(), "frame 1: is not 20 joints"),
        (lambda c: c["skeletons"][1].__setitem__(0, "x"), "frame 1: is not 20 joints"),
        (lambda c: c.__setitem__("skeletons", []), "holds no frame"),
        (lambda c: c.__setitem__("skeletons", 7), "holds no frame"),
        (lambda c: c.__setitem__("label", 9), "do not agree"),
        (lambda c: c.pop("label"), "lacks"),
    ],
)
def test_damage_is_placed(tmp_path, damage, place):
    path = write_ucla(tmp_path)[0]
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    reader = NWUCLAReader()
    with pytest.raises(DamagedClip, match=place) as caught:
        reader.read(reader.scan(tmp_path)[0])
    assert path.name in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_names_outside_the_scheme_and_duplicates_are_reported(tmp_path):
    paths = write_ucla(tmp_path / "raw")
    (tmp_path / "raw" / "notes.json").write_text("{}")
    (tmp_path / "raw" / "a01_s01_e00_v01(1).json").write_bytes(paths[0].read_bytes())
    (tmp_path / "raw" / f"{paths[0].stem}.JSON").write_bytes(paths[0].read_bytes())
    (tmp_path / "raw" / "._a01_s01_e00_v01.json").write_text("")  # what one system leaves in archives is no clip
    (tmp_path / "raw" / "list.txt").write_text("")
    report = prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / "s", progress=False)
    found = {path.rsplit("/", 1)[-1]: reason for path, _, reason in report.skipped}
    assert report.clips == 12 and len(found) == 3
    assert "does not follow the scheme aAA_sSS_eEE_vVV.json" in found["notes.json"]
    assert "does not follow" in found["a01_s01_e00_v01(1).json"]
    assert any("second file of the clip" in reason for reason in found.values())


@pytest.mark.parametrize("number", ["1e39", "9" * 400, "9" * 5000, "[" * 100_000])
def test_numbers_and_nesting_beyond_all_measure(tmp_path, number):
    path = write_ucla(tmp_path)[0]
    content = json.loads(path.read_text())
    content["skeletons"][1][3][2] = "HERE"
    path.write_text(json.dumps(content).replace('"HERE"', number))
    report = prepare_dataset(NWUCLAReader(), tmp_path, tmp_path / "s", progress=False)
    assert report.clips == 11 and report.skipped[0][0].endswith(path.name)


def test_text_damage_has_line_and_byte(tmp_path):
    path = write_ucla(tmp_path)[0]
    reader = NWUCLAReader()
    item = reader.scan(tmp_path)[0]
    path.write_text(path.read_text()[:100])
    with pytest.raises(DamagedClip, match="line 1 column"):
        reader.read(item)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DamagedClip, match="byte 7"):
        reader.read(item)


def test_unknown_action(tmp_path):
    path = write_ucla(tmp_path)[0]
    path.rename(tmp_path / "a07_s01_e00_v01.json")
    reader = NWUCLAReader()
    item = next(item for item in reader.scan(tmp_path) if item.name.startswith("a07"))
    with pytest.raises(DamagedClip, match="action 7"):
        reader.read(item)


@pytest.mark.data
def test_the_real_set(tmp_path):
    source = shared("nw_ucla")
    report = prepare_dataset(NWUCLAReader(), source, tmp_path / "s", strict=True, progress=False)
    assert (report.clips, report.frames) == (1484, 58534)
    store = Store(tmp_path / "s")
    assert store.length.min() == 1 and (store.length == 1).sum() == 2
    parts = resolve(store, "xview")
    for part, file in (("train+val", "xview_train.txt"), ("test", "xview_test.txt")):
        assert set(store.names[parts[part]]) == set((source / file).read_text().split())
    assert len(parts["train+val"]) == 1020 and len(parts["test"]) == 464
