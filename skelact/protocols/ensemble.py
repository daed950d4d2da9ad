"""Ensembles: class scores of finished runs, joined by clip name and added up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from skelact.errors import SkelactError
from skelact.protocols.base import paired, scores_key, summarise, val_scores
from skelact.protocols.fusion import EQUAL, Weights, check, fit_weights, given_weights, name_weights
from skelact.protocols.linear import clip_accuracies
from skelact.results import Record, ResultsError, Scores, load_scores, read_records, save_scores

Number = TypeVar("Number", int, float)

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
    total = sum(weight * scores for weight, scores in zip(weights, _joined(runs, chosen), strict=True))
    first = runs[0]
    return Scores(first.names, first.labels, first.groups, {FUSED: np.asarray(total, dtype=np.float32)})


def _joined(runs: Sequence[Scores], keys: Sequence[str | None]) -> list[NDArray[np.float64]]:
    """Scores `(N, C)` of each run, clips in the order of the first."""
    first = runs[0]
    classes = np.shape(first.entry(keys[0]))[1]
    stack = []
    for place, (run, key) in enumerate(zip(runs, keys, strict=True)):
        rows = _rows(first.names, run.names, place)
        scores = run.entry(key)
        if np.shape(scores)[1] != classes:
            raise ResultsError(f"run {place + 1} has scores of {np.shape(scores)[1]} classes, the first {classes}")
        wrong = np.flatnonzero(run.labels[rows] != first.labels)
        if len(wrong):
            raise ResultsError(f"run {place + 1} has another label of clip {first.names[wrong[0]]} than the first")
        stack.append(scores[rows].astype(np.float64))
    return stack


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


@dataclass(frozen=True)
class Member:
    """One run's part in an ensemble.

    Args:
        path: its `scores.npz`.
        key: which of its scores are meant.
        record: what its results.json says of them.
        test: these scores alone.
        val: those of the validation part, None where the run has none.
    """

    path: Path
    key: str
    record: Record
    test: Scores
    val: Scores | None

    @classmethod
    def load(cls, run: Path, key: str | None) -> Member:
        """Read what a run left.

        Raises:
            ResultsError: no scores, no record, or nobody can tell which scores are meant.
        """
        path = run / "scores.npz" if run.is_dir() else run
        scores = load_scores(path)
        key = _own_key(path, scores) if key is None else key
        if key not in scores.scores:
            raise ResultsError(f"{path}: has no scores under {key!r}; there are {', '.join(scores.scores)}")
        records = [r for r in read_records(path.parent) if scores_key(r.protocol, r.method, r.extra) == key]
        if not records:
            raise ResultsError(f"{path.parent / 'results.json'}: has no record of {key!r}; is it of another run?")
        beside = val_scores(path)
        val = load_scores(beside) if beside.exists() else None
        val = val if val is not None and key in val.scores else None
        return cls(path, key, records[-1], _only(scores, key), val and _only(val, key))

    @property
    def words(self) -> tuple[str, str, str]:
        """What names it, from the general to the particular: method, streams, folder."""
        return self.record.method, str(self.record.extra.get("streams", "")), self.path.parent.name


def _only(scores: Scores, key: str) -> Scores:
    return replace(scores, scores={key: scores.entry(key)})


def _own_key(path: Path, scores: Scores) -> str:
    """The run's own method with all labels; of several such, the only one that is not a retrieval."""
    own = [key for key in scores.scores if key.endswith("/all") and "(untrained)" not in key and "/raw pose" not in key]
    trained = [key for key in own if not key.startswith("retrieval/")]
    for found in (trained, own):
        if len(found) == 1:
            return found[0]
    raise ResultsError(f"{path}: say with protocol.keys which scores are meant; there are {', '.join(scores.scores)}")


