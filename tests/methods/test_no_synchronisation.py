"""No training step makes the host wait for the device.

Steps run on PyTorch's `meta` device, whose tensors have shapes but no values: it takes the ways of an accelerator, and
whatever would have to read a value on the host raises there. What a GPU's host waits for besides, copies between host
and device, is watched for.
"""

import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import skelact.conf
import torch
from hydra import compose, initialize_config_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skelact.backbones.modality import JointConvEncoder
from skelact.benchmarks.steps import made_up_clips
from skelact.engine.build import build
from skelact.engine.commands import _resolved
from skelact.skeleton import constants
from skelact.skeleton.layouts import get_layout
from skelact.transforms.draws import Draws
from skelact.transforms.indexing import VideoFrames
from tests.methods.every import EVERY, loss_of, make, step

META = torch.device("meta")
AUGMENTATIONS = sorted(p.stem for p in (Path(skelact.conf.__path__[0]) / "augment").glob("*.yaml"))


class NothingIsCopied(TorchDispatchMode):
    """Raises where something is brought to the device: of memory that is not pinned the host waits for the copy."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.device == META for x in tree_leaves(out)):
            if func == torch.ops.aten.lift_fresh.default:
                kept = any(frame.filename == constants.__file__ for frame in traceback.extract_stack())
                assert kept, "a tensor is made of numbers in every step"
            foreign = [tuple(x.shape) for x in given if x.device != META and x.ndim]
            assert not foreign, f"{func} brings tensors {foreign} to the device in every step"
        return out


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Torch knows none of meta tensors."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type="cpu": False)


def watched(method, batch):
    """A step."""
    optimizer = method.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    with NothingIsCopied():
        step(method, batch, optimizer)


@pytest.mark.parametrize(("name", "stage"), EVERY)
def test_a_step(name, stage):
    method, batch = make(name, stage, META)
    watched(method, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["umurl", "crosclr", "aimclr", "caca", "maskclr"])
def test_a_step_as_released(name):
    watched(*make(name, "last", META, "preset=as_released"))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation(name):
    """All of them, with a mask and without."""
    layout = "h36m17" if name.startswith("motionbert") else "ntu25"
    with initialize_config_module("skelact.conf", version_base="1.3"):
        cfg = compose("benchmark", overrides=["data=custom", f"+data.layout={layout}", f"augment={name}", "name=test"])
    augment = build(_resolved(cfg)["augment"], "augment")
    augment.views = augment.views or 2
    joints = get_layout(layout).num_joints
    for persons in (1, 2):  # the latter have a mask
        clips = made_up_clips(4, persons, joints, 3, META)
        with NothingIsCopied():
            augment(clips, Draws(0, 0, clips.index))


#: Where the host has to wait, and why.
WAITS = {
    "people who are not there are left out, as many as there are (off by default)": (
        "skeletonclr", ["backbone.ignore_absent=true", "data.persons=2"]
    ),
    "the same in token encoders of clips of which the host knows nothing (by default then nobody is left out)": (
        "maskclr", ["backbone.pack=always", "data.persons=2"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", WAITS)
def test_options_that_do_wait(why):
    """So that this list stays right, and so that the device is seen to tell."""
    name, overrides = WAITS[why]
    method, batch = make(name, "last", META, *overrides)
    with pytest.raises(NotImplementedError, match="nonzero"):
        loss_of(method, replace(batch, people=None))


@pytest.mark.parametrize("name", ["supervised, dstformer", "maskclr", "supcon"])
@pytest.mark.parametrize("known", [True, False])
def test_absent_people_are_left_out_without_waiting_where_the_host_knows_their_number(name, known, monkeypatch):
    method, batch = make(name, "last", META, "data.persons=2")
    backbone, rows = method.backbone, set()
    represent = backbone.represent
    monkeypatch.setattr(backbone, "represent", lambda x, *rest: rows.add(len(x)) or represent(x, *rest))
    assert len(batch) <= batch.people < 2 * len(batch)
    watched(method, batch if known else replace(batch, people=None))
    assert rows == {batch.people if known else 2 * len(batch)}


def test_bodies_of_the_published_skeleton_encoder_do_wait():
    """Frames without a body stay out of batch statistics: how many there are decides about shapes."""
    encoder = JointConvEncoder(8, "ntu25", VideoFrames(8), num_heads=2).to(META)
    with pytest.raises(RuntimeError, match=r"Tensor.item\(\)"):
        encoder(made_up_clips(4, 1, 25, 3, META))
