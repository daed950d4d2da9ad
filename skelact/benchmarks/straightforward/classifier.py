"""Supervised training written down plainly: a network, a head for each of its features, cross-entropy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skelact.backbones.stgcn import STGCN
from skelact.backbones.tokens import TokenEncoder
from skelact.benchmarks.straightforward.base import StraightforwardViews, Views
from skelact.benchmarks.straightforward.stgcn import StraightforwardSTGCN
from skelact.benchmarks.straightforward.tokens import token_form
from skelact.methods.layers import ActionHead
from skelact.methods.supervised import UNLABELLED, Supervised


class _Trunks(nn.Module):
    """ST-GCN: a feature for each stream."""

    def __init__(self, encoder: STGCN) -> None:
        super().__init__()
        self.trunks = StraightforwardSTGCN(encoder).trunks

    def forward(self, streams: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        return {name: self.trunks[name](x) for name, x in streams.items()}


class _Joined(nn.Module):
    """A token encoder: one feature."""

    def __init__(self, encoder: TokenEncoder) -> None:
        super().__init__()
        self.encoder = token_form(encoder)

    def forward(self, streams: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        return {"all": self.encoder(streams, mask)}


def _network(encoder: nn.Module) -> nn.Module:
    """From streams and mask to features `(N, D)` by the name of their head, with a copy of the encoder's weights."""
    if isinstance(encoder, STGCN):
        return _Trunks(encoder)
    if isinstance(encoder, TokenEncoder):
        return _Joined(encoder)
    raise TypeError(f"there is no straightforward form of {type(encoder).__name__} with a classifier")


def head_form(theirs: nn.Module) -> nn.Module:
    """A copy of a linear head, or an :class:`ActionHead` as a sequence of torch's layers."""
    if not isinstance(theirs, ActionHead):
        return copy.deepcopy(theirs)
    norm = nn.BatchNorm1d(theirs.norm.num_features, dtype=theirs.norm.weight.dtype)
    norm.load_state_dict(theirs.norm.state_dict())
    return nn.Sequential(copy.deepcopy(theirs.fc1), norm, nn.ReLU(), copy.deepcopy(theirs.fc2))


class StraightforwardSupervised(StraightforwardViews):
    """The same network, heads and loss as a :class:`Supervised`, with a copy of its weights.

    Args:
        method: whose sizes, weights and options are taken.

    Raises:
        TypeError: there is no straightforward form of its backbone.
    """

    def __init__(self, method: Supervised) -> None:
        super().__init__(method)
        self.fusion, self.mode, self.head_only = method.fusion, method.mode, method.head_only
        self.network = _network(method.backbone)
        self.heads = nn.ModuleDict({name: head_form(head) for name, head in method.heads.items()})
        self.dropout = nn.Dropout(method.dropout.p)
        self.cross_entropy = nn.CrossEntropyLoss(ignore_index=UNLABELLED, label_smoothing=method.label_smoothing)
        if self.head_only:
            self.network.requires_grad_(False)

    def train(self, mode: bool = True) -> StraightforwardSupervised:
        """Training mode, but for what the method keeps in evaluation mode."""
        super().train(mode and self.mode == "train")
        if self.head_only:
            self.network.eval()
        return self

    def loss(self, batch: Any, views: Views) -> Tensor:
        """Mean cross-entropy of the labelled clips on their one view."""
        ((view, mask),) = views
        features = self.network(self.derive(view, mask), mask)
        logits = torch.stack([self.heads[name](self.dropout(x)) for name, x in features.items()])
        total: Tensor = self.cross_entropy(logits.sum(0) if self.fusion == "sum" else logits.mean(0), batch.label)
        return total
