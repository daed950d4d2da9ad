"""MotionBERT's and pyskl's own outputs, read back through files in the form of pyskl."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skelact.data.readers.pyskl import PysklReader
from skelact.data.readers.pyskl_poses import scale_points
from skelact.skeleton import convert

from ..pyskl_files import write

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "maskclr" / "pose2d.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture
def source(golden, tmp_path):
    notes = [
        {
            "frame_dir": f"S001C001P001R{i + 1:03d}A{int(golden[f'raw{i}_label']) + 1:03d}",
            "label": int(golden[f"raw{i}_label"]),
            "img_shape": tuple(golden[f"raw{i}_img_shape"].tolist()),
            "total_frames": golden[f"raw{i}_keypoint"].shape[1],
            "keypoint": golden[f"raw{i}_keypoint"],
            "keypoint_score": golden[f"raw{i}_score"],
        }
        for i in range(4)
    ]
    names = [note["frame_dir"] for note in notes]
    return write(tmp_path / "set.pkl", {"split": {"train": names[:2], "val": names[2:]}, "annotations": notes})


def clips(source, **options):
    reader = PysklReader("poses", **options)
    return [reader.read(item) for item in reader.scan(source)]


def test_pixel_normalisation(golden, source):
    for i, clip in enumerate(clips(source, coordinates="motionbert", repair="none")):
        want = golden[f"raw{i}_cam"]
        np.testing.assert_allclose(clip.frames[:, : len(want), :, :2].swapaxes(0, 1), want, atol=2e-6)
        assert clip.mask is None and (clip.frames[:, len(want) :] == 0).all()


def test_half_precision_input_gives_the_single_precision_result(golden):
    keypoint = golden["raw0_keypoint"]
    np.testing.assert_array_equal(
        scale_points(keypoint, 1080, 1920, "motionbert"), scale_points(keypoint.astype("f4"), 1080, 1920, "motionbert")
    )


def test_identity_repair(golden, source):
    found = clips(source, coordinates="motionbert")
    for i, clip in enumerate(found):
        want = golden[f"raw{i}_tracked"]
        np.testing.assert_allclose(clip.frames[:, : len(want), :, :2].swapaxes(0, 1), want, atol=2e-6)
        scores = golden[f"raw{i}_score"].astype(np.float32)  # as released they stay in their slots
        np.testing.assert_array_equal(clip.frames[:, : len(scores), :, 2].swapaxes(0, 1), scores)
    assert not np.array_equal(golden["raw1_tracked"], golden["raw1_cam"])  # one clip does need it
    corrected = clips(source, coordinates="motionbert", repair="corrected")[1].frames
    np.testing.assert_array_equal(corrected[..., :2], found[1].frames[..., :2])
    score = golden["raw1_score"].astype(np.float32)
    np.testing.assert_array_equal(corrected[20:33, ..., 2].swapaxes(0, 1), score[::-1, 20:33])
    np.testing.assert_array_equal(corrected[:20, ..., 2].swapaxes(0, 1), score[:, :20])


def test_joint_conversion(golden):
    for i in range(4):
        out, _ = convert(golden[f"raw{i}_tracked"], "coco17", "h36m17")
        np.testing.assert_allclose(out, golden[f"raw{i}_h36m"], atol=2e-6)


def test_from_the_file_to_the_stored_clip_of_the_released_code(golden, source):
    found = clips(source, coordinates="motionbert")
    for i in (0, 1, 3):
        frames, _ = convert(found[i].frames, "coco17", "h36m17", score_channel=True, scores="as_released")
        rows = golden[f"resample_det_{len(frames)}_to_40"]
        np.testing.assert_allclose(frames[rows].swapaxes(0, 1), golden[f"raw{i}_motion_eval40"], atol=2e-6)


def test_ntu_tracks_of_pyskl(tmp_path):
    with np.load(GOLDEN / "ntu_preprocess" / "pyskl.npz", allow_pickle=False) as arrays:
        want = {name: arrays[name] for name in arrays.files}
    assert len(want) == 8 and {array.dtype.name for array in want.values()} == {"float16"}
    notes = [
        {"frame_dir": name, "label": int(name[-3:]) - 1, "keypoint": array, "total_frames": array.shape[1]}
        for name, array in want.items()
    ]
    reader = PysklReader("ntu120_3danno", layout="ntu25")
    items = reader.scan(write(tmp_path / "ntu.pkl", {"split": {}, "annotations": notes}))
    assert [item.name for item in items] == list(want) and reader.persons == 2 and not reader.notes
    for item in items:
        clip, array = reader.read(item), want[item.name]
        people, frames = array.shape[:2]
        assert clip.frames.shape == (frames, 2, 25, 3) and clip.frames.dtype == np.float32
        np.testing.assert_array_equal(clip.frames[:, :people], array.swapaxes(0, 1).astype(np.float32))
        there = (array != 0).any(axis=(2, 3)).T
        np.testing.assert_array_equal(clip.mask[:, :people], np.repeat(there[..., None], 25, -1))
        assert not clip.mask[:, people:].any()
