from __future__ import annotations

import numpy as np
import pytest
import torch

from skelact.data import project
from skelact.data.datamodules import SkeletonDataModule
from skelact.data.prepare import prepare_dataset
from skelact.data.project import (
    DECAY,
    ERROR,
    FOCAL,
    HEIGHT,
    WIDTH,
    HDM052DReader,
    NWUCLA2DReader,
    UTDMHAD2DReader,
    detect,
)
from skelact.data.simulate import HDM05ViewsReader
from skelact.data.splits import resolve
from skelact.data.store import Store
from skelact.errors import SkelactError
from skelact.skeleton.layouts import get_layout

from .originals import write_ucla, write_utd

TORSO = (0, 1)


def _points(frames=400, joints=20, depth=3.0, seed=0):
    """Joints within a metre of the optical axis; joints 0 and 1 half a metre above each other."""
    points = np.random.RandomState(seed).uniform(-0.7, 0.7, (frames, 1, joints, 3))
    points[:, :, 0], points[:, :, 1] = (0, -0.25, 0), (0, 0.25, 0)
    return points + np.array([0, 0, depth])


def _pixels(frames):
    return frames[..., :2].astype(np.float64) * WIDTH / 2 + (WIDTH / 2, HEIGHT / 2)


def test_without_errors_it_is_a_pinhole_camera(monkeypatch):
    monkeypatch.setattr(project, "ERROR", 0.0)
    points = _points()
    frames, mask = detect(points, "x", TORSO)
    u = 320 + FOCAL * points[..., 0] / points[..., 2]
    v = 240 - FOCAL * points[..., 1] / points[..., 2]
    inside = (u > 0) & (u < 640) & (v > 0) & (v < 480)
    assert mask.sum() > 0.9 * inside.sum() and not mask[~inside].any()
    np.testing.assert_allclose(_pixels(frames)[mask], np.stack([u, v], -1)[mask], atol=0.126)
    assert frames[0, 0, 1, 1] < frames[0, 0, 0, 1]  # what is above has the smaller y


def test_confidence_tells_the_error():
    points = _points(frames=4000, joints=6)
    frames, mask = detect(points, "y", TORSO)
    truth = np.array([320, 240]) + FOCAL * points[..., :2] * (1, -1) / points[..., 2:]
    miss = (_pixels(frames) - truth)[mask]
    confidence = frames[..., 2][mask].astype(np.float64)
    assert (confidence > 0).all() and (confidence < 1).all()
    spread = ERROR * (-np.log(confidence) / DECAY) * FOCAL * 0.5 / 3.0
    assert np.std(miss / spread[:, None]) == pytest.approx(1.0, abs=0.03)
    assert np.median(confidence) == pytest.approx(np.exp(-DECAY), abs=0.02)
    level = -np.log(np.where(mask[:, 0, 0], frames[:, 0, 0, 2], np.nan))
    ahead = np.stack([level[1:], level[:-1]])
    assert np.corrcoef(ahead[:, np.isfinite(ahead).all(0)])[0, 1] > 0.8  # sees the same joint badly for a while


def test_what_is_lost_is_zero_and_unobserved():
    points = _points()
    points[3:5, 0, 7, 2] = -1.0  # behind the camera
    points[3:5, 0, 8] = 0.0  # nothing there
    points[5, 0, 9] = (5.0, 0.0, 2.0)  # beside the image
    seen = np.ones(points.shape[:3], bool)
    seen[10] = False
    frames, mask = detect(points, "z", TORSO, seen)
    assert not mask[3:5, 0, 7:9].any() and not mask[5, 0, 9] and not mask[10].any()
    assert (frames[~mask] == 0).all() and np.isfinite(frames).all()
    np.testing.assert_array_equal(frames[..., 2] != 0, mask)


def test_half_precision_keeps_the_pixels():
    frames, mask = detect(_points(), "h", TORSO)
    pixels = _pixels(frames)[mask]
    np.testing.assert_allclose(pixels * 4, np.rint(pixels * 4), atol=1e-3)


