"""Skeletons without negatives: SkeletonBYOL, CMAL and 3s-CACA (CMCS).

An online network predicts what a slowly following target network makes of a clip. SkeletonBYOL predicts across two
views. CMAL (cross-model adversarial loss) pulls the predictions of both views together and pushes each from the target
of its own view. 3s-CACA trains three streams with CMAL, then lets them agree on which clips of a batch belong together
(CSCL, cross-stream collaborative learning). The code that fixes the details is the authors' CMCS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelact.backbones.base import Encoder
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.layers import StackedMLP
from skelact.methods.moco import Views
from skelact.methods.momentum import MomentumMethod, Teacher, spread, stream_width, unit
from skelact.objectives import cosine_distance, gather, global_mean, nearest, without_autocast


class SkeletonBYOL(MomentumMethod):
    """SkeletonBYOL pretraining, and the base of its relatives.

    Args:
        backbone: see :class:`MomentumMethod`.
        layout: see there.
        sampler: see there.
        embedding: width E of projections and predictions.
        projector_hidden: hidden width of the projector.
        predictor_hidden: hidden width of the predictor.
        momentum: decay of the target network.
        use_momentum: False: the online network without gradient is the target (SimSiam).
        options: further ones of :class:`MomentumMethod`; `augment` makes two views.
    """

    joins: str | None = None
    num_views = 2

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        embedding: int = 512,
        projector_hidden: int = 2048,
        predictor_hidden: int = 2048,
        momentum: float = 0.996,
        use_momentum: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(backbone, layout, sampler, **options)
        self.momentum, stack = momentum, len(self.streams)
        self.projector = StackedMLP(stack, stream_width(backbone), projector_hidden, embedding)
        self.predictor = StackedMLP(stack, embedding, predictor_hidden, embedding)
        self.teacher = Teacher(self.followed, self.synchronised) if use_momentum else None

    @property
    def followed(self) -> dict[str, nn.Module]:
        """The networks that the target network follows."""
        return {"backbone": self.backbone, "projector": self.projector}

    def project(self, view: Tensor, mask: Tensor | None = None) -> Tensor:
        """Online projections `(S, N, E)` of joint views `(N, M, T, V, C)`."""
        return self.projector(self.by_stream(self.backbone, view, mask))

    @torch.no_grad()
    def target(self, view: Tensor, mask: Tensor | None = None) -> Tensor:
        """Projections `(S, N, E)` of the target network."""
        if self.teacher is None:
            return self.project(view, mask)
        return self.teacher["projector"](self.by_stream(self.teacher.encoder, view, mask))

    def embed_features(self, views: Tensor, streams: Sequence[str] | None = None, mask: Tensor | None = None) -> Tensor:
        """Mean over streams of the projections: `(N, E)`."""
        features, numbers = self.some_streams(views, streams, mask)
        return self.projector(features, numbers).mean(0)

    @property
    def follows(self) -> bool:
        """Whether the target network moves in this epoch."""
        return self.teacher is not None

    def stepped(self) -> None:
        """The target network moves after the optimiser."""
        self.follow()

    def follow(self) -> None:
        """Move the target network towards the online one."""
        if self.teacher is not None and self.follows:
            self.teacher.follow(self.followed, self.momentum)

    def objective(self, z: list[Tensor], p: list[Tensor], t: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss `(S,)` of each stream, and what else to log.

        Args:
            z: projections of both views, each `(S, N, E)`.
            p: predictions of both.
            t: targets of both.
        """
        return byol_loss(p, t), {}

    def training_step(self, batch: RaggedClips, batch_idx: int = 0) -> dict[str, Tensor]:
        """One step: `loss` with its graph, summed over streams; the losses of the streams and probes without."""
        views: Views = self.views(batch)
        z, p = [], []
        for view, mask in views:
            z.append(self.project(view, mask))
            p.append(self.predictor(z[-1]))
        t = [self.target(view, mask) for view, mask in views]
        losses, values = self.objective(z, p, t)
        return self.conclude(losses, values | self.watch(z, p, t), len(batch))

    @torch.no_grad()
    def watch(self, z: list[Tensor], p: list[Tensor], t: list[Tensor]) -> dict[str, Tensor]:
        """Collapse probes: spread of the projections, cosine of predictions with targets and with each other."""
        others = torch.stack([t[0].float(), p[1].float()])
        cosines = global_mean(F.cosine_similarity(p[0].float()[None], others, dim=-1)).mean(-1)
        return {"feature_std": spread(z[0]).mean(), "cos_target": cosines[0], "cos_views": cosines[1]}


