import numpy as np
import pytest

from skelact.errors import SkelactError
from skelact.plots import attention, clip_frames, pathways
from skelact.skeleton.layouts import get_layout

LAYOUT = get_layout("kinect20_2d")


def clip(frames=9, seed=0):
    random = np.random.default_rng(seed)
    points = random.uniform(-1, 1, (frames, 1, 20, 3))
    return points, 1 + random.uniform(-0.05, 0.05, (frames, 1, 20))


def drawn(figure):
    """Colours of the joints in each panel."""
    return [axes.collections[0].get_facecolors()[:, :3] for axes in figure.axes if axes.get_title()]


def test_colours_go_from_the_clips_least_to_its_greatest_attention():
    points, importance = clip()
    importance[4, 0, 3], importance[4, 0, 7] = 0.5, 1.5
    panels = drawn(attention(points, importance, LAYOUT, count=9))
    assert len(panels) == 9 and all(panel.shape == (20, 3) for panel in panels)
    np.testing.assert_allclose(panels[4][[3, 7]], [[0, 0, 1], [1, 0, 0]], atol=0.01)
    np.testing.assert_allclose(panels[0][:, 0], importance[0, 0] - 0.5, atol=0.01)
    assert all(np.allclose(panel.sum(1), 1, atol=0.01) and not panel[:, 1].any() for panel in panels)


def test_colours_as_released_are_red_from_a_third_of_the_greatest_on():
    points, _ = clip()
    importance = np.full((9, 1, 20), 0.9)
    importance[0, 0, :4] = [-1.0, 0.15, 0.2, 0.3]
    first, *others = drawn(attention(points, importance, LAYOUT, count=9, released=True))
    np.testing.assert_allclose(first[:4, 0], [0.0, 0.5, 2 / 3, 1.0], atol=0.02)
    assert all((panel[:, 0] == 1).all() for panel in others)


def test_unobserved_joints_are_left_out_and_do_not_stretch_the_colours():
    points, importance = clip()
    mask = np.ones(importance.shape, bool)
    mask[0, 0, 5], importance[0, 0, 5], points[0, 0, 5] = False, 99.0, 50.0
    first, *_ = drawn(attention(points, importance, LAYOUT, mask, count=9))
    assert len(first) == 19 and first[:, 0].max() > 0.4
    pictures = clip_frames(points, LAYOUT, mask, max_frames=3, importance=importance)
    plain = clip_frames(points, LAYOUT, mask, max_frames=3)
    assert pictures.shape == plain.shape == (3, 320, 320, 3) and (pictures != plain).any()


def test_pathways_share_one_scale():
    random = np.random.default_rng(0)
    features = {"standard": random.normal(size=(24, 8)), "masked": random.normal(size=(24, 8))}
    figure = pathways(features, np.arange(24) % 22, [f"class {k}" for k in range(22)], "title")
    left, right = figure.axes
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    assert [axes.get_title() for axes in figure.axes] == ["standard pathway", "masked pathway"]
    assert sum(len(dots.get_offsets()) for dots in right.collections) == 24
    looks = {(tuple(d.get_facecolors()[0]), len(d.get_paths()[0].vertices)) for d in right.collections}
    assert len(looks) == 22  # no two classes look alike, though there are but twenty colours
    with pytest.raises(SkelactError, match="at least 4"):
        pathways({"standard": np.zeros((1, 3)), "masked": np.zeros((1, 3))}, np.zeros(1, int), ["a"])
