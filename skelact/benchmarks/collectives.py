"""What ranks exchange in a training step: written down as it happens, or on paper for any number of ranks.

Losses and layers exchange through :mod:`skelact.objectives.ranks` alone, gradients through DDP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from skelact.backbones import normalisation
from skelact.methods.cost import Views, gflops, step_of, straightforward_copy
from skelact.objectives import ranks

PURPOSES = ("batch statistics", "loss", "gradients")
BUCKETS = 2**20, 25 * 2**20
"""Bytes of DDP's first and of its further buckets of gradients."""


class Exchange(NamedTuple):
    """One collective operation of a step."""

    operation: str
    """`all_gather` or `all_reduce`."""
    purpose: str
    """Out of :data:`PURPOSES`; what probes exchange goes with the batch statistics, whose layer they use."""
    size: int
    """Bytes that a rank contributes."""


class Recorder:
    """Stands where losses and layers look for torch.distributed, and writes down what they exchange.

    Args:
        pretended: so many ranks are told of, of which the others send what this one does; None: those of the group.
    """

    ReduceOp = dist.ReduceOp

    def __init__(self, pretended: int | None = None) -> None:
        self.pretended, self.purpose = pretended, "loss"
        self.exchanges: list[Exchange] = []

    def is_available(self) -> bool:
        """As torch.distributed has it, like all that follow."""
        return True

    def is_initialized(self) -> bool:
        """There is a group."""
        return True

    def get_world_size(self) -> int:
        """Number of ranks."""
        return self.pretended or dist.get_world_size()

    def get_rank(self) -> int:
        """Of this one."""
        return 0 if self.pretended else dist.get_rank()

    def all_gather(self, parts: Sequence[Tensor], x: Tensor) -> None:
        """Written down, then done."""
        self._note("all_gather", x)
        if self.pretended is None:
            dist.all_gather(list(parts), x)
            return
        for part in parts:
            part.copy_(x)

    def all_reduce(self, x: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        """Written down, then done; ranks that are not there have nothing to add."""
        self._note("all_reduce", x)
        if self.pretended is None:
            dist.all_reduce(x, op)

    def _note(self, operation: str, x: Tensor) -> None:
        self.exchanges.append(Exchange(operation, self.purpose, x.numel() * x.element_size()))

    def hook(self, group: Any, bucket: Any) -> Any:
        """DDP's own all-reduce of a bucket of gradients, written down."""
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        size = bucket.buffer().numel() * bucket.buffer().element_size()
        self.exchanges.append(Exchange("all_reduce", "gradients", size))
        return allreduce_hook(group, bucket)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, all that is exchanged is written down."""

        def statistics(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def call(*args: Any) -> Tensor:
                self.purpose = "batch statistics"
                try:
                    return function(*args)
                finally:
                    self.purpose = "loss"

            return call

        of_layers = {name: getattr(normalisation, name) for name in ("gather", "all_reduce")}
        ranks.dist = self  # type: ignore[assignment]
        for name, function in of_layers.items():
            setattr(normalisation, name, statistics(function))
        try:
            yield
        finally:
            ranks.dist = dist
            for name, function in of_layers.items():
                setattr(normalisation, name, function)


class Paper(NamedTuple):
    """A rank's training step, counted and not run."""

    gflops: float
    exchanges: list[Exchange]


def on_paper(method: nn.Module, given: Views | Any, clips: int, count: int) -> Paper:
    """What a step costs one of several ranks, by the rule of :mod:`skelact.methods.cost`, and what it sends.

    Args:
        method: what is trained; it is not touched.
        given: training views, or the batch of a method of several modalities; shapes alone matter.
        clips: of each rank.
        count: number of ranks.
    """
    step, recorder = step_of(method, given, clips), Recorder(count)
    with recorder.listening():
        cost = gflops(method, step, training=True)
        recorder.exchanges.clear()
        meta = torch.device("meta")
        step(straightforward_copy(method, meta).train(), meta).backward()
    sizes = [p.numel() * p.element_size() for p in method.parameters() if p.requires_grad]
    buckets = [Exchange("all_reduce", "gradients", size) for size in bucketed(sizes)] if count > 1 else []
    return Paper(cost, [*recorder.exchanges, *buckets])


def bucketed(sizes: Iterable[int]) -> list[int]:
    """Bytes of DDP's buckets of gradients of these sizes: each takes tensors until it is full."""
    buckets: list[int] = []
    for size in sizes:
        if not buckets or buckets[-1] >= BUCKETS[min(len(buckets) - 1, 1)]:
            buckets.append(0)
        buckets[-1] += size
    return buckets


def volumes(exchanges: Iterable[Exchange]) -> dict[str, tuple[int, int]]:
    """Count and bytes by operation and purpose, such as `all_gather, loss`; those that there are none of left out."""
    found: dict[str, tuple[int, int]] = {}
    for operation, purpose, size in exchanges:
        count, total = found.get(f"{operation}, {purpose}", (0, 0))
        found[f"{operation}, {purpose}"] = (count + 1, total + size)
    return found
