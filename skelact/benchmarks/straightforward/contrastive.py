"""SkeletonCLR, CrosSCLR and AimCLR written down plainly: MoCo of each stream, one network call a view and stream.

As in the published code: a query and a key encoder a stream, keys moved parameter by parameter, a queue `(E, K)`,
logits joined, cross-entropy with the first as the label.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelact.backbones.stgcn import STGCN
from skelact.benchmarks.straightforward.base import StraightforwardViews, Views
from skelact.benchmarks.straightforward.stgcn import Trunk
from skelact.methods.layers import StackedLinear
from skelact.methods.moco import AimCLR, CrosSCLR, SkeletonCLR
from skelact.methods.momentum import ContrastHead


def linear(theirs: StackedLinear, stream: int) -> nn.Linear:
    """A stream's layer of a stack."""
    outputs, inputs = theirs.weight.shape[1:]
    layer = nn.Linear(inputs, outputs, dtype=theirs.weight.dtype)
    layer.load_state_dict({"weight": theirs.weight[stream], "bias": theirs.bias[stream]})
    return layer


def heads(theirs: ContrastHead) -> list[nn.Sequential]:
    """A head for each stream; tied ones share layers."""
    if not theirs.tied:
        own = [(linear(theirs.hidden, s), linear(theirs.output, s)) for s in range(theirs.stack)]
        return [nn.Sequential(hidden, nn.ReLU(), output) for hidden, output in own]
    shared = nn.Sequential(linear(theirs.hidden, 0), nn.ReLU(), linear(theirs.output, 0))
    later = [linear(theirs.before, s) for s in range(theirs.stack - 1)] if theirs.before is not None else []
    return [shared, *(nn.Sequential(before, nn.ReLU(), shared) for before in later)]


class Encoder(nn.Module):
    """A stream's trunk and head: from a stream `(N, M, T, V, C)` to unit embeddings `(N, E)`."""

    def __init__(self, trunk: Trunk, fc: nn.Module) -> None:
        super().__init__()
        self.trunk, self.fc = trunk, fc

    def forward(self, x: Tensor) -> Tensor:
        """Unit embeddings of a stream."""
        return F.normalize(self.fc(self.trunk(x)), dim=1)


def encoders(backbone: nn.Module, head: nn.Module) -> nn.ModuleDict:
    """An encoder for each stream, with a copy of the weights."""
    if not isinstance(backbone, STGCN) or not isinstance(head, ContrastHead):
        raise TypeError(f"the straightforward form is of ST-GCN, not of {type(backbone).__name__}")
    pairs = zip(backbone.streams, heads(head), strict=True)
    return nn.ModuleDict({stream: Encoder(Trunk(backbone, stream), fc) for stream, fc in pairs})


@torch.no_grad()
def follow(own: nn.Module, other: nn.Module, momentum: float) -> None:
    """Move each parameter of a network towards that of another."""
    for ours, theirs in zip(own.parameters(), other.parameters(), strict=True):
        ours.data = ours.data * momentum + theirs.data * (1.0 - momentum)


