from __future__ import annotations

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

from skelact.data.prepare import prepare_dataset
from skelact.data.readers.base import DamagedClip
from skelact.data.readers.utd_mhad import UTDMHADReader
from skelact.data.splits import resolve
from skelact.data.store import Store
from skelact.skeleton.layouts import get_layout

from ..conftest import shared
from ..originals import write_utd


def test_reads_what_was_written(tmp_path):
    write_utd(tmp_path)
    reader = UTDMHADReader()
    items = reader.scan(tmp_path)
    assert len(items) == 32 and [items[0].name, items[-1].name] == ["a1_s1_t1", "a27_s8_t2"]
    assert {item.label for item in items} == {0, 26}
    skeleton = loadmat(items[3].path)["d_skel"]
    frames = reader.read(items[3]).frames
    assert frames.shape == (7, 1, 20, 3)
    joints = get_layout("kinect20").joints
    # file order: 0 head, 1 shoulder centre, 2 spine, 3 hip centre, then the same
    for position, row in ((0, 3), (1, 2), (2, 1), (3, 0), (4, 4), (19, 19)):
        np.testing.assert_array_equal(
            frames[:, 0, position], skeleton[row].T.astype(np.float32), err_msg=joints[position]
        )


def _rewrite(path, skeleton):
    savemat(path, {"d_skel": skeleton} if skeleton is not None else {"other": 1})


@pytest.mark.parametrize(
    ("skeleton", "place"),
    [
        (None, "no variable d_skel"),
        (np.zeros((20, 3, 0)), "expected numbers"),
        (np.zeros((3, 20, 5)), "expected numbers"),
        (np.zeros((20, 3, 5, 2)), "expected numbers"),
        (csc_array(np.eye(20, 3)), "expected numbers"),
        (np.array([["x"]]), "expected numbers"),
        (np.full((20, 3, 4), 1e39), "frame 0, joint [a-z_]{3,}: "),
        (np.where(np.arange(5) == 2, np.nan, np.zeros((20, 3, 5))), "frame 2, joint [a-z_]{3,}: "),
    ],
)
def test_damage_is_placed(tmp_path, skeleton, place):
    write_utd(tmp_path)
    reader = UTDMHADReader()
    item = reader.scan(tmp_path)[0]
    _rewrite(item.path, skeleton)
    with pytest.raises(DamagedClip, match=place):
        reader.read(item)


@pytest.mark.parametrize("keep", [0, 60, 200, 400])
def test_a_file_cut_short(tmp_path, keep):
    write_utd(tmp_path)
    reader = UTDMHADReader()
    item = reader.scan(tmp_path)[0]
    item.path.write_bytes(item.path.read_bytes()[:keep])
    with pytest.raises(DamagedClip, match=item.path.name):
        reader.read(item)
    report = prepare_dataset(reader, tmp_path, tmp_path / "s", progress=False)
    assert report.clips == 31 and len(report.skipped) == 1


def test_names_outside_the_scheme_and_duplicates_are_reported(tmp_path):
    folder = write_utd(tmp_path / "raw") / "Skeleton"
    content = (folder / "a1_s1_t1_skeleton.mat").read_bytes()
    for name in ("a01_s1_t1_skeleton", "a1_s1_skeleton", "a1_s1_t9_inertial", "a28_s1_t1_skeleton"):
        (folder / f"{name}.mat").write_bytes(content)
    report = prepare_dataset(UTDMHADReader(), tmp_path / "raw", tmp_path / "s", progress=False)
    found = {path.rsplit("/", 1)[-1].removesuffix("_skeleton.mat"): reason for path, _, reason in report.skipped}
    assert report.clips == 32 and set(found) == {"a1_s1_t1", "a1_s1", "a28_s1_t1"}
    assert "second file of the clip in a01_s1_t1_skeleton.mat" in found["a1_s1_t1"]
    assert "scheme aA_sS_tT_skeleton.mat" in found["a1_s1"] and "action 28" in found["a28_s1_t1"]


def test_a_clip_of_one_frame(tmp_path):
    write_utd(tmp_path)
    reader = UTDMHADReader()
    item = reader.scan(tmp_path)[0]
    _rewrite(item.path, np.ones((20, 3)))  # MATLAB drops the last axis
    assert reader.read(item).frames.shape == (1, 1, 20, 3)


@pytest.mark.data
def test_the_real_set(tmp_path):
    report = prepare_dataset(UTDMHADReader(), shared("utd_mhad"), tmp_path / "s", strict=True, progress=False)
    assert (report.clips, report.frames) == (861, 58299)
    parts = resolve(Store(tmp_path / "s"), "xsub")
    assert len(parts["train+val"]) == 431 and len(parts["test"]) == 430
    head, hip = 3, 0
    frames = Store(tmp_path / "s").frames
    assert (frames[:, 0, head, 1] - frames[:, 0, hip, 1]).mean() > 0.4  # the head is above the hips: order is right
