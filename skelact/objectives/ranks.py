"""Ranks joined: gathers, sums and means whose gradients are those of one process with the whole batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums the upstream gradients of all ranks and takes the local rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.size = dim, x.shape[dim]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()  # all_reduce writes in place, autograd may share the buffer
        dist.all_reduce(grad)
        return grad.narrow(ctx.dim, dist.get_rank() * ctx.size, ctx.size), None


class _AllReduce(torch.autograd.Function):
    """Sum over ranks, whose backward is again a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """The rows of all ranks, in rank order; `x` itself without a process group.

    Backward sums the upstream gradients over ranks and takes the local rows. When every rank evaluates the same
    loss on the gathered batch and DDP then averages, parameter gradients equal those of one process that holds the
    whole batch: the W of the sum cancels DDP's 1/W.

    Args:
        x: `(b, ...)`, the same shape on every rank.
        dim: dimension along which ranks are joined.
    """
    return x if world_size() == 1 else _Gather.apply(x, dim)


def own_rows(x: Tensor) -> Tensor:
    """This rank's rows of what was made of gathered ones, all ranks having given equally many."""
    return x if world_size() == 1 else x.chunk(world_size())[dist.get_rank()]


def all_reduce(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, differentiable; `x` itself without a process group."""
    return x if world_size() == 1 else _AllReduce.apply(x)


def largest(x: Tensor) -> Tensor:
    """Each entry's largest value over ranks, without a gradient; `x` itself without a process group."""
    if world_size() == 1:
        return x
    found = x.detach().clone()
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found


def global_mean(per_sample: Tensor) -> Tensor:
    """Mean over the last dimension and over all ranks, the same on every rank; differentiable.

    Backward sums upstream gradients over ranks, so that parameter gradients averaged by DDP equal those of one process
    with the whole batch, as with :func:`gather`. Unlike a mean of means it is right for uneven batches.

    Args:
        per_sample: `(..., b)`; ranks may hold different numbers of entries, none too.

    Returns:
        `(...)`, float32 at least.
    """
    x = at_least_single(per_sample)  # a half-precision count would round
    if world_size() == 1:
        return x.mean(-1)
    total = all_reduce(torch.cat([x.sum(-1).flatten(), x.new_full((1,), x.shape[-1])]))
    return (total[:-1] / total[-1]).view(x.shape[:-1])


def at_least_single(x: Tensor) -> Tensor:
    """Half precision as float32, anything else as it is."""
    return x.float() if x.dtype.itemsize < 4 else x


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off on a tensor's device, if it knows autocast; the meta device, for counting costs, does not."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
