from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from skelact.data.colour import jet_index
from skelact.data.media import MediaStore
from skelact.data.modalities import pair_stores
from skelact.data.prepare import prepare_dataset
from skelact.data.readers.media_multiview import NWUCLAMedia, UWA3DMedia
from skelact.data.readers.media_ntu import NTUMedia
from skelact.data.readers.media_utd import UTDMedia
from skelact.data.readers.nw_ucla import NWUCLAReader
from skelact.data.splits import SplitRule
from skelact.data.store import Store
from skelact.errors import SkelactError

from ..conftest import shared
from ..pictures import (
    cut,
    depth,
    numbers,
    picture,
    write_folder,
    write_ntu,
    write_ucla_folders,
    write_utd_media,
    write_uwa,
    write_video,
)  # fmt: skip


def _store(reader, source, target):
    report = prepare_dataset(reader, source, target, strict=True, progress=False)
    return MediaStore(report.target)


def test_ntu_videos_and_folders(tmp_path):
    clips = write_ntu(tmp_path / "raw")
    rgb = _store(NTUMedia("rgb", frames=None), tmp_path / "raw", tmp_path / "rgb")
    ir = _store(NTUMedia("ir", frames=None), tmp_path / "raw", tmp_path / "ir")
    deep = _store(NTUMedia("depth", frames=None), tmp_path / "raw", tmp_path / "depth")
    assert rgb.names.tolist() == deep.names.tolist() == clips and ir.names.tolist() == clips[:2]
    assert rgb.length.tolist() == [12, 13, 14] and ir.length.tolist() == [13, 13]  # they may differ by a few
    assert numbers(rgb.read(1)) == list(range(13)) and numbers(ir.read(0)) == list(range(13))
    for number in (0, 7):
        np.testing.assert_array_equal(deep.read(0)[number, ..., 0], jet_index(depth(number)))
    assert rgb.columns["setup"].tolist() == [1, 1, 1] and rgb.columns["action"].tolist() == [1, 2, 3]


def test_ntu_frames_as_actionmae_extracts_them(tmp_path):
    folder = tmp_path / "nturgb+d_rgb_s001" / "frames" / "S001C001P001R001A001_rgb"
    write_folder(folder, [f"output{n:04d}.png" for n in range(1, 13)])
    assert numbers(_store(NTUMedia("rgb", frames=3), tmp_path, tmp_path / "s").read(0)) == [2, 6, 10]


def test_ntu_full_and_masked_depth_under_one_folder(tmp_path):
    clip = write_ntu(tmp_path / "raw", count=1)[0]
    full = tmp_path / "raw" / "nturgb+d_depth_s001" / "nturgb+d_depth" / clip
    write_folder(full, [f"Depth-{n + 1:08d}.png" for n in range(5)], deep=True)
    masked = _store(NTUMedia("depth", frames=None), tmp_path / "raw", tmp_path / "masked")
    assert masked.length.tolist() == [12]
    assert _store(NTUMedia("depth", frames=None, masked=False), tmp_path / "raw", tmp_path / "full").length[0] == 5


def test_ntu_coloured_depth(tmp_path):
    write_folder(tmp_path / "raw" / "S001C001P001R001A001", ["MDepth-00000001.png", "MDepth-00000002.png"])
    store = _store(NTUMedia("depth", colour="rgb"), tmp_path / "raw", tmp_path / "s")
    assert store.images(0).shape == (2, 24, 32, 3) and numbers(store.images(0)) == [0, 1]


def test_ntu_set_ups_and_names(tmp_path, store):
    for name in ("S017C001P001R001A060", "S018C001P008R001A061", "S018C001P008R001A001"):
        write_video(tmp_path / "raw" / f"{name}_rgb.avi", 3)
    early = NTUMedia("rgb", classes=60)
    assert [item.name for item in early.scan(tmp_path / "raw")] == ["S017C001P001R001A060"]
    assert early.notes == ["2 clips of set-ups 18..32 are not part of NTU RGB+D 60, left out"]
    items = NTUMedia("rgb", classes=120).scan(tmp_path / "raw")
    assert [item.damage is None for item in items] == [True, False, True]  # action 1 was never taken in set-up 18
    write_video(tmp_path / "raw" / "clip003_rgb.avi", 3)  # not even like a clip
    listed = NTUMedia("rgb", classes=120, names=str(store.path))
    assert listed.scan(tmp_path / "raw") != [] and "2 clips are not in" in listed.notes[0]
    early = NTUMedia("rgb", classes=120, names=str(tmp_path / "none"))
    assert len(early.scan(tmp_path / "raw")) == 3 and "there is no skeleton store" in early.notes[0]
    (store.path / "clips.npz").write_bytes(b"")
    with pytest.raises(SkelactError, match="cannot be read"):
        listed.scan(tmp_path / "raw")


