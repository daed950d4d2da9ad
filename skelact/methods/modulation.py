"""Gradient modulation: the encoder of a modality that is ahead of the others learns more slowly.

OGM-GE (Peng et al., CVPR 2022) without its noise, as the baseline of ActionMAE has it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from skelact.methods.supervised import UNLABELLED
from skelact.objectives import all_reduce, at_least_single


@torch.no_grad()
def coefficients(logits: Tensor, labels: Tensor, kept: Tensor, alpha: float = 1.0, preset: str = "corrected") -> Tensor:
    """What gradients of each modality's encoder are multiplied by.

    With s the mean probability that a modality alone gives to the true class, and r = s / mean of s over modalities:
    1 - tanh(alpha (r - 1)), at most 1.

    Args:
        logits: `(M, N, C)`, unimodal.
        labels: `(N,)` int64.
        kept: `(N, M)` bool, which clips count for which modality.
        alpha: strength.
        preset: `corrected`: over the clips of all ranks, and at most 1; `as_released`: over this rank's, and a modality
            that lags behind gets more than 1.

    Returns:
        `(M,)`, 1 for a modality that no clip has.
    """
    true = labels.clamp_min(0).expand(len(logits), -1)[..., None]
    probability = at_least_single(logits).softmax(-1).gather(-1, true)[..., 0]
    counts = (kept & (labels != UNLABELLED)[:, None]).T
    sums = torch.stack([probability.where(counts, 0).sum(1), counts.sum(1).to(probability)])
    score, clips = (all_reduce(sums) if preset == "corrected" else sums).unbind()
    score, seen = score / clips.clamp_min(1), clips > 0
    ratio = (score * seen.sum() / score.sum()).where(seen, 1)
    found = 1 - torch.tanh(alpha * (ratio - 1))
    return found.clamp_max(1) if preset == "corrected" else found


@torch.no_grad()
def scale_gradients(modules: Iterable[nn.Module], factor: Tensor) -> None:
    """Multiply the gradients of all weights inside."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
