from __future__ import annotations

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import open_dict

from skelact.data import embedded
from skelact.data.colour import jet_index
from skelact.data.embedded import open_media
from skelact.data.media import MediaStore
from skelact.data.modalities import pair_stores
from skelact.data.project import FOCAL, WIDTH
from skelact.data.readers.hdm05 import BONES, HDM05Reader
from skelact.data.render import INFRARED, LIMBS, NOISE, RenderedMedia, Surface, paint, trace
from skelact.data.simulate import HDM05ViewsReader, camera_generator, place_camera
from skelact.engine.build import build_data
from skelact.errors import SkelactError
from skelact.skeleton.layouts import get_layout

READER = HDM05ViewsReader()
ITEMS = READER.scan(None)
SIZE = (96, 128)


def _joints(item, frames=16):
    """Joints in the camera's frame, as rendered: `(T, 31, 3)` metres."""
    motion = HDM05Reader.read(READER, item).frames
    return place_camera(motion, camera_generator(item.name))[:frames, 0]


def _pixels(joints, size):
    """Row, column of the pixel that each joint is seen in."""
    focal = FOCAL * size[1] / WIDTH
    column = size[1] / 2 + focal * joints[..., 0] / joints[..., 2]
    row = size[0] / 2 - focal * joints[..., 1] / joints[..., 2]
    return np.floor(row).astype(int), np.floor(column).astype(int)


def _few(monkeypatch, step):
    """Only every so manyth clip of the set."""
    whole = HDM05ViewsReader.scan
    monkeypatch.setattr(HDM05ViewsReader, "scan", lambda self, source: whole(self, source)[::step])


@pytest.fixture(scope="module")
def seen():
    """Joints of some clips, their surfaces, and row, column of the joints inside the picture."""
    out = []
    for item in ITEMS[3::200]:
        joints = _joints(item)
        row, column = _pixels(joints, SIZE)
        inside = (row >= 0) & (row < SIZE[0]) & (column >= 0) & (column < SIZE[1]) & (joints[..., 2] > 0.5)
        out.append((joints, trace(joints, SIZE), row, column, inside))
    return out


def test_limbs_are_the_layouts_bones():
    layout = get_layout("hdm05_31")
    bones = {(BONES.index(far), BONES.index(near)) for far, near, _, _ in LIMBS}
    assert bones == {(a, b) for a, b in enumerate(layout.parents) if a != b and b >= 0}


def test_the_body_lies_where_the_joints_are(seen):
    for _, surface, row, column, inside in seen:
        frame, joint = np.nonzero(inside)
        assert inside.mean() > 0.5
        assert (surface.cover[frame, row[frame, joint], column[frame, joint]] >= 0).all()


def test_the_body_is_nowhere_else(seen):
    for joints, surface, row, column, inside in seen:
        thick = FOCAL * SIZE[1] / WIDTH * 0.13 / joints[..., 2].min() + 1
        for t in np.flatnonzero(inside.all(1)):
            rows, columns = np.nonzero(surface.cover[t] >= 0)
            assert row[t].min() - thick <= rows.min() and rows.max() <= row[t].max() + thick
            assert column[t].min() - thick <= columns.min() and columns.max() <= column[t].max() + thick


def test_depth_is_the_joints_less_a_limb(seen):
    radius = {far: r for far, _, r, _ in LIMBS}
    for joints, surface, row, column, inside in seen:
        frame, joint = np.nonzero(inside)
        depth = surface.depth[frame, row[frame, joint], column[frame, joint]]
        assert (depth < joints[frame, joint, 2] + 0.01).all()  # nothing is seen through the body
        in_front = joints[..., 2].argmin(1)
        for t in range(len(joints)):
            j = in_front[t]
            if inside[t, j]:  # the nearest joint has nothing before it but its limbs
                gap = joints[t, j, 2] - surface.depth[t, row[t, j], column[t, j]]
                assert -0.01 <= gap <= max(radius.values()) + 0.01


def test_what_is_nearer_hides_what_is_farther():
    joints = np.zeros((1, 31, 3)) + np.array([0, 0, 4.0])
    alone = trace(joints)
    joints[0, BONES.index("lfingers")] = (0, 0, 2.0)  # a hand held towards the camera
    surface = trace(joints)
    middle = (0, 24, 32)
    assert surface.depth[middle] == pytest.approx(2.0 - 0.03, abs=0.02) and surface.cover[middle] == 0
    assert alone.depth[middle] == pytest.approx(4.0 - 0.13, abs=0.02)
    np.testing.assert_allclose(np.linalg.norm(surface.normal[surface.cover >= 0], axis=-1), 1, atol=1e-5)


def test_behind_the_camera_is_in_no_picture():
    assert (trace(np.zeros((2, 31, 3)) + np.array([0, 0, -2.0])).cover == -1).all()


