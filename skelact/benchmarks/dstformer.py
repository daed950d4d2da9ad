"""How fast DSTformer judges clips here and in how much memory, beside the same network with attention written out."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skelact.backbones.dstformer import DSTformer
from skelact.benchmarks.steps import resident
from skelact.benchmarks.straightforward.tokens import StraightforwardDSTformer

JOINTS = 17


def measure(
    seconds: float = 5.0,
    seed: int = 0,
    clips_in_batch: int = 11,
    pairs: int = 2,
    frames: int = 100,
    long: int = 243,
    **network: Any,
) -> dict[str, float | str]:
    """Time evaluation passes on made-up clips with NTU's share of two people (18 %), and take peaks of memory.

    Both forms take turns, so that what else the machine does meets both; the fastest pass of each counts. Memory is the
    peak of the resident set (Linux's VmHWM) of a process of its own, less the set with network and clips in it before
    the pass.

    Args:
        seconds: measuring time, at least one pass of each.
        seed: of weights and clips.
        clips_in_batch: clips with two person slots.
        pairs: clips in which there are two people.
        frames: clip length T of the timed passes.
        long: clip length of the passes whose memory is taken.
        network: sizes of :class:`DSTformer`; without any, two blocks of the Lite width.

    Returns:
        Numbers by name.
    """
    sizes = network or {"width": 256, "mlp_ratio": 4, "depth": 2}
    made: dict[str, Any] = {"seed": seed, "clips": clips_in_batch, "pairs": pairs, "sizes": sizes}
    numbers: dict[str, float | str] = {
        "device": f"cpu, {torch.get_num_threads()} threads",
        "batch": f"{clips_in_batch} clips x 2 slots x {JOINTS} joints, {pairs} of two people",
        "network": ", ".join(f"{key} {value}" for key, value in sizes.items()),
    }
    ours, plain = _forms(frames=frames, **made)
    numbers["difference of features"] = float((ours() - plain()).abs().max())
    numbers["largest entry of a feature"] = float(plain().abs().max())
    best = {"": float("inf"), "straightforward ": float("inf")}
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or best[""] == float("inf"):
        best = {name: min(best[name], _spent(form)) for name, form in zip(best, (ours, plain), strict=True)}
    for name, value in best.items():
        numbers[f"T = {frames}: {name}pass, ms"] = 1e3 * value
        numbers[f"T = {frames}: {name}clips/s"] = clips_in_batch / value
    numbers[f"T = {frames}: times as fast"] = best["straightforward "] / best[""]
    peaks = {name: _in_fresh_process(form=i, frames=long, **made) for i, name in enumerate(best)}
    for name, value in peaks.items():
        numbers[f"T = {long}: {name}peak memory of a pass, MB"] = value
    numbers[f"T = {long}: times less memory"] = peaks["straightforward "] / peaks[""]
    return numbers


def _forms(
    seed: int, clips: int, pairs: int, sizes: dict[str, Any], frames: int
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Evaluation passes of the library's form and of the straightforward one over the same clips."""
    torch.manual_seed(seed)
    encoder = DSTformer("h36m17", max_frames=max(frames, 243), **sizes).eval()
    for parameter in encoder.parameters():  # fresh weights give nearly uniform attention and features near 0
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2)
    plain = StraightforwardDSTformer(encoder)
    x = {"joint": torch.randn(clips, frames, 2, JOINTS, 3).transpose(1, 2)}
    mask = torch.ones(clips, 2, frames, JOINTS, dtype=torch.bool)
    mask[pairs:, 1] = False
    return torch.no_grad()(lambda: encoder(x, mask)), torch.no_grad()(lambda: plain(x, mask))


def _spent(form: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    form()
    return time.perf_counter() - begin


def _in_fresh_process(**made: Any) -> float:
    code = (
        f"import json; from skelact.benchmarks.dstformer import grown; print(grown(**json.loads({json.dumps(made)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def grown(form: int, frames: int, **made: Any) -> float:
    """By how many MB one pass raises the peak of this process over what it holds before it; a fresh process's measure.

    Args:
        form: 0 the library's, 1 the straightforward one.
        frames: clip length T.
        made: seed, numbers of clips and sizes of the network.
    """
    _forms(frames=2, **made)[form]()  # what libraries set up at their first use is not the pass's
    call = _forms(frames=frames, **made)[form]
    before = resident("VmRSS")
    call()
    return (resident("VmHWM") - before) / 1e3
