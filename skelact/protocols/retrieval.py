"""Retrieval: does the nearest training clip show the same action?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skelact.errors import SkelactError
from skelact.protocols.base import Answer, Labels, Protocol, label_name, label_rows, summarise
from skelact.protocols.features import SPACES, FeatureTable, Subject
from skelact.protocols.neighbours import Neighbours, search


def vote(labels: Tensor, classes: int, similarity: Tensor | None = None, temperature: float | None = None) -> Tensor:
    """Class with the most votes among neighbours; the lowest class wins a tie.

    Args:
        labels: `(Q, k)` classes of the neighbours, nearest first.
        classes: number of classes.
        similarity: `(Q, k)` cosines, for weighted votes.
        temperature: a vote weighs exp(cosine / temperature); None: all weigh the same.

    Returns:
        `(Q,)`.
    """
    if temperature is None:
        weight = torch.ones_like(labels, dtype=torch.float32)
    else:
        assert similarity is not None
        # in double precision and relative to the nearest, so that a low temperature neither overflows nor ties
        weight = ((similarity - similarity[:, :1]).double() / temperature).exp()
    return weight.new_zeros(len(labels), classes).scatter_add_(1, labels, weight).argmax(1)


def class_scores(found: Neighbours, labels: Tensor, classes: int) -> Tensor:
    """`(Q, C)` cosine of the nearest neighbour of each class, -1 for classes not among the neighbours."""
    scores = torch.full((len(found.index), classes), -1.0, device=found.similarity.device)
    return scores.scatter_reduce_(1, labels[found.index], found.similarity, "amax")


def knn_correct(
    queries: FeatureTable, gallery: FeatureTable, classes: int, k: Sequence[int], temperature: float | None = None
) -> tuple[dict[int, np.ndarray], Tensor]:
    """Whether each query is recognised by its k nearest neighbours, with votes as :func:`vote` counts them.

    Returns:
        k -> `(Q,)` bool, and class scores `(Q, C)`.
    """
    found = search(queries.features, gallery.features, max(k))
    right = _right(found, gallery.labels, queries.labels, classes, k, temperature)
    return right, class_scores(found, gallery.labels, classes)


def few_label_correct(
    queries: FeatureTable,
    gallery: FeatureTable,
    classes: int,
    per_class: int,
    draws: int,
    k: Sequence[int],
    temperature: float | None = None,
) -> Iterator[tuple[dict[int, np.ndarray], Tensor, int]]:
    """As :func:`knn_correct` with only the labelled clips of each draw as gallery; also yields their number."""
    lists = [torch.from_numpy(label_rows(gallery, per_class, draw)) for draw in range(draws)]
    used, position = torch.unique(torch.cat(lists), return_inverse=True)
    few = gallery.features[used.to(gallery.features.device)]
    cosine = F.normalize(queries.features, dim=1) @ F.normalize(few, dim=1).T
    for rows, columns in zip(lists, position.split([len(rows) for rows in lists]), strict=True):
        value, at = cosine[:, columns.to(cosine.device)].topk(min(max(k), len(rows)), 1)
        own = gallery.labels[rows.to(gallery.labels.device)]
        found = Neighbours(at, value)
        right = _right(found, own, queries.labels, classes, k, temperature)
        yield right, class_scores(found, own, classes), len(rows)


def _right(
    found: Neighbours, labels: Tensor, truth: Tensor, classes: int, k: Sequence[int], temperature: float | None
) -> dict[int, np.ndarray]:
    """For each number of neighbours which votes `(Q,)` are right."""
    near = labels[found.index]
    votes = {n: vote(near[:, :n], classes, found.similarity[:, :n], temperature) for n in k}
    return {n: (voted == truth).cpu().numpy() for n, voted in votes.items()}


class Retrieval(Protocol):
    """k-nearest-neighbour recognition on encoder features.

    Gallery: the whole training side of the split (validation included, for nothing is chosen). Queries: the test part.
    Cosine similarity, uniform votes, the lowest class number wins a tie; exact. This is the protocol of the CMD
    and UmURL code (there k = 1). With a temperature votes are weighted by exp(cosine / temperature), as the CMCS
    (3s-CACA) code does with 0.1 and k = 20; the metrics are then called `wknn<k>` instead of `knn<k>`.

    With n labels per class the gallery shrinks to the labelled clips and the metrics are means over label lists; only
    k <= n is reported, for with more neighbours than clips per class the votes are not the question asked.
    Intervals: clip bootstrap clustered by recording, with few labels together with the t-interval over label lists
    (:func:`~skelact.results.repeated_interval`).

    Args:
        k: numbers of neighbours.
        labels: label settings, each `all` or a number of labelled clips per class.
        draws: label lists per few-label setting.
        baselines: True, False, or some of `untrained` and `raw_pose`.
        precision: autocast of the encoder.
        cache: keep extracted features in the run directory.
        temperature: None: uniform votes.
        streams: judge these of the method's streams alone; None means all.
        space: `feature` (the encoder's) or `embedding`: the method's own `embed_features`, for the contrastive family
            the mean over streams of what the projectors give, not normalised before it is averaged. The 3s-CACA code
            does that for three streams and takes features for one.
    """

    name = "retrieval"

    def __init__(
        self,
        k: Sequence[int] = (1, 5, 10, 20),
        labels: Sequence[Labels] | Labels = ("all", 1),
        draws: int = 20,
        baselines: bool | Sequence[str] = True,
        precision: str | None = None,
        cache: bool = True,
        temperature: float | None = None,
        streams: Sequence[str] | str | None = None,
        space: str = "feature",
    ) -> None:
        super().__init__(labels, draws, baselines, precision, cache, streams)
        if space not in SPACES:
            raise SkelactError(f"protocol.space={space} is not known; choose from {', '.join(SPACES)}")
        self.space = space
        self.k = sorted(int(n) for n in k)
        if not self.k or self.k[0] < 1:
            raise ValueError(f"k={list(k)}: numbers of neighbours start at 1")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature={temperature}: give a number above 0, or null for uniform votes")
        self.temperature = None if temperature is None else float(temperature)

    def answer(self, subject: Subject, seed: int) -> Iterator[Answer]:
        """One row per label setting."""
        gallery, queries = subject.official_training(), subject.own("test")[subject.full]
        classes = subject.datamodule.num_classes
        kind = "knn" if self.temperature is None else "wknn"
        for labels in self.labels:
            extra: dict[str, object] = {"labels": label_name(labels)}
            if self.temperature is not None:
                extra["temperature"] = self.temperature
            if self.space != "feature" and subject.encoder != "raw_pose":
                extra["space"] = self.space
            if labels == "all":
                k = [n for n in self.k if n <= len(gallery)]
                right, scores = knn_correct(queries, gallery, classes, k, self.temperature)
                values = {f"{kind}{n}": 100.0 * right[n][None] for n in k}
                metrics, ci95, more = summarise(values, queries.groups)
                yield Answer(
                    metrics,
                    ci95,
                    "none",
                    scores=scores.cpu().numpy(),
                    correct=values[f"{kind}{k[0]}"],
                    extra=extra | {"gallery": len(gallery)} | more,
                )
                continue
            k = [n for n in self.k if n <= int(labels)] or [1]
            hits, sizes = [], []
            total = torch.zeros(len(queries), classes)
            lists = few_label_correct(queries, gallery, classes, int(labels), self.draws, k, self.temperature)
            for right, found, size in lists:
                hits.append(right)
                total += found.cpu()
                sizes.append(size)
            values = {f"{kind}{n}": 100.0 * np.stack([right[n] for right in hits]) for n in k}
            metrics, ci95, more = summarise(values, queries.groups)
            mean, own = (total / self.draws).numpy(), values[f"{kind}{k[0]}"]
            yield Answer(metrics, ci95, "none", scores=mean, correct=own, extra=extra | {"gallery": sizes[0]} | more)
