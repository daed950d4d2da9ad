"""Corruption errors against a reference run, as ImageNet-C has them, and what paired comparisons with it need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skelact.errors import SkelactError
from skelact.protocols.base import scores_key
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


def mce_interval(
    own: np.ndarray, reference: np.ndarray, groups: np.ndarray, draws: int = 4_000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of `mce` over test clips, the same clips drawn for both sides, whole groups at a time.

    Args:
        own: `(C, N)` error of each corruption and clip, mean over severities.
        reference: the same of the reference; its corruptions without any error are left out.
        groups: `(N,)` groups of the clips.
        draws: bootstrap repetitions.
        seed: of the resampling.
    """
    counted = reference.sum(1) > 0
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    sums = np.stack([[np.bincount(group, each, count) for each in side[counted]] for side in (own, reference)])
    weight = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    errors, others = np.einsum("dg,scg->sdc", weight, sums)
    defined = (others > 0).sum(1)  # a draw of clips may leave the reference without error
    ratios = np.divide(errors, others, out=np.zeros_like(errors), where=others > 0).sum(1)
    low, high = np.quantile(100.0 * ratios[defined > 0] / defined[defined > 0], [0.025, 0.975])
    return float(low), float(high)


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

    def right(self, cells: Sequence[str], names: Sequence[str], labels: np.ndarray) -> np.ndarray | None:
        """`(cells, N)` percent right in each cell (`drift/3`) and clip; None where per-clip scores are missing.

        Of several heads the mean of their scores decides.

        Args:
            cells: which.
            names: N clip names.
            labels: `(N,)` classes.
        """
        if self.scores is None:
            return None
        key = scores_key(PROTOCOL, self.record.method, self.record.extra)
        where = {str(name): row for row, name in enumerate(self.scores.names)}
        if set(where) != set(names) or any(f"{key}/{cell}" not in self.scores.scores for cell in cells):
            return None
        rows = [where[name] for name in names]
        return np.stack([100.0 * (self.scores.entry(f"{key}/{cell}")[rows].argmax(1) == labels) for cell in cells])
