"""Supervised contrast of an embedding as one would write it down, to measure the library's step against."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelact.benchmarks.straightforward.base import StraightforwardViews, Views
from skelact.benchmarks.straightforward.tokens import token_form
from skelact.methods.supcon import SupCon


class StraightforwardSupCon(StraightforwardViews):
    """The same network and loss as a :class:`SupCon` of a token encoder, with a copy of its weights.

    Args:
        method: whose sizes, weights and temperature are taken.
    """

    def __init__(self, method: SupCon) -> None:
        super().__init__(method)
        self.temperature = method.temperature
        self.backbone = token_form(method.backbone)
        self.dropout, self.head = nn.Dropout(method.dropout.p), copy.deepcopy(method.head)

    def loss(self, batch: Any, views: Views) -> Tensor:
        """SupCon (Khosla et al., NeurIPS 2020) of the views of all clips."""
        embeddings = []
        for view, mask in views:
            feature = self.backbone(self.derive(view, mask), mask)
            embeddings.append(self.head(self.dropout(feature)))
        return supervised_contrast(embeddings, batch.label, self.temperature)


def supervised_contrast(views: Sequence[Tensor], label: Tensor, temperature: float) -> Tensor:
    """Mean over anchors of the mean over positives of `-log p`, of W views `(N, D)`; label -1: no other clip's.

    Scaled by temperature / 0.07, as in the authors' code.
    """
    z = F.normalize(torch.cat(list(views)), dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = (z @ z.T / temperature).masked_fill(own, -torch.inf).log_softmax(1)
    label = label.where(label >= 0, -1 - torch.arange(len(label), device=label.device)).repeat(len(views))
    positive = (label[:, None] == label) & ~own
    count = positive.sum(1)
    each = -log_p.where(positive, 0).sum(1) / count.clamp_min(1)
    return temperature / 0.07 * each.sum() / (count > 0).sum().clamp_min(1)