def test_clips_depend_on_set_and_name_alone():
    items = HDM052DReader().scan(None)
    one, again = (HDM052DReader().read(items[5]) for _ in range(2))
    np.testing.assert_array_equal(one.frames, again.frames)
    other = detect(_points(), "a:clip", TORSO)[0]
    assert not np.array_equal(other, detect(_points(), "b:clip", TORSO)[0])


def test_hdm05_has_the_cameras_of_its_depth_views(monkeypatch):
    monkeypatch.setattr(project, "ERROR", 0.0)
    item = HDM052DReader().scan(None)[4]
    views = HDM05ViewsReader().scan(None)[4]
    assert (item.name, dict(item.columns)) == (views.name, dict(views.columns))
    flat, deep = HDM052DReader().read(item), HDM05ViewsReader().read(views)
    both = flat.mask & deep.mask
    # its joints carry 3 cm of noise: some 6 to 9 pixels
    expected = np.array([320, 240]) + FOCAL * deep.frames[..., :2] * (1, -1) / np.maximum(deep.frames[..., 2:], 0.1)
    assert both.mean() > 0.7 and np.abs(_pixels(flat.frames) - expected)[both].mean() < 10


@pytest.mark.parametrize("reader", [UTDMHAD2DReader(), NWUCLA2DReader(), HDM052DReader()], ids=lambda r: r.name)
def test_cards_say_that_nothing_here_was_detected(reader):
    items = reader.scan(None) if reader.name == "hdm05_2d" else []
    card = reader.card(items)
    assert card["name"] == reader.name == reader.name.removesuffix("_2d") + "_2d"
    assert card["source"].startswith("SIMULATED 2D poses") and "simulated" in card["unit"]
    layout = get_layout(card["layout"])
    assert (layout.dims, layout.up, card["channels"]) == (2, "-y", ["x", "y", "score"])
    low, high = (layout.joints[joint] for joint in reader.torso)
    assert (low, high) in {("hip_center", "shoulder_center"), ("root", "thorax")}


@pytest.mark.parametrize(("reader", "write"), [(UTDMHAD2DReader, write_utd), (NWUCLA2DReader, write_ucla)])
def test_sets_are_prepared_from_the_files_of_the_3d_sets(reader, write, tmp_path):
    write(tmp_path / "source")
    prepare_dataset(reader(), tmp_path / "source", tmp_path / "store", progress=False)
    store = Store(tmp_path / "store")
    clips = store.clips(np.arange(len(store)), residence="ram")
    assert clips.frames.shape[1:] == (1, 20, 3) and clips.mask.shape[1:] == (1, 20)
    assert 0.5 < clips.frames[..., 2][clips.mask].mean() < 1 and (clips.frames[~clips.mask] == 0).all()
    assert resolve(store, next(iter(store.card["splits"])))["test"].size


def test_frozen():
    """Published numbers hang on these values."""
    frames, mask = detect(_points(frames=40), "frozen", TORSO)
    assert int(mask.sum()) == FROZEN_SEEN
    np.testing.assert_allclose(frames[0, 0, 2], FROZEN_JOINT, atol=1e-6)


FROZEN_SEEN = 736
FROZEN_JOINT = [-0.0515625, -0.265625, 0.85400390625]


def test_confidences_can_be_left_in_the_store(tmp_path):
    store = tmp_path / "store"
    write_utd(tmp_path / "files")
    prepare_dataset(UTDMHAD2DReader(), tmp_path / "files", store, progress=False)
    plain = SkeletonDataModule(str(store), "xsub", scores="none", channels=2)
    (bare,), (whole,) = plain.batches("train"), SkeletonDataModule(str(store), "xsub").batches("train")
    assert plain.num_channels == 2
    assert torch.equal(bare.frames, whole.frames[..., :2])
    with pytest.raises(SkelactError, match="as_released, none"):
        SkeletonDataModule(str(store), "xsub", scores="no")