def test_ntu_official_list(tmp_path):
    from skelact.data.readers.ntu_protocols import missing_skeletons

    name = min(missing_skeletons())
    write_video(tmp_path / f"{name}_rgb.avi", 3)
    reader = NTUMedia("rgb")
    assert reader.scan(tmp_path) == [] and "1 clips are on the official list" in reader.notes[0]
    assert [item.name for item in NTUMedia("rgb", missing="keep").scan(tmp_path)] == [name]
    with pytest.raises(SkelactError, match="official or keep"):
        NTUMedia("rgb", missing="no")


def test_ntu_folder_of_its_own(tmp_path):
    write_video(tmp_path / "elsewhere" / "S001C001P001R001A001_rgb.avi", 3)
    reader = NTUMedia("rgb", folder=str(tmp_path / "elsewhere"))
    assert len(reader.scan(tmp_path / "nowhere")) == 1
    with pytest.raises(SkelactError, match="does not exist"):
        NTUMedia("rgb", folder=str(tmp_path / "not")).scan(tmp_path)


def test_nw_ucla(tmp_path):
    write_ucla_folders(tmp_path / "raw")
    rgb = _store(NWUCLAMedia("rgb", frames=None), tmp_path / "raw", tmp_path / "rgb")
    deep = _store(NWUCLAMedia("depth", frames=None), tmp_path / "raw", tmp_path / "depth")
    # 8, 9, 10, 11, 99, 100, 101: as text 100 would come first
    assert numbers(rgb.read(0)) == list(range(7)) and len(deep.read(0)) == 6
    assert rgb.names.tolist() == ["a01_s01_e00_v01", "a12_s10_e03_v03"] and rgb.label.tolist() == [0, 9]
    assert rgb.columns["camera"].tolist() == [1, 3]
    assert not deep.read(0).any()  # frames of one value: the published recipe divides by zero
    prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / "s", strict=True, progress=False)
    skeleton = Store(tmp_path / "s")
    pairing = pair_stores({"skeleton": skeleton, "rgb": rgb, "depth": deep})
    assert pairing.availability.all() and skeleton.length.tolist() == [7, 7]
    rule = SplitRule.from_dict(skeleton.card["splits"]["xview"])
    assert rule.parts(rgb.columns)["test"].tolist() == [1]  # the skeletons' rules fit the other modalities


def test_nw_ucla_depth_of_16_bit(tmp_path):
    folder = tmp_path / "raw" / "view_1" / "a01_s01_e00"
    write_folder(folder, ["frame_2_tc_7_depth.png", "frame_10_tc_9.5_depth.png"], deep=True)
    store = _store(NWUCLAMedia("depth", depth="depth", encoding="png"), tmp_path / "raw", tmp_path / "s")
    np.testing.assert_array_equal(store.read(0)[..., 0], [jet_index(depth(0)), jet_index(depth(1))])
    with pytest.raises(SkelactError, match="depth is depth_vis or depth"):
        NWUCLAMedia("depth", depth="deep")


