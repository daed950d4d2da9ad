from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.transforms.base import Compose
from skelact.transforms.draws import Draws
from skelact.transforms.pose2d import CropScale, CropScaledIndex, RandomMove
from skelact.transforms.spatial import JointNoise

GOLDEN = Path(__file__).parents[1] / "golden" / "maskclr"


@pytest.fixture(scope="module")
def golden():
    found = {}
    for name in ("pose2d", "views2d"):
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
            found |= {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind == "f"}
    return found


def views(n=3, people=2, frames=6, joints=17, channels=3, seed=0):
    """Two people, of whom the second is absent in the first clip."""
    random = torch.Generator().manual_seed(seed)
    out = torch.rand(n, frames, people, joints, channels, generator=random).transpose(1, 2) - 0.5
    out[..., -1] += 0.6
    out[0, 1] = 0
    return out


def draws(n=3, seed=0):
    return Draws(seed, 0, torch.arange(n))


@pytest.mark.parametrize(("clip", "seed"), [(0, 5), (1, 6)])
def test_move_and_scale_of_the_released_code(golden, clip, seed):
    name, released = f"raw{clip}_move_seed{seed}", {"layout": "h36m17", "preset": "as_released"}
    angle, scale, *shift = golden[f"{name}_params"]
    ends = {"angle": torch.deg2rad(angle)[None], "scale": scale[None], "shift": torch.stack(shift)[None]}
    moved, _ = RandomMove(**released).replay(golden[f"raw{clip}_motion_eval40"][None], **ends)
    torch.testing.assert_close(moved[0], golden[name], atol=2e-6, rtol=0)
    scaled, _ = CropScale(**released).replay(moved, ratio=golden[f"{name}_crop13_ratio"])
    torch.testing.assert_close(scaled[0], golden[f"{name}_crop13"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("clip", "ratio"), [(0, 2.0), (1, 1.0)])
def test_fixed_ratios_of_the_released_code(golden, clip, ratio):
    crop = CropScale("h36m17", (ratio, ratio), "as_released")
    out, _ = crop(golden[f"raw{clip}_motion_eval40"][None], None, draws(1))
    torch.testing.assert_close(out[0], golden[f"raw{clip}_crop{int(ratio) * 11}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["noconf", "3valid", "zeroscale"])
@pytest.mark.parametrize("preset", ["corrected", "as_released_c2"])
def test_clips_without_a_box_become_zero(golden, case, preset):
    crop = CropScale("h36m17", (2.0, 2.0), preset)
    clip = golden[f"edge_{case}_in"][None]
    out, mask = crop.replay(clip, ratio=torch.tensor([2.0]))
    assert torch.equal(out[0], golden[f"edge_{case}_out"]) and not out.any() and mask is None
    assert not crop.replay(clip, clip[..., 2] >= 0, ratio=torch.tensor([2.0]))[1].any()


def test_the_input_is_left_as_it_was():
    before = views()
    copy = before.clone()
    for transform in (RandomMove("h36m17"), CropScale("h36m17")):
        for mask in (None, copy[..., 2] > 0.2):
            out, _ = transform(before, mask, draws())
            assert torch.equal(before, copy) and not torch.equal(out, before)


def test_amounts_change_from_the_first_to_the_last_frame():
    x = torch.zeros(1, 1, 5, 3, 3)
    x[..., 0, :2], x[..., 1, 1], x[..., 2] = torch.tensor([1.0, 0.0]), 2.0, 0.7
    ends = {"angle": torch.tensor([[0.0, math.pi / 2]]), "scale": torch.tensor([[1.0, 2.0]])}
    shift = torch.tensor([[[0.5, 0.5], [0.0, -1.0]]])
    out, _ = RandomMove("h36m17").replay(x, **ends, shift=shift)
    torch.testing.assert_close(out[0, 0, 0, 0], torch.tensor([1.5, 0.0, 0.7]))
    torch.testing.assert_close(out[0, 0, -1, 0], torch.tensor([0.5, 1.0, 0.7]))  # a quarter turn, x towards y
    torch.testing.assert_close(out[0, 0, -1, 1], torch.tensor([-3.5, -1.0, 0.7]))
    half = 1.5 * math.cos(math.pi / 4)
    torch.testing.assert_close(out[0, 0, 2, 0], torch.tensor([half + 0.5, half - 0.5, 0.7]))


def test_draws_keep_their_ranges():
    params = RandomMove("h36m17").draw(draws(4000), views(4000, frames=1))
    for name, low, high in (("angle", -math.pi / 18, math.pi / 18), ("scale", 0.9, 1.1), ("shift", -0.1, 0.1)):
        values, margin = params[name], 0.02 * (high - low)
        assert low <= values.min() < low + margin and high - margin < values.max() <= high
        flat = values.flatten(1)
        assert torch.corrcoef(flat.T).fill_diagonal_(0).abs().max() < 0.08  # each its own number
    ratio = CropScale("h36m17").draw(draws(4000), views(4000, frames=1))["ratio"]
    assert 1 <= ratio.min() < 1.02 and 2.98 < ratio.max() <= 3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.floats(1, 3), masked=st.booleans(), dims=st.sampled_from([2, 3]))
def test_the_box_is_in_the_middle_and_its_longest_side_fills_its_share(seed, ratio, masked, dims):
    layout, channels = ("h36m17", 3) if dims == 2 else ("ntu25", 4)
    x = views(joints=17 if dims == 2 else 25, channels=channels, seed=seed)
    x[torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(seed)) < 0.2] *= torch.tensor(
        [1.0] * dims + [0.0]
    )  # no score, no say
    mask = (x[..., -1] > 0.3) & (x != 0).any(-1) if masked else None
    out, seen = CropScale(layout).replay(x, mask, ratio=torch.full((3,), ratio))
    valid = (x[..., -1] != 0) & (True if mask is None else mask)
    for clip in range(3):
        points = out[clip][valid[clip]][:, :dims]
        low, high = points.amin(0), points.amax(0)
        assert (high - low).max().item() == pytest.approx(2 / ratio, rel=1e-4)
        torch.testing.assert_close(low + high, torch.zeros(dims), atol=1e-4, rtol=0)
    assert out.abs().max() <= 1 and not out[0, 1].any()
    torch.testing.assert_close(out[valid][:, -1], x[valid][:, -1].clamp(max=1))  # scores stay
    assert (seen is None) == (mask is None) and (mask is None or (torch.equal(seen, mask) and not out[~mask].any()))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.1, 10), x=st.floats(-5, 5), y=st.floats(-5, 5))
