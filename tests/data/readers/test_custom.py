from __future__ import annotations

import re

import numpy as np
import pytest
import yaml

from skelact.data.datamodules import SkeletonDataModule
from skelact.data.prepare import prepare_dataset
from skelact.data.readers.base import DamagedClip
from skelact.data.readers.custom import CustomReader
from skelact.data.store import Store
from skelact.errors import SkelactError
from skelact.skeleton.layouts import get_layout

STICK = {
    "name": "stick",
    "joints": ["hip", "chest", "left_hand", "right_hand"],
    "bones": [["chest", "hip"], ["left_hand", "chest"], ["right_hand", "chest"]],
    "mirror": [["left_hand", "right_hand"]],
    "parts": {"torso": ["hip", "chest"], "left_arm": ["left_hand"], "right_arm": ["right_hand"]},
    "shoulders": ["left_hand", "right_hand"],
}


@pytest.fixture
def folder(tmp_path):
    """Six clips in every format, one of a single frame, and a layout file."""
    root = tmp_path / "mine"
    (root / "clips").mkdir(parents=True)
    draw = np.random.default_rng(0)
    lines = ["name,file,label,subject,room,split"]
    clips = {}
    for k, suffix in enumerate(["npy", "npz", "csv", "npy", "csv", "npz"]):
        frames = draw.standard_normal((1 if k == 3 else 4 + k, 4, 3)).astype(np.float32)
        path = root / "clips" / f"c{k}.{suffix}"
        if suffix == "npy":
            np.save(path, frames)
        elif suffix == "npz":
            np.savez(path, frames=frames[:, None])
        else:
            heading = ["hip_x,hip_y,hip_z" + ",v" * 9] if k == 2 else []
            rows = [",".join(repr(float(v)) for v in frame.ravel()) for frame in frames]
            path.write_text("\n".join(heading + rows) + "\n")
        clips[f"clip {k}"] = frames
        part = ("train", "train", "val", "test", "test", "train")[k]
        lines.append(f"clip {k},clips/c{k}.{suffix},{'wave' if k % 2 else 'bow'},{k},lab,{part}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "stick.yaml").write_text(yaml.safe_dump(STICK))
    return root, clips


def test_every_format_arrives(folder, tmp_path):
    root, clips = folder
    report = prepare_dataset(CustomReader(str(tmp_path / "stick.yaml")), root, tmp_path / "s", progress=False)
    assert report.clips == 6 and report.skipped == []
    store = Store(tmp_path / "s")
    for row, (name, frames) in enumerate(clips.items()):
        assert store.names[row] == name
        np.testing.assert_array_equal(store.clips().clip(row)[:, 0].numpy(), frames)
    assert store.class_names == ["bow", "wave"] and store.columns["subject"].tolist() == list(range(6))
    assert store.columns["room"].tolist() == ["lab"] * 6
    assert get_layout(store.card["layout"]) == get_layout(STICK)
    module = SkeletonDataModule(str(tmp_path / "s"), "default", layout=str(tmp_path / "stick.yaml"), normalize="front")
    assert {part: module.size(part) for part in ("train", "val", "test")} == {"train": 3, "val": 1, "test": 2}
    assert sum(len(batch) for batch in module.batches("train+val")) == 4


def _reader(**options):
    return CustomReader(STICK, **options)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.replace("label", "class"), "lacks the column label"),
        (lambda t: t.replace("room", "start"), "column start"),
        (lambda t: "", "lacks the column name, file, label"),
    ],
)
def test_a_wrong_table_is_refused(folder, change, reason):
    root, _ = folder
    path = root / "clips.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(SkelactError, match=reason):
        _reader().scan(root)


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        (lambda t: t.replace("clip 4", "clip 1"), 6, "name 'clip 1' was given in line 3"),
        (lambda t: t.replace("clips/c1.npz", "../../secret.npy"), 3, "file .* lies outside"),
        (lambda t: t.replace("clips/c1.npz", "/etc/hosts"), 3, "file .* lies outside"),
        (lambda t: t.replace("clips/c1.npz", "c" * 5000), 3, "is missing|file name too long|cannot be a file's name"),
        (lambda t: t.replace("clips/c1.npz", ""), 3, "file is empty"),
        (lambda t: t.replace("bow,0,lab", "bow,0"), 2, "has more or fewer fields"),
        (lambda t: t.replace("bow,0,lab", "bow,0,lab,1"), 2, "has more or fewer fields"),
    ],
)
def test_a_wrong_row_is_skipped_and_counted_with_its_line(folder, tmp_path, change, line, reason):
    root, _ = folder
    path = root / "clips.csv"
    path.write_text(change(path.read_text()))
    report = prepare_dataset(_reader(), root, tmp_path / "s", progress=False)
    ((file, where, found),) = report.skipped
    assert report.clips == 5 and re.search(reason, found, re.IGNORECASE), found
    assert (file.endswith("clips.csv") and where == f"line {line}") or "ccc" in file


def test_options_are_checked(folder):
    root, _ = folder
    wrong = [item.damage for item in _reader(class_names=["wave"]).scan(root) if item.damage]
    assert [where for where, _ in wrong] == ["line 2", "line 4", "line 6"]
    assert all(reason == "label 'bow' is not one of wave" for _, reason in wrong)
    with pytest.raises(SkelactError, match="missing='zero'"):
        _reader(missing="zero")
    with pytest.raises(SkelactError, match="channels=7"):
        _reader(channels=7)
    (root / "clips.csv").unlink()
    with pytest.raises(SkelactError, match=r"has no clips\.csv"):
        _reader().scan(root)


