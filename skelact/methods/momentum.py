"""What momentum-contrast and bootstrap methods share: a slowly following copy of the networks, and a queue of keys.

Both are exact on any number of processes. Parameters are equal on all ranks, so their averages are; keys are gathered
in rank order, which is the order of the global batch, before they enter the queue.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from skelact.backbones.base import Encoder
from skelact.backbones.normalisation import global_std
from skelact.errors import SkelactError
from skelact.methods.base import Method
from skelact.methods.layers import StackedLinear
from skelact.objectives import gather, without_autocast

PRESETS = ("as_released", "corrected")


class MomentumMethod(Method):
    """Base of the contrastive family: streams side by side, and a momentum copy of the networks.

    Args:
        backbone: encoder; ST-GCN has a trunk for each stream, of another each stream is encoded alone.
        layout: joint layout of the views.
        sampler: evaluation sampling.
        augment: makes the training views that the method needs.
        streams: one or more; several train side by side.
        optimizer: factory; published: SGD, rate 0.1, momentum 0.9, weight decay 1e-4.
        scheduler: factory.
        preset: `corrected`, or `as_released` for the published code's behaviour; fills options that are None.
        sync_momentum_after_init: let the momentum networks start equal to the trained ones (released: drawn apart).
        use_mask: see :class:`Method`.
        scheduler_interval: see :class:`Method`.
        exclude_from_decay: see :class:`Method`; published: False.
        seed: seed of the training views.
    """

    sync_batchnorm = True
    whole = "its momentum networks are averages of whole weights"

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        augment: nn.Module | None = None,
        streams: Sequence[str] = ("joint",),
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        preset: Literal["as_released", "corrected"] = "corrected",
        sync_momentum_after_init: bool | None = None,
        use_mask: bool | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        exclude_from_decay: bool = False,
        seed: int = 0,
    ) -> None:
        if preset not in PRESETS:
            raise SkelactError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        corrected = preset == "corrected"
        super().__init__(
            backbone,
            layout,
            streams,
            sampler,
            augment,
            optimizer,
            scheduler,
            scheduler_interval,
            exclude_from_decay,
            use_mask=corrected if use_mask is None else use_mask,
            seed=seed,
        )
        if backbone.stacked and backbone.streams != self.streams:
            raise SkelactError(
                f"the backbone has trunks for {list(backbone.streams)}, the method streams {list(self.streams)}: they "
                f"must be the same, in the same order (backbone.streams=${{method.streams}})"
            )
        self.preset = preset
        self.synchronised = corrected if sync_momentum_after_init is None else sync_momentum_after_init

    def by_stream(self, backbone: Encoder, view: Tensor, mask: Tensor | None) -> Tensor:
        """Features of each of the method's streams `(S, N, D)` of joint views `(N, M, T, V, C)`."""
        return stream_features(backbone, self.derive(view, mask=mask), mask)

    def some_streams(
        self, views: Tensor, streams: Sequence[str] | None, mask: Tensor | None
    ) -> tuple[Tensor, list[int]]:
        """Features `(S', N, D)` of some streams (None: all), in the method's order, and their numbers."""
        given = self.derive(views, streams, mask)
        numbers = [number for number, name in enumerate(self.streams) if name in given]
        ordered = {self.streams[number]: given[self.streams[number]] for number in numbers}
        return stream_features(self.backbone, ordered, mask), numbers

    def conclude(self, losses: Tensor, values: Mapping[str, Tensor], batch_size: int) -> dict[str, Tensor]:
        """What a step returns and logs: `loss`, the sum of the streams' `(S,)`; these and `values` without graph."""
        values = {f"loss_{s}": x for s, x in zip(self.streams, losses.detach().unbind(), strict=True)} | dict(values)
        loss = losses.sum()
        self.report({"loss": loss.detach(), **values}, batch_size)
        return {"loss": loss, **values}


def stream_width(backbone: Encoder) -> int:
    """Width D of the feature of a single stream."""
    return backbone.num_features // len(backbone.streams) if backbone.stacked else backbone.num_features


