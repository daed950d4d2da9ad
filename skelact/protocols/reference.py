"""Corruption errors against a reference run, as ImageNet-C has them, and paired differences to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skelact.errors import SkelactError
from skelact.protocols.base import paired, scores_key
from skelact.results import Record, Scores, load_scores, read_records

if TYPE_CHECKING:
    from skelact.data.datamodules import SkeletonDataModule

PROTOCOL = "robustness"


def corruption_errors(
    own: Mapping[str, float], reference: Mapping[str, float], corruptions: Sequence[str], severities: Sequence[int]
) -> tuple[dict[str, float], list[str]]:
    """Mean corruption errors in percent (Hendrycks and Dietterich, ICLR 2019).

    With E the error of a corruption c at a severity s, `mce` is the mean over c of sum_s E(c, s) / sum_s E_ref(c, s),
    and `relative_mce` the mean over c of sum_s (E(c, s) - E(clean)) / sum_s (E_ref(c, s) - E_ref(clean)).

    Args:
        own: metrics `top1/clean` and `top1/<corruption>/<severity>` in percent.
        reference: the same of the reference.
        corruptions: which to take.
        severities: which to sum over.

    Returns:
        `mce` and `relative_mce`, each where it is defined, and the corruptions without a relative error: a reference
        that loses nothing by them has none to compare with.
    """
    plain, relative, undefined = [], [], []
    clean, clean_reference = own["top1/clean"], reference["top1/clean"]
    for name in corruptions:
        keys = [f"top1/{name}/{severity}" for severity in severities]
        error, error_reference = (sum(100.0 - found[key] for key in keys) for found in (own, reference))
        lost, lost_reference = (
            sum(start - found[key] for key in keys) for found, start in ((own, clean), (reference, clean_reference))
        )
        if error_reference > 0:
            plain.append(100.0 * error / error_reference)
        if lost_reference > 1e-9:
            relative.append(100.0 * lost / lost_reference)
        else:
            undefined.append(name)
    means = {"mce": plain, "relative_mce": relative}
    return {name: float(np.mean(each)) for name, each in means.items() if each}, undefined


@dataclass(frozen=True)
class Reference:
    """The run that errors are divided by.

    Args:
        name: `METHOD (RUN)`, for tables.
        path: its results.
        record: its first row, without filling.
        scores: its per-clip scores, None where the run has none.
    """

    name: str
    path: Path
    record: Record
    scores: Scores | None

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Read a robustness run.

        Args:
            path: a run directory, or its `results.json` or `scores.npz`.

        Raises:
            SkelactError: there are no results of this protocol.
        """
        given = Path(path).expanduser()
        run = given.parent if given.suffix in (".json", ".npz") else given
        file = given if given.suffix == ".json" else run / "results.json"
        found = [r for r in read_records(file) if r.protocol == PROTOCOL and r.extra.get("fill") == "none"]
        if not found:
            raise SkelactError(f"protocol.reference={path}: {file} has no records of robustness with fill none")
        scores = load_scores(run / "scores.npz") if (run / "scores.npz").exists() else None
        return cls(f"{found[0].method} ({run.name})", file, found[0], scores)

    def check(self, datamodule: SkeletonDataModule, suite: str, cells: Sequence[str]) -> None:
        """Refuse a reference that was asked other questions.

        Raises:
            SkelactError: other data, split, corruptions, severities or seed; the message says which.
        """
        here = {"data": datamodule.name, "split": datamodule.split, "fingerprint": datamodule.fingerprint}
        there: dict[str, Any] = {key: getattr(self.record, key) for key in here}
        here, there = here | {"suite": suite}, there | {"suite": self.record.extra.get("suite")}
        for key, value in here.items():
            if str(value) != str(there[key]):
                raise SkelactError(
                    f"protocol.reference: {self.path} has {key} {there[key]}, here it is {value}; errors can only be "
                    f"divided by those on the same corrupted clips"
                )
        lacking = [cell for cell in cells if f"top1/{cell}" not in self.record.metrics]
        if lacking:
            raise SkelactError(
                f"protocol.reference: {self.path} lacks {lacking[0]} ({len(lacking)} of {len(cells)}); judge it with "
                f"the same protocol.corruptions and protocol.severities"
            )

    def difference(
        self, scores: Mapping[str, np.ndarray], names: Sequence[str], labels: np.ndarray, groups: np.ndarray
    ) -> dict[str, Any] | None:
        """Paired difference of the mean accuracy over corruptions, on the same clips; None where scores are missing.

        Of several heads the mean of their scores decides, here and there.

        Args:
            scores: cell, for example `drift/3`, -> `(N, classes)`.
            names: N clip names.
            labels: `(N,)` classes.
            groups: `(N,)` groups of the clips.
        """
        if self.scores is None:
            return None
        key = scores_key(PROTOCOL, self.record.method, self.record.extra)
        if any(f"{key}/{cell}" not in self.scores.scores for cell in scores):
            return None
        where = {str(name): row for row, name in enumerate(self.scores.names)}
        if set(where) != set(names):
            return None
        rows = [where[name] for name in names]
        own = np.mean([each.argmax(1) == labels for each in scores.values()], 0)
        other = np.mean([self.scores.entry(f"{key}/{cell}")[rows].argmax(1) == labels for cell in scores], 0)
        return paired(100.0 * own[None], 100.0 * other[None], groups, "top1/mean")