def test_labels_sort_as_numbers_where_they_are(folder):
    root, _ = folder
    path = root / "clips.csv"
    path.write_text(path.read_text().replace("wave", "10").replace("bow", "9"))
    reader = _reader()
    assert [item.label for item in reader.scan(root)][:2] == [0, 1]
    assert reader.card([])["class_names"] == ["9", "10"]


def _read(root, name, **options):
    reader = _reader(**options)
    return reader.read(next(item for item in reader.scan(root) if item.name == name))


def test_pickles_that_would_run_code_are_refused(folder, tmp_path):
    root, _ = folder

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.save(root / "clips" / "c0.npy", np.array([Bomb()], object), allow_pickle=True)
    np.savez(root / "clips" / "c1.npz", frames=np.array([Bomb()], object))
    report = prepare_dataset(_reader(), root, tmp_path / "s", progress=False)
    assert report.clips == 4 and all("run code" in reason for _, _, reason in report.skipped)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("c2.csv", "1,2,3\n", "shape"),
        ("c2.csv", "h\n", "no frame"),
        ("c2.csv", "", "no frame"),
        ("c2.csv", "1,2\n1,x\n", "line 2: 'x' is not a number"),
        ("c2.csv", "1,2\n1,2,3\n", "line 2: has 3 fields"),
        ("c2.csv", ",".join(["1"] * 11 + ["inf"]), "frame 0, joint right_hand: .*finite"),
        ("c2.csv", ",".join(["1"] * 11 + [""]), "frame 0, joint right_hand: .*finite"),
        ("c2.csv", b"\xff\xfe\x00", "not a CSV"),
        ("c0.npy", b"", "cannot be read"),
        ("c0.npy", b"\x93NUMPY", "cannot be read"),
        ("c1.npz", b"PK\x03\x04", "cannot be read"),
    ],
)
def test_damage_is_placed(folder, file, content, reason):
    root, _ = folder
    (root / "clips" / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DamagedClip, match=rf"(?s){file}.*{reason}"):
        _read(root, f"clip {file[1]}")


def test_missing_and_odd_files(folder):
    root, _ = folder
    (root / "clips" / "c0.npy").unlink()
    with pytest.raises(DamagedClip, match="is missing"):
        _read(root, "clip 0")
    table = root / "clips.csv"
    table.write_text(table.read_text().replace("c4.csv", "c4.bvh"))
    (root / "clips" / "c4.bvh").write_text("")
    with pytest.raises(DamagedClip, match=r"ending '\.bvh'"):
        _read(root, "clip 4")
    np.savez(root / "clips" / "c1.npz", data=np.zeros(3))
    with pytest.raises(DamagedClip, match="no array 'frames'"):
        _read(root, "clip 1")
    np.save(root / "clips" / "c3.npy", np.array(["a"]))
    with pytest.raises(DamagedClip, match="not numbers"):
        _read(root, "clip 3")


def test_nan_as_unobserved_only_when_asked_for(folder, tmp_path):
    root, clips = folder
    frames = clips["clip 0"].copy()
    frames[1, 2] = np.nan
    np.save(root / "clips" / "c0.npy", frames)
    with pytest.raises(DamagedClip, match="frame 1, joint left_hand"):
        _read(root, "clip 0")
    clip = _read(root, "clip 0", missing="nan")
    assert not clip.mask[1, 0, 2] and clip.mask.sum() == clip.mask.size - 1 and (clip.frames[1, 0, 2] == 0).all()
    report = prepare_dataset(_reader(missing="nan"), root, tmp_path / "s", progress=False)
    assert report.clips == 6 and Store(tmp_path / "s").mask is not None
    np.save(root / "clips" / "c0.npy", np.full_like(frames, np.nan))
    with pytest.raises(DamagedClip, match="no joint was observed"):
        _read(root, "clip 0", missing="nan")
    frames[1, 2] = np.inf
    np.save(root / "clips" / "c0.npy", frames)
    with pytest.raises(DamagedClip, match="finite"):
        _read(root, "clip 0", missing="nan")


def test_a_mask_beside_the_frames(folder):
    root, clips = folder
    mask = np.ones((5, 4), bool)
    mask[0, 3] = False
    np.savez(root / "clips" / "c1.npz", frames=clips["clip 1"], mask=mask)
    clip = _read(root, "clip 1", missing="nan")
    np.testing.assert_array_equal(clip.mask[:, 0], mask)
    with pytest.raises(DamagedClip, match="missing=nan"):
        _read(root, "clip 1")
    np.savez(root / "clips" / "c1.npz", frames=clips["clip 1"], mask=mask[:2])
    with pytest.raises(DamagedClip, match="mask: has shape"):
        _read(root, "clip 1", missing="nan")


def test_empty_person_slots_are_masked(folder, tmp_path):
    root, clips = folder
    pair = np.stack([clips["clip 0"], clips["clip 0"] + 1], axis=1)
    np.save(root / "clips" / "c0.npy", pair)
    prepare_dataset(_reader(persons=2), root, tmp_path / "s", progress=False)
    clips_ = Store(tmp_path / "s").clips()
    assert clips_.clip_mask(0).all() and clips_.clip(0).shape[1] == 2
    assert clips_.clip_mask(1)[:, 0].all() and not clips_.clip_mask(1)[:, 1].any()
    with pytest.raises(DamagedClip, match="shape"):
        _read(root, "clip 0", persons=1)


def test_scores_are_a_channel(folder):
    root, clips = folder
    np.save(root / "clips" / "c0.npy", np.concatenate([clips["clip 0"], np.ones((4, 4, 1))], axis=-1))
    reader = _reader(channels=4)
    assert reader.channels == ("x", "y", "z", "score")
    assert reader.read(reader.scan(root)[0]).frames.shape == (4, 1, 4, 4)
