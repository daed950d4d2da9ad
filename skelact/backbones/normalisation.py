"""Batch normalisation of several streams of equal width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def pick(parameter: Tensor, streams: Sequence[int] | None) -> Tensor:
    """The rows of some streams; the parameter itself where that is all of them in order."""
    if streams is None or list(streams) == list(range(len(parameter))):
        return parameter
    return parameter[list(streams)]


class StackedBatchNorm(nn.Module):
    """S batch normalisations of equal width; all tensors `(S, C)`."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, stack: int, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(stack, width))
        self.bias = nn.Parameter(torch.zeros(stack, width))
        self.register_buffer("running_mean", torch.zeros(stack, width))
        self.register_buffer("running_var", torch.ones(stack, width))
        self.register_buffer("num_batches_tracked", torch.zeros(stack, dtype=torch.int64))

    def forward(self, x: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """Rows of features: `(S', N, C)` of some streams (None: all) to the same shape."""
        numbers = range(len(self.weight)) if streams is None else streams
        y = self.grouped(x.transpose(0, 1).flatten(1), numbers)
        return y.unflatten(1, (len(numbers), -1)).transpose(0, 1)

    def plain(
        self, inputs: Sequence[Tensor], streams: Sequence[int], before: Tensor | None = None, gain: float = 1.0
    ) -> list[Tensor]:
        """Normalise each stream's channels (axis 1).

        Args:
            inputs: one a stream.
            streams: their numbers.
            before: `(S, C)` bias of the convolution before this layer, which left it out. A constant that is
                subtracted again; only the running mean sees it, and its gradient is zero while training.
            gain: factor on the output.
        """
        weights, biases = ((gain * p if gain != 1 else p).unbind(0) for p in (self.weight, self.bias))
        outputs = []
        befores = None if before is None else before.unbind(0)
        for x, s in zip(inputs, streams, strict=True):
            mean, variance, bias = self.running_mean[s], self.running_var[s], biases[s]
            if befores is not None and self.training:
                shifted = mean - befores[s].detach()
                bias = bias + 0 * befores[s]
                y = functional.batch_norm(x, shifted, variance, weights[s], bias, True, self.momentum, self.eps)
                mean.copy_(shifted + befores[s].detach())
            else:
                if befores is not None:
                    bias = bias + befores[s] * weights[s] * (variance + self.eps).rsqrt()
                y = functional.batch_norm(x, mean, variance, weights[s], bias, self.training, self.momentum, self.eps)
            outputs.append(y)
        self._count(streams)
        return outputs

    def grouped(self, x: Tensor, streams: Sequence[int]) -> Tensor:
        """`(R, S*C, ...)`, all streams in one call."""
        buffers = self.running_mean, self.running_var
        mean, variance = (pick(b, streams).flatten() for b in buffers)
        weight, bias = (pick(p, streams).flatten() for p in (self.weight, self.bias))
        y = functional.batch_norm(x, mean, variance, weight, bias, self.training, self.momentum, self.eps)
        if self.training and pick(self.weight, streams) is not self.weight:  # else they are views, already written
            for buffer, new in zip(buffers, (mean, variance), strict=True):
                buffer[list(streams)] = new.view(len(streams), -1)
        self._count(streams)
        return y

    def _count(self, streams: Sequence[int]) -> None:
        if self.training:
            self.num_batches_tracked[list(streams)] += 1
