from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.clips import RaggedClips
from skelact.transforms.draws import Draws
from skelact.transforms.frame50 import Frame50, clip_motion
from skelact.transforms.indexing import LinspaceIndex, UniformIndex, UniformSegments, VideoFrames
from skelact.transforms.sampling import CenterCrop, CropResize, take

SAMPLERS = [
    CropResize,
    CenterCrop,
    UniformIndex,
    lambda frames: UniformIndex(frames, frozen=True),
    LinspaceIndex,
    UniformSegments,
    VideoFrames,
    Frame50,
    lambda frames: Frame50(frames, preset="as_released"),
]
EVALUATION = SAMPLERS[1:]
sizes_of_clips = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def make(sizes, seed=0, masked=False):
    generator = torch.Generator().manual_seed(seed)
    clips = [torch.randn(size, 2, 25, 3, generator=generator) for size in sizes]
    mask = [torch.rand(size, 2, 25, generator=generator) < 0.8 for size in sizes] if masked else None
    if mask is not None:
        clips = [clip * seen[..., None] for clip, seen in zip(clips, mask, strict=True)]
    return RaggedClips.pack(clips, index=[7 * row + 3 for row in range(len(sizes))], mask=mask)


def same(a, b):
    assert torch.equal(a[0], b[0])
    assert (a[1] is None and b[1] is None) or torch.equal(a[1], b[1])


