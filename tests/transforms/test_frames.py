from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.transforms.draws import Draws
from skelact.transforms.frames import linspace_index, segment_index, uniform_index, video_index

GOLDEN = Path(__file__).parents[1] / "golden" / "routes"
lengths = st.lists(st.integers(1, 150), min_size=1, max_size=8)


def numbers(sizes, count, epoch=0):
    return Draws(0, epoch, torch.arange(len(sizes)) * 5).uniform("test", count)


@pytest.fixture(scope="module")
def motionbert():
    return dict(np.load(GOLDEN / "uniform_index.npz", allow_pickle=False))


def test_uniform_index_is_the_published_one(motionbert):
    checked = 0
    for key, expected in motionbert.items():
        kind, _, sizes = key.removeprefix("resample_").partition("_")
        if kind not in ("det", "rand") or key.endswith("_draw"):
            continue
        n, _, frames = sizes.partition("_to_")
        draw = motionbert.get(f"{key}_draw") if kind == "rand" else None
        unit = None if draw is None else torch.from_numpy(draw)[None]
        got = uniform_index(torch.tensor([int(n)]), int(frames), unit)
        assert got[0].tolist() == expected.tolist(), key
        checked += 1
    assert checked == 37


@pytest.mark.parametrize("frames", [1, 2, 52, 64])
def test_linspace_is_numpys(frames):
    length = torch.arange(1, 400)
    expected = [np.floor(np.linspace(0, n - 1, frames)).astype(int) for n in length.tolist()]
    assert torch.equal(linspace_index(length, frames), torch.from_numpy(np.stack(expected)))


def test_video_index_is_the_published_one():
    data = np.load(GOLDEN / "video_index.npz", allow_pickle=False)
    length = torch.from_numpy(data["video_len"])
    for frames in (8, 16, 32):
        for key in (f"uniform/T{frames}", *(f"random/T{frames}/seed{s}" for s in (0, 1, 123))):
            expected = torch.from_numpy(data[key])
            unit = None
            if key.startswith("random"):  # numbers that ask for the frames the reference drew
                unit = torch.ones(len(length), int(length.max()) + 1)
                unit = unit.scatter(1, expected.where(expected >= 0, unit.shape[1] - 1), 0.0)
            picked, valid = video_index(length, frames, unit)
            assert torch.equal(picked.where(valid, -1), expected), key


@given(sizes=lengths, frames=st.integers(1, 70), epoch=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_indices_are_within_the_clip_and_in_order(sizes, frames, epoch):
    length = torch.tensor(sizes)
    unit, one_more = numbers(sizes, frames, epoch), numbers(sizes, frames + 1, epoch)
    found = [uniform_index(length, frames, u) for u in (None, unit)]
    found += [linspace_index(length, frames, u) for u in (None, unit)]
    found += [video_index(length, frames, u)[0] for u in (None, numbers(sizes, max(sizes), epoch))]
    long = length >= frames
    looped = [segment_index(length, frames, u) for u in (None, one_more)]
    for indices in found + looped:
        assert indices.shape == (len(sizes), frames) and indices.dtype == torch.int64
        assert (indices >= 0).all() and (indices < length[:, None]).all()
    for indices in found + [some[long] for some in looped]:
        assert (indices.diff(dim=1) >= 0).all()
    for indices in [some[long] for some in looped] + [found[4][long], found[5][long]]:
        assert (indices.diff(dim=1) > 0).all()  # no frame twice
    short = (torch.arange(frames) + looped[1][:, :1]) % length[:, None]
    assert torch.equal(looped[1][~long], short[~long])


def segments_one_by_one(n, frames, unit):
    """The rule for clips of at least T frames, one number at a time."""
    if n >= 2 * frames:
        edges = [i * n // frames for i in range(frames + 1)]
        return [a + int(u * (b - a)) for a, b, u in zip(edges, edges[1:], unit, strict=False)]
    skipped = set(np.argsort(unit, kind="stable")[: n - frames].tolist())
    out, frame = [], 0
    for place in range(frames):
        frame += place in skipped
        out.append(frame)
        frame += 1
    return out


@pytest.mark.parametrize("n", [10, 11, 17, 19, 20, 21, 57])
def test_segments(n):
    unit = numbers([n] * 30, 11).double()
    got = segment_index(torch.tensor([n] * 30), 10, unit)
    assert got.tolist() == [segments_one_by_one(n, 10, row.tolist()) for row in unit]
    middle = segment_index(torch.tensor([n]), 10)[0]
    assert middle.tolist() == [int((i + 0.5) * n / 10) for i in range(10)]


def test_all_frames_are_drawn_alike():
    n = torch.full((4000,), 30)
    sizes = [30] * 4000
    for picked in (
        linspace_index(n, 10, numbers(sizes, 10)),
        video_index(n, 10, numbers(sizes, 30))[0],
        segment_index(n, 10, numbers(sizes, 11)),
        uniform_index(n, 10, numbers(sizes, 10)),
    ):
        share = picked.flatten().bincount(minlength=30) / picked.numel()
        assert share.min() > 0.028 and share.max() < 0.039
    few = uniform_index(torch.full((4000,), 3), 4, numbers([3] * 4000, 4))  # 0, 0.75, 1.5, 2.25: rounded either way
    assert (few == torch.tensor([0, 0, 1, 2])).float().mean(0)[1:3].sub(0.5).abs().max() < 0.03
