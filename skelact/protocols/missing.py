"""Missing streams: what is left of the accuracy when only some streams or modalities are there?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from skelact.errors import SkelactError
from skelact.protocols.base import Answer, Labels, Protocol, encoder_parameters, label_name, paired
from skelact.protocols.classifier import named
from skelact.protocols.features import FeatureTable, Subject, Subset, subset_name
from skelact.protocols.heads import Heads, get_recipe
from skelact.protocols.linear import LinearProbe, train_heads
from skelact.protocols.retrieval import few_label_correct, knn_correct
from skelact.protocols.subset_fills import LATE, chosen_fills, classified, filled, nearest_poses
from skelact.protocols.subset_scores import RATES, SubsetScores, choose_subsets, half, hits

if TYPE_CHECKING:
    from skelact.data.datamodules import SkeletonDataModule
    from skelact.methods.base import Method


class MissingStreams(Protocol):
    """Recognition from every non-empty subset of a method's streams or modalities.

    A method with `classify_subsets` is judged by its own logits, one record per fill, which is how it stands in for
    what is missing. Raw pose is then the nearest training pose, for the subsets that are of a skeleton alone.

    Any other encoder is judged by linear heads and by nearest neighbours, per label setting. `head=fixed`: one head
    (and one gallery) on features of all streams, and streams go missing at test time only; one record per fill.
    `head=own`: a head (and gallery) for every subset, the upper bound. The learning rate is chosen once, on all
    streams, as :class:`~skelact.protocols.linear.LinearProbe` does. Raw pose concatenates the streams; one that is
    missing under a fixed head is replaced by its mean over the training clips, the stronger of the usual fillings.

    Metrics, of :class:`~skelact.protocols.subset_scores.SubsetScores`: `top1/<a+b>` per subset, names sorted, `/mean`
    over subsets, `/incomplete` over those that lack something, `/present<k>` over those of k streams, `/worst`,
    `/rate<p>` where each stream of a clip is missing with probability p; `top5/`, `knn1/`, `drop/`, `drop_percent/` and
    `mean_class/`. A clip of which a subset leaves nothing counts as wrong (`unanswered`).

    Args:
        subsets: lists of streams; None: all, or of more than five streams those of
            :func:`~skelact.protocols.subset_scores.choose_subsets`.
        fills: ways to stand in, see :func:`~skelact.protocols.subset_fills.known_fills` and the method's `fills`; None:
            of a classifier all that it knows, of an encoder its own.
        rates: missing rates.
        recipe: linear recipe.
        seeds: heads with all labels.
        heads: `fixed`, `own` or both.
        epochs: other than the recipe's.
        labels: label settings, each `all` or a number of labelled clips per class.
        draws: label lists per few-label setting.
        baselines: True, False, or some of `untrained` (not of classifiers) and `raw_pose`.
        precision: autocast of the encoder.
        cache: keep extracted features in the run directory.
        label: what the method is called in tables, to tell trainings of one method apart; None: by method and, of a
            classifier, network.
    """

    name = "missing"

    def __init__(
        self,
        subsets: Sequence[Sequence[str]] | None = None,
        fills: Sequence[str] | str | None = None,
        rates: Sequence[float] = RATES,
        recipe: str = "skelact_linear_v1",
        seeds: int = 5,
        heads: Sequence[str] = ("fixed", "own"),
        epochs: int | None = None,
        labels: Sequence[Labels] | Labels = ("all", 1),
        draws: int = 20,
        baselines: bool | Sequence[str] = True,
        precision: str | None = None,
        cache: bool = True,
        label: str | None = None,
    ) -> None:
        super().__init__(labels, draws, baselines, precision, cache)
        if not heads or set(heads) - {"fixed", "own"}:
            raise ValueError(f"heads={list(heads)}: choose from fixed, own")
        if not all(0 <= float(rate) <= 1 for rate in rates):
            raise SkelactError(f"protocol.rates={list(rates)}: each is a probability")
        self.subsets, self.rates, self.heads = subsets, [float(rate) for rate in rates], tuple(heads)
        self.fills = (fills,) if isinstance(fills, str) else fills
        self.probe = LinearProbe(recipe, seeds, epochs=epochs, baselines=False)
        self.recipe_name = recipe
        self.recipe = get_recipe(self.probe.recipe)
        self.label = label

    def check(self, method: Method, datamodule: SkeletonDataModule) -> None:
        """Before anything is trained.

        Raises:
            SkelactError: subsets of streams that a method has not, or fills that it does not know.
        """
        choose_subsets(method.streams, getattr(method, "groups", None), self.subsets)
        chosen_fills(Subject("", "pretrained", method, datamodule), self.fills)

    def answers(self, subjects: Iterable[Subject], seed: int) -> Iterator[tuple[Subject, Answer]]:
        """Rows of all subjects; per-clip scores are kept of the method's own."""
        for number, subject in enumerate(named(subjects, self.label, "classify_subsets")):
            asked = choose_subsets(subject.method.streams, getattr(subject.method, "groups", None), self.subsets)
            judge = self._classified if hasattr(subject.method, "classify_subsets") else self._probed
            for answer in judge(subject, asked, seed):
                answer.extra["chance"] = 100.0 / subject.datamodule.num_classes
                answer.cells = {} if number else answer.cells
                yield subject, answer

    def _classified(self, subject: Subject, asked: Sequence[Subset], seed: int) -> Iterator[Answer]:
        """Rows of a classifier, one per fill; beside it the raw pose where there is a skeleton."""
        if subject.encoder == "raw_pose":
            found = nearest_poses(subject, asked)
            if found is not None:
                answer = self._answer(found, "none", {"judge": "nearest neighbour", "fill": "drop"}, True)
                if list(found.subsets) != list(asked):  # means over other subsets are not to be compared
                    own = {f"top1/{subset_name(subset)}" for subset in found.subsets}
                    answer.metrics = {name: value for name, value in answer.metrics.items() if name in own}
                    answer.ci95, answer.correct = {name: answer.ci95[name] for name in answer.metrics}, None
                    del answer.extra["worst"]
                yield answer
            return
        answers = []
        fills = chosen_fills(subject, self.fills)
        for fill, scores in classified(subject, asked, fills).items():
            answers.append(self._answer(scores, "none", {"judge": "own classifier", "fill": fill}, fill == fills[0]))
            total = sum(p.numel() for p in subject.method.parameters())
            answers[-1].parameters = total - encoder_parameters(subject.method)
        yield from _compared(answers, subject.datamodule.groups("test"))

    def _probed(self, subject: Subject, asked: Sequence[Subset], seed: int) -> Iterator[Answer]:
        """Rows of an encoder: label settings x heads, with a fixed head x fills."""
        full = tuple(subject.method.streams)
        fills, singles = chosen_fills(subject, self.fills), [(stream,) for stream in full]
        every = list(dict.fromkeys([*asked, full, *(singles if LATE in fills else ())]))
        train, test = subject.tables("train", every), subject.tables("test", every)
        val = subject.tables("val", every) if subject.datamodule.size("val") else None
        side = train if val is None else {s: FeatureTable.join(train[s], val[s]) for s in every}
        queries = {f: filled(subject, f, side[full], test, asked) for f in fills if f != LATE}
        classes, width = subject.datamodule.num_classes, side[full].features.shape[1]
        rows: list[tuple[str, str | None]] = [("fixed", fill) for fill in fills if "fixed" in self.heads]
        rows += [("own", None)] if "own" in self.heads else []
        for labels in self.labels:
            held_out = val[full] if val else None
            choice = self.probe.choose(train[full], held_out, classes, labels, seed, scored=False)
            count = self.probe.seeds if labels == "all" else self.draws
            train_on = partial(train_heads, classes=classes, recipe=self.recipe, labels=labels, rate=choice.rate)
            trained: dict[Subset, Heads] = {}
            answers = []
            for head, fill in rows:
                found = _Collector(subject, asked, test[full])
                for subset in asked:
                    sources = [full] if head == "fixed" else [subset]
                    sources = [(stream,) for stream in subset] if fill == LATE else sources
                    for source in sources:
                        if source not in trained:
                            trained[source] = train_on(side[source], count=count, seed=seed)
                    if fill == LATE:
                        logits = [trained[source].logits(test[source].features) for source in sources]
                        found.add(torch.stack(logits).mean(0))
                        continue
                    table = test[subset] if fill is None else queries[fill][subset]
                    right = _neighbours(table, side[sources[0]], classes, labels, self.draws)
                    found.add(trained[sources[0]].logits(table.features), right)
                facts: dict[str, Any] = {"labels": label_name(labels), "head": head}
                facts |= {"fill": fill} if fill else {}
                facts |= {"recipe": self.recipe_name, "lr": choice.rate, "steps": trained[sources[0]].steps}
                answer = self._answer(found.scores(), choice.selection, facts, fill in (None, fills[0]))
                answer.parameters = classes * (width + 1)
                if fill == LATE:
                    answer.passes = singles
                    answer.parameters = sum(classes * (int(side[s].features.any(0).sum()) + 1) for s in singles)
                answer.cells = answer.cells if labels == self.labels[0] else {}
                answers.append(answer)
            yield from _compared(answers, subject.datamodule.groups("test"))

    def _answer(self, found: SubsetScores, selection: str, facts: dict[str, Any], own: bool) -> Answer:
        """A row; `own`: the subject stands in for what is missing in its own way, by which subjects are compared."""
        metrics, ci95, extra = found.summary(self.rates)
        extra["streams"] = "+".join(found.streams)
        cells = {}
        if own and found.scores is not None:
            cells = {subset_name(subset): found.scores[i] for i, subset in enumerate(found.subsets)}
        pair = "/".join(str(facts[key]) for key in ("labels", "head") if key in facts) if own else None
        correct = found.percent()["top1/mean"]
        return Answer(metrics, ci95, selection, correct=correct, cells=cells, pair=pair, extra=facts | extra)


