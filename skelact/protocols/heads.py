"""Linear classifiers on fixed features, many at once.

Softmax regression has a closed-form gradient, so a step is two matrix products and a few element-wise passes; no
graph is recorded. Heads that differ only in their learning rate share every batch and are stacked into one product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import torch
from torch import Tensor

from skelact.errors import SkelactError


@dataclass(frozen=True)
class Recipe:
    """How a linear probe is trained: SGD with momentum on cross-entropy.

    Args:
        lr: learning rate, or several of which the validation part chooses one.
        batch_size: clips per step, cut to what there is.
        epochs: passes over the training clips.
        schedule: `cosine` (to zero, per step) or `step` (x0.1 at `milestones`, per epoch).
        milestones: epochs, 0-based, at whose start the rate is divided by ten.
        normalize: standardise features by the mean and standard deviation of the training clips. For features that do
            not change this is what a BatchNorm without affine parameters does, without the noise of its batches.
        init: `default` (uniform +-1/sqrt(D), as nn.Linear) or the standard deviation of normal weights with zero bias.
        momentum: of SGD, not Nesterov.
        weight_decay: coupled L2 on weights and bias.
        min_steps: raise the epochs of small sets to at least so many steps.
        terms: features of so many streams stand side by side, each has a head of its own, and the heads' logits are
            added up. That is one wide head; its bias stands for `terms` biases, which all take the same step, so it
            learns `terms` times as fast.
        share: what the sum is multiplied by: 1 / `terms` for the mean of the heads' logits. Written as one wide head,
            weights `share * W`, that is the sum with `share**2` of the learning rate and `share` of the initial
            weights, while weight decay stays what it was.
    """

    lr: float | tuple[float, ...]
    batch_size: int
    epochs: int
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    normalize: bool = False
    init: float | str = "default"
    momentum: float = 0.9
    weight_decay: float = 0.0
    min_steps: int = 0
    terms: int = 1
    share: float = 1.0

    @property
    def gains(self) -> tuple[float, float]:
        """What the loss's gradients of the weights and of the bias count, relative to a plain head."""
        return self.share**2, self.terms * self.share**2

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to choose from."""
        return tuple(self.lr) if isinstance(self.lr, Sequence) else (float(self.lr),)

    def steps(self, clips: int) -> tuple[int, int]:
        """(epochs, batches per epoch) for so many training clips."""
        batches = max(1, -(-clips // self.batch_size))
        return max(self.epochs, -(-self.min_steps // batches)), batches

    def factor(self, step: int, epochs: int, batches: int) -> float:
        """Learning rate of a step relative to the first."""
        if self.schedule == "cosine":
            return 0.5 * (1.0 + float(torch.tensor(torch.pi * step / (epochs * batches)).cos()))
        return 0.1 ** sum(step // batches >= m for m in self.milestones)


# Head, optimiser and schedule of the published probes (read in the released code). Their clips, crops and
# augmentations are not part of a recipe here: features are cached, so every recipe sees the whole clip once, and
# nothing is selected on the test split.
RECIPES: dict[str, Recipe] = {
    "skelact_linear_v1": Recipe((3e-3, 1e-2, 3e-2, 1e-1, 3e-1), 256, 100, normalize=True, min_steps=500),
    "umurl": Recipe(0.03, 512, 150, "step", (120, 140), init=0.01),
    "crosclr": Recipe(3.0, 128, 100, "step", (80,), init=0.02),
    "aimclr": Recipe(3.0, 128, 100, "step", (80,), init=0.02),
    "actclr": Recipe(3.0, 1024, 100, "step", (80,)),
    "pstl": Recipe(0.01, 128, 150, "step"),
    "cmd": Recipe(0.1, 64, 80, "step", (50, 70)),
    "pcm3": Recipe(0.1, 1024, 100, "step", (20, 50, 80)),
    "mamp": Recipe(0.1, 256, 100, normalize=True),
}


def get_recipe(name: str | Recipe, **changes: object) -> Recipe:
    """A named recipe, with some of its numbers changed.

    Raises:
        SkelactError: no such recipe; the message lists them.
    """
    if isinstance(name, str):
        if name not in RECIPES:
            raise SkelactError(f"protocols.linear.recipe={name} is not known; choose from {', '.join(sorted(RECIPES))}")
        name = RECIPES[name]
    return replace(name, **changes) if changes else name  # type: ignore[arg-type]


@dataclass
class Heads:
    """H trained heads: `weight (H, C, D)`, `bias (H, C)`, on features standardised by `mean (D,)` and `scale (D,)`."""

    weight: Tensor
    bias: Tensor
    mean: Tensor | None
    scale: Tensor | None
    steps: int

    def logits(self, features: Tensor, heads: slice | Tensor | None = None, chunk: int = 8192) -> Tensor:
        """`(H, N, C)` class scores of features `(N, D)`."""
        pick = slice(None) if heads is None else heads
        weight, bias = self.weight[pick], self.bias[pick]
        count, classes, width = weight.shape
        flat = weight.reshape(-1, width).T
        parts = []
        for part in features.split(chunk):
            x = part if self.mean is None or self.scale is None else (part - self.mean) * self.scale
            parts.append(torch.addmm(bias.reshape(-1), x, flat).view(-1, count, classes).transpose(0, 1))
        return torch.cat(parts, 1)


def standardise(features: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Mean `(D,)` and 1 / standard deviation `(D,)` (biased variance plus `eps`, as BatchNorm)."""
    variance, mean = torch.var_mean(features, 0, correction=0)
    return mean, (variance + eps).rsqrt()


