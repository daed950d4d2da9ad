from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from skelact.data.prepare import prepare_dataset
from skelact.data.readers.base import DamagedClip, Item
from skelact.data.readers.nw_ucla import NWUCLAReader
from skelact.data.readers.uwa3d import SPLITS, UWA3DReader
from skelact.data.splits import resolve
from skelact.data.store import Store
from skelact.errors import SkelactError
from skelact.skeleton.layouts import get_layout

from ..pictures import write_ucla_folders

NAME = "a03_s02_v04_e01"


def _body(frames=4, seed=0):
    """`(T, 15, 3)` millimetres of somebody about 1.7 m tall, 2.5 m away."""
    draw = np.random.default_rng(seed)
    height = np.array([800, 600, 300, 550, 350, 150, 550, 350, 150, 0, -450, -900, 0, -450, -900])
    body = np.stack([draw.normal(0, 100, 15), height, draw.normal(2500, 50, 15)], axis=1)
    return (body + draw.normal(0, 5, (frames, 15, 3))).round(3)


def _text(body, comma=True, wide=True, number=False, confidence=False, heading=False):
    lines = ["x y z heading"] if heading else []
    mark = "," if comma else "  "
    for k, frame in enumerate(body):
        joints = [[*joint, 1.0] if confidence else list(joint) for joint in frame.tolist()]
        if wide:
            row = [value for joint in joints for value in joint]
            lines.append(mark.join(str(v) for v in ([k + 1] if number else []) + row))
        else:
            lines += [str(k + 1)] if number else []
            lines += [mark.join(str(value) for value in joint) for joint in joints]
    return "\n".join(lines) + "\n"


def _read(path, text=None, **options):
    if text is not None:
        path.write_text(text)
    reader = UWA3DReader(**options)
    items = reader.scan(path.parent)
    return reader.read(items[0])


@settings(max_examples=40, deadline=None)
@given(*(st.booleans() for _ in range(5)), st.integers(1, 5))
def test_every_text_form(tmp_path_factory, comma, wide, number, confidence, heading, frames):
    body = _body(frames)
    text = _text(body, comma, wide, number, confidence, heading)
    clip = _read(tmp_path_factory.mktemp("uwa") / f"{NAME}.txt", text)
    np.testing.assert_allclose(clip.frames[:, 0], body / 1000, atol=1e-6)
    assert clip.mask.all() and clip.mask.shape == (frames, 1, 15)


@pytest.mark.parametrize("frames", [1, 3, 45])
@pytest.mark.parametrize("form", ["flat", "flat turned", "joints", "turned"])
def test_matlab_forms(tmp_path, form, frames):
    body = _body(frames)
    values = {
        "flat": body.reshape(frames, 45), "flat turned": body.reshape(frames, 45).T,
        "joints": body.transpose(2, 1, 0), "turned": body.transpose(1, 2, 0),
    }[form]  # fmt: skip
    if frames == 45 and form == "flat turned":
        return  # cannot be told from its counterpart, which is the published reading
    if frames == 1 and values.ndim == 3:
        values = values[..., 0]  # MATLAB drops a last axis of length 1
    savemat(tmp_path / "a03_s02_e01_v04.mat", {"A": values})
    np.testing.assert_allclose(_read(tmp_path / "a03_s02_e01_v04.mat").frames[:, 0], body / 1000, atol=1e-6)