def test_pictures_follow_their_rules():
    shape = (1, 40, 40)
    normal = np.broadcast_to(np.array([0, 0, -1.0], np.float32), (*shape, 3))
    surfaces = [Surface(np.full(shape, z, np.float32), np.full(shape, 1, np.int8), normal) for z in (3.0, 6.0)]
    near, far = (paint(surface, "ir", "x", "bd").mean() for surface in surfaces)
    assert near == pytest.approx(4 * far, rel=0.05) and 0.3 * INFRARED / 9 < near < 0.9 * INFRARED / 9
    depth = paint(surfaces[0], "depth", "x", "bd")
    assert depth.dtype == np.uint16 and depth.mean() == pytest.approx(3000, abs=1)
    assert depth.std() == pytest.approx(NOISE["depth"], rel=0.1)
    nobody = Surface(np.full(shape, np.inf, np.float32), np.full(shape, -1, np.int8), 0 * normal)
    assert (paint(nobody, "depth", "x", "bd") == 0).all() and paint(nobody, "ir", "x", "bd").mean() < 50
    rgb = [paint(surfaces[0], "rgb", name, subject) for name, subject in (("x", "bd"), ("x", "mm"), ("y", "bd"))]
    assert all(image.shape == (*shape, 3) and image.dtype == np.uint8 for image in rgb)
    assert np.abs(rgb[0].mean((0, 1, 2)) - rgb[1].mean((0, 1, 2))).max() > 10  # other clothes


@pytest.mark.parametrize("modality", ["rgb", "depth", "ir"])
def test_clips_depend_on_their_name_alone(modality):
    first, again = RenderedMedia(modality, frames=4), RenderedMedia(modality, frames=4)
    item = first.scan(None)[7]
    again.read(again.scan(None)[100])
    assert first.read(item).frames == again.read(item).frames
    other = first.read(first.scan(None)[8])  # the same motion from another place
    assert other.frames != first.read(item).frames


def test_pictures_are_paired_with_the_skeletons_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(
        HDM05ViewsReader, "scan", lambda self, source, scan=HDM05ViewsReader.scan: scan(self, source)[::90]
    )
    stores = {"skeleton": embedded.open_store(tmp_path / "s", "hdm05_rendered")}
    for modality in ("rgb", "depth", "ir"):
        stores[modality] = open_media(tmp_path / f"s.{modality}", "hdm05_rendered", modality)
    pairing = pair_stores(stores)
    assert len(pairing.complete) == len(stores["skeleton"]) == 10
    assert stores["skeleton"].columns.keys() == stores["rgb"].columns.keys()
    for modality, store in stores.items():
        if modality != "skeleton":
            assert isinstance(store, MediaStore) and store.card["source"].startswith("RENDERED")
            assert store.card["splits"] == stores["skeleton"].card["splits"]
            images = store.images(0)
            assert images.shape == (16, 48, 64, 3) and images.std() > 3
    clip = RenderedMedia("depth", encoding="raw")
    row = stores["depth"].names.tolist().index(ITEMS[0].name)
    np.testing.assert_array_equal(stores["depth"].read(row), clip.read(ITEMS[0]).frames)  # png loses nothing


def test_depth_is_stored_as_the_published_index():
    reader = RenderedMedia("depth", frames=3, encoding="raw")
    item = ITEMS[20]
    joints = place_camera(HDM05Reader.read(READER, item).frames, camera_generator(item.name))[:, 0]
    total = len(joints)
    chosen = joints[[total // 6, total // 2, 5 * total // 6]]
    depth = paint(trace(chosen), "depth", item.name, str(item.columns["subject"]))
    np.testing.assert_array_equal(reader.read(item).frames[..., 0], np.stack([jet_index(frame) for frame in depth]))


def test_other_sizes_keep_what_is_seen():
    small, large = (trace(_joints(ITEMS[0], 4), size).cover >= 0 for size in ((48, 64), (96, 128)))
    share = large.reshape(4, 48, 2, 64, 2).mean((2, 4))
    assert small[share == 1].mean() > 0.99 and small[share == 0].mean() < 0.01
    assert RenderedMedia("rgb", size=24, frames=1, encoding="raw").read(ITEMS[0]).frames.shape == (1, 24, 32, 3)
    with pytest.raises(SkelactError, match="four thirds"):
        RenderedMedia("rgb", size=[48, 48])


def test_the_set_works_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        HDM05ViewsReader, "scan", lambda self, source, scan=HDM05ViewsReader.scan: scan(self, source)[::45]
    )
    with initialize_config_module("skelact.conf", version_base="1.3"):
        node = compose("config", overrides=["data=hdm05_rendered", f"paths.data={tmp_path}", "name=t"]).data
    with open_dict(node):
        node.pop("reader"), node.pop("media")
        node.num_workers = 0
    module = build_data(node)
    batch = next(iter(module.batches("test")))
    assert batch.modalities == ("skeleton", "rgb", "depth", "ir") and batch.available.all()
    for name in ("rgb", "depth", "ir"):
        part = batch.parts[name]
        assert part.values.shape == (len(batch), 8, 3, 48, 64) and part.mask.all()
