"""Losses of MaskCLR (Abdelfattah, Hassan and Alahi, CVPR 2024), of its code and as its paper describes them.

Two pathways give each clip two vectors. Sample-level terms pull these together and clips apart; class-level terms do so
with what a class has in common. Supervised contrast of samples is in `supcon.py`. All take the global batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from skelact.objectives.ranks import at_least_single, without_autocast


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float = 0.5,
    normalise: bool = True,
    log_weight: Tensor | None = None,
    present: Tensor | None = None,
    anchors: Tensor | None = None,
) -> Tensor:
    """NT-Xent (Chen et al., ICML 2020): each vector's partner against all vectors of both lists but itself.

    Args:
        first: `(n, D)`.
        second: `(n, D)`, partners of the first.
        temperature: of the similarities.
        normalise: cosines; otherwise inner products, with the constant e^(1/temperature) taken off the sum in place of
            the own term, as the released code does.
        log_weight: `(n,)` logarithm of a factor on a pair's positive term.
        present: `(n,)` bool: pairs that take part; None: all.
        anchors: `(n,)` bool: pairs whose terms are averaged; None: those that take part.

    Returns:
        Mean over the anchors, 0 where there are none.
    """
    n = len(first)
    with without_autocast(first):
        vectors = at_least_single(torch.cat([first, second]))
        if normalise:
            vectors = F.normalize(vectors, dim=-1)
        similarity = vectors @ vectors.T / temperature
    positive = similarity.diagonal(n).repeat(2)
    if log_weight is not None:
        positive = positive + log_weight.repeat(2)
    present = torch.ones(n, dtype=torch.bool, device=first.device) if present is None else present
    anchors = present if anchors is None else anchors
    away = ~present.repeat(2).expand_as(similarity)
    if normalise:
        away = away | torch.eye(2 * n, dtype=torch.bool, device=first.device)
    total = similarity.masked_fill(away, -1e30).logsumexp(1)  # finite, or absent rows would spoil the gradient
    if not normalise:
        total = (total.exp() - math.exp(1 / temperature)).log()
    terms = (total - positive).where(anchors.repeat(2), 0)
    return terms.sum() / (2 * anchors.sum()).clamp_min(1)


def log_confidence(logits: Tensor, labels: Tensor, axis: str) -> Tensor:
    """`log_weight` of the targeted sample term: how sure the standard pathway is of the true class.

    Args:
        logits: `(B, K)` of the standard pathway; they get a gradient.
        labels: `(B,)`; clips without a label (-1) have weight 1.
        axis: softmax over the `class` axis, or over the `batch`, as released.
    """
    log_p = at_least_single(logits).log_softmax(0 if axis == "batch" else 1)
    return log_p.gather(1, labels.clamp_min(0)[:, None])[:, 0].where(labels >= 0, 0)


@torch.no_grad()
def targeted_class_loss(
    logits: Tensor, labels: Tensor, memory: Tensor, temperature: float = 0.5, momentum: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Class term of the second release's default (`tcl`): false negatives to, false positives from true positives.

    It is computed without gradient, there as here: it moves the logged loss and nothing else.

    Args:
        logits: `(B, K)` of the standard pathway.
        labels: `(B,)`; -1 where unknown.
        memory: `(K, K)`, moving mean probabilities of each class's true positives; zeros at the start.
        temperature: of the contrast.
        momentum: of the memory.

    Returns:
        Loss, and the memory after this batch.
    """
    q = at_least_single(logits).softmax(1)
    known = F.one_hot(labels.clamp_min(0), q.shape[1]).bool() & (labels >= 0)[:, None]  # (B, K)
    said = F.one_hot(q.argmax(1), q.shape[1]).bool() & (labels >= 0)[:, None]
    hits, some = _class_means(q, known & said)
    new = torch.where((memory == 0).all(1, keepdim=True), hits, momentum * memory + (1 - momentum) * hits)
    memory = torch.where(some[:, None], new.to(memory.dtype), memory)
    usable = (memory != 0).any(1) & known.any(0)
    weight = _class_means(q, known)[0].diagonal().clamp_min(1e-30).log()
    loss = q.new_zeros(())
    for members, sign, offset in ((known & ~said, 1, 0), (said & ~known, -1, 5)):
        means, some = _class_means(q, members)
        right, wrong = (x.repeat(2, 1) for x in (memory.to(q.dtype), means))  # the lists are doubled
        there = (some & usable).repeat(2)
        term = nt_xent(right, wrong, temperature, log_weight=weight.repeat(2), present=there)
        loss = loss + (offset + sign * term).where(there.any(), 0)
    return loss, memory


def class_mean_loss(
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    num_classes: int,
    temperature: float = 0.5,
    memory: Tensor | None = None,
    momentum: float = 0.9,
) -> tuple[Tensor, Tensor | None]:
    """NT-Xent of the class means of both pathways, a reading of the paper, which gives no formula.

    Args:
        first: `(B, D)`.
        second: `(B, D)`.
        labels: `(B,)`; -1 where unknown.
        num_classes: K.
        temperature: of the contrast.
        memory: `(2, K, D)` moving class means, zeros at the start: with it a class mean is the moving one, and classes
            that the batch has not are negatives. The gradient goes through the batch's part.
        momentum: of the memory.

    Returns:
        Loss, averaged over the classes of the batch, and the memory after it.
    """
    known = F.one_hot(labels.clamp_min(0), num_classes).bool() & (labels >= 0)[:, None]
    units = [F.normalize(at_least_single(x), dim=-1) for x in (first, second)]
    anchors = known.any(0)
    means = torch.stack([_class_means(x, known)[0] for x in units])
    if memory is None:
        return nt_xent(means[0], means[1], temperature, present=anchors), None
    seen = (memory != 0).any(-1, keepdim=True)
    means = torch.where(seen, momentum * memory + (1 - momentum) * means, means)
    means = torch.where(anchors[:, None], means, memory.to(means.dtype))
    there = (means.detach() != 0).any(-1).all(0)
    return nt_xent(means[0], means[1], temperature, present=there, anchors=anchors & there), means.detach().to(
        memory.dtype
    )


def _class_means(x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Means `(K, D)` of the rows `(B, D)` that `members` `(B, K)` puts into each class, and which have any."""
    weight = members.to(x.dtype)
    count = weight.sum(0)
    with without_autocast(x):
        return weight.T @ x / count.clamp_min(1)[:, None], count > 0
