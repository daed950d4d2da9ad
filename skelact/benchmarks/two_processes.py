"""Two processes of this machine, one thread each: the links between them, and a method's training step on them."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from skelact.benchmarks.collectives import Exchange, Recorder
from skelact.benchmarks.steps import SkeletonStep, Step, build_method, made_up_clips
from skelact.engine.strategies import ddp_options
from skelact.errors import SkelactError

LINK_SIZES = tuple(2**k for k in range(8, 24, 3))
"""Bytes of the exchanges that are timed."""

Given = tuple[Any, Any]


class Link(NamedTuple):
    """Of one kind of collective operation between two ranks."""

    latency: float
    """Seconds of an exchange of nothing."""
    bandwidth: float
    """Bytes/s that a rank sends."""


class Found(NamedTuple):
    """What two processes found."""

    links: dict[str, Link]
    """By operation: `all_reduce`, `all_gather`."""
    times: dict[str, list[float]]
    """Seconds of a step for each number of clips: `alone`, as the only rank; `joined`, as one of two of which the other
    is made up, so that nothing is waited for; `together`, under DDP."""
    exchanges: list[Exchange]
    """Of a rank's step together, with the most clips."""


def step_and_clips(
    config: Mapping[str, Any], media: Mapping[str, Any], place: Path
) -> tuple[Step, Callable[[int], Given]]:
    """A training step on the CPU, and what makes so many clips for it: batch and training views.

    The latter are None for methods of several modalities.

    Args:
        config: as :func:`skelact.benchmarks.training.measure` takes it.
        media: likewise.
        place: a folder that does not exist, for stores of several modalities.
    """
    if "modalities" in config["data"]:
        return _modal(config, media, place)
    device = torch.device("cpu")
    method, data = build_method(config, device), config["data"]
    sizes = int(data["persons"]), method.layout.num_joints, int(data["channels"])

    def give(clips: int) -> Given:
        batch = made_up_clips(clips, *sizes, device, classes=int(data.get("num_classes") or 60))
        return batch, method.views(batch)

    return SkeletonStep(method, give(1)[0], 1, "32-true", device), give


def _modal(config: Mapping[str, Any], media: Mapping[str, Any], place: Path) -> tuple[Step, Callable[[int], Given]]:
    from skelact.benchmarks.multimodal import modal_step

    def made(clips: int, name: str) -> Step:
        (place / name).mkdir(parents=True)
        own = {**copy.deepcopy(dict(config["data"])), "batch_size": clips, "num_workers": 0}
        return modal_step({**config, "data": own}, media, place / name, torch.device("cpu"))

    def give(clips: int) -> Given:
        step = made(clips, str(clips))
        return step.given(step.batch())

    return made(1, "step"), give


def two_processes(config: Mapping[str, Any], media: Mapping[str, Any], place: Path, sizes: Sequence[int]) -> Found:
    """Have two processes measure.

    Args:
        config: see :func:`step_and_clips`.
        media: likewise.
        place: an empty folder.
        sizes: clips of each process.

    Raises:
        SkelactError: one of them failed.
    """
    arguments = (dict(config), dict(media), str(place), list(sizes))
    try:
        torch.multiprocessing.start_processes(_rank, arguments, nprocs=2, start_method="spawn")
    except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise SkelactError(f"benchmark scaling: one of two processes failed: {reason}") from error
    found = json.loads((place / "found.json").read_text())
    links = {operation: Link(*link) for operation, link in found["links"].items()}
    return Found(links, found["times"], [Exchange(*entry) for entry in found["exchanges"]])


def _rank(rank: int, config: dict[str, Any], media: dict[str, Any], place: str, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    seconds = float(config["seconds"])
    step, give = step_and_clips(config, media, Path(place) / str(rank))
    givens = [give(clips) for clips in sizes]  # before the group, or a datamodule would share its clips out
    dist.init_process_group("gloo", init_method=f"file://{place}/rendezvous", rank=rank, world_size=2)
    recorder, loss = Recorder(), step.loss
    trained = nn.parallel.DistributedDataParallel(_Loss(step), **ddp_options())
    trained.register_comm_hook(dist.group.WORLD, lambda group, bucket: recorder.hook(group, bucket))

    def run(form: str, given: Given) -> None:
        if form == "together":
            step.loss = trained  # type: ignore[method-assign]
            step.descend(*given)
            return
        step.loss = loss  # type: ignore[method-assign]
        with Recorder(1 if form == "alone" else 2).listening():
            step.descend(*given)

    forms = [(form, given) for form in ("together", "alone", "joined") for given in givens]
    fastest = iter(_fastest([partial(run, *form) for form in forms], seconds * len(forms)))
    times = {form: [next(fastest) for _ in givens] for form in ("together", "alone", "joined")}
    recorder.exchanges.clear()
    with recorder.listening():
        run("together", givens[-1])
    links = _links()
    if rank == 0:
        found = Found(links, times, recorder.exchanges)
        (Path(place) / "found.json").write_text(json.dumps(found._asdict()))
    dist.barrier()  # neither leaves while the other still listens
    dist.destroy_process_group()


class _Loss(nn.Module):
    """A step's loss as what DDP wraps."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.method, self.loss = step.method, step.loss

    def forward(self, batch: Any, views: Any) -> Tensor:
        """The method's loss."""
        return self.loss(batch, views)


def _fastest(calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Seconds of the fastest pass of each call, in turns; both processes make them at once, the slower one counts."""
    spent: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for number in itertools.count(1):
        for call, times in zip(calls, spent, strict=True):
            dist.barrier()
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        if number >= 5 and _larger(sum(map(sum, spent))) > seconds:  # both go on, or neither
            break
    return [_larger(min(times)) for times in spent]


def _larger(value: float) -> float:
    """Of both processes' values."""
    both = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return float(both)


def _links() -> dict[str, Link]:
    found = {}
    for operation in ("all_reduce", "all_gather"):
        calls = []
        for size in LINK_SIZES:
            x = torch.ones(size // 4)
            others = [torch.empty_like(x) for _ in range(2)]
            calls.append(
                partial(dist.all_reduce, x) if operation == "all_reduce" else partial(dist.all_gather, others, x)
            )
        latency, *_, longest = _fastest(calls, 1.0)
        found[operation] = Link(latency, LINK_SIZES[-1] / max(longest - latency, 1e-9))
    return found