def byol_loss(p: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    """`(S,)`: predictions `(S, N, E)` of each view against the targets of the other, both directions added."""
    return global_mean(cosine_distance(p[0], t[1]) + cosine_distance(p[1], t[0]))


class CMAL(SkeletonBYOL):
    """CMAL (SkeletonCA): predictions of two views attract, and each is repelled by the target of its own view.

    `mean[ D(p1, p2) - (D(p1, t1) + D(p2, t2)) / 2 ]` with D = 2 - 2 cos; values lie in [-4, 4] and become negative.

    Args:
        backbone: see :class:`MomentumMethod`.
        layout: see there.
        sampler: see there.
        repel: target that a prediction is repelled from: of the `same_view` (published), `cross_view`, `none`.
        repel_weight: weight of each repulsion.
        byol_weight: weight of SkeletonBYOL's loss beside it (published: none).
        attract_on: what attracts: `prediction` (published) or `projection`.
        attract_stopgrad: hold one side of the attraction fixed, in both directions (published: no).
        options: further ones of :class:`SkeletonBYOL`.
    """

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        repel: Literal["same_view", "cross_view", "none"] = "same_view",
        repel_weight: float = 0.5,
        byol_weight: float = 0.0,
        attract_on: Literal["prediction", "projection"] = "prediction",
        attract_stopgrad: bool = False,
        **options: Any,
    ) -> None:
        if repel not in ("same_view", "cross_view", "none"):
            raise SkelactError(f"repel must be same_view, cross_view or none, got {repel!r}")
        if attract_on not in ("prediction", "projection"):
            raise SkelactError(f"attract_on must be prediction or projection, got {attract_on!r}")
        super().__init__(backbone, layout, sampler, **options)
        self.repel, self.repel_weight, self.byol_weight = repel, repel_weight, byol_weight
        self.attract_on, self.attract_stopgrad = attract_on, attract_stopgrad

    def cmal(self, z: list[Tensor], p: list[Tensor], t: list[Tensor]) -> Tensor:
        """`(S,)`; see :meth:`objective` for the arguments."""
        a, b = p if self.attract_on == "prediction" else z
        if self.attract_stopgrad:
            loss = (cosine_distance(a, b.detach()) + cosine_distance(a.detach(), b)) / 2
        else:
            loss = cosine_distance(a, b)
        if self.repel != "none":
            first, second = t if self.repel == "same_view" else t[::-1]
            loss = loss - self.repel_weight * (cosine_distance(p[0], first) + cosine_distance(p[1], second))
        total = global_mean(loss)
        return total + self.byol_weight * byol_loss(p, t) if self.byol_weight else total

    def objective(self, z: list[Tensor], p: list[Tensor], t: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`SkeletonBYOL.objective`."""
        return self.cmal(z, p, t), {}


class CACA(CMAL):
    """3s-CACA (CMCS): CMAL in each of three streams, then also CSCL between the clips of a batch.

    From `cross_epoch` on, each stream marks for each clip the `topk` clips of the batch whose targets are nearest to
    its prediction, once for each pairing of the views; pairs marked in both are its vote. Pairs with `vote` votes are
    positives of all streams.

    Args:
        backbone: see :class:`MomentumMethod`.
        layout: see there.
        sampler: see there.
        streams: two or more; published: joint, motion, bone.
        cross_epoch: first epoch of the second stage, counted from 0; published: 60 of 100 on NTU RGB+D 60.
        topk: clips that a stream marks for each clip.
        vote: streams that must agree.
        lamb: weight of the CSCL terms.
        cscl_temperature: of the similarities (published: 1).
        normalize_positives: mean over the positives of a clip instead of their sum (published: sum).
        ema_in_cross: let the target networks move in the second stage (published: they stand still).
        cscl_similarity: what is compared: `pred_target` (published), or `target_target`, an experiment: at the switch
            CMAL has driven prediction and target apart, so the first marks of `pred_target` carry little.
        options: further ones of :class:`CMAL` and :class:`SkeletonBYOL`.
    """

    joins = "its second stage compares the clips of a batch"

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        streams: Sequence[str] = ("joint", "motion", "bone"),
        cross_epoch: int = 60,
        topk: int = 2,
        vote: int = 2,
        lamb: float = 10.0,
        cscl_temperature: float = 1.0,
        normalize_positives: bool = False,
        ema_in_cross: bool = False,
        cscl_similarity: Literal["pred_target", "target_target"] = "pred_target",
        **options: Any,
    ) -> None:
        if not 1 <= vote <= len(streams):
            raise SkelactError(f"vote={vote}: of {len(streams)} streams between 1 and {len(streams)} can agree")
        if cscl_similarity not in ("pred_target", "target_target"):
            raise SkelactError(f"cscl_similarity must be pred_target or target_target, got {cscl_similarity!r}")
        super().__init__(backbone, layout, sampler, streams=streams, **options)
        self.cross_epoch, self.topk, self.vote, self.lamb = cross_epoch, topk, vote, lamb
        self.cscl_temperature, self.normalize_positives = cscl_temperature, normalize_positives
        self.ema_in_cross, self.cscl_similarity = ema_in_cross, cscl_similarity
        self._switching = False

    @property
    def crossing(self) -> bool:
        """Whether the second stage has begun."""
        return self.current_epoch >= self.cross_epoch

    @property
    def follows(self) -> bool:
        """Whether the target network moves in this epoch."""
        return super().follows and (self.ema_in_cross or not self.crossing)

    def objective(self, z: list[Tensor], p: list[Tensor], t: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`SkeletonBYOL.objective`."""
        cmal = self.cmal(z, p, t)
        if not self.crossing:
            return cmal, {}
        p1, p2, t1, t2 = (gather(unit(x), dim=1) for x in (*p, *t))  # the batch of all ranks, on each of them
        with without_autocast(p1):  # in half precision neighbours would be tied
            similarities = p1 @ t2.mT, p2 @ t1.mT  # (S, N, N), rows online
            with torch.no_grad():
                marks = similarities if self.cscl_similarity == "pred_target" else (t1 @ t2.mT, t2 @ t1.mT)
                together = self.agree(*marks)
        cscl = self.cscl(similarities, together)
        others = (together.sum(-1) - 1).float().mean()
        values = {"loss_cmal": cmal.sum().detach(), "loss_cscl": cscl.sum().detach(), "positives": others}
        return cmal + self.lamb * cscl, values

    def on_train_epoch_start(self) -> None:
        """Note whether the second stage begins now."""
        self._switching = self.current_epoch == self.cross_epoch

    def watch(self, z: list[Tensor], p: list[Tensor], t: list[Tensor]) -> dict[str, Tensor]:
        """See :meth:`SkeletonBYOL.watch`; the first step of the second stage logs `train/cos_at_switch`."""
        values = super().watch(z, p, t)
        if self._switching:
            self._switching = False
            for logger in self.loggers:  # at once: the trainer's own logging may pass this step over
                logger.log_metrics({"train/cos_at_switch": float(values["cos_target"])}, step=self.global_step)
        return values

    def agree(self, first: Tensor, second: Tensor) -> Tensor:
        """Pairs `(N, N)` bool that enough streams mark in both pairings of the views `(S, N, N)`; with the diagonal."""
        own = torch.eye(first.shape[-1], dtype=torch.bool, device=first.device)
        votes = (nearest(first, self.topk) | own) & (nearest(second, self.topk) | own)
        return votes.sum(0) >= self.vote

    def cscl(self, similarities: Sequence[Tensor], together: Tensor) -> Tensor:
        """`(S,)`: negative log-likelihood of the positives in the rows of both similarities `(S, N, N)`, added."""
        share = together.to(similarities[0].dtype)
        if self.normalize_positives:
            share = share / share.sum(-1, keepdim=True)
        return sum(-(share * (s / self.cscl_temperature).log_softmax(-1)).sum(-1).mean(-1) for s in similarities)  # type: ignore[return-value]