class Ensemble:
    """Scores of finished runs added up clip by clip; judges files, so it needs neither method, checkpoint nor data.

    One row for each run, then the fused one with its paired difference to the run that is best alone on the test part.
    Intervals: clip bootstrap, clustered by recording. The fused scores are written as well, so that an ensemble can be
    a member of another.

    Args:
        runs: run directories or `scores.npz` files; a run may come twice, with two keys.
        weights: `equal` (or None), `val` (fitted on the runs' `scores_val.npz`, see
            :func:`~skelact.protocols.fusion.fit_weights`), or a number for each run.
        keys: which scores of each run; None, or None in a place: those of its own method with all labels.
        fuse: add the scores as they are (`logits`: what linear evaluation writes) or their softmax (`probabilities`).
    """

    name = "ensemble"
    trains = False
    needs_method = False

    def __init__(
        self,
        runs: Sequence[str | Path] = (),
        weights: Weights = None,
        keys: Sequence[str | None] | None = None,
        fuse: str = "logits",
    ) -> None:
        if isinstance(runs, (str, Path)) or not runs:
            raise SkelactError("protocol.runs: name the finished runs to join: protocol.runs=[RUN_A,RUN_B]")
        if keys is not None and (isinstance(keys, str) or len(keys) != len(runs)):
            raise SkelactError(f"protocol.keys={keys}: give a key, or null, for each of the {len(runs)} runs")
        self.runs = [Path(run).expanduser() for run in runs]
        self.keys = list(keys) if keys else [None] * len(self.runs)
        self.weights, self.fuse = check(weights, fuse), fuse

    def run(self, *, seed: int = 0, scores: str | Path | None = None) -> list[Record]:
        """Join the runs.

        Args:
            seed: not read: nothing is drawn. A record has its run's seed, the fused one that of all runs if they agree.
            scores: file for the fused scores; None writes none.

        Returns:
            One record per run and one of all together.

        Raises:
            SkelactError: runs that are not there, or of other data, splits, preparations or clips.
        """
        start = time.perf_counter()
        members = [Member.load(path, key) for path, key in zip(self.runs, self.keys, strict=True)]
        _refuse_strangers(members)
        names = _names(members)
        tests = [self._terms(member.test) for member in members]
        vals = [self._terms(member.val) for member in members if member.val is not None]
        weights, how = self._weights(members, names, vals)
        fused = fuse(tests, weights)
        stack = [fused.entry(), *_joined(tests, [None] * len(tests))]
        answers = [_judge(each, fused) for each in stack]
        rows = []
        for member, name, (metrics, ci95, more, _) in zip(members, names, answers[1:], strict=True):
            own = member.record
            extra: dict[str, Any] = {k: own.extra[k] for k in ("labels", "streams", "encoder") if k in own.extra}
            extra |= {"fusion": "single", "run": str(member.path.parent), "key": member.key} | more
            changes = {"metrics": metrics, "ci95": ci95, "wall_s": None, "samples_per_s": None, "device": "cpu"}
            rows.append(replace(own, protocol=self.name, method=name, extra=extra, **changes))  # type: ignore[arg-type]
        best = max(range(len(rows)), key=lambda i: rows[i].metrics["top1"])
        metrics, ci95, more, correct = answers[0]
        seeds = {member.record.seed for member in members}
        whole = replace(
            rows[0],
            method=" + ".join(dict.fromkeys(member.record.method for member in members)),
            metrics=metrics,
            ci95=ci95,
            seed=seeds.pop() if len(seeds) == 1 else None,
            selection=how,
            checkpoint=None,
            parameters=_sum([row.parameters for row in rows]),
            gflops=_sum([row.gflops for row in rows]),
            wall_s=time.perf_counter() - start,
            extra=_united(rows)
            | {"fusion": "late", "fuse": self.fuse, "weights": name_weights(names, weights)}
            | {"runs": [str(member.path.parent) for member in members], "keys": [member.key for member in members]}
            | more,
        )
        whole.extra["differences"] = {
            f"best run alone ({names[best]})": paired(correct, answers[1 + best][3], fused.groups, "top1")
        }
        if scores is not None:
            self._save(Path(scores), whole, fused, vals, weights)
        return [*rows, whole]

    def _terms(self, scores: Scores) -> Scores:
        """What is added up."""
        if self.fuse == "logits":
            return scores
        soft = {key: torch.from_numpy(value).double().softmax(1).numpy() for key, value in scores.scores.items()}
        return replace(scores, scores=soft)

    def _weights(self, members: list[Member], names: list[str], vals: list[Scores]) -> tuple[list[float], str]:
        """Weights of the runs and how they were chosen."""
        weights = given_weights(self.weights, names)
        if weights is not None:
            return weights, f"none ({EQUAL if self.weights in (None, 'equal') else 'weights given'})"
        for member in members:
            if member.val is None:
                raise SkelactError(
                    f"protocol.weights=val: {val_scores(member.path)} has no {member.key!r}, the run's scores of "
                    f"validation clips; evaluate again on data with a validation part, or give weights"
                )
        return fit_weights(_joined(vals, [None] * len(vals)), vals[0].labels), "val:weights"

    def _save(self, path: Path, record: Record, fused: Scores, vals: list[Scores], weights: list[float]) -> None:
        """Fused scores of the test part and, where all runs have them for the same clips, of the validation part."""
        key = scores_key(record.protocol, record.method, record.extra)
        save_scores(path, fused.names.tolist(), fused.labels, {key: fused.entry()}, fused.groups.tolist())
        if len(vals) == len(weights) and len({frozenset(val.names.tolist()) for val in vals}) == 1:
            val = fuse(vals, weights)
            save_scores(val_scores(path), val.names.tolist(), val.labels, {key: val.entry()}, val.groups.tolist())


