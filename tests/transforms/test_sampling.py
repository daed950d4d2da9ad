from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws
from skelact.transforms.sampling import CenterCrop, CropResize

lengths = st.lists(st.integers(1, 150), min_size=1, max_size=8)


def make(sizes, seed=0, m=2, v=5, c=3, masked=False):
    generator = torch.Generator().manual_seed(seed)
    clips = [torch.randn(size, m, v, c, generator=generator) for size in sizes]
    mask = [torch.rand(size, m, v, generator=generator) < 0.8 for size in sizes] if masked else None
    if mask is not None:
        clips = [clip * seen[..., None] for clip, seen in zip(clips, mask, strict=True)]
    return RaggedClips.pack(clips, index=[7 * row + 3 for row in range(len(sizes))], mask=mask)


def interpolate(clip, frames):
    """(T, M, V, C) resized by torch's own routine."""
    flat = clip.flatten(1).T[None]
    return torch.nn.functional.interpolate(flat, size=frames, mode="linear")[0].T.reshape(frames, *clip.shape[1:])


def same(a, b):
    assert torch.equal(a[0], b[0])
    assert (a[1] is None and b[1] is None) or torch.equal(a[1], b[1])


@given(sizes=lengths, frames=st.integers(1, 70), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_agrees_with_interpolate_clip_by_clip(sizes, frames, seed):
    clips = make(sizes, seed)
    views, mask = CenterCrop(frames)(clips)
    assert views.shape == (len(sizes), 2, frames, 5, 3) and views.dtype == torch.float32 and mask is None
    assert views.transpose(1, 2).is_contiguous()
    for row in range(len(sizes)):
        torch.testing.assert_close(views[row].transpose(0, 1), interpolate(clips.clip(row), frames), rtol=0, atol=1e-5)


@given(sizes=lengths, masked=st.booleans(), epoch=st.integers(0, 9), order=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_views_do_not_depend_on_the_batch(sizes, masked, epoch, order):
    clips = make(sizes, masked=masked)
    sampler = CropResize(16, ratio=(0.2, 1.0))
    whole = sampler(clips, Draws(0, epoch, clips.index))
    rows = list(range(len(sizes)))
    order.shuffle(rows)
    some = clips.select(torch.tensor(rows[: max(1, len(rows) // 2)]))
    kept = torch.tensor(rows[: len(some)])
    for batch in (some, some.compact()):
        views, mask = sampler(batch, Draws(0, epoch, batch.index))
        same((views, mask), (whole[0][kept], None if whole[1] is None else whole[1][kept]))


@given(sizes=lengths, masked=st.booleans())
@settings(max_examples=30, deadline=None)
def test_ragged_and_padded_tables_give_the_same(sizes, masked):
    clips = make(sizes, masked=masked)
    longest = max(sizes)
    frames = torch.full((len(sizes) * longest, 2, 5, 3), 1e6)
    mask = None if clips.mask is None else torch.ones(frames.shape[:3], dtype=torch.bool)
    for row, size in enumerate(sizes):
        frames[row * longest : row * longest + size] = clips.clip(row)
        if mask is not None:
            mask[row * longest : row * longest + size] = clips.clip_mask(row)
    padded = replace(clips, frames=frames, mask=mask, start=torch.arange(len(sizes)) * longest)
    for sampler in (CenterCrop(32), CenterCrop(32, 0.5), CropResize(32)):
        same(sampler(clips, Draws(0, 0, clips.index)), sampler(padded, Draws(0, 0, clips.index)))


@given(size=st.integers(1, 200), frames=st.integers(1, 80), masked=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_still_clip_stays_still(size, frames, masked):
    pose = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(size))
    clips = RaggedClips.pack([pose.expand(size, -1, -1, -1).contiguous()])
    if masked:
        clips = replace(clips, mask=torch.ones(clips.frames.shape[:3], dtype=torch.bool))
    views, _ = CropResize(frames)(clips, Draws(0, 0, clips.index))
    torch.testing.assert_close(views, pose[None, :, None].expand_as(views), rtol=1e-6, atol=1e-6)


def reference_masked(clip, seen, frames):
    """The rule for masks, written out one number at a time."""
    t, m, v, c = clip.shape
    out, observed = torch.zeros(m, frames, v, c), torch.zeros(m, frames, v, dtype=torch.bool)
    for i in range(frames):
        position = max((i + 0.5) * t / frames - 0.5, 0.0)
        low = min(int(position), t - 1)
        high, weight = min(low + 1, t - 1), position - low
        for p in range(m):
            for j in range(v):
                pairs = [(row, w) for row, w in ((low, 1 - weight), (high, weight)) if w > 1e-6 and seen[row, p, j]]
                if pairs:
                    observed[p, i, j] = True
                    out[p, i, j] = sum(w * clip[row, p, j] for row, w in pairs) / sum(w for _, w in pairs)
    return out, observed


@pytest.mark.parametrize(("size", "frames"), [(1, 4), (2, 7), (9, 16), (16, 16), (23, 8)])
def test_only_observed_neighbours_count(size, frames):
    clips = make([size, size + 1], seed=size, masked=True)
    views, mask = CenterCrop(frames)(clips)
    for row in range(2):
        expected, observed = reference_masked(clips.clip(row), clips.clip_mask(row), frames)
        assert torch.equal(mask[row], observed)
        torch.testing.assert_close(views[row], expected, rtol=0, atol=1e-5)
    assert (views[~mask] == 0).all()


def test_a_full_mask_changes_nothing():
    clips = make([1, 40, 90])
    full = replace(clips, mask=torch.ones(clips.frames.shape[:3], dtype=torch.bool))
    views, mask = CropResize(32)(full, Draws(0, 0, clips.index))
    assert mask.all()
    torch.testing.assert_close(views, CropResize(32)(clips, Draws(0, 0, clips.index))[0], rtol=0, atol=1e-6)


def test_neighbours_of_another_clip_are_never_read():
    clips = make([5, 1, 8])
    frames = clips.frames.clone()
    frames[:5], frames[6:] = torch.nan, torch.nan
    views, _ = CenterCrop(64)(replace(clips, frames=frames).select(torch.tensor([1])))
    assert torch.equal(views, frames[5:6].transpose(0, 1)[None].expand_as(views))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_number_types_become_single(dtype):
    clips = make([30, 70])
    views, _ = CropResize(16)(replace(clips, frames=clips.frames.to(dtype)), Draws(0, 0, clips.index))
    expected, _ = CropResize(16)(clips, Draws(0, 0, clips.index))
    assert views.dtype == torch.float32
    torch.testing.assert_close(views, expected, rtol=0, atol=3e-3 if dtype == torch.float16 else 1e-6)


def test_distribution_of_crops_is_the_published_one():
    n = torch.full((20_000,), 100)
    start, crop = CropResize(64).draw(n, Draws(0, 0, torch.arange(20_000)))
    assert (crop == 64).float().mean().item() == pytest.approx((65 / 100 - 0.1) / 0.9, abs=0.01)
    assert crop.min() == 64 and crop.max() == 99 and (start >= 0).all() and (start + crop <= 100).all()
    assert start[crop == 64].max() == 36 and start[crop == 64].min() == 0
    start, crop = CropResize(64).draw(torch.tensor([1, 5, 64]), Draws(0, 0, torch.arange(3)))
    assert start.tolist() == [0, 0, 0] and crop.tolist() == [1, 5, 64]  # short clips are taken whole
    _, crop = CropResize(64, min_crop=10).draw(torch.tensor([64] * 200), Draws(0, 0, torch.arange(200)))
    assert crop.min() < 20


def test_center_crop_is_symmetric_and_keeps_a_frame():
    n = torch.arange(1, 60)
    for ratio in (0.01, 0.3, 0.9, 1.0):
        start, length = CenterCrop(8, ratio).draw(n)
        assert (length >= 1).all() and torch.equal(n - start - length, start)
    assert CenterCrop(8).draw(n)[1].tolist() == n.tolist()


def test_an_empty_batch():
    clips = make([4, 5]).select(torch.zeros(0, dtype=torch.int64))
    assert CenterCrop(8)(clips)[0].shape == (0, 2, 8, 5, 3)
    assert CropResize(8)(clips, Draws(0, 0, clips.index))[0].shape == (0, 2, 8, 5, 3)


def test_refusals():
    with pytest.raises(SkelactError, match="frames must be at least 1"):
        CenterCrop(0)
    with pytest.raises(SkelactError, match="ratio"):
        CropResize(8, ratio=(0.5, 1.5))
    with pytest.raises(SkelactError, match="ratio"):
        CenterCrop(8, 0)
    with pytest.raises(SkelactError, match="min_crop"):
        CropResize(8, min_crop=0)
    with pytest.raises(SkelactError, match="needs draws; use CenterCrop"):
        CropResize(8)(make([4]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("masked", [False, True])
def test_a_gpu_makes_the_same_views(masked):
    clips = make([1, 40, 90, 300], masked=masked)
    here = CropResize(64)(clips, Draws(0, 3, clips.index))
    there = clips.to("cuda")
    views, mask = CropResize(64)(there, Draws(0, 3, there.index))
    torch.testing.assert_close(views.cpu(), here[0], rtol=0, atol=1e-5)
    assert (mask is None) == (here[1] is None)
    assert mask is None or torch.equal(mask.cpu(), here[1])