class StraightforwardSkeletonCLR(StraightforwardViews):
    """The same networks, queues and loss as a :class:`SkeletonCLR`, with a copy of its weights.

    Args:
        method: whose sizes, weights and options are taken; on ST-GCN.
    """

    def __init__(self, method: SkeletonCLR) -> None:
        super().__init__(method)
        self.momentum, self.temperature = method.momentum, method.temperature
        self.encoder_q = encoders(method.backbone, method.head)
        self.encoder_k = encoders(method.teacher.encoder, method.teacher["head"]).requires_grad_(False)
        for number, stream in enumerate(self.streams):
            self.register_buffer(f"queue_{stream}", method.queue.keys[number].clone())
        self.pointer = int(method.queue.pointer)

    def queue(self, stream: str) -> Tensor:
        """Keys `(E, K)` of a stream."""
        return self.get_buffer(f"queue_{stream}")

    @torch.no_grad()
    def keys(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Let the key encoders follow, then their embeddings."""
        for stream in self.moving():
            follow(self.encoder_k[stream], self.encoder_q[stream], self.momentum)
        return {stream: self.encoder_k[stream](x) for stream, x in inputs.items()}

    def moving(self) -> tuple[str, ...]:
        """Streams whose key encoders move."""
        return self.streams

    @torch.no_grad()
    def enqueue(self, keys: dict[str, Tensor]) -> None:
        """The newest keys take the oldest ones' places."""
        for stream, k in keys.items():
            size = self.queue(stream).shape[1]
            places = torch.arange(self.pointer, self.pointer + len(k), device=k.device)[-size:] % size
            self.queue(stream)[:, places] = k[-size:].T
        self.pointer = (self.pointer + len(k)) % size

    def similarities(self, stream: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Inner products `(N, 1)` with the own key, `(N, K)` with the queue."""
        own = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        return own, torch.einsum("nc,ck->nk", q, self.queue(stream).clone().detach())

    def logits(self, stream: str, q: Tensor, k: Tensor) -> Tensor:
        """`(N, 1 + K)`."""
        return torch.cat(self.similarities(stream, q, k), dim=1) / self.temperature

    def inputs(self, views: Views) -> list[dict[str, Tensor]]:
        """The streams of each view."""
        return [self.derive(view, mask) for view, mask in views]

    def loss(self, batch: Any, views: Views) -> Tensor:
        """Loss of one step from query and key views, summed over streams."""
        query, key = self.inputs(views)
        q = {stream: self.encoder_q[stream](x) for stream, x in query.items()}
        k = self.keys(key)
        total = self.objective(q, k)
        self.enqueue(k)
        return total

    def objective(self, q: dict[str, Tensor], k: dict[str, Tensor]) -> Tensor:
        """InfoNCE of each stream, summed."""
        losses = []
        for stream in self.streams:
            logits = self.logits(stream, q[stream], k[stream])
            labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            losses.append(F.cross_entropy(logits, labels))
        return torch.stack(losses).sum()


def over_positives(logits: Tensor, positives: Tensor) -> Tensor:
    """Negative log-likelihood of each row's positives, mean over them and over rows; both `(N, L)`."""
    log = F.log_softmax(logits, dim=1)
    return (-(log * positives).sum(1) / positives.sum(1)).mean()


def one_hot_nearest(similarity: Tensor, k: int) -> Tensor:
    """Ones at the `k` highest of each row of `(N, K)`."""
    _, places = torch.topk(similarity, min(k, similarity.shape[1]), dim=1)
    return torch.zeros_like(similarity).scatter(1, places, 1)


class StraightforwardCrosSCLR(StraightforwardSkeletonCLR):
    """The same networks, queues and loss as a :class:`CrosSCLR` in the stage in which it is.

    Args:
        method: whose sizes, weights, options and stage are taken; on ST-GCN.
    """

    def __init__(self, method: CrosSCLR) -> None:
        super().__init__(method)
        self.crossing, self.topk, self.context = method.crossing, method.topk, method.context
        self.only_motion = self.crossing and method.cross_key_update == "motion"

    def moving(self) -> tuple[str, ...]:
        """Streams whose key encoders move."""
        return ("motion",) if self.only_motion else self.streams

    def objective(self, q: dict[str, Tensor], k: dict[str, Tensor]) -> Tensor:
        """For each stream the mean over the others of its loss under their supervision, summed."""
        if not self.crossing:
            return super().objective(q, k)
        found = {stream: self.similarities(stream, q[stream], k[stream]) for stream in self.streams}
        losses = []
        for a in self.streams:
            for b in self.streams:
                if a == b:
                    continue
                (key, own), (_, other) = found[a], found[b]
                nearest = one_hot_nearest(other, self.topk)
                logits, positives = [key, own], [torch.ones_like(key), nearest]
                if self.context:
                    logits.append(own * other)
                    positives.append(nearest)
                losses.append(over_positives(torch.cat(logits, 1) / self.temperature, torch.cat(positives, 1)))
        return torch.stack(losses).sum() / (len(self.streams) - 1)


class StraightforwardAimCLR(StraightforwardSkeletonCLR):
    """The same networks, queues and loss as an :class:`AimCLR` in the stage in which it is.

    Args:
        method: whose sizes, weights, options and stage are taken.
    """

    def __init__(self, method: AimCLR) -> None:
        super().__init__(method)
        self.mining, self.topk = method.mining, method.topk
        self.threshold, self.drops = method.drop_threshold, method.attention_drop == "fixed"

    def extreme(self, stream: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings `(N, E)` of an extreme view, and of it with its salient features dropped."""
        encoder = self.encoder_q[stream]
        assert isinstance(encoder, Encoder)
        maps = encoder.trunk.feature_map(x)
        left = self.drop(maps) if self.drops else maps
        whole, dropped = (encoder.fc(encoder.trunk.pool(y, x.shape[1])) for y in (maps, left))
        return F.normalize(whole, dim=1), F.normalize(dropped, dim=1)

    def drop(self, x: Tensor) -> Tensor:
        """Energy-based attention-guided drop of `(B, C, T, V)`: salient joints, then salient entries."""
        with torch.no_grad():
            count = x.shape[2] * x.shape[3] - 1
            energy = (x - x.mean(dim=(2, 3), keepdim=True)).pow(2)
            attention = torch.sigmoid(energy / (4 * (energy.sum(dim=(2, 3), keepdim=True) / count + 1e-4)) + 0.5)
            joints = (attention.mean(dim=(1, 2), keepdim=True) < self.threshold).to(x)
            entries = (attention < self.threshold).to(x)
        for mask in (joints, entries):
            if mask.sum() > 0:
                x = x * mask * mask.numel() / mask.sum()
        return x

    def loss(self, batch: Any, views: Views) -> Tensor:
        """Loss of one step from extreme, query and key views, summed over streams."""
        extreme, query, key = self.inputs(views)
        q = {stream: self.encoder_q[stream](x) for stream, x in query.items()}
        e = {stream: self.extreme(stream, x) for stream, x in extreme.items()}
        k = self.keys(key)
        losses = []
        for stream in self.streams:
            logits = self.logits(stream, q[stream], k[stream])
            if self.mining:
                near = [self.similarities(stream, x, k[stream])[1] for x in (q[stream], *e[stream])]
                hot = torch.stack([one_hot_nearest(x.detach(), self.topk) for x in near]).sum(0).clamp(max=1)
                losses.append(over_positives(logits, torch.cat([torch.ones_like(hot[:, :1]), hot], dim=1)))
            else:
                labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
                losses.append(F.cross_entropy(logits, labels))
            target = F.softmax(logits.detach(), dim=1)
            for x in e[stream]:
                log = F.log_softmax(self.logits(stream, x, k[stream]), dim=1)
                losses.append(-(target * log).sum(1).mean() / 2)
        self.enqueue(k)
        return torch.stack(losses).sum()