def _refuse_strangers(members: Sequence[Member]) -> None:
    """Refuse runs that were not judged on the same data, and one run taken twice."""
    first = members[0]
    for member in members[1:]:
        for what in ("data", "split", "fingerprint"):
            here, there = getattr(first.record, what), getattr(member.record, what)
            if here != there:
                raise SkelactError(
                    f"protocol.runs: {first.path.parent} has {what} {here}, but {member.path.parent} {there}; "
                    f"join runs that were judged on the same clips"
                )
    seen: set[tuple[Path, str]] = set()
    for member in members:
        if (member.path.resolve(), member.key) in seen:
            raise SkelactError(f"protocol.runs: {member.path.parent} comes twice with {member.key!r}; leave one out")
        seen.add((member.path.resolve(), member.key))


def _names(members: Sequence[Member]) -> list[str]:
    """A name for each run: as few words as tell them apart."""
    for words in ((0,), (0, 1), (0, 2), (0, 1, 2)):
        names = [" ".join(member.words[word] for word in words) for member in members]
        if len(set(names)) == len(names):
            return names
    return [f"{name} {place}" for place, name in enumerate(names, 1)]


def _judge(
    scores: NDArray[np.floating], joined: Scores
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, object], NDArray[np.float64]]:
    """Metrics, intervals and extra keys of scores `(N, C)`, and which clips `(1, N)` are right, in percent."""
    found = clip_accuracies(torch.from_numpy(scores), torch.from_numpy(joined.labels))
    values = {name: each.numpy()[None] for name, each in found.items()}
    return *summarise(values, joined.groups), values["top1"]


def _united(rows: Sequence[Record]) -> dict[str, str]:
    """Labels, streams and encoders of all rows, each named once."""
    united = {}
    for key in ("labels", "streams", "encoder"):
        words = [word for row in rows for word in str(row.extra.get(key, "")).split("+") if word]
        if words:
            united[key] = "+".join(dict.fromkeys(words))
    return united


def _sum(values: Sequence[Number | None]) -> Number | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if len(known) == len(values) else None
