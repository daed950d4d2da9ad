from __future__ import annotations

import numpy as np
import pytest

from skelact.data import simulate
from skelact.data.readers.hdm05 import QUANTUM, HDM05Reader
from skelact.data.simulate import HDM05ViewsReader, simulate_camera


@pytest.fixture(scope="module")
def views():
    reader = HDM05ViewsReader()
    items = reader.scan(None)
    return reader, items, [reader.read(item) for item in items[:150]]


def test_items_are_three_cameras_a_motion(views):
    _, items, _ = views
    assert len(items) == 864 and len({item.name for item in items}) == 864
    assert items[4].name == items[3].columns["group"] + "_c1" and items[4].columns["camera"] == 1
    assert len({item.columns["group"] for item in items}) == 288


def test_views_depend_on_the_name_alone(views):
    _, items, clips = views
    again = HDM05ViewsReader().read(items[7])
    np.testing.assert_array_equal(again.frames, clips[7].frames)
    np.testing.assert_array_equal(again.mask, clips[7].mask)
    assert not np.array_equal(clips[6].frames, clips[7].frames)


def test_a_camera_is_a_rigid_motion_plus_noise(views, monkeypatch):
    _, items, _ = views
    frames = HDM05Reader().read(HDM05Reader().scan(None)[0]).frames
    monkeypatch.setattr(simulate, "NOISE", 0.0)
    clean, mask = simulate_camera(frames, items[0].name)
    # distances between joints seen in the same frame are kept, up to rounding
    t, a, b = 5, *np.flatnonzero(mask[5, 0])[[1, -1]]
    want = np.linalg.norm(frames[t, 0, a] - frames[t, 0, b])
    assert np.linalg.norm(clean[t, 0, a] - clean[t, 0, b]) == pytest.approx(want, abs=3 * QUANTUM)
    x, y, z = clean[0, 0, 0]
    assert abs(x) < 1e-6 and abs(y) < 1e-6 and 2.5 <= z <= 4.0
    # up stays up to the pitch: the angle of the mapped vertical is at most 0.3
    up = np.linalg.lstsq(
        (frames[0, 0] - frames[0, 0, :1])[mask[0, 0]], (clean[0, 0] - clean[0, 0, :1])[mask[0, 0]], rcond=None
    )[0][1]
    assert np.cos(0.3) - 1e-3 <= up[1] / np.linalg.norm(up) <= 1.0 + 1e-6


def test_statistics_of_noise_and_losses(views):
    _, items, clips = views
    source = HDM05Reader()
    motions = {item.name: item for item in source.scan(None)}
    yaws, noise = [], []
    for item, clip in zip(items, clips, strict=False):
        truth = source.read(motions[item.columns["group"]]).frames[:, 0].astype(np.float64)
        seen = clip.mask[:, 0]
        a, b = truth[seen], clip.frames[:, 0].astype(np.float64)[seen]
        a, b = a - a.mean(0), b - b.mean(0)
        u, _, v = np.linalg.svd(a.T @ b)
        rotation = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
        noise.append(np.std(a @ rotation - b))
        yaws.append(np.arctan2(rotation[0, 2], rotation[0, 0]))
    assert np.mean(noise) == pytest.approx(0.03, rel=0.02)
    assert np.histogram(yaws, 4, (-np.pi, np.pi))[0].min() > 20  # all round
    mask = np.concatenate([clip.mask[:, 0, 1:] for clip in clips])
    assert 1 - mask.mean() == pytest.approx(0.05, abs=0.005)
    assert all((clip.frames[~clip.mask] == 0).all() and clip.mask[:, :, 0].all() for clip in clips)
    lost = np.concatenate([~clip.mask[:, 0, 1:] for clip in clips])
    starts = (lost[1:] & ~lost[:-1]).sum()
    assert lost.sum() / starts == pytest.approx(6.0, rel=0.15)


def test_one_frame():
    frames, mask = simulate_camera(np.zeros((1, 1, 31, 3), np.float32), "x")
    assert frames.shape == (1, 1, 31, 3) and mask.shape == (1, 1, 31)


def test_frozen():
    """Published numbers hang on these values."""
    frames, mask = simulate_camera(np.zeros((40, 1, 31, 3), np.float32), "frozen")
    assert int(mask.sum()) == FROZEN_SEEN
    np.testing.assert_allclose(frames[0, 0, 0], FROZEN_ROOT, atol=1e-6)


FROZEN_SEEN = 1193
FROZEN_ROOT = [-0.03825, -0.0195, 3.12625]
