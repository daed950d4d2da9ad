"""The objective of UmURL (Sun et al., ACM MM 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from skelact.objectives.ranks import without_autocast


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
    with without_autocast(z):
        return _umurl_terms(z.float() if z.dtype.itemsize < 4 else z, consistency, variance, covariance, direct=False)


def _umurl_terms(z: Tensor, consistency: float, variance: float, covariance: float, direct: bool) -> UmURLTerms:
    uni, fused = z.chunk(2)
    intra = (uni - fused).square().mean((-2, -1))
    inter = (uni - uni.mean(0)).square().mean((-2, -1))
    var, cov = vc_regularisation(z, direct=direct)
    total = consistency * (intra.sum() + inter.sum()) + variance * var.sum() + covariance * cov.sum()
    return UmURLTerms(total, intra, inter, var, cov)
