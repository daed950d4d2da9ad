"""Supervised classification: a backbone and a head, trained from scratch or from pretrained weights.

With a token encoder and `head="action"` it is MotionBERT's action model, ActionNet (Zhu et al., ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from skelact.backbones.base import Encoder
from skelact.backbones.tokens import TokenEncoder
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.base import Method, with_rate
from skelact.methods.layers import ActionHead
from skelact.objectives import all_reduce, world_size
from skelact.transforms.dropping import subset_table

UNLABELLED = -1


class Switches(TypedDict):
    """Options whose default depends on the preset."""

    mode: str
    use_mask: bool


PRESETS: dict[str, Switches] = {
    "as_released": {"mode": "eval", "use_mask": False},
    "as_released_c1": {"mode": "train", "use_mask": False},
    "as_released_c2": {"mode": "train", "use_mask": False},
    "corrected": {"mode": "train", "use_mask": True},
}
"""`as_released`: the fine-tuning and few-label loops of AimCLR's family call `eval()` before they train.
Those of MaskCLR's two releases do not."""


class Supervised(Method):
    """Cross-entropy on the logits of a head.

    A backbone of stacked trunks (one feature a stream) gets a head for each stream, whose logits are summed or averaged
    over the streams given; any other gets one head on its feature.

    Args:
        backbone: the encoder.
        layout: joint layout of the views.
        sampler: evaluation sampling.
        num_classes: number of classes.
        augment: makes the one training view of a clip.
        streams: what is classified; None: all that the backbone reads.
        optimizer: factory.
        scheduler: factory.
        fusion: of streams with heads of their own: `sum` (3s-CACA) or `mean` (CrosSCLR).
        dropout: on the features before the head.
        label_smoothing: of the training loss.
        head: `linear`, or `action`: a hidden layer with batch normalisation, see :class:`ActionHead`.
        head_hidden: width of the hidden layer.
        head_lr: learning rate of the heads; None: the optimiser's. Schedules scale both.
        head_init: standard deviation of a linear head's normal weights, biases zero; None: as nn.Linear.
        head_only: train the head alone, on a backbone in evaluation mode.
        mode: `train`, or `eval`: statistics of batch normalisation stay as they are and dropout is off while all
            weights are trained; None: by the preset.
        preset: `corrected`, or `as_released` for the published code's behaviour; fills options that are None.
        use_mask: see :class:`Method`.
        scheduler_interval: see :class:`Method`.
        exclude_from_decay: see :class:`Method`.
        seed: seed of the training views.

    Raises:
        SkelactError: an option that is none of those named.
    """

    joins: str | None = None

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        num_classes: int,
        augment: nn.Module | None = None,
        streams: Sequence[str] | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        fusion: Literal["sum", "mean"] = "sum",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        head: Literal["linear", "action"] = "linear",
        head_hidden: int = 2048,
        head_lr: float | None = None,
        head_init: float | None = 0.02,
        head_only: bool = False,
        mode: Literal["train", "eval"] | None = None,
        preset: Literal["as_released", "as_released_c1", "as_released_c2", "corrected"] = "corrected",
        use_mask: bool | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        exclude_from_decay: bool = False,
        seed: int = 0,
    ) -> None:
        if preset not in PRESETS:
            raise SkelactError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        if fusion not in ("sum", "mean"):
            raise SkelactError(f"fusion={fusion} is neither sum nor mean")
        if head not in ("linear", "action"):
            raise SkelactError(f"head={head} is neither linear nor action")
        if mode not in (None, "train", "eval"):
            raise SkelactError(f"mode={mode} is neither train nor eval")
        if num_classes < 2:
            raise SkelactError(f"num_classes={num_classes}: a classifier needs at least two")
        super().__init__(
            backbone,
            layout,
            backbone.streams if streams is None else streams,
            sampler,
            augment,
            optimizer,
            scheduler,
            scheduler_interval,
            exclude_from_decay,
            use_mask=PRESETS[preset]["use_mask"] if use_mask is None else use_mask,
            seed=seed,
        )
        self.num_classes, self.fusion, self.label_smoothing = int(num_classes), fusion, label_smoothing
        self.mode, self.head_only, self.preset = mode or PRESETS[preset]["mode"], head_only, preset
        names = self.streams if backbone.stacked else ("all",)
        width = backbone.num_features // (len(backbone.streams) if backbone.stacked else 1)
        self.head_lr = head_lr
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(width, self.num_classes)
                if head == "linear"
                else ActionHead(width, head_hidden, self.num_classes)
                for name in names
            }
        )
        self.dropout = nn.Dropout(dropout)
        if head == "linear" and head_init is not None:
            for parameter in self.heads.parameters():
                nn.init.normal_(parameter, 0.0, head_init) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        if head_only:
            backbone.requires_grad_(False)
        if isinstance(backbone, TokenEncoder) and backbone.unobserved == "zero":
            backbone.mask_token.requires_grad_(False)  # nothing is masked, and ranks would wait for its gradient
        self._seen: Tensor | None = None
        self.train()

    def train(self, mode: bool = True) -> Supervised:
        """Training mode, but for what `mode` and `head_only` keep in evaluation mode."""
        super().train(mode)
        if mode and self.mode == "eval":
            for module in self.children():
                module.eval()
        elif mode and self.head_only:
            self.backbone.eval()
        return self

    @property
    def fills(self) -> tuple[str, ...]:
        """Ways to do without a stream; the first is the method's own."""
        return ("drop", "zero_input")

    def logits(
        self, views: Tensor, streams: Sequence[str] | None = None, mask: Tensor | None = None, blank: bool = False
    ) -> Tensor:
        """Class scores `(N, num_classes)`; only the given streams contribute.

        Args:
            views: joint views `(N, M, T, V, C)`.
            streams: any non-empty subset of the method's streams; None means all.
            mask: `(N, M, T, V)` bool, True where observed; None means everywhere.
            blank: let the other streams be there as zeros.
        """
        inputs = self.inputs(views, streams, mask, blank)
        if not self.backbone.stacked:
            return self.heads["all"](self.dropout(self.backbone.forward_features(inputs, mask)))
        each = self._each(inputs, mask)
        return each.sum(0) if self.fusion == "sum" else each.mean(0)

    def _each(self, inputs: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        """Logits `(S, N, num_classes)` of stacked trunks, in the backbone's order."""
        features: Tensor = self.backbone.forward_streams(inputs, mask)  # type: ignore[operator]
        given = [name for name in self.backbone.streams if name in inputs]
        return torch.stack([self.heads[n](self.dropout(x)) for n, x in zip(given, features, strict=True)])

    def classify_subsets(
        self, batch: RaggedClips, subsets: Sequence[Sequence[str]], fill: str | None = None, means: Tensor | None = None
    ) -> Tensor:
        """Class scores when only some streams are there; each of stacked trunks is run once for all subsets.

        Args:
            batch: N clips.
            subsets: S of them, names of streams.
            fill: out of :attr:`fills`. `drop`: a single head gets the backbone's feature of what is left, of several
                heads those of what is left are added or averaged. `zero_input`: what is missing is there as zeros.
                None: the first.
            means: not read; for the signature that methods share.

        Returns:
            `(S, N, num_classes)`.

        Raises:
            SkelactError: no such fill.
        """
        if fill is not None and fill not in self.fills:
            raise SkelactError(f"fill={fill} is none of this method's: {', '.join(self.fills)}")
        (views, mask), blank = self.sample(batch), fill == "zero_input"
        if not self.backbone.stacked:
            return torch.stack([self.logits(views, subset, mask, blank) for subset in subsets])
        order = tuple(name for name in self.backbone.streams if name in self.streams)
        kept = subset_table(tuple(map(tuple, subsets)), order, views.device).to(views)
        inputs = self.derive(views, None, mask)
        total, count = torch.einsum("sm,mnc->snc", kept, self._each(inputs, mask)), kept.sum(1).view(-1, 1, 1)
        if blank:
            zeros = {name: torch.zeros_like(x) for name, x in inputs.items()}
            total = total + torch.einsum("sm,mnc->snc", 1 - kept, self._each(zeros, mask))
            count = torch.full_like(count, len(order))
        return total if self.fusion == "sum" else total / count

    def hidden(self, views: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features `(N, head_hidden)` of the hidden layer of a backbone's one action head.

        Args:
            views: joint views `(N, M, T, V, C)`.
            mask: `(N, M, T, V)` bool, True where observed; None means everywhere.

        Raises:
            SkelactError: the head has no hidden layer, or there are several.
        """
        head, *more = self.heads.values()
        if more or not isinstance(head, ActionHead):
            raise SkelactError("hidden features are those of one action head: take head=action and one stream")
        return head.hidden(self.dropout(self.encode(views, mask=mask)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See :class:`Method`; each group is split where the heads have a learning rate of their own."""
        return with_rate(super().parameter_groups(), self.heads, self.head_lr)

    def classify(self, batch: RaggedClips, streams: Sequence[str] | None = None) -> Tensor:
        """Class scores `(N, num_classes)` of a batch: :meth:`sample`, then :meth:`logits`."""
        views, mask = self.sample(batch)
        return self.logits(views, streams, mask)

    def training_step(self, batch: RaggedClips, batch_idx: int = 0) -> Tensor:
        """Mean cross-entropy of the labelled clips of the global batch, whatever their shares on the ranks."""
        (views, mask), *_ = self.views(batch)
        logits = self.logits(views, mask=mask)
        loss = cross_entropy_sum(logits, batch.label, self.label_smoothing)
        seen = all_reduce(count_correct(logits.detach(), batch.label, loss.detach()))
        clips = seen[2].clamp_min(1)
        self.report({"loss": seen[0] / clips, "top1": 100 * seen[1] / clips}, batch_size=len(batch))
        return loss * world_size() / clips  # gradients are averaged over ranks: undone by their number

    def on_validation_epoch_start(self) -> None:
        """Forget what was counted before."""
        self._seen = None

    def validation_step(self, batch: RaggedClips, batch_idx: int = 0) -> None:
        """Count; a rank's share may be empty."""
        if len(batch):
            logits = self.classify(batch)
            seen = count_correct(logits, batch.label, cross_entropy_sum(logits, batch.label))
            self._seen = seen if self._seen is None else self._seen + seen

    def on_validation_epoch_end(self) -> None:
        """Log the means over all clips of all ranks, each clip once."""
        seen = all_reduce(torch.zeros(3, device=self.device) if self._seen is None else self._seen)
        clips = seen[2].clamp_min(1)
        if self._trainer is not None:
            self.log_dict({"val/loss": seen[0] / clips, "val/top1": 100 * seen[1] / clips}, sync_dist=True)


def cross_entropy_sum(logits: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over the labelled clips, at least in single precision."""
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    return F.cross_entropy(logits, label, ignore_index=UNLABELLED, reduction="sum", label_smoothing=smoothing)


def count_correct(logits: Tensor, label: Tensor, loss: Tensor) -> Tensor:
    """Loss, right answers and labelled clips as one tensor `(3,)`."""
    return torch.stack([loss, (logits.argmax(1) == label).sum().to(loss), (label != UNLABELLED).sum().to(loss)])