@pytest.mark.parametrize("make_sampler", SAMPLERS)
@given(sizes=sizes_of_clips, masked=st.booleans(), epoch=st.integers(0, 9), order=st.randoms(use_true_random=False))
@settings(max_examples=12, deadline=None)
def test_views_depend_on_the_clip_alone(make_sampler, sizes, masked, epoch, order):
    clips, sampler = make(sizes, masked=masked), make_sampler(16)
    whole = sampler(clips, Draws(0, epoch, clips.index))
    assert whole[0].shape == (len(sizes), 2, 16, 25, 3) and whole[0].dtype == torch.float32
    assert whole[0].transpose(1, 2).is_contiguous() and whole[0].isfinite().all()
    if whole[1] is not None:
        assert whole[1].shape == whole[0].shape[:-1] and (whole[0][~whole[1]] == 0).all()
    rows = list(range(len(sizes)))
    order.shuffle(rows)
    kept = torch.tensor(rows[: max(1, len(rows) // 2)])
    some = clips.select(kept)
    for batch in (some, some.compact()):
        same(
            sampler(batch, Draws(0, epoch, batch.index)), (whole[0][kept], None if whole[1] is None else whole[1][kept])
        )


@pytest.mark.parametrize("make_sampler", SAMPLERS)
@given(sizes=sizes_of_clips, masked=st.booleans())
@settings(max_examples=8, deadline=None)
def test_ragged_and_padded_tables_give_the_same(make_sampler, sizes, masked):
    clips, sampler = make(sizes, masked=masked), make_sampler(16)
    longest = max(sizes)
    frames = torch.full((len(sizes) * longest, 2, 25, 3), torch.nan)
    mask = None if clips.mask is None else torch.ones(frames.shape[:3], dtype=torch.bool)
    for row, size in enumerate(sizes):
        frames[row * longest : row * longest + size] = clips.clip(row)
        if mask is not None:
            mask[row * longest : row * longest + size] = clips.clip_mask(row)
    padded = replace(clips, frames=frames, mask=mask, start=torch.arange(len(sizes)) * longest)
    same(sampler(clips, Draws(0, 0, clips.index)), sampler(padded, Draws(0, 0, clips.index)))


@pytest.mark.parametrize("make_sampler", EVALUATION)
def test_a_clip_of_one_frame_and_an_empty_batch(make_sampler):
    clips, sampler = make([1, 40]), make_sampler(16)
    views, mask = sampler(clips)
    assert views.isfinite().all()
    there = views[0] if mask is None else views[0, :, :1]
    torch.testing.assert_close(there, there[:, :1].expand_as(there))  # one pose, whatever is done to it
    none = clips.select(torch.zeros(0, dtype=torch.int64))
    assert sampler(none)[0].shape == (0, 2, 16, 25, 3)
    same(sampler(clips), sampler(clips))


@pytest.mark.parametrize("frames", [10, 80])
def test_frozen_jitter_is_the_same_in_all_epochs(frames):
    length, index = torch.tensor([40, 40, 90, 3]), torch.tensor([5, 9, 2, 7])
    every = [Draws(4, epoch, index).view(view).scope(name) for epoch in (0, 1, 7) for view in (0, 1) for name in "ab"]
    frozen = [UniformIndex(frames, frozen=True).indices(length, draws) for draws in every]
    assert all(torch.equal(one, frozen[0]) for one in frozen)
    assert not torch.equal(frozen[0][0], frozen[0][1])  # but each clip has its own
    assert not torch.equal(frozen[0], UniformIndex(frames, frozen=True).indices(length, Draws(5, 0, index)))
    fresh = [UniformIndex(frames).indices(length, draws) for draws in every[::2]]
    assert not any(torch.equal(a, b) for row, a in enumerate(fresh) for b in fresh[row + 1 :])
    still = UniformIndex(frames, jitter=False).indices(length, every[0])
    assert torch.equal(still, UniformIndex(frames).indices(length, None))


def test_picked_frames_are_those_of_the_clip():
    clips = make([9, 30], masked=True)
    indices = UniformIndex(12).indices(clips.length, Draws(0, 0, clips.index))
    views, mask = take(clips, indices)
    for row in range(2):
        assert torch.equal(views[row].transpose(0, 1), clips.clip(row)[indices[row]])
        assert torch.equal(mask[row].transpose(0, 1), clips.clip_mask(row)[indices[row]])
    rubbish = replace(clips, frames=torch.where(clips.mask[..., None], clips.frames, torch.nan))
    same(take(rubbish, indices), (views, mask))
    half, _ = take(replace(clips, frames=clips.frames.half()), indices)
    assert half.dtype == torch.float32


def test_video_frames_are_unobserved_after_the_end():
    clips = make([3, 20])
    views, mask = VideoFrames(8)(clips, Draws(0, 0, clips.index))
    assert mask[0].all(-1).all(0).tolist() == [True] * 3 + [False] * 5 and mask[1].all()
    assert torch.equal(views[0, :, :3].transpose(0, 1), clips.clip(0)) and (views[0, :, 3:] == 0).all()


def walking(count=40, turns=3.0, seed=0):
    """One body that walks and turns about, shoulders (joints 4 and 8) level."""
    generator = torch.Generator().manual_seed(seed)
    pose = torch.randn(25, 3, generator=generator)
    pose[4], pose[8] = torch.tensor([-0.2, 0.5, 0.0]), torch.tensor([0.2, 0.5, 0.0])
    angle = torch.linspace(0, turns, count)
    matrix = torch.zeros(count, 3, 3)
    matrix[:, 0, 0], matrix[:, 0, 2], matrix[:, 2, 0], matrix[:, 2, 2] = (
        angle.cos(),
        -angle.sin(),
        angle.sin(),
        angle.cos(),
    )
    matrix[:, 1, 1] = 1
    return torch.einsum("tij,vj->tvi", matrix, pose)[:, None] + torch.linspace(0, 4, count)[:, None, None, None], pose


def test_frame50_takes_away_path_and_facing():
    clip, pose = walking()
    views, mask = Frame50(40)(RaggedClips.pack([clip]))
    assert mask is None
    expected = (pose - pose[20])[None].expand(40, -1, -1)
    torch.testing.assert_close(views[0, 0], expected, rtol=0, atol=1e-4)
    # as released the sign is one for the whole clip: right while the body turns to one side only
    released, _ = Frame50(40, preset="as_released")(RaggedClips.pack([clip]))
    # (and 0.02 rad off where it faces the front, by the 1e-4 that is added to the length of the shoulder line)
    torch.testing.assert_close(released[0, 0], expected, rtol=0, atol=0.1)
    around, pose = walking(turns=6.0)
    views, _ = Frame50(40)(RaggedClips.pack([around]))
    torch.testing.assert_close(views[0, 0], (pose - pose[20])[None].expand(40, -1, -1), rtol=0, atol=1e-4)
    released, _ = Frame50(40, preset="as_released")(RaggedClips.pack([around]))
    assert (released[0, 0] - (pose - pose[20])).abs().max() > 0.5


@pytest.mark.parametrize("masked", [False, True])
def test_frame50_uses_the_frames_with_a_body(masked):
    clip, _ = walking()
    empty = torch.zeros(7, 1, 25, 3)
    padded = RaggedClips.pack([torch.cat((empty, clip, empty[:4]))])
    if masked:
        padded = replace(padded, mask=(padded.frames != 0).any(-1))
    views, mask = Frame50(30)(padded)
    torch.testing.assert_close(views, Frame50(30)(RaggedClips.pack([clip]))[0], rtol=0, atol=1e-5)
    assert (mask is None) != masked and (mask is None or mask.all())


def test_frame50_does_without_lost_joints():
    clip, _ = walking()
    seen = torch.rand(clip.shape[:3], generator=torch.Generator().manual_seed(1)) < 0.7
    rubbish = torch.where(seen[..., None], clip, torch.nan)
    views, mask = Frame50(40)(replace(RaggedClips.pack([rubbish]), mask=seen))
    full, _ = Frame50(40)(RaggedClips.pack([clip]))
    assert torch.equal(mask[0, 0], seen[:, 0]) and (views[~mask] == 0).all()
    # shoulders and chest are those of a frame or so before: the body turns by 0.08 a frame and walks 0.1
    assert (views - full)[mask].abs().mean() < 0.2
    released, none = Frame50(40, preset="as_released")(replace(RaggedClips.pack([rubbish]), mask=seen))
    assert none is None and released.isfinite().all()


def test_motion_of_clips_stays_within_what_was_seen():
    clips = make([1, 12, 300], masked=True)
    out = clip_motion(clips)
    for row in range(3):
        clip, seen = clips.clip(row), clips.clip_mask(row)
        both = seen[:-1] & seen[1:]
        assert torch.equal(out.clip(row)[:-1], (clip[1:] - clip[:-1]) * both[..., None])
        assert (out.clip(row)[-1] == 0).all() and torch.equal(out.clip_mask(row)[:-1], both)
    released = clip_motion(clips, "as_released")
    assert torch.equal(released.clip(1)[-1], -clips.clip(1)[-1])  # the spike
    assert (released.clip(2)[-1] == 0).all()  # none where the padded array ends, too


def test_refusals():
    from skelact.errors import SkelactError

    for options, message in (
        ({"layout": "coco17"}, "which layout 'coco17' does not allow"),
        ({"preset": "newest"}, "preset='newest' is not one of corrected, as_released"),
        ({"center": "tail"}, "tail"),
    ):
        with pytest.raises(SkelactError, match=message):
            Frame50(50, **options)
    with pytest.raises(SkelactError, match="'kinect20' does not fit clips of 25 joints"):
        Frame50(50, "kinect20")(make([4]))
    with pytest.raises(SkelactError, match="clip_motion: preset='old'"):
        clip_motion(make([4]), "old")
    assert Frame50(layout="kinect20").center == "shoulder_center" and Frame50().center == "spine_shoulder"
    assert "center=spine_shoulder, preset=corrected" in repr(Frame50())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make_sampler", SAMPLERS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_gpu_makes_the_same_views(make_sampler, masked):
    clips, sampler = make([1, 40, 90, 300], masked=masked), make_sampler(64)
    views, mask = sampler(clips, Draws(0, 3, clips.index))
    there = clips.to("cuda")
    others, other_mask = sampler(there, Draws(0, 3, there.index))
    torch.testing.assert_close(others.cpu(), views, rtol=0, atol=1e-4)
    assert (mask is None) == (other_mask is None)
    assert mask is None or torch.equal(other_mask.cpu(), mask)
