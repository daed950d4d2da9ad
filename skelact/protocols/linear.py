"""Linear evaluation: how much of the answer can a linear classifier read from frozen features?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skelact.errors import SkelactError
from skelact.protocols.base import Answer, Labels, Protocol, label_name, label_rows, paired, summarise
from skelact.protocols.features import FeatureTable, Subject, Subset
from skelact.protocols.fusion import EQUAL, Weights, check, fit_weights, given_weights, name_weights
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


def choose_rate(train: FeatureTable, val: FeatureTable, classes: int, recipe: Recipe, seed: int) -> float:
    """The recipe's learning rate that is best on the validation part; see :func:`validate`."""
    return validate(train, val, classes, recipe, seed)[0]


def validate(
    train: FeatureTable, val: FeatureTable, classes: int, recipe: Recipe, seed: int, most_clips: int = 8_000
) -> tuple[float, Tensor]:
    """The learning rate that is best on the validation part, and what its head says there.

    All rates are trained together as stacked heads, on at most `most_clips` training clips (drawn once): then for a
    quarter of the epochs. Equal accuracies are settled by the loss.

    Returns:
        rate, and the validation clips' logits `(N, C)` of a head that has not seen them.
    """
    if len(train) > most_clips:
        rows = np.random.default_rng(seed).choice(len(train), most_clips, replace=False)
        train, recipe = train.select(np.sort(rows)), get_recipe(recipe, epochs=max(1, recipe.epochs // 4))
    heads = fit(train.features, train.labels, classes, recipe, [seed], recipe.rates)
    scores = heads.logits(val.features)
    best = (-1.0, 0.0, recipe.rates[0], 0)
    for place, (rate, logits) in enumerate(zip(recipe.rates, scores, strict=True)):
        if bool(logits.isfinite().all()):
            accuracy = float((logits.argmax(1) == val.labels).double().mean())
            best = max(best, (accuracy, -float(F.cross_entropy(logits, val.labels)), rate, place))
    return best[2], scores[best[3]]


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
        rate = stable_rate(table.features, statistics, recipe) if rate is None else rate
        return fit(table.features, table.labels, classes, recipe, range(seed, seed + count), [rate], statistics)
    lists = [torch.from_numpy(label_rows(table, int(labels), draw)) for draw in range(count)]
    seeds = range(seed, seed + count)
    if len(lists[0]) <= recipe.batch_size and not recipe.weight_decay:
        rows = torch.stack(lists).to(table.features.device)
        return fit_lists(table.features, table.labels, rows, classes, recipe, seeds, rate, statistics)
    parts = []
    for own_seed, rows in zip(seeds, lists, strict=True):
        few = table.select(rows.numpy())
        own = stable_rate(few.features, statistics, recipe) if rate is None else rate
        parts.append(fit(few.features, few.labels, classes, recipe, [own_seed], [own], statistics))
    mean, scale = parts[0].mean, parts[0].scale
    return Heads(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]), mean, scale, parts[0].steps)


FUSIONS = ("joint", "sum", "mean", "late")


@dataclass(frozen=True)
class Choice:
    """A learning rate (None: by rule), how it was chosen, and the validation clips' logits `(N, C)` where asked for."""

    rate: float | None
    how: str
    then: str
    logits: Tensor | None = None

    @property
    def selection(self) -> str:
        """What to write under `selection`."""
        return f"{self.how}, {self.then}"


@dataclass(frozen=True)
class Member:
    """What one head reads: passes through the encoder, and each part's features, those of the passes side by side."""

    passes: Sequence[Subset]
    train: FeatureTable
    val: FeatureTable | None
    test: FeatureTable

    @cached_property
    def side(self) -> FeatureTable:
        """The training side: training and validation clips."""
        return self.train if self.val is None else FeatureTable.join(self.train, self.val)


