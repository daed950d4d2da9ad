"""What every method is: an encoder, a way to sample and to augment clips, and one training step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skelact.backbones.base import Encoder
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.skeleton.layouts import get_layout
from skelact.skeleton.streams import derive
from skelact.transforms.draws import Draws
from skelact.transforms.spatial import limit_dims


class Learner(pl.LightningModule):
    """What is trained, of whatever kind its clips are: optimiser, schedule, parameter groups, logging.

    Args:
        optimizer: called with parameters or parameter groups.
        scheduler: called with the optimiser.
        scheduler_interval: whether the schedule counts epochs or optimiser steps.
        exclude_from_decay: leave biases, normalisation layers and tables without weight decay.
        seed: of everything drawn in training.
    """

    sync_batchnorm = False
    """True where batch statistics are taken over all ranks. Our layers do that themselves: the trainer's flag of the
    same name, which converts to a CUDA-only layer, is not needed."""

    joins: str | None = "nothing says that its loss is a mean over clips (`joins = None` in the class would)"
    """How a step joins the clips of a batch, so that gradients of parts do not add up to that of the whole; None: the
    loss is a mean over clips, and each clip's does not depend on the others', batch normalisation aside."""

    whole: str | None = None
    """Why every process must hold the whole weights while it trains; None: FSDP may keep parts of them."""

    streams: tuple[str, ...]
    """What a clip is recognised from, in order: streams of a skeleton, or modalities."""

    monitor = "val/top1"
    """By what the best epoch is chosen, the larger the better."""

    def __init__(
        self,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        exclude_from_decay: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.optimizer, self.scheduler, self.scheduler_interval = optimizer, scheduler, scheduler_interval
        self.exclude_from_decay, self.seed = exclude_from_decay, seed

    def on_train_start(self) -> None:
        """A trainer leaves modules in the mode in which it finds them, and a checkpoint's are in that of evaluation."""
        self.train()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser's step, then :meth:`stepped`."""
        super().optimizer_step(*args, **kwargs)
        self.stepped()

    def stepped(self) -> None:
        """What moves after each step of the optimiser."""

    def report(self, values: Mapping[str, Tensor], batch_size: int) -> None:
        """Log detached values as `train/<name>` where a trainer is attached; nothing is read back to the host."""
        if self._trainer is not None:
            self.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=batch_size)

    def tables(self) -> set[str]:
        """Names of parameters that are tables rather than weights, of which `exclude_from_decay` speaks."""
        return set()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimiser: one group, or two where some are excluded from weight decay."""
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        if not self.exclude_from_decay:
            return [{"params": [p for _, p in named]}]
        tables = self.tables()
        plain = {name for name, p in named if p.ndim < 2 or name in tables}  # biases and normalisation are vectors
        return [
            {"params": [p for name, p in named if name not in plain]},
            {"params": [p for name, p in named if name in plain], "weight_decay": 0.0},
        ]

    def configure_optimizers(self) -> Any:
        """Build optimiser and schedule from the factories given at construction."""
        if self.optimizer is None:
            raise SkelactError(f"{type(self).__name__} was built without `optimizer` and cannot be trained")
        optimizer = self.optimizer(self.parameter_groups())
        if self.scheduler is None:
            return optimizer
        schedule = {"scheduler": self._schedule(optimizer), "interval": self.scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _schedule(self, optimizer: Optimizer) -> Any:
        """The schedule; one that wants to know how many steps an epoch has is told."""
        assert self.scheduler is not None
        steps = inspect.signature(self.scheduler).parameters.get("steps_per_epoch")
        if steps is None or steps.default not in (None, steps.empty):
            return self.scheduler(optimizer)
        if self._trainer is None:
            raise SkelactError("the schedule counts epochs in steps: without a trainer, give scheduler.steps_per_epoch")
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None:
            self.trainer.fit_loop.setup_data()
            batches = self.trainer.num_training_batches
        else:  # the trainer's own loader is not made yet: a continued run does not know here where it stands
            batches, limit = len(data.train_dataloader()), self.trainer.limit_train_batches
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        count = math.ceil(batches / self.trainer.accumulate_grad_batches)
        return self.scheduler(optimizer, steps_per_epoch=count)  # type: ignore[call-arg]


class Method(Learner):
    """Base of all methods that encode skeletons; usable without Hydra and without a trainer.

    Args:
        backbone: the encoder.
        layout: name or mapping of the joint layout of the views.
        streams: streams that the method reads, in order; the backbone must know them.
        sampler: deterministic sampling of evaluation views, `RaggedClips -> (views, mask)`.
        augment: makes training views, `(RaggedClips, Draws) -> [(views, mask), ...]`; None for methods that are only
            evaluated.
        optimizer: called with parameters or parameter groups.
        scheduler: called with the optimiser.
        scheduler_interval: whether the schedule counts epochs or optimiser steps.
        exclude_from_decay: leave biases, normalisation layers and the backbone's tables without weight decay.
        use_mask: derive streams with the mask of observed joints, so that a bone or a difference with an unobserved
            end is zero; otherwise unobserved joints count as zeros at the origin. Either way their values are not read.
        seed: seed of the training views.
    """

    space = "feature"
    """In which clips are compared one with another: the encoder's features, or the method's own `embedding`."""

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        streams: Sequence[str],
        sampler: nn.Module,
        augment: nn.Module | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        exclude_from_decay: bool = False,
        use_mask: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, scheduler, scheduler_interval, exclude_from_decay, seed)
        unknown = [stream for stream in streams if stream not in backbone.streams]
        if unknown or not streams:
            raise SkelactError(f"streams {list(streams)} must be some of the backbone's: {', '.join(backbone.streams)}")
        if not getattr(sampler, "evaluates", True):
            raise SkelactError(
                f"method.sampler: {type(sampler).__name__} is random, and a method is evaluated on views without "
                f"randomness; take another (sampling@method.sampler=whole) and keep it for augment.sampler"
            )
        self.backbone = backbone
        self.layout = get_layout(layout)
        self.streams = tuple(streams)
        self.sampler, self.augment = sampler, augment
        if augment is not None:
            limit_dims(augment, self.layout)
        made = getattr(augment, "views", self.num_views)
        if augment is not None and made is None:
            augment.views = self.num_views  # type: ignore[assignment]
        elif made != self.num_views:
            advice = f"leave it out (augment.views=null) or set augment.views={self.num_views}"
            if getattr(augment, "transforms", None) is not None:
                advice = "it has transforms for so many; choose another augment=NAME"
            raise SkelactError(
                f"{type(self).__name__} with {len(self.streams)} streams needs {self.num_views} views of each clip, "
                f"but augment.views={made}; {advice}"
            )
        self.use_mask = use_mask

    @property
    def num_views(self) -> int:
        """Training views of each clip that a step needs."""
        return 1

    @property
    def num_features(self) -> int:
        """Width D of what :meth:`encode` returns."""
        return self.backbone.num_features

    def sample(self, batch: RaggedClips) -> tuple[Tensor, Tensor | None]:
        """Deterministic evaluation views `(N, M, T, V, C)` and their mask."""
        return self.sampler(batch, None)

    def views(self, batch: RaggedClips) -> list[tuple[Tensor, Tensor | None]]:
        """Training views of a batch in the current epoch; a clip's views depend on (seed, epoch, clip) alone."""
        if self.augment is None:
            raise SkelactError(f"{type(self).__name__} was built without `augment` and cannot be trained")
        self.backbone.expect(batch)
        return self.augment(batch, Draws(self.seed, self.current_epoch, batch.index))

    def derive(
        self, views: Tensor, streams: Sequence[str] | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Streams by name, each `(N, M, T, V, C)`, of joint views; all of the method's where `streams` is None.

        Raises:
            SkelactError: no stream, or one that the method was not built for.
        """
        names = self.streams if streams is None else tuple(dict.fromkeys(streams))
        unknown = [name for name in names if name not in self.streams]
        if unknown or not names:
            raise SkelactError(f"streams {list(names)} must be some of this method's: {', '.join(self.streams)}")
        if mask is not None:
            views = views.masked_fill(~mask[..., None], 0.0)
        return derive(views, names, self.layout, mask if self.use_mask else None)

    def inputs(
        self, views: Tensor, streams: Sequence[str] | None = None, mask: Tensor | None = None, blank: bool = False
    ) -> dict[str, Tensor]:
        """As :meth:`derive`; with `blank` the method's other streams are there as well, all zeros."""
        if not blank or streams is None:
            return self.derive(views, streams, mask)
        return {n: x if n in streams else torch.zeros_like(x) for n, x in self.derive(views, None, mask).items()}

    def encode(
        self, views: Tensor, streams: Sequence[str] | None = None, mask: Tensor | None = None, blank: bool = False
    ) -> Tensor:
        """Backbone features `(N, D)`, before any projector.

        Args:
            views: joint views `(N, M, T, V, C)`.
            streams: any non-empty subset of the method's streams; None means all.
            mask: `(N, M, T, V)` bool, True where observed; None means everywhere.
            blank: let the other streams be there as zeros.
        """
        return self.backbone.forward_features(self.inputs(views, streams, mask, blank), mask)

    def available(self, batch: RaggedClips, streams: Sequence[str] | None = None) -> Tensor:
        """`(N, M)` bool: which clip has which of the method's streams, out of some (None: all)."""
        given = [streams is None or name in streams for name in self.streams]
        return torch.tensor(given, device=batch.device).expand(len(batch), -1)

    def features(self, batch: RaggedClips, streams: Sequence[str] | None = None) -> Tensor:
        """Features `(N, D)` of a batch: :meth:`sample`, then :meth:`encode`."""
        views, mask = self.sample(batch)
        return self.encode(views, streams, mask)

    def forward(self, batch: RaggedClips) -> Tensor:
        """The same as :meth:`features` with all streams."""
        return self.features(batch)

    def tables(self) -> set[str]:
        """See :class:`Learner`; those of the backbone."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


def with_rate(groups: Sequence[Mapping[str, Any]], module: nn.Module, lr: float | None) -> list[dict[str, Any]]:
    """Parameter groups in which a module's parameters have a learning rate of their own; None: as they were."""
    if lr is None:
        return [dict(group) for group in groups]
    own, split = set(module.parameters()), []
    for group in groups:
        split.append({**group, "params": [p for p in group["params"] if p not in own]})
        split.append({**group, "params": [p for p in group["params"] if p in own], "lr": lr})
    return [group for group in split if group["params"]]