def test_uwa3d(tmp_path):
    write_uwa(tmp_path / "raw")
    rgb = _store(UWA3DMedia("rgb", encoding="jpeg"), tmp_path / "raw", tmp_path / "rgb")
    deep = _store(UWA3DMedia("depth", encoding="png"), tmp_path / "raw", tmp_path / "depth")
    assert rgb.read(0).shape == (5, 24, 32, 3) and deep.read(0).shape == (4, 24, 32, 1)
    assert deep.images(0).shape == (4, 24, 32, 3) and numbers(deep.images(0)) == [0, 1, 2, 3]  # grey, not jet
    pairing = pair_stores({"rgb": rgb, "depth": deep})
    assert pairing.unpaired == {"rgb": ["a30_s10_v04_e01"], "depth": []}
    assert pairing.availability.tolist() == [[True, True], [True, False]]
    below = _store(UWA3DMedia("rgb"), tmp_path / "raw" / "UWA3DII_RGB", tmp_path / "below")
    assert len(below) == 2
    assert UWA3DMedia("depth").scan(tmp_path / "raw" / "UWA3DII_RGB") == []
    Image.fromarray(depth(0)).save(tmp_path / "raw/UWA3DII_Depth_ROI/UWA3D-Depth/a01_s01_v01_e00/001.png")
    report = prepare_dataset(
        UWA3DMedia("depth", frames=None, colour="jet"), tmp_path / "raw", tmp_path / "jet", progress=False
    )
    assert report.clips == 1


def test_utd(tmp_path):
    write_utd_media(tmp_path / "raw")
    stores = {
        name: _store(UTDMedia(name, frames=4), tmp_path / "raw", tmp_path / name)
        for name in ("inertial", "depth", "rgb")
    }
    assert pair_stores(stores).availability.all()
    assert stores["inertial"].length.tolist() == [31, 32, 57] and stores["inertial"].read(0).shape == (31, 6)
    assert stores["depth"].read(0).shape == (4, 24, 32, 1) and numbers(stores["rgb"].read(2)) == [2, 7, 12, 17]
    np.testing.assert_array_equal(stores["depth"].read(0)[1, ..., 0], jet_index(depth(7)))
    assert stores["inertial"].card["channels"][3] == "gyro_x" and stores["inertial"].fps == 50


def test_utd_damage(tmp_path):
    from scipy.io import savemat

    write_utd_media(tmp_path / "raw", clips=[(k, 1, 1) for k in range(1, 9)])
    inertial, deep = tmp_path / "raw" / "Inertial", tmp_path / "raw" / "Depth"
    cut(inertial / "a1_s1_t1_inertial.mat", 0.5)
    savemat(inertial / "a2_s1_t1_inertial.mat", {"other": 1})
    savemat(inertial / "a3_s1_t1_inertial.mat", {"d_iner": np.zeros((5, 5))})
    savemat(inertial / "a4_s1_t1_inertial.mat", {"d_iner": np.full((5, 6), np.nan)})
    savemat(inertial / "a5_s1_t1_inertial.mat", {"d_iner": "text"})
    savemat(inertial / "a28_s1_t1_inertial.mat", {"d_iner": np.zeros((5, 6))})
    report = prepare_dataset(UTDMedia("inertial"), tmp_path / "raw", tmp_path / "i", progress=False)
    assert report.clips == 3 and len(report.skipped) == 6
    for reason in ("not a whole MATLAB", "no variable d_iner", r"expected (T, 6)", "row 0", "action 28"):
        assert reason in str(report)
    savemat(deep / "a1_s1_t1_depth.mat", {"d_depth": np.zeros((4, 4, 0))})
    savemat(deep / "a2_s1_t1_depth.mat", {"d_depth": np.full((24, 32, 3), -1.0)})
    savemat(deep / "a3_s1_t1_depth.mat", {"d_depth": np.full((24, 32, 3), np.inf)})
    savemat(deep / "a4_s1_t1_depth.mat", {"d_depth": depth(1)})  # MATLAB drops the last axis
    report = prepare_dataset(UTDMedia("depth"), tmp_path / "raw", tmp_path / "d", progress=False)
    assert report.clips == 5 and len(report.skipped) == 3
    assert MediaStore(tmp_path / "d").length.tolist() == [1, 16, 16, 16, 16]


