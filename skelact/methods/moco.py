"""Momentum contrast of skeletons: SkeletonCLR and CrosSCLR (Li et al., CVPR 2021), AimCLR (Guo et al., AAAI 2022).

Two augmented views of a clip are a query and a key. The query's embedding shall be nearer to the embedding that a
momentum encoder gives the key than to a queue of earlier keys. CrosSCLR lets the neighbours that one stream finds
supervise another; AimCLR adds an extremely augmented view whose similarities shall follow those of the query.

Several streams train side by side, each with a trunk, a head and a queue of its own: one run of SkeletonCLR or AimCLR
with three streams is three runs with one (see `docs/methods.md`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelact.backbones.base import Encoder
from skelact.backbones.stgcn import STGCN, attention_drop
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.momentum import ContrastHead, KeyQueue, MomentumMethod, Teacher, follow, spread, stream_width
from skelact.objectives import cross_entropy_of_positives, global_mean, mimic, nearest

Views = Sequence[tuple[Tensor, Tensor | None]]


class SkeletonCLR(MomentumMethod):
    """SkeletonCLR pretraining, and the base of its relatives.

    Published: times 0.1 after epoch 250 of 300; one run for each of joint, motion and bone.

    Args:
        backbone: see :class:`MomentumMethod`.
        layout: see there.
        sampler: see there.
        embedding: width E of an embedding.
        queue_size: keys kept for each stream, K.
        momentum: decay of the key encoder.
        temperature: of the logits.
        tied_heads: see :class:`~skelact.methods.momentum.ContrastHead`.
        options: further ones of :class:`MomentumMethod`; `augment` makes two views, query and key.
    """

    joins = "each step is compared with the keys of the steps before it"
    view_names: tuple[str, ...] = ("query", "key")

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        embedding: int = 128,
        queue_size: int = 32768,
        momentum: float = 0.999,
        temperature: float = 0.07,
        tied_heads: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(backbone, layout, sampler, **options)
        self.momentum, self.temperature = momentum, temperature
        self.head = ContrastHead(len(self.streams), stream_width(backbone), embedding, tied_heads)
        self.teacher = Teacher(self.online, self.synchronised)
        self.queue = KeyQueue(len(self.streams), embedding, queue_size)

    @property
    def online(self) -> dict[str, nn.Module]:
        """The networks that are trained and that the teacher follows."""
        return {"backbone": self.backbone, "head": self.head}

    @property
    def num_views(self) -> int:
        """Training views of a clip, as in :attr:`view_names`."""
        return len(self.view_names)

    def embed(self, view: Tensor, mask: Tensor | None = None) -> Tensor:
        """Unit embeddings `(S, N, E)` of joint views `(N, M, T, V, C)`."""
        return self.head(self.by_stream(self.backbone, view, mask))

    def embed_features(self, views: Tensor, streams: Sequence[str] | None = None, mask: Tensor | None = None) -> Tensor:
        """Mean over streams of the head's outputs, before they are scaled to unit length: `(N, E)`."""
        features, numbers = self.some_streams(views, streams, mask)
        return self.head.raw(features, numbers).mean(0)

    @torch.no_grad()
    def embed_keys(self, view: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let the key encoder follow, then its unit embeddings `(S, N, E)`."""
        self.follow()
        return self.teacher["head"](self.by_stream(self.teacher.encoder, view, mask))

    def follow(self) -> None:
        """Move the key encoder towards the query encoder."""
        self.teacher.follow(self.online, self.momentum)

    def logits(self, embeddings: Tensor, keys: Tensor) -> Tensor:
        """`(S, N, 1 + K)`: similarity to the own key, then to the queue's, over the temperature."""
        own = (embeddings * keys).sum(-1, keepdim=True)
        return torch.cat([own, self.queue.similarity(embeddings)], -1) / self.temperature

    def objective(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss `(S,)` of each stream, and what else to log."""
        (query, query_mask), (key, key_mask) = views
        q, k = self.embed(query, query_mask), self.embed_keys(key, key_mask)
        logits = self.logits(q, k)
        self.queue.push(k)
        return info_nce(logits), self.watch(q, k)

    def watch(self, q: Tensor, k: Tensor) -> dict[str, Tensor]:
        """Collapse probes: spread of the queries, and their cosine with their keys."""
        return {"feature_std": spread(q).mean(), "cos_key": global_mean((q * k).detach().sum(-1)).mean()}

    def training_step(self, batch: RaggedClips, batch_idx: int = 0) -> dict[str, Tensor]:
        """One step: `loss` with its graph, summed over streams; the losses of the streams and probes without."""
        return self.conclude(*self.objective(self.views(batch)), len(batch))


def info_nce(logits: Tensor, positives: Tensor | None = None) -> Tensor:
    """InfoNCE of each stream, mean over the clips of all ranks: `(S, N, L)` to `(S,)`.

    Args:
        logits: the first is the own key's.
        positives: `(S, N, L)` bool; None: the own key alone.
    """
    return global_mean(cross_entropy_of_positives(logits, positives))


class CrosSCLR(SkeletonCLR):
    """CrosSCLR: SkeletonCLR of two or three streams, then each stream's neighbours are positives of the others.

    From `cross_epoch` on, for each ordered pair of streams (a, b): the `topk` keys that b finds nearest are positives
    of a besides its own key. With `context` the products of both streams' similarities are further logits, through
    which both streams are trained.

    Args:
        backbone: see :class:`MomentumMethod`.
        layout: see there.
        sampler: see there.
        streams: two or more; published: joint, motion, bone, or the first two.
        cross_epoch: first epoch of the second stage, counted from 0; published: 150 of 300.
        topk: neighbours that become positives.
        context: the products among the logits.
        tied_heads: heads of the later streams share the first one's layers (released: yes, by mistake).
        cross_key_update: streams whose key encoders move in the second stage: `all`, or `motion` (released, an open
            question there: the others stand still).
        preset: sets the last two and `sync_momentum_after_init` where they are None.
        options: further ones of :class:`SkeletonCLR`.
    """

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        streams: Sequence[str] = ("joint", "motion", "bone"),
        cross_epoch: int = 150,
        topk: int = 1,
        context: bool = True,
        tied_heads: bool | None = None,
        cross_key_update: Literal["all", "motion"] | None = None,
        preset: Literal["as_released", "corrected"] = "corrected",
        **options: Any,
    ) -> None:
        if len(streams) < 2:
            raise SkelactError(f"CrosSCLR needs two or more streams, got {list(streams)}")
        released = preset == "as_released"
        tied = released if tied_heads is None else tied_heads
        super().__init__(backbone, layout, sampler, streams=streams, preset=preset, tied_heads=tied, **options)
        self.cross_epoch, self.topk, self.context = cross_epoch, topk, context
        self.cross_key_update = cross_key_update or ("motion" if released else "all")
        if self.cross_key_update not in ("all", "motion"):
            raise SkelactError(f"cross_key_update must be all or motion, got {cross_key_update!r}")
        if self.cross_key_update == "motion" and "motion" not in self.streams:
            raise SkelactError(f"cross_key_update=motion, but the streams are {list(self.streams)}; set it to all")

    @property
    def crossing(self) -> bool:
        """Whether the second stage has begun."""
        return self.current_epoch >= self.cross_epoch

    def follow(self) -> None:
        """Move the key encoders; a tied head moves once for each stream that moves, as released."""
        moving: Sequence[int] = range(len(self.streams))
        if self.crossing and self.cross_key_update == "motion":
            moving = [self.streams.index("motion")]
        ours, head = self.teacher["head"], self.head
        follow(self.teacher.encoder, self.backbone, self.momentum, moving)
        if not head.tied:
            follow(ours, head, self.momentum, moving)
            return
        before = [number - 1 for number in moving if number]
        follow(ours.get_submodule("before"), head.get_submodule("before"), self.momentum, before)
        for layer in ("hidden", "output"):
            follow(ours.get_submodule(layer), head.get_submodule(layer), self.momentum ** len(moving))

    def objective(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss `(S,)` of each stream, and what else to log."""
        if not self.crossing:
            return super().objective(views)
        (query, query_mask), (key, key_mask) = views
        q, k = self.embed(query, query_mask), self.embed_keys(key, key_mask)
        losses = self.cross_losses(q, k)
        self.queue.push(k)
        return losses, self.watch(q, k)

    def cross_losses(self, q: Tensor, k: Tensor) -> Tensor:
        """`(S,)`: for each stream the mean over the others of its loss under their supervision."""
        pairs = list(itertools.permutations(range(len(self.streams)), 2))
        own, queue = (q * k).sum(-1, keepdim=True).unbind(), self.queue.similarity(q).unbind()
        terms = [cross_entropy_of_positives(*self.cross_logits(own[a], queue[a], queue[b])) for a, b in pairs]
        losses = global_mean(torch.stack(terms))
        return losses.unflatten(0, (len(self.streams), -1)).mean(1)  # pairs of one stream follow one another

    def cross_logits(self, key: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and positives `(N, 1 + K)` of one stream supervised by another, `(N, 1 + 2K)` with context.

        Args:
            key: similarities `(N, 1)` of the stream to its own keys.
            own: to its queue `(N, K)`.
            other: those of the other stream to its queue `(N, K)`.
        """
        found = nearest(other.detach(), self.topk)
        parts, marks = [key, own], [torch.ones_like(key, dtype=torch.bool), found]
        if self.context:
            parts.append(own * other)
            marks.append(found)
        return torch.cat(parts, 1) / self.temperature, torch.cat(marks, 1)


class AimCLR(SkeletonCLR):
    """AimCLR: a third, extremely augmented view whose similarities follow those of the query.

    The extreme view is embedded as it is and after the most salient features of its last map were dropped (EADM). The
    distributions of both over own key and queue are pulled to that of the query (D3M). From `mining_epoch` on the
    nearest keys of all three become further positives of the query (NNM).

    Args:
        backbone: ST-GCN; see :class:`MomentumMethod`.
        layout: see there.
        sampler: see there.
        mining_epoch: first epoch of the mining, counted from 0; published: 150 of 300.
        topk: neighbours mined by each of the three embeddings.
        drop_threshold: attention from which on features are dropped.
        attention_drop: `fixed`, or `first_release`: the code before March 2022, whose drop left everything as it was.
        options: further ones of :class:`SkeletonCLR`; `augment` makes three views: extreme, query, key.
    """

    view_names = ("extreme", "query", "key")

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        mining_epoch: int = 150,
        topk: int = 1,
        drop_threshold: float = 0.7,
        attention_drop: Literal["fixed", "first_release"] = "fixed",
        **options: Any,
    ) -> None:
        if not isinstance(backbone, STGCN):
            raise SkelactError(
                f"AimCLR drops entries of ST-GCN's last feature map, and {type(backbone).__name__} has none: "
                f"take backbone=stgcn"
            )
        if attention_drop not in ("fixed", "first_release"):
            raise SkelactError(f"attention_drop must be fixed or first_release, got {attention_drop!r}")
        super().__init__(backbone, layout, sampler, **options)
        self.mining_epoch, self.topk = mining_epoch, topk
        self.drop_threshold, self.attention_drop = drop_threshold, attention_drop

    @property
    def mining(self) -> bool:
        """Whether neighbours are mined in this epoch."""
        return self.current_epoch >= self.mining_epoch

    def embed_extreme(self, view: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit embeddings of the extreme view, and of it with its salient features dropped; each `(S, N, E)`."""
        assert isinstance(self.backbone, STGCN)
        maps = self.backbone.feature_map(self.derive(view, mask=mask), mask)
        whole = self.head(self.backbone.pool(maps, mask))
        if self.attention_drop == "first_release":
            return whole, whole
        dropped = [attention_drop(x.flatten(0, 1), self.drop_threshold).unflatten(0, x.shape[:2]) for x in maps]
        return whole, self.head(torch.cat([self.backbone.pool(x[None], mask) for x in dropped]))

    def objective(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss `(S,)` of each stream, and what else to log."""
        (extreme, extreme_mask), (query, query_mask), (key, key_mask) = views
        q = self.embed(query, query_mask)
        e, d = self.embed_extreme(extreme, extreme_mask)
        k = self.embed_keys(key, key_mask)
        logits = self.logits(q, k)
        info = info_nce(logits, self.mine(q, e, d) if self.mining else None)
        target = logits.detach()
        whole, dropped = (global_mean(mimic(self.logits(x, k), target)) for x in (e, d))
        d3m = (whole + dropped) / 2
        self.queue.push(k)
        return info + d3m, {"loss_info": info.sum().detach(), "loss_d3m": d3m.sum().detach()} | self.watch(q, k)

    def mine(self, *embeddings: Tensor) -> Tensor:
        """Positives `(S, N, 1 + K)`: the own key, and what each of the embeddings finds nearest in the queue."""
        found = torch.stack([nearest(self.queue.similarity(x.detach()), self.topk) for x in embeddings]).any(0)
        return F.pad(found, (1, 0), value=True)
