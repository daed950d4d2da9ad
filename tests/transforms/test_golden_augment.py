"""SkeletonCLR's and AimCLR's augmentations against arrays of the reference code; see tests/golden/augment/README.md."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.skeleton import get_layout
from skelact.transforms.spatial import AxisMask, AxisRotation, Flip, JointNoise, Shear
from skelact.transforms.temporal import TemporalBlur, TemporalCrop, TimeFlip

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "augment" / "augment.npz", allow_pickle=False))


def views_of(array):
    """(C,T,V,M) -> (1,M,T,V,C) in double precision."""
    return torch.from_numpy(np.asarray(array, dtype=np.float64)).permute(3, 1, 2, 0)[None]


def array_of(views):
    return views[0].permute(3, 1, 2, 0).numpy()


def seeds(name):
    return sorted({key.split("/")[-2] for key in GOLDEN if key.startswith(f"{name}/") and key.endswith("/out")})


def item(name, seed, key):
    return GOLDEN[f"{name}/{seed}/{key}"]


def flag(value):
    return torch.tensor([bool(value)])


def shear_matrix(values):
    a1, a2, a3, b1, b2, b3 = values
    return torch.tensor([[[1, a1, b1], [a2, 1, b2], [a3, b3, 1]]], dtype=torch.float64)


class Recorded:
    """What the reference draws after seeding both generators with one number, in its order."""

    def __init__(self, seed):
        self.python, self.numpy = random.Random(seed), np.random.RandomState(seed)

    def crop(self, frames, ratio=6):
        return {"start": torch.tensor([self.numpy.randint(0, 2 * (frames // ratio) + 1)])}

    def shear(self):
        return {"shear": shear_matrix([self.python.uniform(-0.5, 0.5) for _ in range(6)])}

    def spatial_flip(self):
        return {"flip": flag(self.python.random() < 0.5)}

    def time_flip(self):
        return {"reverse": flag(self.python.random() < 0.5)}

    def rotate(self):
        main = self.python.randint(0, 2)
        degrees = [self.python.uniform(0, 30 if axis == main else 1) for axis in range(3)]
        return {"angles": torch.tensor([degrees], dtype=torch.float64).deg2rad()}

    def gaussian_noise(self, shape):
        noise = np.zeros(shape)
        if self.python.random() < 0.5:
            noise = self.numpy.normal(0, 0.01, shape)
        return {"noise": views_of(noise)}

    def gaussian_blur(self):
        sigma = self.python.uniform(0.1, 2)
        return {
            "sigma": torch.tensor([sigma], dtype=torch.float64),
            "blur": flag(self.numpy.random_sample() < 0.5),
        }

    def axis_mask(self):
        return {"axis": torch.tensor([self.python.randint(0, 2) if self.python.random() < 0.5 else -1])}


@pytest.mark.parametrize("ratio", [5, 6])
@pytest.mark.parametrize("seed", ["s0", "s1", "s2", "s3"])
def test_crop(ratio, seed):
    start = torch.from_numpy(np.asarray(item(f"crop/ratio{ratio}", seed, "start")))[None]
    out, _ = TemporalCrop(ratio).replay(views_of(GOLDEN["x_crop"]), None, start=start)
    assert np.array_equal(array_of(out), item(f"crop/ratio{ratio}", seed, "out"))


@pytest.mark.parametrize("seed", seeds("shear"))
def test_shear(seed):
    out, _ = Shear(0.5).replay(views_of(GOLDEN["x"]), None, shear=shear_matrix(item("shear", seed, "params")))
    np.testing.assert_allclose(array_of(out), item("shear", seed, "out"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", seeds("spatial_flip"))
def test_spatial_flip(seed):
    assert list(get_layout("ntu25").mirror) == GOLDEN["flip_order"].tolist()
    flip = flag(item("spatial_flip", seed, "applied"))
    out, _ = Flip("ntu25", axis=None).replay(views_of(GOLDEN["x"]), None, flip=flip)
    assert np.array_equal(array_of(out), item("spatial_flip", seed, "out"))


@pytest.mark.parametrize("seed", seeds("rotate"))
def test_rotate(seed):
    angles = torch.from_numpy(item("rotate", seed, "angles_deg"))[None].deg2rad()
    out, _ = AxisRotation().replay(views_of(GOLDEN["x"]), None, angles=angles)
    np.testing.assert_allclose(array_of(out), item("rotate", seed, "out"), rtol=0, atol=1e-12)
    others, main = angles.sort().values[0, 1:]
    assert others < AxisRotation().others and main < AxisRotation().main
    assert int(angles.argmax()) == int(item("rotate", seed, "main_axis"))


@pytest.mark.parametrize("seed", seeds("gaussian_noise"))
def test_noise(seed):
    x = views_of(GOLDEN["x"])
    params = Recorded(int(seed[1:])).gaussian_noise(GOLDEN["x"].shape)
    out, _ = JointNoise(0.01, preset="as_released").replay(x, None, **params)
    np.testing.assert_allclose(array_of(out), item("gaussian_noise", seed, "out"), rtol=0, atol=1e-12)
    assert torch.equal(out, x) == (not item("gaussian_noise", seed, "applied"))


@pytest.mark.parametrize("seed", seeds("gaussian_blur"))
def test_blur(seed):
    sigma = torch.from_numpy(np.asarray(item("gaussian_blur", seed, "sigma")))[None]
    blur = flag(item("gaussian_blur", seed, "applied"))
    x, expected = views_of(GOLDEN["x"]), item("gaussian_blur", seed, "out")
    out, _ = TemporalBlur(preset="as_released").replay(x, None, sigma=sigma, blur=blur)
    np.testing.assert_allclose(array_of(out), expected, rtol=0, atol=1e-12)
    # normalised: the same, over what the released weights add up to within the clip
    ones, _ = TemporalBlur(preset="as_released").replay(torch.ones_like(x), None, sigma=sigma, blur=blur)
    mean, _ = TemporalBlur().replay(x, None, sigma=sigma, blur=blur)
    torch.testing.assert_close(mean, out / ones, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", seeds("axis_mask"))
def test_axis_mask(seed):
    axis = torch.from_numpy(np.asarray(item("axis_mask", seed, "axis")))[None]
    out, _ = AxisMask().replay(views_of(GOLDEN["x"]), None, axis=axis)
    assert np.array_equal(array_of(out), item("axis_mask", seed, "out"))


@pytest.mark.parametrize("seed", seeds("time_flip"))
def test_time_flip(seed):
    out, _ = TimeFlip().replay(views_of(GOLDEN["x"]), None, reverse=flag(item("time_flip", seed, "applied")))
    assert np.array_equal(array_of(out), item("time_flip", seed, "out"))


def recipe(name):
    from hydra import compose, initialize_config_module
    from hydra.utils import instantiate

    overrides = [f"augment={name}", "preset=as_released", "frames=50", "name=test", "run_dir=runs/test"]
    with initialize_config_module("skelact.conf", version_base="1.3"):
        config = compose("config", overrides=[*overrides, "data=ntu60"])
    return instantiate(config.augment, _convert_="all")


@pytest.mark.parametrize(
    ("case", "name"), [("12345/s0", "aimclr"), ("12345/s1", "aimclr"), ("123456/s0", "aimclr_eight")]
)
def test_the_feeder(case, name):
    """The composed recipes with the draws of the reference: an extreme view, then two normal ones."""
    index = int(GOLDEN[f"feeder_triple/{case}/index"])
    x = views_of(GOLDEN["feeder/data"][index])
    draw = Recorded(int(case[-1]))
    normal = {"TemporalCrop0": lambda: draw.crop(50), "Shear0": draw.shear}
    extreme = normal | {
        "Flip0": draw.spatial_flip,
        "AxisRotation0": draw.rotate,
        "JointNoise0": lambda: draw.gaussian_noise(GOLDEN["feeder/data"][0].shape),
        "TemporalBlur0": draw.gaussian_blur,
        "AxisMask0": draw.axis_mask,
    }
    if name == "aimclr_eight":
        extreme |= {"TimeFlip0": draw.time_flip}
    transforms = recipe(name).transforms
    names = ["extreme", "normal1", "normal2"]
    for view, transform, parts in zip(names, transforms, [extreme, normal, normal], strict=True):
        assert list(parts) == [f"{type(part).__name__}0" for part in transform.transforms]
        params = {f"{part}/{key}": value for part, make in parts.items() for key, value in make().items()}
        out, _ = transform.replay(x, None, **params)
        expected = GOLDEN[f"feeder_triple/{case}/{view}"]
        np.testing.assert_allclose(array_of(out), expected, rtol=0, atol=1e-6)
        single, _ = transform.replay(x.float(), None, **params)
        np.testing.assert_allclose(array_of(single), expected, rtol=0, atol=5e-6)


def test_the_normal_set():
    x = views_of(GOLDEN["feeder/data"][int(GOLDEN["feeder_triple/none/s0/index"])])
    draw, made = Recorded(0), recipe("skeletonclr")
    params = {"TemporalCrop0/start": draw.crop(50)["start"], "Shear0/shear": draw.shear()["shear"]}
    out, _ = made.transform.replay(x, None, **params)
    np.testing.assert_allclose(array_of(out), GOLDEN["feeder_triple/none/s0/extreme"], rtol=0, atol=1e-6)