def test_matlab_73(tmp_path):
    h5py = pytest.importorskip("h5py")
    body = _body(6)
    with h5py.File(tmp_path / "a03_s02_e01_v04.mat", "w", userblock_size=512) as content:
        content["A"] = body.reshape(6, 45)
    np.testing.assert_allclose(_read(tmp_path / "a03_s02_e01_v04.mat").frames[:, 0], body / 1000, atol=1e-6)
    whole = (tmp_path / "a03_s02_e01_v04.mat").read_bytes()
    (tmp_path / "a03_s02_e01_v04.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedClip, match=r"MATLAB 7\.3"):
        _read(tmp_path / "a03_s02_e01_v04.mat")


def test_matlab_73_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "a03_s02_e01_v04.mat").write_bytes(bytes(512) + b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(SkelactError, match=r"pip install .skelact.hdf5"):
        UWA3DReader().scan(tmp_path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda text: text[: len(text) // 2].rsplit("\n", 1)[0], "line 29: the last frame is not whole: 29 rows"),
        (lambda text: text.replace(text.split("\n")[20], "1,2,three"), "line 21: holds something"),
        (lambda text: text.replace(text.split("\n")[20], "1,2"), "line 21: has 2 numbers"),
        (lambda text: text.replace(text.split("\n")[20], "1,2,nan"), "frame 1, joint left_hand: "),
        (lambda text: "", "holds no numbers"),
        (lambda text: "1,2,3,4,5\n" * 15, "line 1: has 5 numbers"),
        (lambda text: "\n".join(",".join("0" for _ in line.split(",")) for line in text.splitlines()), "nobody"),
        (lambda text: ",".join(["1.5"] * 50), "line 1: has 50 numbers"),
        (lambda text: text + "\xff", "is not text"),
    ],
)
def test_damage_is_placed(tmp_path, change, place):
    text = change(_text(_body(), wide=False))
    (tmp_path / f"{NAME}.txt").write_text(text, encoding="latin1")
    with pytest.raises(DamagedClip, match=rf"{NAME}.*{place}"):
        _read(tmp_path / f"{NAME}.txt")


def test_a_wrong_unit_is_refused(tmp_path):
    with pytest.raises(DamagedClip, match=r"0\.00.* m large"):
        _read(tmp_path / f"{NAME}.txt", _text(_body() / 1000))
    frames = _read(tmp_path / f"{NAME}.txt", unit="m").frames
    np.testing.assert_allclose(frames[:, 0], _body() / 1000, atol=1e-5)
    with pytest.raises(SkelactError, match="mm or m"):
        UWA3DReader(unit="inch")


def test_frames_without_anybody_are_masked(tmp_path):
    body = _body(4)
    body[2] = 0
    clip = _read(tmp_path / f"{NAME}.txt", _text(body))
    assert clip.mask[:, 0, 0].tolist() == [True, True, False, True]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mutated_text_never_crashes(tmp_path_factory, data):
    content = bytearray(_text(_body(2), wide=data.draw(st.booleans())).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"{NAME}.txt"
    path.write_bytes(content)
    try:
        clip = UWA3DReader().read(Item(NAME, path, 2))
    except DamagedClip as error:
        assert NAME in str(error)
    else:
        assert clip.frames.shape[1:] == (1, 15, 3) and np.isfinite(clip.frames).all()


def test_a_whole_set(tmp_path):
    folder = tmp_path / "raw" / "ActionsSkeleton"
    folder.mkdir(parents=True)
    for view in range(1, 5):
        for subject in (1, 9):
            (folder / f"a01_s{subject:02d}_v{view:02d}_e00.txt").write_text(_text(_body(3, view)))
    (folder / "a01_s01_e00_v01.txt").write_text(_text(_body(3)))  # the same clip in the other order of its name
    (folder / "a31_s01_v01_e00.txt").write_text(_text(_body(3)))
    report = prepare_dataset(UWA3DReader(), tmp_path / "raw", tmp_path / "s", progress=False)
    assert report.clips == 8 and "is also" in str(report) and "action 31" in str(report)
    store = Store(tmp_path / "s")
    assert get_layout(store.card["layout"]).num_joints == 15 and len(store.card["splits"]) == len(SPLITS) == 13
    parts = resolve(store, "xview_12_3")
    assert [len(parts[part]) for part in ("train", "val", "test")] == [2, 2, 2]
    assert store.columns["camera"][parts["test"]].tolist() == [3, 3]
    parts = resolve(store, "actionmae")
    assert [len(parts[part]) for part in ("train+val", "test")] == [4, 4]
    assert set(store.columns["camera"][parts["test"]].tolist()) == {1, 2}


def test_nw_ucla_original_folders(tmp_path):
    write_ucla_folders(tmp_path / "raw")
    folder = tmp_path / "raw" / "view_1" / "a01_s01_e00"
    reader = NWUCLAReader()
    item = reader.scan(tmp_path / "raw")[0]
    clip = reader.read(item)
    assert reader.masked and clip.frames.shape == (7, 1, 20, 3)
    assert clip.mask[:, 0, 0].tolist() == [False] + [True] * 6  # nobody in the first
    np.testing.assert_allclose(clip.frames[1:, 0, 3], [[0.03, 0.1 * k, 2.5] for k in range(1, 7)], atol=1e-6)
    second = next(folder.glob("frame_9_*_skeletons.txt"))
    two = second.read_text().splitlines()
    second.write_text("\n".join(two + ["9,9,9,1"] * 20))
    np.testing.assert_array_equal(reader.read(item).frames, clip.frames)  # of two people the first counts
    for content, place in (
        ("\n".join(two[:-3]), r"_skeletons\.txt: is not 20 rows of 4"),
        ("\n".join(two).replace("2.5", "x"), r"_skeletons\.txt: holds something"),
        ("\n".join(two).replace("2.5", "inf"), "frame 1, joint hip_center"),
    ):
        second.write_text(content)
        with pytest.raises(DamagedClip, match=place):
            reader.read(item)
    for path in folder.glob("*_skeletons.txt"):
        path.write_text("0 0\n")
    with pytest.raises(DamagedClip, match="nobody is seen"):
        reader.read(item)
    report = prepare_dataset(reader, tmp_path / "raw", tmp_path / "s", progress=False)
    assert report.clips == 1 and Store(tmp_path / "s").mask is not None
