"""Missing streams: what is left of the accuracy when only some streams are there?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from skelact.protocols.base import Answer, Labels, Protocol, label_name, summarise
from skelact.protocols.features import FeatureTable, Subject, Subset, subset_name, subsets
from skelact.protocols.heads import get_recipe
from skelact.protocols.linear import LinearProbe, train_heads
from skelact.protocols.retrieval import few_label_correct, knn_correct


class MissingStreams(Protocol):
    """Recognition from every non-empty subset of the streams, by linear heads and by nearest neighbours.

    Two records per label setting. `head=fixed`: one head (and one gallery) on features of all streams, and streams go
    missing at test time only. `head=own`: a head (and gallery) for every subset, the upper bound. Metrics:
    `top1/<a+b>` and `knn1/<a+b>` per subset, names sorted, with `/mean` over subsets and `/worst`.

    The learning rate is chosen once, on all streams, as :class:`~skelact.protocols.linear.LinearProbe` does, and used
    for every subset. Raw pose concatenates the streams; one that is missing under a fixed head is replaced by its
    mean over the training clips, the stronger of the usual fillings.

    Args:
        recipe: linear recipe.
        seeds: heads with all labels.
        heads: `fixed`, `own` or both.
        epochs: other than the recipe's.
        labels: label settings, each `all` or a number of labelled clips per class.
        draws: label lists per few-label setting.
        baselines: True, False, or some of `untrained` and `raw_pose`.
        precision: autocast of the encoder.
        cache: keep extracted features in the run directory.
    """

    name = "missing"

    def __init__(
        self,
        recipe: str = "skelact_linear_v1",
        seeds: int = 5,
        heads: Sequence[str] = ("fixed", "own"),
        epochs: int | None = None,
        labels: Sequence[Labels] | Labels = ("all", 1),
        draws: int = 20,
        baselines: bool | Sequence[str] = True,
        precision: str | None = None,
        cache: bool = True,
    ) -> None:
        super().__init__(labels, draws, baselines, precision, cache)
        if not heads or set(heads) - {"fixed", "own"}:
            raise ValueError(f"heads={list(heads)}: choose from fixed, own")
        self.heads = tuple(heads)
        self.probe = LinearProbe(recipe, seeds, epochs=epochs, baselines=False)
        self.recipe_name = recipe
        self.recipe = get_recipe(self.probe.recipe)

    def answer(self, subject: Subject, seed: int) -> Iterator[Answer]:
        """Rows of one subject: label settings x heads."""
        full = tuple(subject.method.streams)
        every = subsets(full)
        train, test = subject.tables("train", every), subject.tables("test", every)
        val = subject.tables("val", every) if subject.datamodule.size("val") else None
        side = train if val is None else {s: FeatureTable.join(train[s], val[s]) for s in every}
        classes = subject.datamodule.num_classes
        for labels in self.labels:
            held_out = val[full] if val else None
            choice = self.probe.choose(train[full], held_out, classes, labels, seed, scored=False)
            rate = choice.rate
            count = self.probe.seeds if labels == "all" else self.draws
            for head in self.heads:
                queries = _filled(subject, side, test, full) if head == "fixed" else test
                right: dict[str, dict[Subset, np.ndarray]] = {"top1": {}, "knn1": {}}
                fitted = None
                for subset in every:
                    source = side[full] if head == "fixed" else side[subset]
                    if fitted is None or head == "own":
                        fitted = train_heads(source, classes, self.recipe, labels, rate, count, seed)
                    logits = fitted.logits(queries[subset].features)
                    right["top1"][subset] = (logits.argmax(2) == queries[subset].labels).cpu().numpy()
                    right["knn1"][subset] = _neighbours(queries[subset], source, classes, labels, self.draws)
                metrics, ci95, more = _collect(right, next(iter(test.values())).groups)
                yield Answer(
                    metrics,
                    ci95,
                    choice.selection,
                    parameters=classes * (side[full].features.shape[1] + 1),
                    extra={
                        "labels": label_name(labels), "head": head, "recipe": self.recipe_name, "lr": rate,
                        "steps": fitted.steps if fitted else None, "streams": "+".join(full),
                    } | more | {"repetitions": count},
                )  # fmt: skip


def _neighbours(queries: FeatureTable, gallery: FeatureTable, classes: int, labels: Labels, draws: int) -> np.ndarray:
    """`(repetitions, Q)` bool: recognised by the nearest neighbour; one repetition with all labels."""
    if labels == "all":
        return knn_correct(queries, gallery, classes, [1])[0][1][None]
    runs = few_label_correct(queries, gallery, classes, int(labels), draws, [1])
    return np.stack([right[1] for right, *_ in runs])


def _filled(
    subject: Subject, train: dict[Subset, FeatureTable], test: dict[Subset, FeatureTable], full: Subset
) -> dict[Subset, FeatureTable]:
    """Test features under a fixed head: an encoder takes any subset; raw pose has its missing streams filled in."""
    if subject.encoder != "raw_pose":
        return test
    mean = train[full].features.mean(0)
    width = mean.shape[0] // len(full)
    out = {}
    for subset, table in test.items():
        features = mean.repeat(len(table), 1)
        for i, stream in enumerate(full):
            if stream in subset:
                columns = slice(i * width, (i + 1) * width)
                features[:, columns] = test[(stream,)].features
        out[subset] = replace(table, features=features)
    return out


def _collect(
    right: dict[str, dict[Subset, np.ndarray]], groups: np.ndarray
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, Any]]:
    """Metrics, intervals and extra keys; the clips of `worst` are those of the subset that is worst on average."""
    values: dict[str, np.ndarray] = {}
    estimates: dict[str, np.ndarray] = {}
    for name, found in right.items():
        stack = 100.0 * np.stack(list(found.values())).astype(np.float64)  # (subsets, repetitions, Q)
        per_run = stack.mean(2)
        values |= {f"{name}/{subset_name(s)}": stack[i] for i, s in enumerate(found)}
        values |= {f"{name}/mean": stack.mean(0), f"{name}/worst": stack[per_run.mean(1).argmin()]}
        estimates[f"{name}/worst"] = per_run.min(0)
    return summarise(values, groups, estimates)
