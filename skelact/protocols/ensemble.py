"""Late fusion: class scores of finished runs, joined by clip name and added up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skelact.results import ResultsError, Scores

FUSED = "ensemble"
"""Under which key :func:`fuse` gives its scores."""


def fuse(runs: Sequence[Scores], weights: Sequence[float] | None = None, keys: Sequence[str | None] = ()) -> Scores:
    """Weighted sum of class scores, clip by clip.

    As AimCLR fuses its streams: plain scores (there logits), no softmax; published weights 0.6 joint, 0.6 bone and 0.4
    motion. Rows are joined by clip name and not by position.

    Args:
        runs: scores of at least one run, over the same clips in any order.
        weights: one for each run; None: 1 for each.
        keys: which scores of each run; empty, or None in a place: its only ones.

    Returns:
        scores under :data:`FUSED`, float32, clips in the order of the first run.

    Raises:
        ResultsError: runs of other clips, labels or class counts, or a number of weights or keys that does not fit.
    """
    if not runs:
        raise ResultsError("there are no runs to fuse")
    weights = [1.0] * len(runs) if weights is None else [float(weight) for weight in weights]
    chosen = list(keys) or [None] * len(runs)
    if len(weights) != len(runs) or len(chosen) != len(runs):
        raise ResultsError(f"{len(runs)} runs need as many weights and keys, got {len(weights)} and {len(chosen)}")
    first = runs[0]
    classes = np.shape(first.entry(chosen[0]))[1]
    total = np.zeros((len(first.names), classes), dtype=np.float64)
    for place, (run, weight, key) in enumerate(zip(runs, weights, chosen, strict=True)):
        rows = _rows(first.names, run.names, place)
        scores = run.entry(key)
        if np.shape(scores)[1] != classes:
            raise ResultsError(f"run {place + 1} has scores of {np.shape(scores)[1]} classes, the first {classes}")
        wrong = np.flatnonzero(run.labels[rows] != first.labels)
        if len(wrong):
            raise ResultsError(f"run {place + 1} has another label of clip {first.names[wrong[0]]} than the first")
        total += weight * scores[rows].astype(np.float64)
    return Scores(first.names, first.labels, first.groups, {FUSED: total.astype(np.float32)})


def _rows(names: NDArray[np.str_], other: NDArray[np.str_], place: int) -> NDArray[np.int64]:
    """Where each of `names` is in `other`."""
    where = {str(name): row for row, name in enumerate(other)}
    if len(where) != len(other):
        raise ResultsError(f"run {place + 1} has several rows of one clip")
    missing = [str(name) for name in names if str(name) not in where]
    if missing or len(where) != len(names):
        example = missing[0] if missing else next(iter(set(where) - {str(name) for name in names}))
        raise ResultsError(
            f"run {place + 1} has {len(other)} clips and the first {len(names)}, not the same: {example}"
        )
    return np.array([where[str(name)] for name in names], dtype=np.int64)


def top(scores: NDArray[np.floating], labels: NDArray[np.integer], k: int = 1) -> float:
    """Percent of clips `(N, C)` whose label is among the k best scores; of equal scores the lower class comes first."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return 100.0 * float((best == labels[:, None]).any(1).mean())
