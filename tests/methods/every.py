"""Every method with what its recipe augments, in tiny: for promises that all of them make."""

import functools

import pytest
import torch
from hydra import compose, initialize_config_module

from skelact.benchmarks.methods import SIZES
from skelact.benchmarks.steps import build_method, made_up_clips
from skelact.engine.commands import _resolved
from tests.methods import test_multimodal

TINY = {
    "umurl": ["backbone.width=16", "method.projector_width=16"],
    "stgcn": ["backbone.hidden=2", "backbone.num_features=8"],
    "dstformer": ["backbone.width=16", "backbone.token_features=8", "backbone.depth=1", "backbone.num_heads=2"],
}
SKELETONS = [name for name in SIZES["small"] if name not in ("multimodal", "actionmae")]
TWO_STAGES = ("crosclr", "aimclr", "caca", "maskclr")
ALIKE = (("crosclr", "first"), ("aimclr", "first"), ("caca", "first"), ("cmal", "last"))  # others do the same and more
_CASES = [(name, stage) for name in SKELETONS for stage in ("first", "last") if stage == "last" or name in TWO_STAGES]
_CASES += [("multimodal", "last"), ("actionmae", "last")]
#: Method and stage; those of several modalities have one.
EVERY = [pytest.param(*case, marks=pytest.mark.slow) if case in ALIKE else case for case in _CASES]


@functools.cache
def configured(name, *overrides):
    """A recipe's config."""
    tokens = name in ("supervised, dstformer", "maskclr", "supcon")
    tiny = TINY["dstformer" if tokens else name if name in TINY else "stgcn"]
    experiment, *own = SIZES["small"][name]
    with initialize_config_module("skelact.conf", version_base="1.3"):
        every = [f"experiment={experiment}", *own, "run_dir=runs/test", *tiny, *overrides]
        config = _resolved(compose("benchmark", overrides=every))
    if isinstance(config["method"].get("optimizer"), dict):
        config["method"]["optimizer"].pop("fused", None)  # torch has that for devices by name
    return config


def of_skeletons(name, stage, device, *overrides):
    """A method by its recipe, and a batch of clips of one or two people, one without a label."""
    config = {**configured(name, *overrides), "stage": stage}
    data = config["data"]
    method = build_method(config, device)
    sizes = int(data["persons"]), method.layout.num_joints, int(data["channels"])
    batch = made_up_clips(8, *sizes, device, classes=4)
    batch.label[-1] = -1
    return method, batch


def make(name, stage="last", device="cpu", *overrides):
    """A method and a batch for it."""
    device = torch.device(device)
    if name in SKELETONS:
        return of_skeletons(name, stage, device, *overrides)
    own = {"multimodal": "transformer", "actionmae": "actionmae"}[name]
    return test_multimodal.make(own).to(device).train(), test_multimodal.clips(test_multimodal.EVERY).to(device)


def loss_of(method, batch, number=0):
    """The loss of a step, with its graph."""
    loss = method.training_step(batch, number)
    return loss["loss"] if isinstance(loss, dict) else loss


def step(method, batch, optimizer, number=0):
    """One step as a trainer takes it; the loss."""
    loss = loss_of(method, batch, number)
    optimizer.zero_grad()
    loss.backward()
    method.on_before_optimizer_step(optimizer)
    optimizer.step()
    if hasattr(method, "follow"):
        method.follow()
    return loss
