"""One-shot recognition: are classes that training has not seen told apart by a single clip of each?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from skelact.data.splits import choose_exemplars
from skelact.errors import SkelactError
from skelact.methods.base import Method
from skelact.protocols.base import Answer, Protocol, label_rows, summarise
from skelact.protocols.features import SPACES, FeatureTable, Subject


def nearest_exemplar(queries: Tensor, exemplars: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The class of the exemplar with the highest cosine, the first of equals.

    Args:
        queries: `(Q, D)`.
        exemplars: `(K, D)`.
        labels: `(K,)` their classes.

    Returns:
        `(Q,)` classes and `(Q, K)` cosines, float32.
    """
    cosine = F.normalize(queries.float(), dim=1) @ F.normalize(exemplars.float(), dim=1).T
    return labels[cosine.argmax(1)], cosine


class OneShot(Protocol):
    """Recognition of new classes by one exemplar of each (NTU RGB+D 120's one-shot protocol; MotionBERT's routine).

    Exemplars and queries are clips of the classes that the split `oneshot` keeps from training; each query takes the
    class of the exemplar of highest cosine, the first of equals. Row `exemplars`: those that the set names, or
    :func:`~skelact.data.splits.choose_exemplars` picks. One list says little about others, so the row
    `random exemplars` is the mean over lists drawn from the test part by clip names alone. Queries of an exemplar's own
    group (other views of the very motion, where cameras are simulated) are not counted.

    Intervals: clip bootstrap clustered by recording, for random exemplars together with the t-interval over lists.

    Args:
        part: `test`, or `val`: the classes that training leaves out to choose by. The latter writes no scores and no
            differences.
        draws: lists of random exemplars; 0 for none.
        baselines: True, False, or some of `untrained` and `raw_pose`.
        precision: autocast of the encoder.
        cache: keep extracted features in the run directory.
        streams: judge these of the method's streams alone; None means all.
        space: `feature` (the encoder's) or `embedding` (the method's own); None: the method's choice.
    """

    name = "oneshot"

    def __init__(
        self,
        part: Literal["test", "val"] = "test",
        draws: int = 20,
        baselines: bool | Sequence[str] = True,
        precision: str | None = None,
        cache: bool = True,
        streams: Sequence[str] | str | None = None,
        space: Literal["feature", "embedding"] | None = None,
    ) -> None:
        super().__init__("all", max(draws, 1), baselines, precision, cache, streams)
        if part not in ("test", "val"):
            raise SkelactError(f"protocol.part={part} is neither test nor val")
        if space not in (None, *SPACES):
            raise SkelactError(f"protocol.space={space} is not known; choose from {', '.join(SPACES)}, or null")
        self.part, self.draws, self._space = part, draws, space

    def _subjects(self, method: Method, *rest: Any) -> Iterator[Subject]:
        self.space = self._space or method.space
        return super()._subjects(method, *rest)

    def answer(self, subject: Subject, seed: int) -> Iterator[Answer]:
        """A row for the exemplars of the split, and one for random ones."""
        exemplars, queries = self.tables(subject)
        classes = exemplars.labels.tolist()
        if lost := sorted(set(queries.labels.tolist()) - set(classes)):
            names = ", ".join(subject.datamodule.class_names[label] for label in lost)
            raise SkelactError(f"{subject.datamodule.name}: the clips that are exemplars of {names} are missing")
        tested = self.part == "test"
        extra: dict[str, Any] = {"way": len(exemplars), "novel": sorted(classes), "part": self.part}
        if subject.encoder != "raw_pose":
            extra["space"] = self.space
        lists = {"exemplars": [exemplars]}
        if self.draws:
            rows = [label_rows(queries, 1, draw) for draw in range(self.draws)]
            lists["random exemplars"] = [queries.select(some) for some in rows]
        for labels, chosen in lists.items():
            found = [judge(queries, some) for some in chosen]
            values = np.stack([right for right, _, _ in found])
            metrics, ci95, more = summarise({"top1": values}, queries.groups)
            own = {"labels": labels, "queries": int(np.mean([counted for _, counted, _ in found]))}
            scores = None
            if labels == "exemplars" and tested:
                own["exemplars"] = exemplars.names
                scores = np.full((len(queries), subject.datamodule.num_classes), -1, np.float32)
                scores[:, classes] = found[0][2].cpu().numpy()
            correct = values if tested else None
            yield Answer(metrics, ci95, "none", scores=scores, correct=correct, extra={**own, **extra, **more})

    def tables(self, subject: Subject) -> tuple[FeatureTable, FeatureTable]:
        """Exemplars and queries.

        Raises:
            SkelactError: the split has no new classes.
        """
        data = subject.datamodule
        if not data.size("exemplars"):
            raise SkelactError(
                f"protocol=oneshot asks for classes that training has not seen: take data.split=oneshot (data.novel "
                f"says which they are), not data.split={data.split}"
            )
        if self.part == "test":
            return subject.own("exemplars")[subject.full], subject.own("test")[subject.full]
        rows = data.rows("val")
        chosen = np.isin(rows, choose_exemplars(data.store.columns, rows))
        table = subject.own("val")[subject.full]
        return table.select(np.flatnonzero(chosen)), table.select(np.flatnonzero(~chosen))


def judge(queries: FeatureTable, exemplars: FeatureTable) -> tuple[np.ndarray, int, Tensor]:
    """One list of exemplars.

    Returns:
        `(Q,)` percent, 100 for a right query, 0 for a wrong one, and their mean for one that is not counted because it
        is an exemplar or of an exemplar's group; how many are counted; cosines `(Q, K)`.
    """
    found, cosine = nearest_exemplar(queries.features, exemplars.features, exemplars.labels)
    right = 100.0 * (found == queries.labels).cpu().numpy()
    counted = ~np.isin(queries.groups, exemplars.groups)
    if not counted.any():
        raise SkelactError("every query is of the recording of an exemplar: there is nothing to judge by")
    right[~counted] = right[counted].mean()
    return right, int(counted.sum()), cosine
