"""Batch normalisation over the rows of all ranks, and of several streams of equal width.

Two processes with parts of a batch give what one gives with the whole: outputs, gradients, running statistics. Ranks
may hold different numbers of rows, or none. A layer costs one all-gather forward and one all-reduce backward for all
its streams. `torch.nn.SyncBatchNorm` does this on GPUs only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from skelact.objectives import all_reduce, gather, without_autocast, world_size


def global_moments(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of every channel (axis 1) over all ranks' entries, at least float32; no gradient.

    Args:
        inputs: S tensors `(N, C, ...)` of one shape; N may differ between ranks.

    Returns:
        mean `(S, C)`, biased variance `(S, C)`, number of entries a channel `()`.
    """
    local = []
    for x in inputs:
        wide = x.float() if x.dtype.itemsize < 4 else x  # moments of half-precision sums would drift
        axes = [0, *range(2, x.dim())]
        # Moments are merged as moments: sums of squares would lose digits where the mean is large.
        moments = torch.stack(torch.var_mean(wide, axes, correction=0)) if x.numel() else wide.new_zeros(2, x.shape[1])
        local.append(moments)
    stack = torch.stack(local, 1)  # (2, S, C)
    count = stack.new_full((1,), inputs[0].numel() // inputs[0].shape[1])
    ranks = gather(torch.cat([stack.flatten(), count])[None])  # (W, 2SC + 1)
    variances, means = ranks[:, :-1].unflatten(1, stack.shape).unbind(1)
    total = ranks[:, -1].sum()
    share = (ranks[:, -1] / total)[:, None, None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), total


def global_std(inputs: Sequence[Tensor]) -> Tensor:
    """Standard deviation `(S, C)` of every channel (axis 1) over all ranks' entries; no gradient."""
    _, variance, count = global_moments([x.detach() for x in inputs])
    return (variance * (count / (count - 1).clamp(min=1))).sqrt()


class _GlobalBatchNorm(torch.autograd.Function):
    """Fused kernels of evaluation with global moments; what the moments add to the gradient is one affine map of x."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, eps: float, *inputs: Tensor) -> tuple[Tensor, ...]:
        with without_autocast(inputs[0]):
            mean, variance, count = global_moments(inputs)
            weights, biases = (p.to(mean).view_as(mean) for p in (weight, bias))
            outputs = [
                functional.batch_norm(x, m, v, w, b, False, 0.0, eps)
                for x, m, v, w, b in zip(inputs, mean, variance, weights, biases, strict=True)
            ]
        ctx.eps = eps
        ctx.save_for_backward(weight, mean, variance, count, *inputs)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        ctx.mark_non_differentiable(mean, unbiased)
        return *outputs, mean, unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, mean, variance, count, *inputs = ctx.saved_tensors
        weights = weight.to(mean).view_as(mean)
        direct, local = [], []
        for grad, x, *rows in zip(grads[:-2], inputs, weights, mean, variance, strict=True):
            if x.numel():
                dx, *sums = torch.ops.aten.native_batch_norm_backward(
                    grad, x, *rows, None, None, False, ctx.eps, [True, True, True]
                )
            else:  # the kernel divides by the number of rows
                dx, sums = torch.zeros_like(x), [torch.zeros_like(rows[0])] * 2
            direct.append(dx)
            local.append(torch.stack(sums))
        own = torch.stack(local, 1)  # (2, S, C): gradients of weight and bias
        if any(ctx.needs_input_grad[3:]):
            scale = (variance + ctx.eps).rsqrt()
            slope, offset = -all_reduce(own) * weights * scale / count
            for dx, x, *rows in zip(direct, inputs, mean, slope * scale, offset, strict=True):
                m, a, b = (row.view(-1, *[1] * (x.dim() - 2)) for row in rows)
                dx += torch.addcmul(b, x - m, a)  # centred first, and wider than a half-precision x
        return *(g.view_as(weight).to(weight) for g in own), None, *direct


def global_batch_norm(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, eps: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Normalise by the moments of all ranks' rows; differentiable, moments aside.

    Args:
        inputs: S tensors `(N, C, ...)` of one shape; N may differ between ranks.
        weight: S * C entries, of any shape.
        bias: as the weight.
        eps: added to the variance.

    Returns:
        outputs, mean and unbiased variance, the latter two in the weight's shape.
    """
    *outputs, mean, unbiased = _GlobalBatchNorm.apply(weight, bias, eps, *inputs)
    return outputs, mean.view_as(weight), unbiased.view_as(weight)


def tracked(running: Tensor, new: Tensor, momentum: float | Tensor) -> Tensor:
    """A running statistic moved towards a new value."""
    return running + momentum * (new.to(running.dtype) - running)


def pick(parameter: Tensor, streams: Sequence[int] | None) -> Tensor:
    """The rows of some streams; the parameter itself where that is all of them in order."""
    if streams is None or list(streams) == list(range(len(parameter))):
        return parameter
    return torch.stack([parameter[s] for s in streams])  # a list of numbers as an index would be copied to the device


def _put(buffer: Tensor, streams: Sequence[int], new: Tensor) -> None:
    """Write the rows of some streams."""
    if pick(buffer, streams) is buffer:
        buffer.copy_(new)
        return
    for s, row in zip(streams, new.unbind(0), strict=True):
        buffer[s] = row


class StackedBatchNorm(nn.Module):
    """S batch normalisations of equal width over the rows of all ranks; all tensors `(S, C)`."""

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
        if self.training and world_size() > 1:
            return self._over_ranks(inputs, streams, before, gain)
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
        if self.training and world_size() > 1:
            return self._over_ranks([x], streams)[0]
        buffers = self.running_mean, self.running_var
        mean, variance = (pick(b, streams).flatten() for b in buffers)
        weight, bias = (pick(p, streams).flatten() for p in (self.weight, self.bias))
        y = functional.batch_norm(x, mean, variance, weight, bias, self.training, self.momentum, self.eps)
        if self.training and pick(self.weight, streams) is not self.weight:  # else they are views, already written
            for buffer, new in zip(buffers, (mean, variance), strict=True):
                _put(buffer, streams, new.view(len(streams), -1))
        self._count(streams)
        return y

    def _over_ranks(
        self, inputs: Sequence[Tensor], streams: Sequence[int], before: Tensor | None = None, gain: float = 1.0
    ) -> list[Tensor]:
        """Both forms while several ranks train; arguments as in `plain`."""
        weight, bias = (gain * pick(p, streams) for p in (self.weight, self.bias))
        before = None if before is None else pick(before, streams)
        if before is not None:
            bias = bias + 0 * before
        outputs, mean, variance = global_batch_norm(inputs, weight, bias, self.eps)
        mean = mean if before is None else mean + before.detach()
        for buffer, new in ((self.running_mean, mean), (self.running_var, variance)):
            _put(buffer, streams, tracked(pick(buffer, streams), new, self.momentum))
        self._count(streams)
        return outputs

    def _count(self, streams: Sequence[int]) -> None:
        if self.training:
            _put(self.num_batches_tracked, streams, pick(self.num_batches_tracked, streams) + 1)


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch's batch normalisation of `(N, C, ...)`, whose batch is that of all ranks; one of them may have N = 0."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes behind the channels."""

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, ...)` to the same shape."""
        if not self.training or (world_size() == 1 and input.numel()):
            return super().forward(input)
        assert self.num_batches_tracked is not None
        if world_size() == 1:  # no entry anywhere: nothing to take moments of
            return functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias)
        (out,), mean, variance = global_batch_norm([input], self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            for running, new in ((self.running_mean, mean), (self.running_var, variance)):
                assert running is not None
                running.copy_(tracked(running, new, momentum))
        return out


class _Activated(GlobalBatchNorm):
    """timm's layer that also drops and activates."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, ...)` to the same shape."""
        return self.act(self.drop(super().forward(input)))


def over_ranks(module: nn.Module) -> nn.Module:
    """Replace the batch normalisations inside a foreign network, in place, under the same names.

    Those of no weights or no running statistics stay: they have nothing that ranks must agree on.
    """
    for name, child in module.named_children():
        over_ranks(child)
        if not isinstance(child, nn.modules.batchnorm._BatchNorm) or isinstance(child, GlobalBatchNorm):
            continue
        if not child.affine or not child.track_running_stats:
            continue
        activated = hasattr(child, "drop") and hasattr(child, "act")
        layer = (_Activated if activated else GlobalBatchNorm)(child.num_features, child.eps, child.momentum)
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(layer, key, getattr(child, key))
        if activated:
            layer.drop, layer.act = child.drop, child.act
        layer.train(child.training)
        setattr(module, name, layer)
    return module