class _Collector:
    """Gathers what heads say, subset after subset."""

    def __init__(self, subject: Subject, asked: Sequence[Subset], table: FeatureTable) -> None:
        self.streams, self.asked, self.table = tuple(subject.method.streams), asked, table
        self.right: dict[str, list[np.ndarray]] = {}
        self.mean: list[np.ndarray] = []

    def add(self, logits: Tensor, neighbours: np.ndarray | None = None) -> None:
        """Of one subset: logits `(R, N, C)`, and whether the nearest neighbour was right, `(R, N)` bool."""
        top1, top5 = hits(logits, self.table.labels)
        found = {"top1": top1.cpu().numpy(), "top5": top5.cpu().numpy(), "knn1": neighbours}
        for measure, right in found.items():
            if right is not None:
                self.right.setdefault(measure, []).append(right)
        self.mean.append(half(logits.mean(0)))

    def scores(self) -> SubsetScores:
        """All of them."""
        right = {measure: np.stack(each) for measure, each in self.right.items()}
        labels, available = self.table.labels.cpu().numpy(), np.ones((len(self.table), len(self.streams)), dtype=bool)
        return SubsetScores(
            self.streams, self.asked, right, labels, self.table.names, self.table.groups, available, np.stack(self.mean)
        )


def _compared(answers: Sequence[Answer], groups: np.ndarray) -> Sequence[Answer]:
    """The rows of one subject and label setting, the first with its paired differences to the other fills."""
    first, *others = answers
    found = {}
    for other in others:
        if "fill" in other.extra and first.correct is not None and other.correct is not None:
            found[f"fill {other.extra['fill']}"] = paired(first.correct, other.correct, groups, "top1/mean")
    if found:
        first.extra["differences"] = found
    return answers


def _neighbours(queries: FeatureTable, gallery: FeatureTable, classes: int, labels: Labels, draws: int) -> np.ndarray:
    """`(repetitions, Q)` bool: recognised by the nearest neighbour; one repetition with all labels."""
    if labels == "all":
        return knn_correct(queries, gallery, classes, [1])[0][1][None]
    runs = few_label_correct(queries, gallery, classes, int(labels), draws, [1])
    return np.stack([right[1] for right, *_ in runs])
