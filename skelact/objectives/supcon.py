"""Supervised contrastive learning (Khosla et al., NeurIPS 2020), and MaskCLR's class-level form of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from skelact.objectives.ranks import at_least_single, without_autocast

_TINY = 1e-12


def supcon(
    features: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
    row_max: bool = False,
    normalize: bool = True,
) -> Tensor:
    """Pull the embeddings of a class together and away from all others of the batch.

    The W views of B clips are W*B anchors v_i. With logits l_ij and the positives P(i), the other anchors of i's class,

        loss = -factor * mean_i 1/|P(i)| sum_{p in P(i)} [ l_ip - log sum_{j != i} exp(l_ij) ].

    Standard: l_ij = v_i . v_j / temperature, factor = temperature / base_temperature (as the authors' code; 1 in their
    paper). With `row_max` (MaskCLR's releases, maskclr.md 6.3): l_ij = S_ij / max_j S_ij of S_ij = v_i . v_j, the
    maximum over the row, i itself included, with its gradient; the temperature cancels and the factor is 1.

    The mean is over anchors that have a positive; 0, with a gradient of zeros, where none has.

    Args:
        features: `(B, W, D)`; those of all ranks, which the caller has gathered (:func:`skelact.objectives.gather`).
        labels: `(B,)` classes; a clip without one (negative) is of a class of its own.
        temperature: of the standard form.
        base_temperature: see above.
        row_max: the form of MaskCLR's releases.
        normalize: scale the embeddings to unit length; MaskCLR's releases do not.

    Returns:
        Scalar, in single precision at least.
    """
    batch, views, _ = features.shape
    with without_autocast(features):
        anchors = at_least_single(features).transpose(0, 1).flatten(0, 1)  # view after view
        if normalize:
            anchors = F.normalize(anchors, dim=1)
        similarity = anchors @ anchors.T
        if row_max:
            logits, factor = similarity / similarity.max(1, keepdim=True).values.clamp_min(_TINY), 1.0
        else:
            logits, factor = similarity / temperature, temperature / base_temperature
        own = torch.eye(views * batch, dtype=torch.bool, device=features.device)
        alone = -1 - torch.arange(batch, device=labels.device)
        classes = torch.where(labels < 0, alone, labels).repeat(views)
        positives = (classes[:, None] == classes) & ~own
        log = logits - logits.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
        count = positives.sum(1)
        each = log.masked_fill(~positives, 0.0).sum(1) / count.clamp_min(1)
        return -factor * each.sum() / (count > 0).sum().clamp_min(1)
