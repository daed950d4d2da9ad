"""The ASF and AMC reader, on one original motion and on written ones."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from skelact.data.prepare import prepare_dataset
from skelact.data.readers.acclaim import read_amc, read_asf
from skelact.data.readers.base import DamagedClip
from skelact.data.readers.hdm05 import BONES, HDM05Reader
from skelact.data.simulate import HDM05ViewsReader
from skelact.data.store import Store
from skelact.errors import SkelactError

from ..conftest import shared

GOLDEN = Path(__file__).parents[2] / "golden" / "hdm05"
NAME = "HDM_bk_hopBothLegs1hops_020_120"

ASF = """\
:version 1.10
:units
  length 0.5
  angle deg
:root
  order TX TY TZ RX RY RZ
  axis XYZ
  position 0 0 0
  orientation 0 0 0
:bonedata
  begin
    id 1
    name thigh
    direction 0 -1 0
    length 2
    axis 10 20 30 XYZ
    dof rx ry rz
    limits (-160.0 20.0)
           (-70.0 70.0)
           (-60.0 70.0)
  end
  begin
    id 2
    name shank
    direction 0.6 -0.8 0
    length 1.5
    axis 0 0 20 ZYX
    dof rx rz
  end
  begin
    id 3
    name spine
    direction 0 1 0
    length 1
    axis 0 0 0 XYZ
  end
:hierarchy
  begin
    root thigh spine
    thigh shank
  end
"""
AMC = """\
#!OML:ASF C:\\somewhere.ASF
:FULLY-SPECIFIED
:DEGREES
1
root 1 2 3 10 -20 30
thigh 5 -6 7
shank 40 -3e+001
2
root 1.5 2 3 0 0 90
thigh 0 0 0
shank 0 0
"""


@pytest.fixture
def original(tmp_path):
    """A folder with one of HDM05's own skeletons and one motion."""
    (tmp_path / "raw").mkdir()
    for path in GOLDEN.glob("*.xz"):
        (tmp_path / "raw" / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return tmp_path / "raw"


def test_positions_of_an_original_motion(original):
    skeleton = read_asf(original / "HDM_bk.asf")
    assert skeleton.names == BONES
    joints = skeleton.positions(read_amc(original / f"{NAME}.amc", skeleton))
    with np.load(GOLDEN / "joints.npz") as golden:
        np.testing.assert_allclose(joints, golden["joints"], atol=2e-5)  # inch; the golden ones are float32


def test_a_store_of_original_texts(original, tmp_path):
    report = prepare_dataset(HDM05Reader(), original, tmp_path / "s", strict=True, progress=False)
    embedded = HDM05Reader()
    want = next(embedded.read(item).frames for item in embedded.scan(None) if item.name == NAME)
    store = Store(tmp_path / "s")
    assert report.clips == 1 and store.class_names[int(store.label[0])] == "hopBothLegs1hops"
    assert store.columns["subject"].tolist() == ["bk"] and store.columns["take"].tolist() == [20]
    # equal but for roundings of the float32 in between
    np.testing.assert_allclose(store.frames, want, atol=2.6e-4)
    assert (store.frames == want).mean() > 0.999


def _written(folder, asf=ASF, amc=AMC):
    (folder / "x.asf").write_text(asf)
    (folder / "x.amc").write_text(amc)
    return folder / "x.asf", folder / "x.amc"


def test_positions_by_hand(tmp_path):
    asf, amc = _written(tmp_path)
    skeleton = read_asf(asf)
    assert skeleton.names == ("root", "thigh", "shank", "spine") and skeleton.parents == (0, 0, 1, 0)
    joints = skeleton.positions(read_amc(amc, skeleton))

    def turn(order, *angles):
        return Rotation.from_euler(order, angles, degrees=True).as_matrix()  # lower case: about fixed axes, in order

    def local(order, axis, angles):
        frame = turn(order, *axis)
        return frame @ turn(order, *angles) @ frame.T

    for frame, (root, pelvis, thigh, shank) in enumerate(
        [((1, 2, 3), (10, -20, 30), (5, -6, 7), (-30, 0, 40)), ((1.5, 2, 3), (0, 0, 90), (0, 0, 0), (0, 0, 0))]
    ):
        whole = turn("xyz", *pelvis)
        upper = whole @ local("xyz", (10, 20, 30), thigh)
        lower = upper @ local("zyx", (20, 0, 0), shank)
        knee = 2 * np.array(root) + upper @ [0, -4, 0]
        want = [2 * np.array(root), knee, knee + lower @ [1.8, -2.4, 0], 2 * np.array(root) + whole @ [0, 2, 0]]
        np.testing.assert_allclose(joints[frame], want, atol=1e-12)


def test_radians_order_of_bones_and_line_ends_do_not_matter(tmp_path):
    asf, amc = _written(tmp_path)
    skeleton = read_asf(asf)
    want = read_amc(amc, skeleton)
    lines = AMC.splitlines()
    lines[8:11] = [lines[10], lines[8], lines[9]]  # the second frame lists its bones otherwise
    amc.write_bytes("\r\n".join(lines).encode())
    np.testing.assert_array_equal(read_amc(amc, skeleton)[0], want[0])
    amc.write_text(AMC.replace(":DEGREES", ":RADIANS"))
    np.testing.assert_allclose(read_amc(amc, skeleton)[:, 3:] * np.pi / 180, want[:, 3:])


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda t: t[:40], "holds no frame"),
        (lambda t: t.replace("shank 40", "shank x"), "line 7: bone shank needs 2 numbers"),
        (lambda t: t.replace("shank 40", "shank 40 1"), "line 7: bone shank needs 2 numbers"),
        (lambda t: t.replace("thigh 5", "thing 5"), "line 6: 'thing' is no moving bone"),
        (lambda t: t.replace("thigh 5", "shank 1 2\nthigh 5"), "line 8: bone shank is given twice in frame 1"),
        (lambda t: t.replace("\n2\n", "\n3\n"), "line 8: frame 3 follows frame 1"),
        (lambda t: t[: t.rindex("shank")], "line 11: frame 2 ends without shank"),
        (lambda t: t.replace("thigh 5 -6 7\n", ""), "line 7: frame 1 ends without thigh"),
    ],
)
def test_damaged_motions_are_placed(tmp_path, change, place):
    asf, amc = _written(tmp_path, amc=change(AMC))
    with pytest.raises(DamagedClip, match=rf"x\.amc.*{place}"):
        read_amc(amc, read_asf(asf))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda t: "", "0 bones"),
        (lambda t: t.replace("length 0.5", "length 0"), "division by zero"),
        (lambda t: t.replace("length 0.5", "length"), "line 3"),
        (lambda t: t.replace("dof rx rz", "dof rx rx"), "degrees of freedom"),
        (lambda t: t.replace("ZYX", "ZYZ"), "axis order"),
        (lambda t: t.replace("thigh shank", "hip shank"), "does not hang on the root|hip"),
        (lambda t: t.replace("name spine", "name shank"), "3 bones, 2 names"),
        (lambda t: t.replace("direction 0 1 0", "direction 0 nan 0"), "nan is not a finite"),
        (lambda t: t.replace("direction 0 1 0", "direction 0 1"), "not an ASF"),
    ],
)
def test_damaged_skeletons_are_placed(tmp_path, change, place):
    asf, _ = _written(tmp_path, asf=change(ASF))
    with pytest.raises(DamagedClip, match=rf"x\.asf.*({place})"):
        read_asf(asf)