def test_names_outside_the_schemes(tmp_path):
    write_ucla_folders(tmp_path / "ucla")
    write_folder(tmp_path / "ucla" / "view_1" / "a1_s1_e0", ["1.png"])
    write_uwa(tmp_path / "uwa")
    write_folder(tmp_path / "uwa" / "UWA3DII_RGB" / "UWA3D-RGB" / "a01_s01_e00_v01", ["1.jpg"])
    write_utd_media(tmp_path / "utd")
    for name in ("a1_s1_inertial.mat", "a01_s1_t1_inertial.mat"):
        (tmp_path / "utd" / "Inertial" / name).write_bytes(b"")
    for reader, folder, bad in (
        (NWUCLAMedia("rgb"), "ucla", 1), (NWUCLAReader(), "ucla", 1), (UWA3DMedia("rgb"), "uwa", 1),
        (UTDMedia("inertial"), "utd", 2),
    ):  # fmt: skip
        reasons = [item.damage[1] for item in reader.scan(tmp_path / folder) if item.damage is not None]
        assert len(reasons) == bad and "does not follow the scheme a" in "".join(reasons)
    assert [item.name for item in UTDMedia("inertial").scan(tmp_path / "utd" / "Inertial") if item.damage is None] == [
        "a1_s1_t1", "a2_s1_t1", "a27_s8_t4",
    ]  # fmt: skip


def test_folders_behind_links(tmp_path):
    write_ntu(tmp_path / "disk", count=2)
    (tmp_path / "raw").mkdir()
    for number in (1, 2):
        (tmp_path / "raw" / f"link{number}").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "disk", target_is_directory=True)
    items = NTUMedia("depth").scan(tmp_path / "raw")
    assert len(items) == 2 and all(item.damage is None for item in items)


def test_utd_packed_depth(tmp_path):
    frames = np.stack([[depth(n) for n in range(16)]] * 2)
    frames[1] += 100
    keys = {"action": [1, 27], "subject": [2, 8], "trial": [1, 4]}
    np.savez_compressed(tmp_path / "depth16_60x80.npz", depth=frames, **keys)
    store = _store(UTDMedia("depth", frames=8), tmp_path, tmp_path / "s")
    assert store.names.tolist() == ["a1_s2_t1", "a27_s8_t4"] and store.length.tolist() == [8, 8]
    np.testing.assert_array_equal(store.read(1)[0, ..., 0], jet_index(frames[1, 1]))
    np.savez_compressed(tmp_path / "depth16_60x80.npz", depth=frames[0], **keys)
    with pytest.raises(SkelactError, match="is not depth"):
        UTDMedia("depth").scan(tmp_path)
    cut(tmp_path / "depth16_60x80.npz", 0.5)
    with pytest.raises(SkelactError, match="cannot be read"):
        UTDMedia("depth").scan(tmp_path)


@pytest.mark.data
def test_the_real_set(tmp_path):
    source = shared("utd_mhad")
    inertial = _store(UTDMedia("inertial"), source, tmp_path / "inertial")
    deep = _store(UTDMedia("depth"), source, tmp_path / "depth")
    assert (len(inertial), len(deep), deep.shape) == (861, 861, (861 * 16, 60, 80, 1))
    assert (int(inertial.length.min()), int(inertial.length.max())) == (107, 326)
    assert pair_stores({"inertial": inertial, "depth": deep}).availability.all()
    standing = np.linalg.norm(inertial.read(0)[:, :3], axis=1)
    assert 0.8 < np.median(standing) < 1.3  # gravity, in g
    with np.load(source / "depth16_60x80.npz") as content:
        np.testing.assert_array_equal(deep.read(500)[9, ..., 0], jet_index(content["depth"][500, 9]))


def test_a_frame_that_vanishes_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path / "raw" / "S001C001P001R001A001_rgb", ["1.png", "2.png"])
    reader = NTUMedia("rgb", encoding="png")
    item = reader.scan(tmp_path / "raw")[0]
    from skelact.data.readers import media
    from skelact.data.readers.base import DamagedClip, read_or_damage

    real = media.numbered_files

    def vanishing(*arguments):
        files = real(*arguments)
        files[1].unlink()
        return files

    monkeypatch.setattr(media, "numbered_files", vanishing)
    outcome = read_or_damage(reader, item)
    assert isinstance(outcome, DamagedClip) and outcome.path.endswith("2.png") and "No such file" in outcome.reason


def test_pictures_are_told_apart():
    assert numbers(np.stack([picture(n) for n in (0, 5, 31)])) == [0, 5, 31]
