"""Corruptions: what they do to a body, and that a clip is corrupted the same wherever it is met."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.skeleton.layouts import Layout, get_layout
from skelact.transforms.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Corrupted,
    NormalisedNoise,
    Scene,
    interpolate,
    name_keys,
)
from skelact.transforms.draws import Draws

KINDS = ("3D", "3D, mask", "2D, score")
LENGTHS = (40, 1, 2, 17, 33)


def make_clips(kind, lengths=LENGTHS, seed=0):
    """Two person slots; every third clip has one person only."""
    layout = get_layout("coco17" if kind.startswith("2D") else "kinect20")
    rng = np.random.default_rng(seed)
    clips, masks = [], []
    for number, length in enumerate(lengths):
        pose = rng.normal(size=(1, 2, layout.num_joints, layout.dims))
        clip = pose + 0.1 * rng.normal(size=(length, 2, layout.num_joints, layout.dims)).cumsum(0)
        mask = rng.random((length, 2, layout.num_joints)) < 0.9
        if kind == "2D, score":
            clip = np.concatenate((0.2 * clip, rng.uniform(0.3, 1, (*clip.shape[:3], 1))), -1)
        if number % 3 == 0:
            clip[:, 1], mask[:, 1] = 0, False
        if kind == "3D, mask":
            clip[~mask] = 0
        clips.append(torch.from_numpy(clip.astype(np.float32)))
        masks.append(torch.from_numpy(mask))
    return RaggedClips.pack(clips, mask=masks if kind == "3D, mask" else None), layout


def keys_of(count):
    return name_keys(f"clip {i}" for i in range(count))


def suiting(layout, persons=2, channels=3):
    return [name for name, kind in CORRUPTIONS.items() if kind(layout).obstacle(persons, channels) is None]


def cases():
    return [
        (kind, name) for kind in KINDS for name in suiting(get_layout("coco17" if kind[0] == "2" else "kinect20"))
        if name != "confidence" or kind[0] == "2"
    ]  # fmt: skip


every = pytest.mark.parametrize(("kind", "name"), cases())


@every
def test_clips_stay_what_they_are_but_for_what_is_corrupted(kind, name):
    clips, layout = make_clips(kind)
    before = clips.frames.clone(), None if clips.mask is None else clips.mask.clone()
    corruption = CORRUPTIONS[name](layout)
    assert Corrupted(corruption, 0, keys_of(5))(clips) is clips
    for severity in SEVERITIES:
        found = Corrupted(corruption, severity, keys_of(5))(clips)
        assert torch.equal(clips.frames, before[0]) and (clips.mask is None or torch.equal(clips.mask, before[1]))
        assert len(found) == 5 and (found.length >= 1).all() and found.frames.isfinite().all()
        assert len(found.frames) == found.length.sum() and torch.equal(found.index, clips.index)
        assert (found.mask is not None) == (clips.mask is not None or corruption.hides)
        if found.mask is not None:
            assert (found.frames[~found.mask] == 0).all()
        if name not in ("ghost_person", "person_swap"):  # an empty slot stays empty
            empty = ~Scene(clips, layout, Draws(0, 0, clips.index)).people
            for clip in range(5):
                assert (found.clip(clip)[:, empty[clip]] == 0).all()
    assert not torch.equal(found.frames, clips.frames)


@every
def test_higher_severities_do_more_of_the_same(kind, name):
    clips, layout = make_clips(kind)
    corruption = CORRUPTIONS[name](layout)
    found = [Corrupted(corruption, severity, keys_of(5))(clips) for severity in SEVERITIES]
    if corruption.hides:
        for mild, severe in pairwise(found):
            assert not (severe.mask & ~mild.mask).any() and severe.mask.sum() < mild.mask.sum()
    elif name in ("joint_noise", "joint_offset", "drift"):
        moves = [each.frames - clips.frames for each in found]
        for level, move in zip(corruption.levels, moves, strict=True):
            assert torch.allclose(move, moves[-1] * (level / corruption.levels[-1]), atol=1e-5)
    elif name in ("left_right_swap", "spikes", "ghost_person"):
        touched = [(each.frames != clips.frames).any(-1) for each in found]
        for mild, severe in pairwise(touched):
            assert not (mild & ~severe).any()
        assert touched[0].sum() < touched[-1].sum()


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 5), st.sampled_from(cases()), st.integers(1, 5))
def test_a_clip_is_corrupted_the_same_in_any_company(order, count, case, severity):
    kind, name = case
    clips, layout = make_clips(kind)
    rows = torch.tensor(order[:count])
    for fill in ("none", "interpolate"):
        change = Corrupted(CORRUPTIONS[name](layout), severity, keys_of(5), fill=fill)
        together, some = change(clips), change(clips.select(rows))
        for place, row in enumerate(order[:count]):
            assert torch.equal(some.clip(place), together.clip(row))
            assert torch.equal(some.clip_mask(place), together.clip_mask(row))


def test_draws_belong_to_names_and_seeds():
    clips, layout = make_clips("3D")
    corruption = CORRUPTIONS["joint_noise"](layout)
    first = Corrupted(corruption, 3, keys_of(5))(clips).frames
    assert not torch.equal(first, Corrupted(corruption, 3, name_keys("abcde"))(clips).frames)
    assert not torch.equal(first, Corrupted(corruption, 3, keys_of(5), seed=1)(clips).frames)
    assert name_keys(["S001C001P001R001A001"]).tolist() == [-4211604881039624509]  # the same on every machine
    assert len(set(keys_of(5000).tolist())) == 5000


@every
def test_distances_are_in_units_of_the_body(kind, name):
    clips, layout = make_clips(kind)
    scale = torch.ones(clips.frames.shape[-1])
    scale[: layout.dims] = 4  # a power of two: exact
    large = RaggedClips(clips.frames * scale, clips.start, clips.length, clips.label, clips.index, clips.mask)
    for severity in (1, 5):
        change = Corrupted(CORRUPTIONS[name](layout), severity, keys_of(5))
        assert torch.allclose(change(large).frames, change(clips).frames * scale, rtol=1e-4, atol=1e-4)


def scene(clips, layout):
    return Scene(clips, layout, Draws(0, 0, clips.index))


@pytest.mark.parametrize("name", ["kinect20", "coco17", "ntu25", "h36m17", "nite15", "hdm05_31"])
def test_the_unit_is_the_torso(name):
    layout = get_layout(name)
    clip = torch.zeros(5, 1, layout.num_joints, layout.dims) + 7
    legs = [layout.parts[f"{side}_leg"][0] for side in ("left", "right")]
    for joints, height in ((layout.shoulders, 0.5), (legs, 0.0)):
        for joint, x in zip(joints, (-0.2, 0.2), strict=True):
            clip[:, 0, joint, 0], clip[:, 0, joint, 1] = x, height
    clip[3] += 100 * torch.randn(clip.shape[1:])  # a median does not mind
    assert scene(RaggedClips.pack([clip]), layout).unit.tolist() == pytest.approx([0.5])


def test_the_unit_without_shoulders_and_of_the_person_who_is_there():
    stick = Layout.from_dict({"name": "stick", "joints": ["a", "b", "c"], "bones": {"b": "a", "c": "b"}})
    clip = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]])[None, None] + 5
    alone = torch.cat((torch.zeros_like(clip), 2 * clip), 1)
    nobody = torch.zeros_like(alone)
    found = scene(RaggedClips.pack([alone, alone, nobody]), stick)
    assert found.unit.tolist() == pytest.approx([2 * (2 / 3) ** 0.5, 2 * (2 / 3) ** 0.5, 0])
    for name in suiting(stick):
        assert CORRUPTIONS[name](stick)(found.clips, 5, found.draws).frames.isfinite().all()
    assert set(suiting(stick, persons=1)).isdisjoint({"part_occlusion", "left_right_swap", "person_swap", "confidence"})


def test_sizes_and_shares_are_the_documented_ones():
    clips, layout = make_clips("3D", [200] * 30)
    keys, unit = keys_of(30), scene(clips, layout).unit
    there = scene(clips, layout).seen

    def corrupted(name, severity):
        return Corrupted(CORRUPTIONS[name](layout), severity, keys)(clips)

    per_frame = unit.repeat_interleave(200)[:, None, None, None]
    for severity in SEVERITIES:
        for name in ("joint_noise", "joint_offset", "drift"):
            moves = ((corrupted(name, severity).frames - clips.frames) / per_frame)[there]
            level = CORRUPTIONS[name].levels[severity - 1]
            assert moves.square().mean().sqrt() == pytest.approx(level, rel=0.05)
        lost = 1 - corrupted("joint_loss", severity).mask[there].float().mean()
        assert lost == pytest.approx(CORRUPTIONS["joint_loss"].levels[severity - 1], abs=0.01)
        away = ((corrupted("spikes", severity).frames - clips.frames) / per_frame).norm(dim=-1)[there]
        assert (away > 0).float().mean() == pytest.approx(CORRUPTIONS["spikes"].levels[severity - 1], rel=0.1)
        assert away[away > 0].min() > 0.49 and away.max() < 5.01
        assert away[away > 0].median() == pytest.approx(0.5 * 2**0.5, rel=0.1)
        swapped = (corrupted("left_right_swap", severity).frames != clips.frames).any(-1).any(-1)[:, 0]
        assert swapped.float().mean() == pytest.approx(CORRUPTIONS["left_right_swap"].levels[severity - 1], abs=0.05)


def test_frames_are_lost_at_equal_rates_in_three_ways():
    clips, layout = make_clips("3D", [100, 7, 1, 2, 61])
    for severity, rate in zip(SEVERITIES, (0.15, 0.3, 0.5, 0.7, 0.85), strict=True):
        lost = {}
        for name in ("frame_loss_uniform", "frame_loss_random", "frame_loss_block"):
            found = Corrupted(CORRUPTIONS[name](layout), severity, keys_of(5))(clips)
            lost[name] = [~found.clip_mask(row).any(2)[:, :2].any(1) for row in range(5)]
            counts = [int(each.sum()) for each in lost[name]]
            assert counts == [min(int(rate * n + 0.5), n - 1) for n in (100, 7, 1, 2, 61)]

        def longest(name, lost=lost):
            return max(len(run) for run in "".join("x" if gone else " " for gone in lost[name][0]).split())

        assert longest("frame_loss_block") == lost["frame_loss_block"][0].sum()
        assert longest("frame_loss_uniform") <= longest("frame_loss_random")
        # one frame is kept in every so many
        assert longest("frame_loss_uniform") <= 2 / (1 - rate)


def test_parts_hide_as_parts():
    clips, layout = make_clips("3D", [50] * 10)
    found = Corrupted(CORRUPTIONS["part_occlusion"](layout), 1, keys_of(10))(clips)
    for row in range(10):
        gone = ~found.clip_mask(row)[:, 0]
        joints = gone.any(0).nonzero().flatten().tolist()
        assert joints in [sorted(part) for part in layout.parts.values()]
        when = gone.any(1).nonzero().flatten()
        assert len(when) == 15 and int(when[-1] - when[0]) == 14


def test_cameras_turn_clips_and_leave_bodies_alone():
    clips, layout = make_clips("3D", [20, 30])
    left, right = layout.shoulders

    def width(frames):
        return (frames[:, :, left] - frames[:, :, right]).norm(dim=-1)

    for name, still in (("camera_rotation", 1), ("camera_height", 0)):
        found = Corrupted(CORRUPTIONS[name](layout), 4, keys_of(2))(clips)
        assert torch.allclose(width(found.frames), width(clips.frames), atol=1e-4)
        assert torch.allclose(scene(found, layout).centre, scene(clips, layout).centre, atol=1e-4)
        assert torch.allclose(found.frames[..., still], clips.frames[..., still], atol=1e-4)
    clips, layout = make_clips("2D, score", [20, 30])
    found = Corrupted(CORRUPTIONS["camera_height"](layout), 5, keys_of(2))(clips)
    assert torch.equal(found.frames[..., 0], clips.frames[..., 0]) and torch.equal(
        found.frames[..., 2:], clips.frames[..., 2:]
    )
    heights = [each.clip(1)[..., 1].amax() - each.clip(1)[..., 1].amin() for each in (found, clips)]
    assert heights[0] / heights[1] == pytest.approx(0.5, rel=1e-4)
    rolled = Corrupted(CORRUPTIONS["camera_rotation"](layout), 5, keys_of(2))(clips)
    assert torch.allclose(width(rolled.frames[..., :2]), width(clips.frames[..., :2]), atol=1e-5)


def test_time_is_stretched_and_thinned():
    clips, layout = make_clips("3D", [40, 7, 1])
    for severity, step in zip(SEVERITIES, (2, 3, 4, 6, 8), strict=True):
        found = Corrupted(CORRUPTIONS["low_frame_rate"](layout), severity, keys_of(3))(clips)
        for row, length in enumerate((40, 7, 1)):
            firsts = [k for k in range(min(step, length)) if torch.equal(found.clip(row), clips.clip(row)[k::step])]
            assert firsts
    ramp = RaggedClips.pack(
        [torch.arange(n, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 20, 3) + 1 for n in (40, 41)]
    )
    lengths = set()
    for seed in range(8):
        found = Corrupted(CORRUPTIONS["speed"](layout), 3, keys_of(2), seed)(ramp)
        lengths.add(int(found.length[0]))
        steps = found.clip(0)[:, 0, 0, 0].diff()
        assert (steps >= 0).all() and found.clip(0).min() >= 1 and found.clip(0).max() <= 40
        assert sorted({round(float(step), 3) for step in steps}).count(1.0) == 1  # the other half keeps its pace
    assert lengths == {30, 60}


def test_persons_change_places_and_go():
    clips, layout = make_clips("3D", [40, 40])
    swapped = Corrupted(CORRUPTIONS["person_swap"](layout), 1, keys_of(2))(clips)
    assert torch.equal(swapped.clip(0), clips.clip(0))  # one person alone has nobody to change with
    here, there = swapped.clip(1), clips.clip(1)
    change = [torch.equal(here[t], there[t].flip(0)) for t in range(40)]
    assert change == sorted(change) and all(c or torch.equal(here[t], there[t]) for t, c in enumerate(change))
    missing = Corrupted(CORRUPTIONS["second_person_missing"](layout), 5, keys_of(2))(clips)
    assert not missing.mask[:, 1].any() and torch.equal(missing.frames[:, 0], clips.frames[:, 0])
    ghost = Corrupted(CORRUPTIONS["ghost_person"](layout), 5, keys_of(2))(clips)
    assert torch.equal(ghost.clip(1), clips.clip(1)) and (ghost.clip(0)[:, 1] == ghost.clip(0)[:1, 1]).all()
    away = (ghost.clip(0)[0, 1] - clips.clip(0)[:, 0]).flatten(1)
    assert away.std(1).min() > 0 and any(torch.allclose(a[1::3], torch.zeros(20)) for a in away)


def test_confidences_are_those_of_others():
    clips, layout = make_clips("2D, score")
    found = Corrupted(CORRUPTIONS["confidence"](layout), 5, keys_of(5))(clips)
    assert torch.equal(found.frames[..., :2], clips.frames[..., :2])
    score, other = clips.clip(1)[..., 2], found.clip(1)[..., 2]
    power = min((2.0, 0.5), key=lambda p: float((other[0, 0, 0] - score[0, 0] ** p).abs().min()))
    for m in range(2):
        assert ((other[0, m, :, None] - score[0, m] ** power).abs().min(1).values < 1e-6).all()


def test_interpolation_is_exact_on_linear_motion():
    rng = np.random.default_rng(0)
    time = torch.arange(12, dtype=torch.float32).view(-1, 1, 1, 1)
    true = time * torch.from_numpy(rng.normal(size=(1, 2, 4, 3)).astype(np.float32)) + 1
    seen = torch.from_numpy(rng.random((12, 2, 4)) < 0.5)
    seen[0] = seen[-1] = True
    seen[:3, 0, 0], seen[:, 1, 1] = False, False
    holes = true.masked_fill(~seen[..., None], 0)
    clips = RaggedClips.pack([holes, holes[:5]], mask=[seen, seen[:5]])
    found = interpolate(clips)
    inner = torch.ones(12, 2, 4, dtype=torch.bool)
    inner[:3, 0, 0], inner[:, 1, 1] = False, False
    assert torch.allclose(found.clip(0)[inner], true[inner], atol=1e-5)
    first = int(seen[:, 0, 0].nonzero()[0])
    assert torch.equal(found.clip(0)[:first, 0, 0], true[first : first + 1, 0, 0].expand(first, -1))  # nearest
    assert not found.clip_mask(0)[:, 1, 1].any() and (found.clip(0)[:, 1, 1] == 0).all()  # never seen
    assert found.mask.sum() == found.mask.numel() - 17  # clips do not fill each other: 12 and 5 frames of that joint
    assert torch.equal(interpolate(clips, only=torch.zeros_like(clips.mask)).frames, clips.frames)
    assert interpolate(RaggedClips.pack([true])).mask is None


def test_filling_leaves_gaps_that_were_there_before():
    clips, layout = make_clips("3D, mask")
    for name in ("joint_loss", "frame_loss_block"):
        corruption = CORRUPTIONS[name](layout)
        plain, filled = (Corrupted(corruption, 3, keys_of(5), fill=fill)(clips) for fill in ("none", "interpolate"))
        assert not (filled.mask & ~clips.mask).any() and not (plain.mask & ~filled.mask).any()
        assert filled.mask.sum() > plain.mask.sum()
        assert torch.equal(filled.frames[plain.mask], clips.frames[plain.mask])


def test_normalised_noise_is_shared_by_persons():
    clips, layout = make_clips("2D, score", [30, 30])
    for kind in ("spatial", "spatiotemporal"):
        noise = NormalisedNoise(layout, (0.0, 0.01, 0.1), kind)
        assert torch.equal(Corrupted(noise, 1, keys_of(2))(clips).frames[..., :2], clips.frames[..., :2].clamp(-1, 1))
        found = Corrupted(noise, 3, keys_of(2))(clips)
        assert found.frames[..., :2].abs().max() <= 1
        inside = (found.clip(1)[..., :2].abs() < 1).all(1).all(-1)
        move = (found.clip(1) - clips.clip(1))[..., :2]
        assert torch.allclose(move[:, 0][inside], move[:, 1][inside], atol=1e-6)
        assert move[:, 0][inside].std() == pytest.approx(0.1, rel=0.3)
        assert (move[0, 0] - move[1, 0]).abs().min() < 1e-6 if kind == "spatial" else (move[0] != move[1]).any()
        assert torch.equal(found.frames[..., 2], clips.frames[..., 2])


def test_a_wrong_severity_is_named():
    clips, layout = make_clips("3D")
    with pytest.raises(SkelactError, match="severity=6 of drift"):
        CORRUPTIONS["drift"](layout)(clips, 6, Draws(0, 0, clips.index))
