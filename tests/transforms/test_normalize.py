from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.skeleton import get_layout
from skelact.skeleton.geometry import yaw_matrix
from skelact.transforms.normalize import MODES, Normalize, make_normalizer

NTU = get_layout("ntu25")


def make(sizes, seed=0, m=2, layout=NTU, c=3):
    generator = torch.Generator().manual_seed(seed)
    pose = torch.randn(1, m, layout.num_joints, c, generator=generator)
    clips = [pose + 0.2 * torch.randn(n, m, layout.num_joints, c, generator=generator).cumsum(0) + 3 for n in sizes]
    return RaggedClips.pack(clips)


def with_mask(clips, seen):
    return replace(clips, frames=clips.frames * seen[..., None], mask=seen)


def reference_fill(person):
    """Dropping and repeating of one person `(T, V, C)` without a mask, frame by frame, as the paper's code does it."""
    present = [bool(frame.sum() != 0) for frame in person]
    if not any(present):
        return person.clone()
    kept = list(range(len(person)))
    if not present[0]:
        kept = [t for t in kept if present[t]]
    else:
        while not present[kept[-1]]:
            kept.pop()
    return torch.stack([person[kept[t % len(kept)]] for t in range(len(person))])


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    absent=st.lists(st.booleans(), min_size=120, max_size=120),
    masked=st.booleans(),
    chunk=st.integers(1, 40),
)
@settings(max_examples=80, deadline=None)
def test_umurl_fills_like_the_frame_by_frame_form(sizes, absent, masked, chunk):
    clips = make(sizes)
    count = len(clips.frames)
    seen = ~torch.tensor(absent[: 2 * count]).view(count, 2)
    frames = clips.frames * seen[..., None, None]
    raw = replace(clips, frames=frames)
    given_clips = with_mask(raw, seen[..., None].expand(-1, -1, 25)) if masked else raw
    out = Normalize("umurl", NTU, chunk=chunk)(given_clips)
    for row in range(len(sizes)):
        filled = torch.stack([reference_fill(raw.clip(row)[:, person]) for person in range(2)], 1)
        there = (filled != 0).any(-1)
        if masked:
            assert torch.equal(out.clip_mask(row), there)
        if not masked or there[:, 0].all():
            centred = (filled - filled[:, :1, NTU.center, None]) * there[..., None]
            # distances survive the rotation
            expected, got = (x.norm(dim=-1) for x in (centred, out.clip(row)))
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_clips_do_not_influence_each_other_and_chunks_do_not_show(mode):
    clips = make([5, 1, 30, 7])
    whole = Normalize(mode, NTU)(clips)
    assert torch.equal(whole.start, clips.start) and torch.equal(whole.length, clips.length)
    for row in range(4):
        alone = Normalize(mode, NTU)(clips.select(torch.tensor([row])).compact())
        assert torch.equal(alone.clip(0), whole.clip(row))
        assert torch.equal(Normalize(mode, NTU, chunk=1)(clips).clip(row), whole.clip(row))
    some = Normalize(mode, NTU)(clips.select(torch.tensor([2, 0])))
    assert torch.equal(some.clip(0), whole.clip(2)) and torch.equal(some.clip(1), whole.clip(0))
    assert torch.equal(some.frames[5:6], clips.frames[5:6])  # frames of no clip stay


def test_input_is_left_alone():
    clips = make([5, 6])
    before = clips.frames.clone()
    Normalize("umurl", NTU)(clips)
    assert torch.equal(clips.frames, before)


def test_center():
    clips = make([5, 6])
    out = Normalize("center", NTU)(clips).frames
    assert (out[:, 0, NTU.center] == 0).all()
    torch.testing.assert_close(out, clips.frames - clips.frames[:, :1, NTU.center : NTU.center + 1])


