"""Measures a method's training step: `skelact benchmark method=NAME`, `skelact benchmark experiment=NAME`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from skelact.benchmarks.steps import (
    PARTS,
    Numbers,
    SkeletonStep,
    Step,
    StraightforwardStep,
    build_method,
    device_words,
    made_up_clips,
    peak_matmul_flops,
    peak_memory,
    precision_of,
    spread_of,
    times_of,
)
from skelact.benchmarks.straightforward import FORMS
from skelact.methods.cost import forward_cost, step_gflops


def measure(config: Mapping[str, Any], media: Mapping[str, Any] | None = None) -> Numbers:
    """Time the training steps that a config describes.

    Args:
        config: resolved: `method`, `data` (for layout, persons, channels, classes and batch size; where it has
            `modalities`, of a datamodule of several), `trainer` (for accelerator, precision and compilation),
            `seconds`, `stage`.
        media: the dataset's `media` node, where there are several modalities.

    Returns:
        Numbers by name: medians of steps, times in milliseconds, FLOPs by the rule of :mod:`skelact.methods.cost` and
        as computed by an algorithm that needs fewer.
    """
    from skelact.engine.memory import keep_freed_memory
    from skelact.engine.run import pick_device

    device, seconds = pick_device(config["trainer"]), float(config["seconds"])
    keep_freed_memory(device)
    with contextlib.ExitStack() as stack:
        if "modalities" in config["data"]:
            from skelact.benchmarks.multimodal import further, modal_step

            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            step = modal_step(config, media or {}, place, device)
            return _of_step(step, config, seconds) | further(step, config, seconds)
        method, data = build_method(config, device), config["data"]
        sizes = int(data["persons"]), method.layout.num_joints, int(data["channels"])
        batch_size = int(data.get("batch_size") or 64)
        count = max(4 * batch_size, 256)
        clips = made_up_clips(count, *sizes, device, classes=int(data.get("num_classes") or 60))
        return _of_step(SkeletonStep(method, clips, batch_size, precision_of(config), device), config, seconds)


def _of_step(step: Step, config: Mapping[str, Any], seconds: float) -> Numbers:
    """What can be said of any step."""
    from skelact.engine.compiling import Compiled

    method, device = step.method, step.device
    numbers: Numbers = {
        "method": type(method).__name__,
        "device": device_words(device),
        "torch": torch.__version__,
        "precision": step.precision,
        "compiled": str(config["trainer"].get("compile") or False).lower(),
        "batch": step.batch_size,
        "parameters, millions": sum(p.numel() for p in method.parameters() if p.requires_grad) / 1e6,
    }
    compiled = None
    if mode := config["trainer"].get("compile"):
        compiled = Compiled(mode)
        compiled.install(method, device)
        step()
    memory = peak_memory(step, device)  # the first step: later ones find memory that is held already
    whole = times_of([step], device, seconds)[0]
    numbers |= {"clips/s": step.batch_size / median(whole), "step, ms": 1e3 * median(whole)}
    numbers["step, quartiles apart, %"] = spread_of(whole)
    step.timed = True
    times_of([step], device, seconds / 2)
    step.timed = False
    numbers |= {f"  {name}, ms": 1e3 * median(step.spent[name]) for name in PARTS}
    if type(method).__name__ in FORMS:
        numbers |= _beside_the_straightforward_form(step, seconds)
    if compiled is not None:
        compiled.remove()  # costs are those of the network as it is written
    batch, views = step.given(step.batch())
    made, ruled = _flops(step, batch, views), step_gflops(method, batch if views is None else views)
    peak = peak_matmul_flops(device, step.products, min(seconds, 2.0)) / 1e9
    return numbers | {
        "forward GFLOPs a clip": forward_cost(method, batch).gflops,
        "GFLOPs a step": ruled,
        "GFLOPs a step, as computed": made,
        "achieved GFLOP/s": ruled / median(whole),
        "achieved GFLOP/s, as computed": made / median(whole),
        "peak matrix product GFLOP/s": peak,
        "share of the peak, %": 100 * ruled / median(whole) / peak,
        "share of the peak, as computed, %": 100 * made / median(whole) / peak,
        "peak memory of a step, MB": memory,
    }


def _beside_the_straightforward_form(step: Step, seconds: float) -> Numbers:
    """Both forms of the step on the same views, in turns; the fastest of each, which others here spoil least."""
    batch, views = step.given(step.batch())
    plain = StraightforwardStep(step)
    own, other = times_of([lambda: step.descend(batch, views), lambda: plain(batch, views)], step.device, seconds)
    return {
        "given its views: step, ms": 1e3 * min(own),
        "given its views: straightforward step, ms": 1e3 * min(other),
        "given its views: times as fast": min(other) / min(own),
    }


def _flops(step: Step, batch: Any, views: Any) -> float:
    """GFLOPs of the matrix products that a step really makes, those of attention included, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step.descend(batch, views)
    return counter.get_total_flops() / 1e9
