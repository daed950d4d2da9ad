"""Losses and gathers: functions of tensors, nothing else.

Conventions: B is the global batch (all ranks), D the embedding width. Every function is differentiable and keeps
its inputs on their device; none of them reads a value back to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


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


def all_reduce(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, differentiable; `x` itself without a process group."""
    return x if world_size() == 1 else _AllReduce.apply(x)


def global_mean(per_sample: Tensor) -> Tensor:
    """Mean over the last dimension and over all ranks, the same on every rank; differentiable.

    Backward sums upstream gradients over ranks, so that parameter gradients averaged by DDP equal those of one process
    with the whole batch, as with :func:`gather`. Unlike a mean of means it is right for uneven batches.

    Args:
        per_sample: `(..., b)`; ranks may hold different numbers of entries, none too.

    Returns:
        `(...)`, float32 at least.
    """
    x = _float(per_sample)  # a half-precision count would round
    if world_size() == 1:
        return x.mean(-1)
    total = all_reduce(torch.cat([x.sum(-1).flatten(), x.new_full((1,), x.shape[-1])]))
    return (total[:-1] / total[-1]).view(x.shape[:-1])


def vc_regularisation(z: Tensor, epsilon: float = 1e-4, direct: bool = False) -> tuple[Tensor, Tensor]:
    """Variance and covariance penalties of VICReg (Bardes et al., ICLR 2022), as UmURL uses them.

    Variance: mean over dimensions of `max(0, 1 - sqrt(Var + epsilon))`, unbiased. Covariance: sum of squared
    off-diagonal covariances over D.

    Args:
        z: `(..., B, D)` embeddings; B = 1 gives NaN, as the unbiased variance must.
        epsilon: added to the variance under the root.
        direct: form the `(D, D)` covariance matrix even where the `(B, B)` Gram matrix is cheaper.

    Returns:
        (variance, covariance), each `(...)`, unweighted.
    """
    batch, width = z.shape[-2:]
    centred = z - z.mean(-2, keepdim=True)
    if direct or batch >= width:
        cov = centred.mT @ centred / (batch - 1)
        diagonal = cov.diagonal(dim1=-2, dim2=-1)
        squares = cov.square().sum((-2, -1))
    else:
        # |Zc' Zc| and |Zc Zc'| have the same Frobenius norm: B*B*D instead of B*D*D work and no D*D memory.
        diagonal = centred.square().sum(-2) / (batch - 1)
        squares = (centred @ centred.mT / (batch - 1)).square().sum((-2, -1))
    variance = (1 - (diagonal + epsilon).sqrt()).relu().mean(-1)
    return variance, (squares - diagonal.square().sum(-1)) / width


class UmURLTerms(NamedTuple):
    """Terms of the UmURL objective: K modalities, in order; regularisation covers uni-modal then fused embeddings."""

    total: Tensor  # scalar
    intra: Tensor  # (K,) unweighted
    inter: Tensor  # (K,) unweighted
    variance: Tensor  # (2K,) unweighted
    covariance: Tensor  # (2K,) unweighted


def umurl_loss(
    uni: Sequence[Tensor] | Tensor,
    fused: Sequence[Tensor] | Tensor,
    consistency: float = 5.0,
    variance: float = 5.0,
    covariance: float = 1.0,
    in_autocast: bool = False,
) -> UmURLTerms:
    """The objective of UmURL (Sun et al., ACM MM 2023) for any number K of modalities.

    `consistency * (sum_k mse(z_k, z_uk) + sum_k mse(z_k, mean_k z_k)) + sum over all 2K of (variance * V + covariance
    * C)`. No stop-gradient, no negatives.

    Args:
        uni: K tensors `(B, D)`, embeddings z_k of the single modalities.
        fused: K tensors `(B, D)`, embeddings z_uk that the same projectors decompose from the fused feature.
        consistency: weight of both consistency terms.
        variance: weight of the variance hinge.
        covariance: weight of the covariance penalty.
        in_autocast: compute in the surrounding autocast precision, as the released code does; its float16
            covariance overflows for |Cov| above about 65504 / B.
    """
    z = torch.stack([*uni, *fused])
    if in_autocast and torch.is_autocast_enabled(z.device.type):
        return _umurl_terms(z, consistency, variance, covariance, direct=True)
    # Products of B half-precision terms overflow or lose the small covariances, so the loss is float32 at least.
    with torch.autocast(z.device.type, enabled=False):
        return _umurl_terms(z.float() if z.dtype.itemsize < 4 else z, consistency, variance, covariance, direct=False)


def _umurl_terms(z: Tensor, consistency: float, variance: float, covariance: float, direct: bool) -> UmURLTerms:
    uni, fused = z.chunk(2)
    intra = (uni - fused).square().mean((-2, -1))
    inter = (uni - uni.mean(0)).square().mean((-2, -1))
    var, cov = vc_regularisation(z, direct=direct)
    total = consistency * (intra.sum() + inter.sum()) + variance * var.sum() + covariance * cov.sum()
    return UmURLTerms(total, intra, inter, var, cov)


def nearest(similarity: Tensor, k: int) -> Tensor:
    """`(..., K)` bool: the `k` highest of each row of `similarity`."""
    found = similarity.topk(min(k, similarity.shape[-1]), -1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(-1, found, True)


def cross_entropy_of_positives(logits: Tensor, positives: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of each clip's positives, mean over them.

    Args:
        logits: `(..., N, L)`.
        positives: `(..., N, L)` bool, at least one in each row; None: the first logit alone.

    Returns:
        `(..., N)`, in single precision at least.
    """
    log = _float(logits).log_softmax(-1)
    if positives is None:
        return -log[..., 0]
    return -(log * positives).sum(-1) / positives.sum(-1)


def mimic(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy `(..., N)` of the distribution of `logits` under that of `target`, both `(..., N, L)`."""
    return -(_float(target).softmax(-1) * _float(logits).log_softmax(-1)).sum(-1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """`2 - 2 cos(a, b)`, the squared distance of unit vectors: `(..., D)` each to `(...)`."""
    return 2 - 2 * F.cosine_similarity(_float(a), _float(b), dim=-1)


def _float(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x
