"""Learning-rate schedules that a recipe can name in YAML."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, total: int, warmup: int = 0, final: float = 0.0) -> LambdaLR:
    """Linear warm-up to the optimiser's learning rate, then a half cosine down to `final` times it.

    Args:
        optimizer: whose learning rates are scaled.
        total: length in units of the method's `scheduler_interval` (epochs or steps); later the rate stays `final`.
        warmup: units of warm-up; unit i of them runs at (i + 1) / (warmup + 1) of the full rate.
        final: last rate as a fraction of the full one.

    Raises:
        ValueError: the warm-up does not end before `total`.
    """
    if not 0 <= warmup < total:
        raise ValueError(f"warmup must be at least 0 and less than total, got warmup={warmup}, total={total}")

    def factor(unit: int) -> float:
        if unit < warmup:
            return (unit + 1) / (warmup + 1)
        progress = min((unit - warmup) / (total - warmup), 1.0)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def milestones(optimizer: Optimizer, milestones: Sequence[int], warmup: int = 0, gamma: float = 0.1) -> LambdaLR:
    """The learning rate times `gamma` from each milestone on, after a linear warm-up.

    Args:
        optimizer: whose learning rates are scaled.
        milestones: units (epochs or steps, 0-based) at whose start the rate drops.
        warmup: units of warm-up; unit i of them runs at (i + 1) / warmup of the full rate.
        gamma: factor of each drop.
    """

    def factor(unit: int) -> float:
        return min(1.0, (unit + 1) / warmup if warmup else 1.0) * gamma ** sum(unit >= m for m in milestones)

    return LambdaLR(optimizer, factor)


def staircase(
    optimizer: Optimizer,
    steps_per_epoch: int,
    warmup: int = 5,
    every: int = 30,
    extra: Sequence[int] = (80,),
    gamma: float = 0.1,
) -> LambdaLR:
    """ActionMAE's schedule, to be stepped at every optimiser step (`scheduler_interval=step`).

    Linear warm-up by steps, then the learning rate times `gamma` every so many epochs and at some more (Woo et al.,
    AAAI 2023, released code).

    Args:
        optimizer: whose learning rates are scaled.
        steps_per_epoch: optimiser steps n of an epoch; a method that is trained by a trainer fills it in.
        warmup: epochs of warm-up; step s runs at (s + 1) / (warmup * n) of the full rate.
        every: epochs between drops.
        extra: epochs, 0-based, at whose start the rate drops once more.
        gamma: factor of each drop.
    """

    def factor(step: int) -> float:
        epoch = step // steps_per_epoch
        if epoch < warmup:
            return (step + 1) / (warmup * steps_per_epoch)
        return gamma ** (epoch // every + sum(epoch >= e for e in extra))

    return LambdaLR(optimizer, factor)
