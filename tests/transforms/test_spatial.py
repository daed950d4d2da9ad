import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.errors import SkelactError
from skelact.skeleton import derive, get_layout, list_layouts
from skelact.skeleton.geometry import euler_matrix
from skelact.transforms.draws import Draws
from skelact.transforms.spatial import (
    AxisMask,
    AxisRotation,
    Compose,
    Flip,
    JointCorruption,
    JointNoise,
    OneOf,
    RandomRotation,
    Shear,
    apply_matrix,
    limit_dims,
)
from skelact.transforms.temporal import TemporalBlur, TemporalCrop, TimeFlip


def make(n=6, m=2, t=7, v=25, c=3, seed=0):
    return torch.randn(n, t, m, v, c, generator=torch.Generator().manual_seed(seed)).transpose(1, 2)


def draws(n, seed=0, epoch=0):
    return Draws(seed, epoch, torch.arange(n) * 5 + 1)


def published():
    return OneOf([JointCorruption(), Shear()])


def extreme():
    parts = [TemporalCrop(3), Shear(0.5), Flip("ntu25", axis=None), AxisRotation(), JointNoise(p=0.5), TemporalBlur()]
    return Compose([*parts, AxisMask(), TimeFlip()])


TRANSFORMS = {
    "corruption": JointCorruption,
    "shear": Shear,
    "rotation": lambda: RandomRotation(pitch=0.3, roll=0.2, p=0.7),
    "noise": lambda: JointNoise(0.05, p=0.5),
    "flip": lambda: Flip("ntu25"),
    "published": published,
    "published, yaw": lambda: Compose([published(), RandomRotation()]),
    "mixed": lambda: Compose([Shear(), Flip("ntu25"), OneOf([JointNoise(), Shear()], p=[0.3, 0.7]), Shear(), Shear()]),
    "axis rotation": AxisRotation,
    "axis mask": AxisMask,
    "noise, as released": lambda: JointNoise(0.05, p=0.5, preset="as_released"),
    "crop": lambda: TemporalCrop(3),
    "time flip": TimeFlip,
    "blur": TemporalBlur,
    "blur, as released": lambda: TemporalBlur(preset="as_released"),
    "extreme": extreme,
    "nothing": lambda: Compose([]),
}