def test_scaling_forgets_where_and_how_large_a_clip_was(scale, x, y):
    before = views(2)[1:]
    elsewhere = before * torch.tensor([scale, scale, 1]) + torch.tensor([x, y, 0])
    crop, ratio = CropScale("h36m17"), torch.tensor([1.5])
    torch.testing.assert_close(
        crop.replay(elsewhere, ratio=ratio)[0], crop.replay(before, ratio=ratio)[0], atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("masked", [False, True])
def test_absent_people_stay_at_zero_and_as_released_do_not(masked):
    x = views()
    mask = (x != 0).any(-1) if masked else None
    for transform in (RandomMove, CropScale):
        kept, _ = transform("h36m17")(x, mask, draws())
        assert not kept[0, 1].any()
        released, _ = transform("h36m17", preset="as_released")(x, mask, draws())
        assert bool(released[0, 1, ..., :2].any()) != masked  # without a mask the released code's constant point
        there = (x != 0).any(-1)
        torch.testing.assert_close(released[there], kept[there])


def test_3d_poses_are_moved_in_the_plane_of_the_image():
    x = views(joints=25)
    params = RandomMove("ntu25").draw(draws(), x)
    flat, _ = RandomMove("h36m17").replay(x, **params)
    deep, _ = RandomMove("ntu25").replay(x, **params)
    assert torch.equal(deep[..., :2], flat[..., :2]) and torch.equal(flat[..., 2], x[..., 2])
    torch.testing.assert_close(deep[:, :, 0, :, 2], x[:, :, 0, :, 2] * params["scale"][:, None, None, 0])


def test_one_frame_and_half_precision():
    x = views(frames=1)
    both = Compose([RandomMove("h36m17"), CropScale("h36m17")])
    assert both(x, None, draws())[0].isfinite().all()
    half = x.half()
    clips = [
        RaggedClips(frames[:, :, 0].clone(), torch.arange(3), torch.ones(3, dtype=torch.int64),
                    torch.zeros(3, dtype=torch.int64), torch.arange(3), None)
        for frames in (half, half.float())
    ]  # fmt: skip
    sampler = CropScaledIndex("h36m17", frames=4)
    (one, _), (other, _) = (sampler(batch) for batch in clips)
    assert one.dtype == torch.float32 and torch.equal(one, other)


def test_evaluation_is_the_evaluation_rule_and_a_fixed_ratio():
    clips = RaggedClips(
        views(2, frames=30)[1].transpose(0, 1).contiguous(), torch.tensor([0, 10]), torch.tensor([10, 20]),
        torch.zeros(2, dtype=torch.int64), torch.arange(2), torch.ones(30, 2, 17, dtype=torch.bool),
    )  # fmt: skip
    sampler = CropScaledIndex("h36m17", frames=5)
    out, mask = sampler(clips)
    again, _ = sampler(clips, draws(2))
    assert torch.equal(out, again) and not sampler.random and out.shape == (2, 2, 5, 17, 3) and mask.all()
    picked = torch.stack([clips.frames[[0, 2, 4, 6, 8]], clips.frames[[10, 14, 18, 22, 26]]]).transpose(1, 2)
    want, _ = CropScale("h36m17").replay(picked, ratio=torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(out, want)
    assert out[..., :2].amax() == pytest.approx(0.5, abs=1e-5)


def test_noise_comes_before_the_crop():
    x = views()
    noisy = Compose([JointNoise(0.1, dims=2), CropScale("h36m17")])
    out, _ = noisy(x, None, draws())
    assert out.abs().max() <= 1 and not out[0, 1].any() and torch.equal(out[1:, ..., 2], x[1:, ..., 2].clamp(max=1))


def test_what_cannot_be_is_refused():
    for ratio in ((0.0, 1.0), (3.0, 1.0)):
        with pytest.raises(SkelactError, match="ratio must be two numbers"):
            CropScale("h36m17", ratio)
    with pytest.raises(SkelactError, match="preset='released'"):
        RandomMove("h36m17", preset="released")
