import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws
from skelact.transforms.frame50 import Frame50
from skelact.transforms.normalize import Normalize
from skelact.transforms.sampling import CenterCrop, CropResize
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
)
from skelact.transforms.temporal import TemporalBlur, TemporalCrop, TimeFlip
from skelact.transforms.views import ViewMaker

ROOT = Path(__file__).parents[2]


def make(count=12):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 120, (count,), generator=generator).tolist()
    return RaggedClips.pack([torch.randn(size, 2, 25, 3, generator=generator) for size in sizes])


def maker(views=4):
    return ViewMaker(CropResize(32), Compose([OneOf([JointCorruption(), Shear()]), RandomRotation()]), views=views)


def test_views_are_independent_and_numbered():
    clips = make()
    four = maker()(clips, Draws(0, 0, clips.index))
    assert [tuple(views.shape) for views, _ in four] == [(12, 2, 32, 25, 3)] * 4
    assert all(mask is None for _, mask in four)
    for place, (views, _) in enumerate(four):
        assert all(not torch.equal(views, other) for other, _ in four[:place])
    two = maker(2)(clips, Draws(0, 0, clips.index))  # asking for fewer does not change the first
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(two, four[:2], strict=True))


def test_views_do_not_depend_on_the_batch():
    clips = make()
    whole = maker()(clips, Draws(7, 3, clips.index))
    for rows in (torch.tensor([11, 2, 5]), torch.tensor([4])):
        some = clips.select(rows).compact()
        for (views, _), (other, _) in zip(maker()(some, Draws(7, 3, some.index)), whole, strict=True):
            assert torch.equal(views, other[rows])


def test_mixed_precision_does_not_reach_the_coordinates():
    clips = make()
    plain = maker()(clips, Draws(0, 0, clips.index))
    turned = Normalize("umurl", "ntu25")(clips).frames
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = maker()(clips, Draws(0, 0, clips.index))
        assert torch.equal(Normalize("umurl", "ntu25")(clips).frames, turned)
    for (a, _), (b, _) in zip(mixed, plain, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_without_a_transform():
    clips = make()
    ((views, mask),) = ViewMaker(CenterCrop(16))(clips, Draws(0, 0, clips.index))
    assert mask is None and torch.equal(views, CenterCrop(16)(clips)[0])
    with pytest.raises(SkelactError, match="views"):
        ViewMaker(CenterCrop(16), views=0)
    with pytest.raises(SkelactError, match="views=None"):
        ViewMaker(CenterCrop(16), views=None)(clips, Draws(0, 0, clips.index))


def test_a_transform_for_each_view():
    clips, sampler = make(), CropResize(32)
    parts = [Compose([Shear(), RandomRotation()]), Shear(0.5), None]
    made = ViewMaker(sampler, transforms=parts, views=None)
    assert made.views == 3 and ViewMaker(sampler, transforms=parts).views == 3
    out = made(clips, Draws(0, 0, clips.index))
    for number, (part, (views, mask)) in enumerate(zip(parts, out, strict=True)):
        own = Draws(0, 0, clips.index, number)
        expected, _ = sampler(clips, own)
        assert mask is None and torch.equal(views, expected if part is None else part(expected, None, own)[0])
    with pytest.raises(SkelactError, match=r"3 entries, one for each view, but augment\.views=2"):
        ViewMaker(sampler, transforms=parts, views=2)
    with pytest.raises(SkelactError, match="give one of them"):
        ViewMaker(sampler, Shear(), transforms=parts)
    with pytest.raises(SkelactError, match="0 entries"):
        ViewMaker(sampler, transforms=[])


@pytest.mark.parametrize("masked", [False, True])
def test_a_sampler_without_randomness_is_asked_once(masked):
    clips = make()
    if masked:
        clips = replace(clips, mask=clips.frames[..., 0] > -1)
    asked = []

    class Counted(CenterCrop):
        def forward(self, clips, draws=None):
            asked.append(draws)
            return super().forward(clips, draws)

    parts = [Compose([TemporalCrop(), Flip("ntu25", p=1.0), TemporalBlur(), TimeFlip()]), None, AxisMask()]
    out = ViewMaker(Counted(32), transforms=parts)(clips, Draws(0, 0, clips.index))
    assert asked == [None]
    again, seen = CenterCrop(32)(clips)
    assert torch.equal(out[1][0], again)  # the others did not write to it
    if masked:
        assert torch.equal(out[1][1], seen)


def build(name):
    from hydra import compose, initialize_config_module
    from hydra.utils import instantiate

    with initialize_config_module("skelact.conf", version_base="1.3"):
        config = compose(
            "config", overrides=["data=ntu60", f"augment={name}", "frames=32", "name=test", "run_dir=runs/test"]
        )
    return instantiate(config.augment, _convert_="all")


@pytest.mark.parametrize(("name", "views"), [("none", 1), ("umurl", 4), ("umurl_yaw", 4), ("skeletonclr", 2)])
def test_recipes_of_the_augment_group(name, views):
    clips, made = make(), build(name)
    assert made.views is None  # the method says how many
    made.views = views
    out = made(clips, Draws(0, 0, clips.index))
    assert len(out) == views and out[0][0].shape == (12, 2, 32, 25, 3)
    own = {
        "none": ViewMaker(CenterCrop(32)),
        "umurl": ViewMaker(CropResize(32), OneOf([JointCorruption(15), Shear()]), views=4),
        "umurl_yaw": maker(),
        "skeletonclr": ViewMaker(Frame50(32), Compose([TemporalCrop(), Shear(0.5)]), views=2),
    }[name]
    for (a, _), (b, _) in zip(out, own(clips, Draws(0, 0, clips.index)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "flips"), [("aimclr", []), ("aimclr_eight", [TimeFlip()])])
def test_recipes_with_views_of_their_own(name, flips):
    clips, made = make(), build(name)
    assert made.views == 3
    out = made(clips, Draws(0, 0, clips.index))
    normal = Compose([TemporalCrop(), Shear(0.5)])
    changes = [Flip("ntu25", axis=None), AxisRotation(), JointNoise(p=0.5), TemporalBlur(), AxisMask(), *flips]
    own = ViewMaker(Frame50(32), transforms=[Compose([*normal.transforms, *changes]), normal, normal])
    for (a, _), (b, _) in zip(out, own(clips, Draws(0, 0, clips.index)), strict=True):
        assert a.shape == (12, 2, 32, 25, 3) and torch.equal(a, b)
    assert not torch.equal(out[1][0], out[2][0])


def test_transforms_need_neither_lightning_nor_hydra():
    package = ROOT / "skelact"
    files = [
        package / "clips.py",
        package / "errors.py",
        *(package / "objectives").glob("*.py"),
        *(package / "skeleton").glob("*.py"),
        *(package / "transforms").glob("*.py"),
    ]
    imported = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    imported -= {"skelact.data.colour"}  # a table of numbers
    ours = {name for name in imported if name.startswith("skelact")}
    assert {name.split(".")[1] for name in ours} <= {"clips", "errors", "objectives", "skeleton", "transforms"}
    assert {name.split(".")[0] for name in imported - ours} - sys.stdlib_module_names <= {"numpy", "torch", "yaml"}
