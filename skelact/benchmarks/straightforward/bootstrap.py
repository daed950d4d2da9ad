"""SkeletonBYOL, CMAL and 3s-CACA written down plainly: an online and a target network a stream, one call a view."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelact.backbones.stgcn import STGCN
from skelact.benchmarks.straightforward.base import StraightforwardViews, Views
from skelact.benchmarks.straightforward.contrastive import follow, linear, one_hot_nearest
from skelact.benchmarks.straightforward.stgcn import Trunk
from skelact.methods.caca import CACA, CMAL, SkeletonBYOL
from skelact.methods.layers import StackedMLP

Outputs = dict[str, list[Tensor]]
"""By stream: of both views, each `(N, E)`."""


def mlp(theirs: StackedMLP, stream: int) -> nn.Sequential:
    """A stream's projector or predictor."""
    norm = nn.BatchNorm1d(theirs.norm.weight.shape[1], dtype=theirs.norm.weight.dtype)
    norm.load_state_dict({name: value[stream] for name, value in theirs.norm.state_dict().items()})
    return nn.Sequential(linear(theirs.hidden, stream), norm, nn.ReLU(), linear(theirs.output, stream))


def projecting(backbone: nn.Module, projector: nn.Module) -> nn.ModuleDict:
    """Trunk and projector of each stream, with a copy of the weights."""
    if not isinstance(backbone, STGCN) or not isinstance(projector, StackedMLP):
        raise TypeError(f"the straightforward form is of ST-GCN, not of {type(backbone).__name__}")
    parts = {stream: (Trunk(backbone, stream), mlp(projector, s)) for s, stream in enumerate(backbone.streams)}
    return nn.ModuleDict({stream: nn.Sequential(*part) for stream, part in parts.items()})


def distance(a: Tensor, b: Tensor) -> Tensor:
    """`2 - 2 cos` of each row."""
    return 2 - 2 * (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1)


class StraightforwardBYOL(StraightforwardViews):
    """The same networks and loss as a :class:`SkeletonBYOL`, with a copy of its weights.

    Args:
        method: whose sizes, weights and options are taken; on ST-GCN.
    """

    def __init__(self, method: SkeletonBYOL) -> None:
        super().__init__(method)
        self.momentum, self.follows = method.momentum, method.follows
        self.online = projecting(method.backbone, method.projector)
        self.predictor = nn.ModuleDict({stream: mlp(method.predictor, s) for s, stream in enumerate(self.streams)})
        self.target: nn.ModuleDict | None = None
        if method.teacher is not None:
            self.target = projecting(method.teacher.encoder, method.teacher["projector"]).requires_grad_(False)

    def loss(self, batch: Any, views: Views) -> Tensor:
        """Loss of one step from two views, summed over streams."""
        inputs = [self.derive(view, mask) for view, mask in views]
        z: Outputs = {stream: [] for stream in self.streams}
        p: Outputs = {stream: [] for stream in self.streams}
        t: Outputs = {stream: [] for stream in self.streams}
        for x in inputs:
            for stream in self.streams:
                z[stream].append(self.online[stream](x[stream]))
                p[stream].append(self.predictor[stream](z[stream][-1]))
        with torch.no_grad():
            target = self.online if self.target is None else self.target
            for x in inputs:
                for stream in self.streams:
                    t[stream].append(target[stream](x[stream]))
        return self.objective(z, p, t)

    def objective(self, z: Outputs, p: Outputs, t: Outputs) -> Tensor:
        """Loss of projections, predictions and targets, summed over streams."""
        return torch.stack([self.byol(p[stream], t[stream]) for stream in self.streams]).sum()

    @staticmethod
    def byol(p: list[Tensor], t: list[Tensor]) -> Tensor:
        """Predictions of each view against the targets of the other."""
        return (distance(p[0], t[1]) + distance(p[1], t[0])).mean()

    def follow(self) -> None:
        """The target networks move."""
        if self.target is not None and self.follows:
            follow(self.target, self.online, self.momentum)


class StraightforwardCMAL(StraightforwardBYOL):
    """The same networks and loss as a :class:`CMAL`.

    Args:
        method: whose sizes, weights and options are taken; on ST-GCN.
    """

    def __init__(self, method: CMAL) -> None:
        super().__init__(method)
        self.repel, self.repel_weight, self.byol_weight = method.repel, method.repel_weight, method.byol_weight
        self.attract_on, self.attract_stopgrad = method.attract_on, method.attract_stopgrad

    def objective(self, z: Outputs, p: Outputs, t: Outputs) -> Tensor:
        """Loss of projections, predictions and targets, summed over streams."""
        return torch.stack([self.cmal(z[stream], p[stream], t[stream]) for stream in self.streams]).sum()

    def cmal(self, z: list[Tensor], p: list[Tensor], t: list[Tensor]) -> Tensor:
        """One stream's."""
        a, b = p if self.attract_on == "prediction" else z
        loss = (distance(a, b.detach()) + distance(a.detach(), b)) / 2 if self.attract_stopgrad else distance(a, b)
        if self.repel != "none":
            first, second = t if self.repel == "same_view" else t[::-1]
            loss = loss - self.repel_weight * (distance(p[0], first) + distance(p[1], second))
        return loss.mean() + (self.byol_weight * self.byol(p, t) if self.byol_weight else 0)


class StraightforwardCACA(StraightforwardCMAL):
    """The same networks and loss as a :class:`CACA` in the stage in which it is.

    Args:
        method: whose sizes, weights, options and stage are taken; on ST-GCN.
    """

    def __init__(self, method: CACA) -> None:
        super().__init__(method)
        self.crossing, self.topk, self.vote, self.lamb = method.crossing, method.topk, method.vote, method.lamb
        self.temperature, self.share = method.cscl_temperature, method.normalize_positives
        self.targets_alone = method.cscl_similarity == "target_target"

    def objective(self, z: Outputs, p: Outputs, t: Outputs) -> Tensor:
        """Loss of projections, predictions and targets, summed over streams."""
        total = super().objective(z, p, t)
        if not self.crossing:
            return total
        similarities, votes = [], []
        for stream in self.streams:
            p1, p2, t1, t2 = (F.normalize(x, dim=1) for x in (*p[stream], *t[stream]))
            similarities += [p1 @ t2.T, p2 @ t1.T]
            marked = [t1 @ t2.T, t2 @ t1.T] if self.targets_alone else similarities[-2:]
            own = torch.eye(len(p1), device=p1.device, dtype=p1.dtype)
            first, second = (torch.maximum(one_hot_nearest(s.detach(), self.topk), own) for s in marked)
            votes.append(first * second)
        together = (torch.stack(votes).sum(0) >= self.vote).to(p1)
        if self.share:
            together = together / together.sum(1, keepdim=True)
        cscl = [-(together * F.log_softmax(s / self.temperature, dim=1)).sum(1).mean() for s in similarities]
        return total + self.lamb * torch.stack(cscl).sum()