def stream_features(backbone: Encoder, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
    """Features of each stream alone, `(S, N, D)`: of all trunks at once where the backbone has one for each stream.

    Args:
        backbone: any encoder.
        streams: S streams by name, each `(N, M, T, V, C)`.
        mask: `(N, M, T, V)` bool, True where observed; None means everywhere.
    """
    if backbone.stacked:
        return backbone.forward_streams(streams, mask)  # type: ignore[operator]
    return torch.stack(backbone.forward_many([{name: x} for name, x in streams.items()], [mask] * len(streams)))


class Teacher(nn.ModuleDict):
    """Copies of networks that follow them as exponential moving averages and are never trained.

    Parameters alone are averaged. Batch statistics are the copies' own: they run in training mode, as published.

    Args:
        networks: what to follow, by name.
        synchronised: start equal to them. The released code initialises them apart: its weights are drawn anew after
            the copy was made.
    """

    def __init__(self, networks: Mapping[str, nn.Module], synchronised: bool = True) -> None:
        super().__init__({name: copy.deepcopy(network) for name, network in networks.items()})
        if not synchronised:
            for network in self.values():
                network.reset_parameters()  # type: ignore[operator]
        self.requires_grad_(False)

    @property
    def encoder(self) -> Encoder:
        """The copy of the encoder."""
        return cast(Encoder, self["backbone"])

    def follow(self, networks: Mapping[str, nn.Module], momentum: float) -> None:
        """`teacher = momentum * teacher + (1 - momentum) * network` for the networks given at construction."""
        for name, network in networks.items():
            follow(self[name], network, momentum)


@torch.no_grad()
def follow(own: nn.Module, other: nn.Module, momentum: float, rows: Sequence[int] | None = None) -> None:
    """Move the parameters of one network towards those of another of the same make.

    Args:
        own: what moves.
        other: what it follows.
        momentum: decay.
        rows: numbers of the trunks that move, where parameters have a leading axis of trunks; None: all.
    """
    ours: list[Tensor] = list(own.parameters())
    theirs: list[Tensor] = list(other.parameters())
    if rows is not None:
        ours, theirs = ([p[row] for p in some for row in rows] for some in (ours, theirs))
    if ours:
        torch._foreach_mul_(ours, momentum)
        torch._foreach_add_(ours, theirs, alpha=1 - momentum)


class KeyQueue(nn.Module):
    """The last K keys of each stream, the oldest overwritten first; entries of all streams belong to the same clips.

    Args:
        streams: number of streams S.
        width: of a key.
        size: keys that are kept, K.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, streams: int, width: int, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"queue_size={size}: at least one key must be kept")
        self.size = size
        self.register_buffer("keys", F.normalize(torch.randn(streams, width, size), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def similarity(self, embeddings: Tensor) -> Tensor:
        """Inner products `(S, N, K)` of embeddings `(S, N, E)` with the keys in the queue."""
        with without_autocast(embeddings):  # over a small temperature rounding would show
            return embeddings @ self.keys.to(embeddings.dtype)

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Take in the keys `(S, N, E)` of all ranks; any number of them, of which the last K stay."""
        keys = gather(keys, dim=1)  # the batch of all ranks, in its own order
        count = keys.shape[1]
        places = (self.pointer + torch.arange(count, device=keys.device))[-self.size :] % self.size
        # A new tensor: the loss of this step still needs the queue as it was, for its gradient.
        self.keys = self.keys.index_copy(2, places, keys[:, -self.size :].mT.to(self.keys.dtype))
        self.pointer = (self.pointer + count) % self.size


class ContrastHead(nn.Module):
    """Linear, ReLU, linear for each of S streams; outputs of unit length.

    Args:
        stack: number of streams S.
        inputs: width D of a stream's feature.
        outputs: width E of an embedding.
        tied: as in the released CrosSCLR, where all streams but the first have a linear layer and ReLU of their own and
            then share the head of the first: one assignment of the code reads the wrong encoder.
    """

    compiles: ClassVar[tuple[str, ...]] = ("raw",)

    def __init__(self, stack: int, inputs: int, outputs: int, tied: bool = False) -> None:
        super().__init__()
        self.stack, self.tied = stack, tied
        heads = 1 if tied else stack
        self.hidden = StackedLinear(heads, inputs, inputs, std=0.02)
        self.output = StackedLinear(heads, inputs, outputs, std=0.02)
        self.before = StackedLinear(stack - 1, inputs, inputs, std=0.02) if tied and stack > 1 else None

    def reset_parameters(self) -> None:
        """Weights N(0, 0.02), biases zero."""
        for layer in (self.hidden, self.output, self.before):
            if layer is not None:
                layer.reset_parameters()

    def raw(self, features: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """Embeddings `(S', N, E)` of features `(S', N, D)`, of any length; `streams` are their numbers, None all."""
        if not self.tied:
            return self.output(F.relu(self.hidden(features, streams)), streams)
        numbers = range(self.stack) if streams is None else streams
        later = [row for row, number in enumerate(numbers) if number]
        if self.before is not None and later:
            first = len(features) - len(later)  # the first stream comes first
            own = F.relu(self.before(features[first:], [numbers[row] - 1 for row in later]))
            features = torch.cat([features[:first], own])
        shared = features.flatten(0, 1)[None]
        return self.output(F.relu(self.hidden(shared))).view(*features.shape[:2], -1)

    def forward(self, features: Tensor) -> Tensor:
        """Unit embeddings `(S, N, E)`, float32 at least."""
        return unit(self.raw(features))


def unit(x: Tensor) -> Tensor:
    """Rows of unit length, in single precision at least: half precision would make all cosines multiples of 1e-3."""
    return F.normalize(x.float() if x.dtype.itemsize < 4 else x, dim=-1)


def spread(embeddings: Tensor) -> Tensor:
    """`(S,)` collapse probe: mean standard deviation of unit embeddings `(S, N, E)`, times sqrt(E); 0 is collapse.

    Over the clips of all ranks.
    """
    return global_std(unit(embeddings.detach()).unbind()).mean(-1) * embeddings.shape[-1] ** 0.5
