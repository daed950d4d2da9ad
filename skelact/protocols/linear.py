"""Linear evaluation: how much of the answer can a linear classifier read from frozen features?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skelact.protocols.base import Answer, Labels, Protocol, label_name, label_rows, summarise
from skelact.protocols.features import FeatureTable, Subject
from skelact.protocols.heads import Heads, Recipe, fit, fit_lists, get_recipe, stable_rate, standardise


def clip_accuracies(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Per-clip parts `(N,)` in percent, float64, whose means are `top1`, `top5` and `mean_class`, of logits `(N, C)`.

    A clip's part of `mean_class`, the mean of the classes' recalls, is its linearisation at the test part (influence
    function): the mean itself plus the clip's deviation from its class's recall, weighted by the inverse class size.
    """
    right = (logits.argmax(1) == labels).double()
    near = logits.topk(min(5, logits.shape[1]), 1).indices.eq(labels[:, None]).any(1)
    number = torch.bincount(labels, minlength=logits.shape[1]).double()
    recall = torch.bincount(labels, weights=right, minlength=logits.shape[1]) / number
    weight = len(labels) / (number[labels] * (number > 0).sum())
    by_class = recall[number > 0].mean() + (right - recall[labels]) * weight
    return {"top1": 100.0 * right, "top5": 100.0 * near.double(), "mean_class": 100.0 * by_class}


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1`, `top5` and `mean_class` (mean of the classes' recalls) in percent, of logits `(N, C)`."""
    return {name: float(values.mean()) for name, values in clip_accuracies(logits, labels).items()}


def choose_rate(
    train: FeatureTable, val: FeatureTable, classes: int, recipe: Recipe, seed: int, most_clips: int = 8_000
) -> float:
    """The recipe's learning rate that is best on the validation part; equal accuracies are settled by the loss.

    All rates are trained together as stacked heads, on at most `most_clips` training clips (drawn once): then for a
    quarter of the epochs.
    """
    if len(train) > most_clips:
        rows = np.random.default_rng(seed).choice(len(train), most_clips, replace=False)
        train, recipe = train.select(np.sort(rows)), get_recipe(recipe, epochs=max(1, recipe.epochs // 4))
    heads = fit(train.features, train.labels, classes, recipe, [seed], recipe.rates)
    best = (-1.0, 0.0, recipe.rates[0])
    for rate, logits in zip(recipe.rates, heads.logits(val.features), strict=True):
        if bool(logits.isfinite().all()):
            accuracy = float((logits.argmax(1) == val.labels).double().mean())
            best = max(best, (accuracy, -float(F.cross_entropy(logits, val.labels)), rate))
    return best[2]


def train_heads(
    table: FeatureTable, classes: int, recipe: Recipe, labels: Labels, rate: float | None, count: int, seed: int
) -> Heads:
    """`count` heads: with all labels one per seed, otherwise one per label list.

    Args:
        table: all training clips; with few labels their features, without labels, still give the standardisation.
        classes: number of classes.
        recipe: how to train.
        labels: `all` or a number of labelled clips per class.
        rate: learning rate; None takes :func:`~skelact.protocols.heads.stable_rate`, which needs no labels.
        count: number of heads.
        seed: the first seed.
    """
    statistics = standardise(table.features) if recipe.normalize else None
    if labels == "all":
        rate = stable_rate(table.features, statistics) if rate is None else rate
        return fit(table.features, table.labels, classes, recipe, range(seed, seed + count), [rate], statistics)
    lists = [torch.from_numpy(label_rows(table, int(labels), draw)) for draw in range(count)]
    seeds = range(seed, seed + count)
    if len(lists[0]) <= recipe.batch_size and not recipe.weight_decay:
        rows = torch.stack(lists).to(table.features.device)
        return fit_lists(table.features, table.labels, rows, classes, recipe, seeds, rate, statistics)
    parts = []
    for own_seed, rows in zip(seeds, lists, strict=True):
        few = table.select(rows.numpy())
        own = stable_rate(few.features, statistics) if rate is None else rate
        parts.append(fit(few.features, few.labels, classes, recipe, [own_seed], [own], statistics))
    mean, scale = parts[0].mean, parts[0].scale
    return Heads(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]), mean, scale, parts[0].steps)


class LinearProbe(Protocol):
    """Linear classification of frozen features; nothing is chosen on the test part and the last epoch counts.

    With all labels: where the recipe has several learning rates, one is chosen on the validation part and the heads
    are trained again on training and validation clips together (`refit`); heads differ in initial weights and batch
    order, and metrics are means over them. Intervals: :func:`~skelact.results.repeated_interval`.

    With n labels per class: each repetition has its own list of labelled clips. A validation part would hold more
    labels than there are, so a recipe with several rates takes one by a rule that sees no label at all (the inverse of
    the loss's curvature), the same for every encoder; features are standardised by all training clips, whose labels
    that does not touch. Where the labelled clips fit into one batch, training is full-batch.

    Args:
        recipe: name in :data:`~skelact.protocols.heads.RECIPES`: `skelact_linear_v1`, `umurl`, `aimclr`, `mamp`, ...
        seeds: heads with all labels.
        refit: train on validation clips too, after the choice.
        epochs: other than the recipe's.
        lr: learning rate or rates other than the recipe's.
        batch_size: other than the recipe's.
        labels: label settings, each `all` or a number of labelled clips per class.
        draws: label lists per few-label setting.
        baselines: True, False, or some of `untrained` and `raw_pose`.
        precision: autocast of the encoder.
        cache: keep extracted features in the run directory.
    """

    name = "linear"

    def __init__(
        self,
        recipe: str = "skelact_linear_v1",
        seeds: int = 5,
        refit: bool = True,
        epochs: int | None = None,
        lr: float | Sequence[float] | None = None,
        batch_size: int | None = None,
        labels: Sequence[Labels] | Labels = ("all", 1),
        draws: int = 20,
        baselines: bool | Sequence[str] = True,
        precision: str | None = None,
        cache: bool = True,
    ) -> None:
        super().__init__(labels, draws, baselines, precision, cache)
        if seeds < 1:
            raise ValueError(f"seeds={seeds}: at least one head is needed")
        self.recipe_name, self.seeds, self.refit = recipe, int(seeds), refit
        rates = tuple(float(x) for x in lr) if isinstance(lr, Sequence) else lr
        changes = {"epochs": epochs, "lr": rates, "batch_size": batch_size}
        self.recipe = get_recipe(recipe, **{k: v for k, v in changes.items() if v is not None})

    def rate(
        self, train: FeatureTable, val: FeatureTable | None, classes: int, labels: Labels, seed: int
    ) -> tuple[float | None, str]:
        """Learning rate (None: by rule) and what to write under `selection`."""
        if len(self.recipe.rates) == 1:
            return self.recipe.rates[0], "none (rate of the recipe), last epoch"
        if labels != "all" or val is None:
            return None, "none (rate by curvature), last epoch"
        rate = choose_rate(train, val, classes, self.recipe, seed)
        return rate, "val:lr, refit train+val, last epoch" if self.refit else "val:lr, last epoch"

    def answer(self, subject: Subject, seed: int) -> Iterator[Answer]:
        """One row per label setting."""
        full, classes = subject.full, subject.datamodule.num_classes
        train, test = subject.tables("train")[full], subject.tables("test")[full]
        val = subject.tables("val")[full] if subject.datamodule.size("val") else None
        side = FeatureTable.join(train, val) if val is not None else train
        for labels in self.labels:
            rate, selection = self.rate(train, val, classes, labels, seed)
            table = train if labels == "all" and not self.refit else side
            count = self.seeds if labels == "all" else self.draws
            heads = train_heads(table, classes, self.recipe, labels, rate, count, seed)
            logits = heads.logits(test.features)
            runs = [clip_accuracies(one, test.labels) for one in logits]
            values = {name: torch.stack([run[name] for run in runs]).cpu().numpy() for name in runs[0]}
            metrics, ci95, more = summarise(values, test.groups)
            yield Answer(
                metrics,
                ci95,
                selection,
                parameters=classes * (test.features.shape[1] + 1),
                scores=logits.softmax(2).mean(0).cpu().numpy(),
                correct=values["top1"],
                extra={"labels": label_name(labels), "recipe": self.recipe_name, "lr": rate, "steps": heads.steps}
                | more,
            )
