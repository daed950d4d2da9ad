"""Layers that methods share: batch normalisation over all ranks, the projector built on it, stacked linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from skelact.backbones.normalisation import StackedBatchNorm, global_batch_norm, pick, tracked
from skelact.objectives import world_size


class SyncBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation of `(b, D)` whose training statistics are those of all ranks' rows together.

    In one process it is `nn.BatchNorm1d`. Unlike `torch.nn.SyncBatchNorm` it runs on any device and backend, so that
    a two-process CPU run equals one process with the whole batch. Ranks may hold different numbers of rows.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(b, D)` by statistics of the global batch (training) or the running ones (evaluation)."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        weight: Tensor = self.weight if self.affine else input.new_ones(self.num_features)
        bias: Tensor = self.bias if self.affine else input.new_zeros(self.num_features)
        (out,), mean, variance = global_batch_norm([input], weight, bias, self.eps)
        if self.track_running_stats and self.num_batches_tracked is not None:
            assert self.running_mean is not None and self.running_var is not None
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.copy_(tracked(self.running_mean, mean, momentum))
            self.running_var.copy_(tracked(self.running_var, variance, momentum))
        return out


class StackedLinear(nn.Module):
    """S independent linear layers of equal shape in one product; `weight` `(S, O, I)`, `bias` `(S, O)`.

    Args:
        stack: number of layers S.
        inputs: width I.
        outputs: width O.
        std: weights are drawn from N(0, std), biases are zero.
    """

    def __init__(self, stack: int, inputs: int, outputs: int, std: float = 0.02) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(stack, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(stack, outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights N(0, std), biases zero."""
        nn.init.normal_(self.weight, 0.0, self.std)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """Rows of features: `(S', N, I)` of some streams (None: all) to `(S', N, O)`."""
        return torch.baddbmm(pick(self.bias, streams)[:, None], x, pick(self.weight, streams).mT)

    def extra_repr(self) -> str:
        """Sizes, as printed."""
        stack, outputs, inputs = self.weight.shape
        return f"stack={stack}, inputs={inputs}, outputs={outputs}"


class StackedMLP(nn.Module):
    """Linear, batch normalisation, ReLU, linear for each of S streams: projectors and predictors of the BYOL kind.

    Args:
        stack: number of streams S.
        inputs: width I.
        hidden: width of the hidden layer.
        outputs: width O.
    """

    compiles: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(self, stack: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = StackedLinear(stack, inputs, hidden)
        self.norm = StackedBatchNorm(stack, hidden)
        self.output = StackedLinear(stack, hidden, outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the contrastive family does: linear weights N(0, 0.02), those of the normalisation N(1, 0.02)."""
        self.hidden.reset_parameters()
        self.output.reset_parameters()
        nn.init.normal_(self.norm.weight, 1.0, 0.02)
        nn.init.zeros_(self.norm.bias)

    def forward(self, x: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """Features `(S', N, I)` of some streams (None: all) to `(S', N, O)`."""
        hidden = torch.relu(self.norm(self.hidden(x, streams), streams))
        return self.output(hidden, streams)


class ActionHead(nn.Module):
    """ActionNet's classification head (MotionBERT, ICCV 2023): linear, batch normalisation, ReLU, linear.

    Args:
        inputs: width of the feature.
        hidden: width of the hidden layer.
        outputs: number of classes.
    """

    compiles: ClassVar[tuple[str, ...]] = ("hidden",)

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.norm = SyncBatchNorm1d(hidden, momentum=0.1, eps=1e-5)
        self.fc2 = nn.Linear(hidden, outputs)

    def hidden(self, features: Tensor, track: bool = True) -> Tensor:
        """Hidden features `(N, hidden)` after the ReLU of `(N, inputs)`.

        Args:
            features: of the backbone.
            track: let the running statistics follow this batch in training mode; it is normalised by its own anyway.
        """
        self.norm.track_running_stats = track
        hidden = torch.relu(self.norm(self.fc1(features)))
        self.norm.track_running_stats = True
        return hidden

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(N, outputs)` of features `(N, inputs)`."""
        return self.fc2(self.hidden(features))


class Projector(nn.Sequential):
    """See :func:`projector`."""

    compiles: ClassVar[tuple[str, ...]] = ("forward",)


def projector(inputs: int, hidden: int, outputs: int, bias: bool = True) -> Projector:
    """Three linear layers with batch normalisation and ReLU between them; the last one stays linear.

    Args:
        inputs: width of the feature.
        hidden: width of both hidden layers.
        outputs: width of the embedding.
        bias: whether the last layer has a bias (VICReg's has none).
    """
    return Projector(
        nn.Linear(inputs, hidden),
        SyncBatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        SyncBatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs, bias=bias),
    )