@given(
    n=st.integers(1, 5), m=st.integers(1, 3), t=st.integers(1, 6), v=st.integers(1, 8), d=st.integers(2, 3),
    extra=st.integers(0, 1), shared=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_apply_matrix_is_a_product_for_each_joint(n, m, t, v, d, extra, shared, seed):
    views = make(n, m, t, v, d + extra, seed)
    matrix = torch.randn(n, 1 if shared else v, d, d, generator=torch.Generator().manual_seed(seed))
    out = apply_matrix(views, matrix)
    expected = torch.einsum("nvij,nmtvj->nmtvi", matrix.expand(n, v, d, d), views[..., :d])
    torch.testing.assert_close(out[..., :d], expected, rtol=0, atol=1e-5)
    assert torch.equal(out[..., d:], views[..., d:])
    assert out.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(apply_matrix(views.contiguous(), matrix), out)  # another memory order


@pytest.mark.parametrize("name", TRANSFORMS)
class TestEvery:
    def test_views_do_not_depend_on_the_batch(self, name):
        views, transform = make(), TRANSFORMS[name]()
        mask = views[..., 0] > -1
        views = views * mask[..., None]
        whole, seen = transform(views, mask, draws(6))
        for rows in ([4], [5, 0, 2]):
            own = Draws(0, 0, torch.tensor(rows) * 5 + 1)
            some, some_seen = transform(views[rows], mask[rows], own)
            assert torch.equal(some, whole[rows]) and torch.equal(some_seen, seen[rows])

    def test_drawing_and_applying_are_separate(self, name):
        views, transform = make(), TRANSFORMS[name]()
        params = transform.draw(draws(6), views)
        assert all(len(value) == 6 for value in params.values())
        assert torch.equal(transform.replay(views, None, **params)[0], transform(views, None, draws(6))[0])

    def test_the_input_is_not_written_to(self, name):
        views = make()
        before = views.clone()
        TRANSFORMS[name]()(views, None, draws(6))
        assert torch.equal(views, before)

    def test_unobserved_joints_stay_at_zero(self, name):
        mask = torch.rand(6, 2, 7, 25, generator=torch.Generator().manual_seed(1)) > 0.3
        out, seen = TRANSFORMS[name]()(make() * mask[..., None], mask, draws(6))
        assert seen.shape == mask.shape and (out[~seen] == 0).all()

    def test_absent_bodies_stay_at_zero(self, name):
        views = make()
        views[1, 1], views[2:4] = 0, 0
        out, _ = TRANSFORMS[name]()(views, None, draws(6))
        noisy = name == "noise, as released"  # as its authors have it, on absent bodies too
        assert noisy or ((out[2:4] == 0).all() and (out[1, 1] == 0).all())

    def test_scores_and_clips_of_one_frame_pass(self, name):
        views = make(t=1, c=4)
        out, mask = TRANSFORMS[name]()(views, None, draws(6))
        assert out.shape == views.shape and mask is None and out.isfinite().all()
        if "noise" not in name and name not in ("flip", "mixed", "extreme"):  # a flip moves scores with their joints
            assert torch.equal(out[..., 3], views[..., 3])

    def test_epochs_differ(self, name):
        views, transform = make(40), TRANSFORMS[name]()
        first, second = (transform(views, None, draws(40, epoch=epoch))[0] for epoch in (0, 1))
        assert torch.equal(first, second) == (name == "nothing")


def test_fusing_changes_nothing():
    views = make()
    parts = [published(), RandomRotation(pitch=0.2), Flip("ntu25"), Shear(0.5), JointCorruption(3)]
    together = Compose(parts)
    out, _ = together(views, None, draws(6))
    step = views
    for scope, part in zip(["OneOf0", "RandomRotation0", "Flip0", "Shear0", "JointCorruption0"], parts, strict=True):
        step, _ = part(step, None, draws(6).scope(scope))
    torch.testing.assert_close(out, step, rtol=0, atol=1e-5)


def test_two_of_a_kind_draw_differently_and_additions_disturb_nobody():
    views = make()
    both = Compose([Shear(), Shear()]).draw(draws(6), views)
    assert not torch.equal(both["Shear0/shear"], both["Shear1/shear"])
    more = Compose([Flip("ntu25"), Shear(), JointNoise(), Shear()]).draw(draws(6), views)
    assert all(torch.equal(more[key], value) for key, value in both.items())


def test_published_shares_of_the_branches():
    n = 4000
    views = torch.randn(1, 1, 1, 25, 3).expand(n, 1, 1, 25, 3)
    out, _ = published()(views, None, draws(n))
    zero = (out == 0).all(-1).sum((1, 2, 3))
    same = (out == views).all(-1).sum((1, 2, 3))
    assert set(zero.tolist()) == {0, 15} and set(same.tolist()) == {0, 10}
    assert (zero == 15).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert ((zero == 0) & (same == 10)).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (same == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_corruption_hides_on_request():
    views, mask = make(200), torch.ones(200, 2, 7, 25, dtype=torch.bool)
    out, seen = JointCorruption(hide=True)(views, mask, draws(200))
    assert torch.equal(seen, ~(out == 0).all(-1)) and not seen.all()
    out, seen = JointCorruption()(views, mask, draws(200))
    assert seen.all() and (out == 0).any()
    _, seen = OneOf([JointCorruption(5, p_linear=0, hide=True), Shear()])(views, mask, draws(200))
    assert set((~seen).sum(-1).flatten().tolist()) == {0, 5}


def test_rotation_turns_about_the_vertical():
    views = make(50)
    out, _ = RandomRotation()(views, None, draws(50))
    torch.testing.assert_close(out[..., 1], views[..., 1])
    torch.testing.assert_close(out.norm(dim=-1), views.norm(dim=-1))
    angles = RandomRotation(p=0.5).draw(draws(2000), views)["angles"]
    assert (angles[:, 0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert angles[:, 0].abs().max() <= math.pi and (angles[:, 1:] == 0).all()
    up = RandomRotation(up="z")(views, None, draws(50))[0]
    torch.testing.assert_close(up[..., 2], views[..., 2])


@given(seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_streams_commute_with_rotation(seed):
    layout, views = get_layout("ntu25"), make(seed=seed)
    params = {"angles": torch.rand(6, 3, generator=torch.Generator().manual_seed(seed)) * 6 - 3}
    matrix = euler_matrix(*params["angles"].unbind(-1))[:, None]
    streams = ("bone", "motion", "bone_motion")
    after = derive(RandomRotation().replay(views, None, **params)[0], streams, layout)
    for stream, values in derive(views, streams, layout).items():
        torch.testing.assert_close(after[stream], apply_matrix(values, matrix), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list_layouts())
def test_flip_is_an_involution_and_swaps_sides(name):
    layout = get_layout(name)
    views = make(v=layout.num_joints, c=layout.dims)
    mask = views[..., 0] > -0.5
    flip, always = Flip(name), {"flip": torch.ones(6, dtype=torch.bool)}
    once, seen = flip.replay(views, mask, **always)
    left, right = layout.shoulders
    assert torch.equal(once[..., left, 0], -views[..., right, 0]) and torch.equal(seen[..., left], mask[..., right])
    assert torch.equal(once[..., left, 1], views[..., right, 1])
    twice, again = flip.replay(once, seen, **always)
    assert torch.equal(twice, views) and torch.equal(again, mask)
    assert torch.equal(flip.replay(views, None, flip=~always["flip"])[0], views)
    swapped, _ = Flip(name, axis=None).replay(views, None, **always)
    assert torch.equal(swapped, views[..., list(layout.mirror), :])


def test_noise_has_its_size():
    views = torch.zeros(50, 2, 20, 25, 3)
    out, _ = JointNoise(0.03, preset="as_released")(views, None, draws(50))
    assert out.std().item() == pytest.approx(0.03, rel=0.02) and abs(out.mean()) < 1e-3
    half = JointNoise(0.03, p=0.5).draw(draws(50), views)["noise"]
    chosen = draws(50).coin("noise.p", 0.5)
    assert torch.equal(half[chosen], out[chosen]) and (half[~chosen] == 0).all() and 0 < chosen.sum() < 50


def test_axis_rotation_turns_mostly_about_one_axis():
    views = make(3000, m=1, t=1)
    angles = AxisRotation().draw(draws(3000), views)["angles"]
    assert angles.min() >= 0 and angles.max() <= math.pi / 6 and angles.sort().values[:, 1].max() <= math.pi / 180
    assert angles.mean(0).tolist() == pytest.approx([math.pi / 36 + math.pi / 540] * 3, rel=0.1)
    out, _ = AxisRotation()(views, None, draws(3000))
    torch.testing.assert_close(out.norm(dim=-1), views.norm(dim=-1))


def test_axis_mask_takes_all_axes_alike():
    views = make(3000, m=1, t=2)
    out, _ = AxisMask()(views, None, draws(3000))
    gone = (out == 0).flatten(1, 3).all(1)
    assert (gone.sum(1) <= 1).all() and torch.equal(out[~gone.any(1)], views[~gone.any(1)])
    assert gone.float().mean(0).tolist() == pytest.approx([1 / 6] * 3, abs=0.03)
    flat, _ = AxisMask(1.0, dims=2)(views, None, draws(3000))
    assert (flat[..., 2] == views[..., 2]).all() and (flat[..., :2] == 0).all(-1).sum() == 0


def test_module_apply_still_walks_modules():
    met = []
    compose = Compose([published()])
    compose.apply(met.append)
    assert met[-1] is compose and any(isinstance(module, Shear) for module in met)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: OneOf([]), "one probability per transform"),
        (lambda: OneOf([Shear()], p=[0.5]), "adding up to 1"),
        (lambda: OneOf([Shear(), Shear()], p=[1.5, -0.5]), "within 0 and 1"),
        (lambda: JointCorruption(1.5), "count or a share"),
        (lambda: JointCorruption(30)(make(), None, draws(6)), "takes 30 joints, the views have 25"),
        (lambda: JointNoise(-1), "negative"),
        (lambda: Shear(dims=4), "dims"),
        (lambda: RandomRotation()(make(c=2), None, draws(6)), "3D coordinates"),
        (lambda: JointNoise(preset="released"), "JointNoise: preset='released' is not one of corrected, as_released"),
        (lambda: AxisRotation()(make(c=2), None, draws(6)), "3D coordinates"),
        (lambda: AxisMask(2), "within 0 and 1"),
        (lambda: Flip("kinect20")(make(), None, draws(6)), "layout of 20 joints, the views have 25"),
        (lambda: Flip("ntu25").matrix(make()), "not linear"),
    ],
)
def test_refusals(make_it, message):
    with pytest.raises(SkelactError, match=message):
        make_it()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_gpu_makes_the_same_views(name):
    views, transform = make(), TRANSFORMS[name]()
    out, _ = transform(views.cuda(), None, Draws(0, 0, torch.arange(6, device="cuda") * 5 + 1))
    torch.testing.assert_close(out.cpu(), transform(views, None, draws(6))[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 3])
def test_poses_in_the_plane_keep_their_scores(channels):
    views = torch.rand(6, 1, 4, 17, channels)
    given_draws = draws(6)
    for transform in (Shear(), JointCorruption(p_linear=1.0), JointNoise(0.1)):
        limit_dims(transform, get_layout("coco17"))
        made, _ = transform(views, None, given_draws)
        assert not torch.equal(made[..., :2], views[..., :2])
        assert torch.equal(made[..., 2:], views[..., 2:])
    with pytest.raises(SkelactError, match="RandomRotation turns 3D"):
        limit_dims(Compose([RandomRotation()]), get_layout("coco17"))
