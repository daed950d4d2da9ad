import numpy as np
import pytest
import torch

from skelact.skeleton import LayoutError, convert, get_layout, list_conversions

WANTED = {
    ("kinect20", "ntu25"),
    ("hdm05_31", "ntu25"),
    ("hdm05_31", "kinect20"),
    ("ntu25", "kinect20"),
    ("coco17", "h36m17"),
}


def points(layout, *shape, c=3, seed=0):
    return torch.randn(*shape, get_layout(layout).num_joints, c, generator=torch.Generator().manual_seed(seed))


def test_conversions_there_are():
    assert set(list_conversions()) >= WANTED


@pytest.mark.parametrize(("source", "target"), sorted(WANTED))
def test_joints_of_the_same_name_keep_their_place_and_sides_do_not_mix(source, target):
    a, b = get_layout(source), get_layout(target)
    frames = points(source, 4, 2)
    out, mask = convert(frames, source, target)
    assert out.shape == (4, 2, b.num_joints, 3) and mask is None
    for name in set(a.joints) & set(b.joints) - {"neck", "root"}:
        assert torch.equal(out[..., b.index(name), :], frames[..., a.index(name), :]), name
    swapped, _ = convert(frames[..., list(a.mirror), :], source, target)
    torch.testing.assert_close(swapped, out[..., list(b.mirror), :])


def test_kinect20_goes_to_ntu25_and_back():
    frames = points("kinect20", 5)
    back, _ = convert(convert(frames, "kinect20", "ntu25")[0], "ntu25", "kinect20")
    assert torch.equal(back, frames)


def test_hdm05_by_way_of_kinect20_agrees_where_kinect_sees():
    frames = points("hdm05_31", 5)
    direct, _ = convert(frames, "hdm05_31", "ntu25")
    detour, _ = convert(convert(frames, "hdm05_31", "kinect20")[0], "kinect20", "ntu25")
    seen = [j for j, name in enumerate(get_layout("ntu25").joints) if not name.endswith(("neck", "tip", "thumb"))]
    assert torch.equal(direct[:, seen], detour[:, seen])


def test_coco_to_h36m_by_hand():
    frames = points("coco17", 3, c=3)
    frames[..., 2] = torch.rand(3, 17, generator=torch.Generator().manual_seed(1))
    out, _ = convert(frames, "coco17", "h36m17", score_channel=True)
    x = frames[..., :2]
    expected = {
        0: (11, 12),
        7: (5, 6, 11, 12),
        8: (5, 6),
        10: (1, 2),
        9: (0,),
        1: (12,),
        3: (16,),
        4: (11,),
        11: (5,),
        16: (10,),
    }
    for joint, sources in expected.items():
        torch.testing.assert_close(out[:, joint, :2], x[:, list(sources)].mean(1))
        assert torch.equal(out[:, joint, 2], frames[:, list(sources), 2].amin(1))


def test_masks_move_along_and_unobserved_joints_are_zero():
    frames = points("coco17", 2, 4)
    mask = torch.ones(2, 4, 17, dtype=torch.bool)
    mask[0, 1, 11] = False  # left hip
    out, seen = convert(frames, "coco17", "h36m17", mask=mask, score_channel=True)
    lost = {get_layout("h36m17").index(name) for name in ("root", "belly", "left_hip")}
    assert {joint for joint in range(17) if not seen[0, 1, joint]} == lost
    assert seen.sum() == seen.numel() - 3
    assert (out[0, 1, sorted(lost), :2] == 0).all()
    left_hip = get_layout("h36m17").index("left_hip")
    assert out[0, 1, left_hip, 2] == frames[0, 1, 11, 2]  # the score is still told


def test_scores_in_the_released_order():
    frames = points("coco17", 3, 2)
    mask = torch.rand(3, 2, 17, generator=torch.Generator().manual_seed(1)) > 0.2
    plain, seen = convert(frames, "coco17", "h36m17", mask, score_channel=True)
    out, same = convert(frames, "coco17", "h36m17", mask, score_channel=True, scores="as_released")
    assert torch.equal(out[..., :2], plain[..., :2]) and torch.equal(same, seen)
    assert torch.equal(out[..., 2], frames[..., 2]) and not torch.equal(plain[..., 2], frames[..., 2])
    array, _ = convert(frames.numpy(), "coco17", "h36m17", mask.numpy(), True, "as_released")
    np.testing.assert_array_equal(array, out)
    with pytest.raises(LayoutError, match="'as_was' is not one of converted, as_released"):
        convert(frames, "coco17", "h36m17", scores="as_was")
    with pytest.raises(LayoutError, match="different numbers of joints"):
        convert(points("kinect20", 2, c=4), "kinect20", "ntu25", score_channel=True, scores="as_released")


def test_arrays_give_arrays_and_keep_their_type():
    frames = points("hdm05_31", 6, 1).numpy()
    expected, _ = convert(torch.from_numpy(frames), "hdm05_31", "ntu25")
    mask = np.ones(frames.shape[:-1], dtype=bool)
    for dtype in (np.float32, np.float16, np.float64):
        out, seen = convert(frames.astype(dtype), "hdm05_31", "ntu25", mask=mask)
        assert isinstance(out, np.ndarray) and out.dtype == dtype and seen.dtype == bool
        np.testing.assert_allclose(out, expected.numpy(), atol=2e-3 if dtype == np.float16 else 1e-6)


def test_same_layout_returns_the_input():
    frames = points("ntu25", 2)
    assert convert(frames, "ntu25", "ntu25")[0] is frames


def test_refusals():
    with pytest.raises(LayoutError, match="no conversion from layout 'h36m17' to 'ntu25'; there are kinect20 -> ntu25"):
        convert(points("h36m17", 2), "h36m17", "ntu25")
    with pytest.raises(LayoutError, match=r"'kinect20' has 20 joints, the frames .2, 25, 3. have 25"):
        convert(points("ntu25", 2), "kinect20", "ntu25")
    with pytest.raises(LayoutError, match="mask"):
        convert(points("ntu25", 2), "ntu25", "kinect20", mask=torch.ones(3, 25, dtype=torch.bool))
    table = get_layout("ntu25").to_dict()
    other = get_layout({**table, "joints": table["joints"][::-1]})  # the name alone does not make it the known layout
    with pytest.raises(LayoutError, match="no conversion"):
        convert(points("ntu25", 2), other, "kinect20")
