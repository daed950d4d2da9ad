"""Losses of the contrastive family: cross-entropy of positives, mimicry, distance of directions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from skelact.objectives.ranks import at_least_single


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
    log = at_least_single(logits).log_softmax(-1)
    if positives is None:
        return -log[..., 0]
    return -(log * positives).sum(-1) / positives.sum(-1)


def mimic(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy `(..., N)` of the distribution of `logits` under that of `target`, both `(..., N, L)`."""
    return -(at_least_single(target).softmax(-1) * at_least_single(logits).log_softmax(-1)).sum(-1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """`2 - 2 cos(a, b)`, the squared distance of unit vectors: `(..., D)` each to `(...)`."""
    return 2 - 2 * F.cosine_similarity(at_least_single(a), at_least_single(b), dim=-1)