def test_what_a_folder_of_originals_may_hold(original, tmp_path):
    text = (original / f"{NAME}.amc").read_bytes()
    (original / "cut").mkdir()
    for name in (
        f"cut/{NAME}.amc",
        "cut/HDM_bk_squat1Reps_001_100.amc",
        "cut/HDM_zz_squat1Reps_001_120.AMC",
        "cut/HDM_bk_cartwheelLHandStart1Reps_001_120.amc",
        "cut/squat.amc",
        "HDM_bk_squat1Reps_002_120.amc",
    ):
        (original / name).write_bytes(text)
    (original / "cut" / "HDM_bk.asf").write_text("broken")
    (original / "cut" / "HDM_bk_squat1Reps_003_120.amc").write_bytes(text)
    reader = HDM05Reader()
    report = prepare_dataset(reader, original, tmp_path / "s", progress=False)
    assert report.clips == 2 and list(reader.notes) == ["1 motions of 1 other classes left out"]
    assert sorted(reason.split(" ")[0] for *_, reason in report.skipped) == ["100", "is", "is", "its", "there"]
    assert any("cut/HDM_bk.asf" in path and "ASF" in reason for path, _, reason in report.skipped)  # the nearest counts
    views = prepare_dataset(HDM05ViewsReader(), original, tmp_path / "v", progress=False)
    assert views.clips == 6 and len(views.skipped) == 4 + 3  # each camera of the motion whose skeleton is broken
    with pytest.raises(SkelactError, match=r"neither hdm05_11_joints\.npz nor motion texts"):
        HDM05Reader().scan(tmp_path / "s")


@pytest.mark.data
def test_all_originals_against_the_table(tmp_path):
    import tarfile

    source = shared("hdm05_11")
    with tarfile.open(source / "amc.tar.xz") as archive:
        archive.extractall(tmp_path / "raw", filter="data")
    for path in source.glob("*.asf"):
        (tmp_path / "raw" / path.name).write_bytes(path.read_bytes())
    prepare_dataset(HDM05Reader(), tmp_path / "raw", tmp_path / "a", strict=True, progress=False)
    prepare_dataset(HDM05Reader(), source, tmp_path / "b", strict=True, progress=False)
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    assert a.names.tolist() == b.names.tolist() and a.label.tolist() == b.label.tolist() and len(a.names) == 288
    difference = np.abs(np.asarray(a.frames) - np.asarray(b.frames))
    assert difference.max() < 2.6e-4 and (difference > 0).mean() < 1e-3
