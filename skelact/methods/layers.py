"""Layers that methods share: batch normalisation over all ranks, and the projector built on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skelact.objectives import all_reduce, world_size


class SyncBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation of `(b, D)` whose training statistics are those of all ranks' rows together.

    In one process it is `nn.BatchNorm1d`. Unlike `torch.nn.SyncBatchNorm` it runs on any device and backend, so that
    a two-process CPU run equals one process with the whole batch. Ranks may hold different numbers of rows.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(b, D)` by statistics of the global batch (training) or the running ones (evaluation)."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):  # statistics of half-precision sums would drift
            x = input.float() if input.dtype.itemsize < 4 else input
            total = all_reduce(torch.cat([x.sum(0), x.new_full((1,), x.shape[0])]))
            mean, count = total[:-1] / total[-1], total[-1].detach()
            centred = x - mean  # two passes: sums of squares lose digits where the mean is large
            var = all_reduce(centred.square().sum(0)) / count
            self._track(mean.detach(), var.detach() * (count / (count - 1)))
            out = centred * torch.rsqrt(var + self.eps)
            if self.affine:
                out = out * self.weight + self.bias
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean += momentum * (mean.to(self.running_mean.dtype) - self.running_mean)
        self.running_var += momentum * (unbiased.to(self.running_var.dtype) - self.running_var)


def projector(inputs: int, hidden: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """Three linear layers with batch normalisation and ReLU between them; the last one stays linear.

    Args:
        inputs: width of the feature.
        hidden: width of both hidden layers.
        outputs: width of the embedding.
        bias: whether the last layer has a bias (VICReg's has none).
    """
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        SyncBatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        SyncBatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs, bias=bias),
    )