@given(yaw=st.floats(-3.1, 3.1), up=st.sampled_from(["y", "z", "-y"]), shift=st.floats(-5, 5), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_front_undoes_yaw_and_place(yaw, up, shift, seed):
    layout = get_layout({**NTU.to_dict(), "up": up})
    clips = make([6, 3], seed)
    turned = replace(clips, frames=clips.frames @ yaw_matrix(torch.tensor(yaw), up).T + shift)
    first, second = (Normalize("front", layout)(given_clips) for given_clips in (clips, turned))
    torch.testing.assert_close(first.frames, second.frames, rtol=0, atol=1e-3)
    left, right = layout.shoulders
    line = first.frames[first.start, 0, right] - first.frames[first.start, 0, left]
    depth = {"y": 2, "z": 1}[up[-1]]
    torch.testing.assert_close(line[:, depth], torch.zeros(2), rtol=0, atol=1e-4)
    assert (line[:, 0] > 0).all()
    vertical = {"y": 1, "z": 2}[up[-1]]
    centred = Normalize("center", layout)(clips).frames
    torch.testing.assert_close(first.frames[..., vertical], centred[..., vertical], rtol=0, atol=1e-5)


def test_umurl_makes_the_shoulder_line_parallel_to_x():
    out = Normalize("umurl", NTU)(make([4, 9]))
    line = out.frames[out.start, 0, 8] - out.frames[out.start, 0, 4]
    torch.testing.assert_close(
        line / line.norm(dim=-1, keepdim=True), torch.tensor([[1.0, 0, 0]] * 2), atol=1e-4, rtol=0
    )


def test_lost_centres_and_shoulders_are_taken_from_elsewhere():
    clips = make([4])
    seen = torch.ones(clips.frames.shape[:3], dtype=torch.bool)
    seen[0, 0, NTU.center] = seen[2, 0, NTU.center] = False  # 0: the next that will be seen; 2: the last that was
    seen[0, 0, 4] = False  # the facing is read off frame 1
    masked = with_mask(clips, seen)
    out = Normalize("front", NTU)(masked)
    assert torch.equal(out.mask, seen) and (out.frames[~seen] == 0).all()
    centre = clips.frames[[1, 1, 1, 3], 0, NTU.center]
    expected = (clips.frames - centre[:, None, None]) * seen[..., None]
    line = expected[1, 0, 8] - expected[1, 0, 4]
    turned = expected @ yaw_matrix(torch.atan2(line[2], line[0])).T
    torch.testing.assert_close(out.frames, turned, rtol=0, atol=1e-5)


def test_unobserved_rubbish_does_not_leak():
    clips = make([4, 3])
    seen = torch.rand(clips.frames.shape[:3], generator=torch.Generator().manual_seed(0)) > 0.2
    rubbish = replace(clips, frames=torch.where(seen[..., None], clips.frames, torch.nan), mask=seen)
    for mode in MODES[1:]:
        out = Normalize(mode, NTU)(rubbish)
        assert out.frames.isfinite().all() and (out.frames[~out.mask] == 0).all()
        torch.testing.assert_close(out.frames, Normalize(mode, NTU)(with_mask(clips, seen)).frames)


def test_scores_and_types_are_kept():
    layout = get_layout("coco17")
    clips = make([4, 2], layout=layout)
    out = Normalize("center", layout)(clips)
    assert torch.equal(out.frames[..., 2], clips.frames[..., 2]) and (out.frames[:, 0, 0, :2] == 0).all()
    clips = make([4, 2], c=4)
    out = Normalize("umurl", NTU)(clips)
    assert torch.equal(out.frames[..., 3], clips.frames[..., 3])
    half = Normalize("umurl", NTU)(replace(clips, frames=clips.frames.half()))
    assert half.frames.dtype == torch.float16
    torch.testing.assert_close(half.frames.float(), out.frames, rtol=0, atol=2e-2)


@pytest.mark.parametrize("mode", MODES)
def test_nobody_there_and_nothing_given(mode):
    empty = RaggedClips.pack([torch.zeros(3, 2, 25, 3), torch.zeros(1, 2, 25, 3)])
    for clips in (empty, replace(empty, mask=torch.zeros(4, 2, 25, dtype=torch.bool))):
        assert (Normalize(mode, NTU)(clips).frames == 0).all()
    none = empty.select(torch.zeros(0, dtype=torch.int64))
    assert len(Normalize(mode, NTU)(none)) == 0


def test_none_returns_the_clips():
    clips = make([3])
    assert Normalize("none", NTU)(clips) is clips


@pytest.mark.parametrize(
    ("mode", "layout", "message"),
    [
        ("upright", "ntu25", "unknown normalisation 'upright'; there are none, center"),
        ("umurl", "coco17", "needs 3D joints, layout 'coco17' has 2D ones; use center"),
        ("front", {**NTU.to_dict(), "up": "-x"}, "vertical in layout 'ntu25'"),
    ],
)
def test_wrong_options(mode, layout, message):
    with pytest.raises(SkelactError, match=message):
        Normalize(mode, layout)


def test_wrong_clips():
    with pytest.raises(SkelactError, match="'kinect20' has 20 joints with 3 coordinates, the clips 25 joints"):
        Normalize("center", "kinect20")(make([3]))


def test_first_frame_keeps_the_path():
    clips = make([5, 6])
    late = clips.frames.clone()
    late[:2, 0] = 0  # person 0 comes in frame 2 of the first clip
    out = Normalize("first_frame", NTU)(replace(clips, frames=late))
    for row, first in ((0, 2), (1, 0)):
        clip = replace(clips, frames=late).clip(row)
        expected = (clip - clip[first, 0, NTU.center]) * (clip != 0)
        torch.testing.assert_close(out.clip(row), expected)


@pytest.mark.parametrize("mode", ["none", "first_frame", "center"])
@pytest.mark.parametrize("masked", [False, True])
def test_absent_bodies_become_copies(mode, masked):
    clips = make([4, 3, 5])
    seen = torch.ones(clips.frames.shape[:3], dtype=torch.bool)
    seen[:4, 1] = False  # throughout the first clip
    seen[8:, 1] = False  # at the end of the third
    clips = with_mask(clips, seen) if masked else replace(clips, frames=clips.frames * seen[..., None])
    plain, filled = Normalize(mode, NTU)(clips), Normalize(mode, NTU, fill="copy")(clips)
    assert torch.equal(filled.clip(0)[:, 1], plain.clip(0)[:, 0])
    assert filled.clip_mask(0).all()
    for row in (1, 2):
        assert torch.equal(filled.clip(row), plain.clip(row))
        assert torch.equal(filled.clip_mask(row), plain.clip_mask(row))


@given(yaw=st.floats(-3, 3), tilt=st.floats(-1.5, 1.5), shift=st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_cmd_sets_bodies_upright_on_z(yaw, tilt, shift):
    clips = make([5, 1, 8], m=1)
    pose = clips.frames.clone()
    centre = pose[:, 0, NTU.center]
    for joint, place in ((0, (0.0, -0.5, 0.0)), (4, (-0.2, 0.5, 0.0)), (8, (0.2, 0.5, 0.0))):
        pose[:, 0, joint] = centre + torch.tensor(place)
    turn = yaw_matrix(torch.tensor(yaw), "y") @ yaw_matrix(torch.tensor(tilt), "z")
    out = Normalize("cmd", NTU)(replace(clips, frames=pose @ turn.T + shift))
    for row in range(3):
        first = out.clip(row)[0, 0]
        torch.testing.assert_close(first[0], torch.tensor([0.0, 0.0, -0.5]), rtol=0, atol=1e-4)
        torch.testing.assert_close(first[8] - first[4], torch.tensor([0.4, 0.0, 0.0]), rtol=0, atol=1e-4)


def test_body_front_faces_every_frame():
    clips = make([5, 3])
    bodies, fronts = Normalize("body", NTU)(clips), Normalize("body_front", NTU)(clips)
    centre = clips.frames[:, :, NTU.center, None]
    torch.testing.assert_close(bodies.frames, clips.frames - centre)
    line = fronts.frames[:, :, 8] - fronts.frames[:, :, 4]
    assert (line[..., 0] > 0).all()
    torch.testing.assert_close(line[..., 2], torch.zeros_like(line[..., 2]), rtol=0, atol=1e-5)
    torch.testing.assert_close(fronts.frames[..., 1], bodies.frames[..., 1])
    torch.testing.assert_close(fronts.frames.norm(dim=-1), bodies.frames.norm(dim=-1))
    chest = Normalize("body", NTU, center="spine_shoulder")(clips)
    assert (chest.frames[:, :, 20] == 0).all()


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), masked=st.booleans(), seed=st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_minmax_fills_the_box(sizes, masked, seed):
    clips = make(sizes, seed, m=1)
    if masked:
        some = torch.rand(clips.frames.shape[:3], generator=torch.Generator().manual_seed(seed)) > 0.3
        some[:, :, :2] = True
        clips = with_mask(clips, some)
    out = Normalize("minmax", NTU)(clips)
    for row in range(len(sizes)):
        there = out.clip(row)[out.clip_mask(row)]
        torch.testing.assert_close(there.amin(0), torch.full((3,), -1.0))
        torch.testing.assert_close(there.amax(0), torch.full((3,), 1.0))


def test_minmax_of_what_does_not_vary():
    flat = make([3], m=1)
    flat.frames[..., 1] = 2.0
    out = Normalize("minmax", NTU)(flat)
    assert (out.frames[..., 1] == 0).all() and out.frames.isfinite().all()


def test_options_of_a_data_config():
    assert make_normalizer(None, NTU) is None
    assert make_normalizer("front", NTU).mode == "front"
    made = make_normalizer({"mode": "first_frame", "fill": "copy", "center": "neck"}, NTU)
    assert (made.mode, made.fill, made.center) == ("first_frame", "copy", 2)
    with pytest.raises(SkelactError, match="takes mode, center, fill, chunk, no foo"):
        make_normalizer({"mode": "center", "foo": 1}, NTU)
    with pytest.raises(SkelactError, match="and needs mode"):
        make_normalizer({"fill": "copy"}, NTU)
    with pytest.raises(SkelactError, match="fill='twice' is not one of none, copy"):
        Normalize("center", NTU, fill="twice")
    with pytest.raises(SkelactError, match="no joint 25; it has 0 to 24"):
        Normalize("center", NTU, center=25)
    with pytest.raises(SkelactError, match="which are one in layout 'hdm05_31'"):
        Normalize("cmd", "hdm05_31")
