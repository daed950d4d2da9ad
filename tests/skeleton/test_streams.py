import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.errors import SkelactError
from skelact.skeleton import STREAMS, derive, derive_masks, get_layout, list_layouts
from skelact.skeleton.geometry import euler_matrix, rotate
from skelact.skeleton.streams import bone, bone_motion, motion


def views_of(layout, n=2, m=2, t=5, c=3, seed=0):
    return torch.randn(n, m, t, get_layout(layout).num_joints, c, generator=torch.Generator().manual_seed(seed))


@given(name=st.sampled_from(list_layouts()), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_bones_add_up_to_joints(name, seed):
    layout = get_layout(name)
    views = views_of(name, c=layout.dims, seed=seed)
    bones = bone(views, layout)
    joints = torch.zeros_like(views)
    joints[..., layout.root, :] = views[..., layout.root, :]
    for joint in layout.outward[1:]:
        joints[..., joint, :] = joints[..., layout.parents[joint], :] + bones[..., joint, :]
    torch.testing.assert_close(joints, views, rtol=0, atol=1e-5)
    assert (bones[..., layout.root, :] == 0).all()


@given(name=st.sampled_from(["ntu25", "kinect20", "hdm05_31"]), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_streams_turn_with_the_joints_and_do_not_see_shifts(name, seed):
    layout, views = get_layout(name), views_of(name, seed=seed)
    turn = euler_matrix(*torch.randn(3, generator=torch.Generator().manual_seed(seed)).unbind())
    moved = rotate(views, turn) + torch.tensor([1.0, -2.0, 0.5])
    before = derive(views, STREAMS, layout)
    for stream, values in derive(moved, STREAMS, layout).items():
        if stream != "joint":
            torch.testing.assert_close(values, rotate(before[stream], turn), rtol=0, atol=1e-5)


def test_motion_is_a_forward_difference_and_ends_with_zero():
    views = views_of("ntu25")
    out = motion(views)
    assert torch.equal(out[:, :, :-1], views[:, :, 1:] - views[:, :, :-1])
    assert (out[:, :, -1] == 0).all()
    assert (motion(views[:, :, :1]) == 0).all()  # a clip of one frame does not move


def test_bone_motion_is_the_motion_of_bones_and_the_bones_of_motion():
    layout, views = get_layout("ntu25"), views_of("ntu25")
    torch.testing.assert_close(bone_motion(views, layout), bone(motion(views), layout))
    torch.testing.assert_close(derive(views, ["bone_motion"], layout)["bone_motion"], bone_motion(views, layout))


def test_scores_are_not_subtracted():
    layout = get_layout("coco17")
    views = views_of("coco17").abs()
    out = derive(views, STREAMS, layout)
    parents = list(layout.parents)
    assert torch.equal(out["bone"][..., 2], torch.minimum(views[..., 2], views[..., parents, 2]))
    assert torch.equal(out["motion"][:, :, 0, :, 2], torch.minimum(views[:, :, 0, :, 2], views[:, :, 1, :, 2]))
    assert torch.equal(out["bone"][..., :2], views[..., :2] - views[..., parents, :2])


def test_masks_of_streams():
    layout = get_layout("ntu25")
    mask = torch.ones(1, 1, 4, 25, dtype=torch.bool)
    mask[0, 0, 2, 5] = False  # an elbow, parent of wrist 6
    out = derive_masks(mask, STREAMS, layout)
    lost = {name: {(t, v) for _, _, t, v in (~seen).nonzero().tolist()} for name, seen in out.items()}
    assert lost["joint"] == {(2, 5)}
    assert lost["bone"] == {(2, 5), (2, 6)}
    assert lost["motion"] == {(1, 5), (2, 5)}
    assert lost["bone_motion"] == {(1, 5), (2, 5), (1, 6), (2, 6)}
    views = views_of("ntu25", 1, 1, 4)
    for name, values in derive(views, STREAMS[1:], layout, mask).items():
        zero = (values == 0).all(-1)
        assert zero[~out[name]].all()


def test_refusals():
    with pytest.raises(SkelactError, match="unknown stream 'velocity'; there are joint"):
        derive(views_of("ntu25"), ["velocity"], get_layout("ntu25"))
    with pytest.raises(SkelactError, match="'kinect20' has 20 joints"):
        derive(views_of("ntu25"), ["bone"], get_layout("kinect20"))