class LinearProbe(Protocol):
    """Linear classification of frozen features; nothing is chosen on the test part and the last epoch counts.

    With all labels: where the recipe has several learning rates, one is chosen on the validation part and the heads
    are trained again on training and validation clips together (`refit`); heads differ in initial weights and batch
    order, and metrics are means over them. Intervals: :func:`~skelact.results.repeated_interval`.

    With n labels per class: each repetition has its own list of labelled clips. A validation part would hold more
    labels than there are, so a recipe with several rates takes one by a rule that sees no label at all (the inverse of
    the loss's curvature), the same for every encoder; features are standardised by all training clips, whose labels
    that does not touch. Where the labelled clips fit into one batch, training is full-batch.

    Several streams are joined by one of four rules (`fusion`). `joint`: one head on the encoding of all streams.
    `sum` (3s-CACA) and `mean` (CrosSCLR, AimCLR++): each stream's own feature has a head, the heads' logits are added
    up or averaged and trained together; :class:`~skelact.protocols.heads.Recipe` says how that is one wide head with
    other steps. `late` (AimCLR): each stream has a head, trained alone, and their scores are added with weights; each
    single stream is a row of its own beside the fused one.

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
        streams: judge these of the method's streams alone; None means all.
        fusion: `joint`, `sum`, `mean` or `late`.
        weights: of late fusion: `equal`, `val` (fitted on the validation part, see
            :func:`~skelact.protocols.fusion.fit_weights`; equal where there are no validation labels), a number for
            each stream (AimCLR: 0.6 joint, 0.6 bone, 0.4 motion), or None for `equal`.
        fuse: of late fusion: add `logits`, as published, or `probabilities`.
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
        streams: Sequence[str] | str | None = None,
        fusion: str = "joint",
        weights: Weights = None,
        fuse: str = "logits",
    ) -> None:
        super().__init__(labels, draws, baselines, precision, cache, streams)
        if seeds < 1:
            raise ValueError(f"seeds={seeds}: at least one head is needed")
        if fusion not in FUSIONS:
            raise SkelactError(f"protocol.fusion={fusion} is not known; choose from {', '.join(FUSIONS)}")
        if fusion != "late" and (weights is not None or fuse != "logits"):
            raise SkelactError(f"protocol.weights and protocol.fuse are of fusion=late, not of fusion={fusion}")
        self.recipe_name, self.seeds, self.refit = recipe, int(seeds), refit
        self.fusion, self.weights, self.fuse = fusion, check(weights, fuse), fuse
        rates = tuple(float(x) for x in lr) if isinstance(lr, Sequence) else lr
        changes = {"epochs": epochs, "lr": rates, "batch_size": batch_size}
        self.recipe = get_recipe(recipe, **{k: v for k, v in changes.items() if v is not None})

    def choose(
        self,
        train: FeatureTable,
        val: FeatureTable | None,
        classes: int,
        labels: Labels,
        seed: int,
        recipe: Recipe | None = None,
        scored: bool = True,
    ) -> Choice:
        """Learning rate of a head, and, if it is to be scored, what such a head says of the validation clips."""
        recipe = recipe or self.recipe
        published = recipe.rates[0] if len(recipe.rates) == 1 else None
        how = "none (rate by curvature)" if published is None else "none (rate of the recipe)"
        if labels != "all" or val is None or (published is not None and not scored):
            return Choice(published, how, "last epoch")
        rate, logits = validate(train, val, classes, recipe, seed)
        if published is not None:
            return Choice(rate, how, "last epoch", logits)
        return Choice(rate, "val:lr", "refit train+val, last epoch" if self.refit else "last epoch", logits)

    def answer(self, subject: Subject, seed: int) -> Iterator[Answer]:
        """One row per label setting; with late fusion one for each stream, then the fused one."""
        classes, late = subject.datamodule.num_classes, self.fusion == "late"
        passes = self._passes(subject)
        members = self._members(subject, passes)
        recipe = self.recipe
        if self.fusion in ("sum", "mean"):
            share = 1.0 / len(passes) if self.fusion == "mean" else 1.0
            recipe = replace(recipe, terms=len(passes), share=share)
        for labels in self.labels:
            count = self.seeds if labels == "all" else self.draws
            choices = [self.choose(m.train, m.val, classes, labels, seed, recipe) for m in members]
            weights, how = self._weights(members, choices) if late else ([1.0], "")
            rows: list[Answer] = []
            total: Tensor | None = None
            for member, choice, weight in zip(members, choices, weights, strict=True):
                table = member.train if labels == "all" and not self.refit else member.side
                heads = train_heads(table, classes, recipe, labels, choice.rate, count, seed)
                logits = heads.logits(member.test.features)
                row = self._row(logits, member, choice.selection, choice.logits)
                row.parameters = classes * (member.test.features.shape[1] + recipe.terms)
                row.extra |= {"labels": label_name(labels), "recipe": self.recipe_name, "lr": choice.rate}
                row.extra |= {"steps": heads.steps}
                if self.fusion != "joint":
                    row.extra["fusion"] = "single" if late else self.fusion
                yield row
                if late:
                    part = weight * self._term(logits)
                    total = part if total is None else total.add_(part)
                    rows.append(row)
            if total is not None:
                yield self._fused(total, members, choices, weights, how, rows)

    def _passes(self, subject: Subject) -> list[Subset]:
        """What the encoder is given: all streams at once for one joint head, otherwise stream by stream."""
        if self.fusion == "joint":
            return [subject.full]
        if len(subject.chosen) < 2:
            raise SkelactError(f"protocol.fusion={self.fusion} needs two or more streams; there is {subject.chosen[0]}")
        if self.fusion == "late":
            given_weights(self.weights, subject.chosen)  # a wrong name is said before anything is computed
        return [(stream,) for stream in subject.chosen]

    def _members(self, subject: Subject, passes: Sequence[Subset]) -> list[Member]:
        """What is trained on its own: a head on all passes, or with late fusion one on each."""
        train, test = subject.own("train", passes), subject.own("test", passes)
        val = subject.own("val", passes) if subject.datamodule.size("val") else None
        groups = [[p] for p in passes] if self.fusion == "late" else [list(passes)]
        return [Member(g, _beside(train, g), _beside(val, g) if val else None, _beside(test, g)) for g in groups]

    def _term(self, logits: Tensor) -> Tensor:
        """What late fusion adds up."""
        return logits if self.fuse == "logits" else logits.softmax(-1)

    def _weights(self, members: Sequence[Member], choices: Sequence[Choice]) -> tuple[list[float], str]:
        """Weights of late fusion and how they were chosen."""
        weights = given_weights(self.weights, [m.passes[0][0] for m in members])
        if weights is not None:
            return weights, EQUAL if self.weights in (None, "equal") else "weights given"
        scored = [self._term(choice.logits).cpu().numpy() for choice in choices if choice.logits is not None]
        val = members[0].val
        if val is None or not scored:
            return [1.0] * len(members), f"{EQUAL} (no validation labels)"
        return fit_weights(scored, val.labels.cpu().numpy()), "val:weights"

    def _row(self, logits: Tensor, member: Member, selection: str, val: Tensor | None) -> Answer:
        """Of logits `(R, N, C)` of the test part and, with one head, `(N', C)` of the validation part."""
        runs = [clip_accuracies(one, member.test.labels) for one in logits]
        values = {name: torch.stack([run[name] for run in runs]).cpu().numpy() for name in runs[0]}
        metrics, ci95, more = summarise(values, member.test.groups)
        return Answer(
            metrics,
            ci95,
            selection,
            scores=logits.mean(0).cpu().numpy(),
            val_scores=None if val is None else val.cpu().numpy(),
            correct=values["top1"],
            passes=member.passes,
            extra=more,
        )

    def _fused(
        self,
        scores: Tensor,
        members: Sequence[Member],
        choices: Sequence[Choice],
        weights: Sequence[float],
        how: str,
        rows: Sequence[Answer],
    ) -> Answer:
        """The row of late fusion, with its paired difference to the stream that is best alone (on the test part)."""
        passes = [p for member in members for p in member.passes]
        names = [p[0] for p in passes]
        terms = [w * self._term(c.logits) for w, c in zip(weights, choices, strict=True) if c.logits is not None]
        val = torch.stack(terms).sum(0) if terms else None
        row = self._row(scores, members[0], f"{choices[0].how}, {how}, {choices[0].then}", val)
        row.passes, row.parameters = passes, sum(single.parameters for single in rows)
        row.extra |= {key: rows[0].extra[key] for key in ("labels", "recipe", "steps")}
        row.extra |= {"lr": {name: choice.rate for name, choice in zip(names, choices, strict=True)}}
        row.extra |= {"fusion": "late", "fuse": self.fuse, "weights": name_weights(names, weights)}
        name, best = max(zip(names, rows, strict=True), key=lambda pair: pair[1].metrics["top1"])
        assert row.correct is not None and best.correct is not None
        found = paired(row.correct, best.correct, members[0].test.groups, "top1")
        row.extra["differences"] = {f"best stream alone ({name})": found}
        return row


def _beside(tables: Mapping[Subset, FeatureTable], passes: Sequence[Subset]) -> FeatureTable:
    return FeatureTable.beside([tables[p] for p in passes])
