"""How fast ST-GCN trains here, beside the same network written down layer by layer."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from skelact.backbones.stgcn import STGCN
from skelact.benchmarks.straightforward.stgcn import StraightforwardSTGCN

STREAMS = ("joint", "bone", "motion")


def _milliseconds(network: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    network().square().sum().backward()
    return 1e3 * (time.perf_counter() - begin)


def measure(
    seconds: float = 5.0,
    seed: int = 0,
    clips_in_batch: int = 32,
    frames: int = 50,
    hidden: int = 16,
    num_features: int = 256,
) -> dict[str, float | str]:
    """Time forward and backward passes on made-up clips of two persons with NTU's 25 joints, on the CPU.

    Both forms take turns, so that what else the machine does meets both; the fastest pass of each counts. Optimiser
    and augmentation are left out.

    Args:
        seconds: measuring time for each number of streams.
        seed: of weights and clips.
        clips_in_batch: clips, two persons each.
        frames: clip length T.
        hidden: width of the first block.
        num_features: feature of a stream.

    Returns:
        Numbers by name. The last ones leave absent persons out, where every second clip has one person: the
        straightforward form encodes them.
    """
    numbers: dict[str, float | str] = {
        "device": f"cpu, {torch.get_num_threads()} threads",
        "batch": f"{clips_in_batch} clips x 2 persons x {frames} frames x 25 joints",
        "network": f"hidden {hidden}, features {num_features}",
    }
    for streams in (STREAMS[:1], STREAMS):
        torch.manual_seed(seed)
        fast = STGCN("ntu25", streams=streams, hidden=hidden, num_features=num_features)
        plain = StraightforwardSTGCN(fast)
        packing = STGCN("ntu25", streams=streams, hidden=hidden, num_features=num_features, ignore_absent=True)
        x = {s: torch.randn(clips_in_batch, frames, 2, 25, 3).transpose(1, 2) for s in streams}
        mask = torch.ones(clips_in_batch, 2, frames, 25, dtype=torch.bool)
        mask[::2, 1] = False
        with torch.no_grad():
            difference = (fast.eval()(x) - plain.eval()(x)).abs().max() / plain(x).abs().max()
        fast.train()
        plain.train()
        forms: dict[str, Callable[[], Tensor]] = {
            "": lambda fast=fast, x=x: fast(x),  # type: ignore[misc]
            "straightforward ": lambda plain=plain, x=x: plain(x),  # type: ignore[misc]
            "absent persons left out ": lambda net=packing, x=x, mask=mask: net(x, mask),  # type: ignore[misc]
        }
        best = {name: _milliseconds(form) for name, form in forms.items()}  # also warms up
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            best = {name: min(best[name], _milliseconds(form)) for name, form in forms.items()}
        title = f"{len(streams)} stream{'s' * (len(streams) > 1)}: "
        for name, value in best.items():
            numbers[f"{title}{name}pass, ms"] = value
            numbers[f"{title}{name}clips/s"] = 1e3 * clips_in_batch / value
        numbers[f"{title}times as fast"] = best["straightforward "] / best[""]
        numbers[f"{title}relative difference of features"] = float(difference)
    return numbers