def epoch_order(clips: int, epoch: int) -> Tensor:
    """`(clips,)` permutation that cuts an epoch's batches; shared by all seeds, so that rows are moved once."""
    return torch.randperm(clips, generator=torch.Generator().manual_seed(1_000_003 * (epoch + 1)))


def batch_order(batches: int, epoch: int, seed: int) -> list[int]:
    """The order in which a seed visits the batches of an epoch."""
    return torch.randperm(batches, generator=torch.Generator().manual_seed(7919 * (seed + 1) + epoch)).tolist()


def initial(recipe: Recipe, classes: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights `(C, D)` and bias `(C,)` before the first step."""
    generator = torch.Generator().manual_seed(seed)
    if recipe.init == "default":
        bound = (width // recipe.terms) ** -0.5
        weight = torch.empty(classes, width).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(recipe.terms, classes).uniform_(-bound, bound, generator=generator).sum(0)
    else:
        weight = torch.randn(classes, width, generator=generator) * float(recipe.init)
        bias = torch.zeros(classes)
    return weight * recipe.share, bias * recipe.share


@torch.no_grad()
def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    recipe: Recipe,
    seeds: Sequence[int],
    rates: Sequence[float],
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Heads:
    """Train len(seeds) x len(rates) heads; head `i * len(rates) + j` has seed i and rate j.

    A seed has its own initial weights and its own order of batches. What a batch holds is redrawn every epoch and
    shared by the seeds, so the features are permuted in memory once per epoch, whatever the number of heads.

    Args:
        features: `(N, D)` float32.
        labels: `(N,)` int64 in [0, classes).
        classes: number of classes.
        recipe: optimiser and schedule; its own `lr` is not used.
        seeds: of the heads.
        rates: learning rates.
        statistics: mean and scale to standardise by, if not those of `features`.
    """
    clips, width = features.shape
    device, group = features.device, len(rates)
    mean, scale = (statistics or standardise(features)) if recipe.normalize else (None, None)
    source = features if mean is None or scale is None else (features - mean).mul_(scale)
    start = [initial(recipe, classes, width, seed) for seed in seeds]
    weights, bias = [w.repeat(group, 1).to(device) for w, _ in start], [b.repeat(group).to(device) for _, b in start]
    basis = None
    if 2 * clips <= width and not recipe.weight_decay:
        # Gradients lie in the span of the clips, and SGD does not care about rotations: train in that span.
        basis, triangle = torch.linalg.qr(source.T)
        source, weight = triangle.T.contiguous(), [w @ basis for w in weights]
    else:
        weight = [w.clone() for w in weights]
    truth = torch.zeros(clips, classes, device=device).scatter_(1, labels[:, None], 1.0)
    epochs, batches = recipe.steps(clips)
    speed, bias_speed = [torch.zeros_like(w) for w in weight], [torch.zeros_like(b) for b in bias]
    rate = torch.tensor(rates, dtype=torch.float32, device=device).repeat_interleave(classes)
    buffers = [(torch.empty_like(source), torch.empty_like(truth)) for _ in range(min(2, epochs))]
    locks = [Lock() for _ in seeds]
    gain, bias_gain = recipe.gains

    @torch.no_grad()
    def visit(i: int, epoch: int) -> None:
        """One epoch of one seed; the lock keeps a seed's epochs in order when threads run ahead."""
        with locks[i]:
            x_parts, t_parts = (b.split(recipe.batch_size) for b in buffers[epoch % 2])
            for step, batch in enumerate(batch_order(batches, epoch, seeds[i])):
                x, t = x_parts[batch], t_parts[batch]
                now = -recipe.factor(epoch * batches + step, epochs, batches) * rate
                logits = torch.addmm(bias[i], x, weight[i].T).view(len(x), group, classes)
                error = torch.softmax(logits, 2).sub_(t[:, None]).view(len(x), -1)
                torch.addmm(speed[i], error.T, x, beta=recipe.momentum, alpha=gain / len(x), out=speed[i])
                bias_speed[i].mul_(recipe.momentum).add_(error.mean(0), alpha=bias_gain)
                if recipe.weight_decay:
                    speed[i].add_(weight[i], alpha=recipe.weight_decay)
                    bias_speed[i].add_(bias[i], alpha=recipe.weight_decay)
                weight[i].addcmul_(speed[i], now[:, None])
                bias[i].addcmul_(bias_speed[i], now)

    def shuffle(epoch: int) -> None:
        order = epoch_order(clips, epoch).to(device) if batches > 1 else torch.arange(clips, device=device)
        torch.index_select(source, 0, order, out=buffers[epoch % 2][0])
        torch.index_select(truth, 0, order, out=buffers[epoch % 2][1])

    # On a CPU seeds run side by side, one thread each: steps are too short to be worth splitting over cores.
    threads = torch.get_num_threads()
    workers = min(threads, len(seeds)) if device.type == "cpu" and source.numel() > 1_000_000 else 1
    with _Pool(workers) as run:
        for first in range(0, epochs, 2):
            both = range(first, min(first + 2, epochs))
            for epoch in both:
                shuffle(epoch)
            run(visit, [(i, epoch) for epoch in both for i in range(len(seeds))])
    if basis is not None:
        weight = [w + (new - w @ basis) @ basis.T for w, new in zip(weights, weight, strict=True)]
    stacked = torch.stack(weight).view(-1, classes, width)
    return Heads(stacked, torch.stack(bias).view(-1, classes), mean, scale, epochs * batches)


@torch.no_grad()
def fit_lists(
    features: Tensor,
    labels: Tensor,
    lists: Tensor,
    classes: int,
    recipe: Recipe,
    seeds: Sequence[int],
    rate: float | None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Heads:
    """One head per list of labelled clips, each trained on its whole list at every step, all lists at once.

    Args:
        features: `(N, D)` float32.
        labels: `(N,)` int64.
        lists: `(R, n)` int64 rows of the labelled clips of each list, n at most the recipe's batch size.
        classes: number of classes.
        recipe: optimiser and schedule.
        seeds: R seeds of the initial weights.
        rate: learning rate; None takes :func:`stable_rate` of each list.
        statistics: mean and scale to standardise by.
    """
    mean, scale = statistics if statistics is not None else (None, None)
    picked = features[lists]
    source = picked if mean is None or scale is None else (picked - mean) * scale  # (R, n, D)
    own = [stable_rate(x, None, recipe) if rate is None else rate for x in source]
    start = [initial(recipe, classes, features.shape[1], seed) for seed in seeds]
    weights = torch.stack([w for w, _ in start]).to(features.device)
    bias = torch.stack([b for _, b in start]).to(features.device)[:, None]
    truth = torch.nn.functional.one_hot(labels[lists], classes).float()
    # In terms of the clips' inner products: weights move only along the labelled clips (see fit).
    inner, base = source @ source.transpose(1, 2), torch.baddbmm(bias, source, weights.transpose(1, 2))
    move = torch.zeros_like(truth)  # (R, n, C): weights = initial + move^T source
    speed, bias_move, bias_speed = torch.zeros_like(move), torch.zeros_like(bias), torch.zeros_like(bias)
    step_size = torch.tensor(own, device=features.device)[:, None, None] / lists.shape[1]
    epochs, _ = recipe.steps(lists.shape[1])
    gain, bias_gain = recipe.gains
    for step in range(epochs):
        error = torch.softmax(torch.baddbmm(base + bias_move, inner, move), 2).sub_(truth)
        now = -recipe.factor(step, epochs, 1) * step_size
        speed.mul_(recipe.momentum).add_(error, alpha=gain)
        bias_speed.mul_(recipe.momentum).add_(error.sum(1, keepdim=True), alpha=bias_gain)
        move.addcmul_(speed, now)
        bias_move.addcmul_(bias_speed, now)
    weights.baddbmm_(move.transpose(1, 2), source)
    return Heads(weights, (bias + bias_move)[:, 0], mean, scale, epochs)


class _Pool:
    """Calls in order, over so many threads, each of which computes on one core."""

    def __init__(self, workers: int) -> None:
        self.workers, self.threads = workers, torch.get_num_threads()

    def __enter__(self) -> Callable[[Callable[..., None], Sequence[tuple[int, int]]], None]:
        if self.workers < 2:
            return self._in_turn
        self.pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,))
        return self._side_by_side

    @staticmethod
    def _in_turn(call: Callable[..., None], arguments: Sequence[tuple[int, int]]) -> None:
        for a in arguments:
            call(*a)

    def _side_by_side(self, call: Callable[..., None], arguments: Sequence[tuple[int, int]]) -> None:
        for done in [self.pool.submit(call, *a) for a in arguments]:
            done.result()

    def __exit__(self, *_: object) -> None:
        if self.workers > 1:
            self.pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)  # a new thread would start with the workers' number


def stable_rate(features: Tensor, statistics: tuple[Tensor, Tensor] | None, recipe: Recipe | None = None) -> float:
    """A learning rate that needs no labels and no validation: the inverse of the loss's largest curvature.

    The Hessian of softmax cross-entropy is at most half the largest eigenvalue of E[x x^T] (with a constant for the
    bias), found here by power iteration. The rule is the same for every encoder and every feature width. Of a recipe
    only `terms` and `share` are read: a mean of heads gets the rate at which it learns as fast as their sum.
    """
    constant, share = (recipe.terms**0.5, recipe.share) if recipe else (1.0, 1.0)
    x = features if statistics is None else (features - statistics[0]) * statistics[1]
    direction = torch.ones(x.shape[1] + 1, device=x.device) / (x.shape[1] + 1) ** 0.5
    top = torch.tensor(1.0)
    for _ in range(30):
        along = x @ direction[:-1] + constant * direction[-1]
        image = torch.cat([x.T @ along, constant * along.sum()[None]]) / len(x)
        top = image.norm()
        direction = image / top.clamp_min(1e-12)
    return 2.0 / max(float(top), 1e-6) / share**2
