"""What a run found: records, intervals and paired tests.

A record is one line of `results.json`. Accuracies are in percent. `ci95` covers both sources of chance: which seed or
label list was drawn (Student t-interval over repetitions) and which clips happen to be in the test part (bootstrap,
clustered where several clips stem from one recording). The two alone are kept as `ci95_seeds` and `ci95_clips`.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from skelact.errors import SkelactError

Array = np.ndarray


class ResultsError(SkelactError):
    """A results or scores file that cannot be used; the message names the file and what is wrong."""


@dataclass
class Record:
    """One row of a table.

    Args:
        protocol: which question was asked: `linear`, `retrieval`, `missing`, `pretrain`, ...
        method: what was asked, for example `umurl`, `umurl (untrained)` or `raw pose`.
        data: name of the dataset.
        split: name of the split.
        seed: seed of the run.
        metrics: name -> number; accuracies in percent.
        ci95: name -> (low, high), 95 % interval of that metric over repetitions and test clips together.
        selection: how anything was chosen, for example `val:lr, refit train+val` or `none`.
        checkpoint: path of the checkpoint, None for an untrained encoder.
        fingerprint: fingerprint of the store.
        parameters: number of trainable parameters of what was asked.
        gflops: forward cost of one clip in GFLOPs, None where it was not measured.
        wall_s: seconds that the protocol took.
        samples_per_s: throughput of its main pass, None where it has no meaning.
        device: `cpu`, `cuda:0`, ...
        version: version of skelact.
        extra: further plain keys, written beside the others: `labels`, `head`, `steps`, `encoder`, ...
    """

    protocol: str
    method: str
    data: str
    split: str
    seed: int | None
    metrics: dict[str, float]
    ci95: dict[str, tuple[float, float]] = field(default_factory=dict)
    selection: str = "none"
    checkpoint: str | None = None
    fingerprint: str | None = None
    parameters: int | None = None
    gflops: float | None = None
    wall_s: float | None = None
    samples_per_s: float | None = None
    device: str = "cpu"
    version: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.version:
            self.version = _version()
        clash = set(self.extra) & _KEYS
        if clash:
            raise ValueError(f"extra keys {sorted(clash)} are record fields; set them as fields")

    def to_dict(self) -> dict[str, Any]:
        """Plain containers; numbers that are not finite become None, because JSON has no name for them."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        out["metrics"] = {k: float(v) for k, v in self.metrics.items()}
        out["ci95"] = {k: [float(low), float(high)] for k, (low, high) in self.ci95.items()}
        return _plain({**out, **self.extra})

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Record:
        """The record of one entry of results.json; unknown keys go to `extra`."""
        known = {k: v for k, v in row.items() if k in _KEYS}
        known["metrics"] = {k: math.nan if v is None else float(v) for k, v in row.get("metrics", {}).items()}
        known["ci95"] = {k: (_number(v[0]), _number(v[1])) for k, v in row.get("ci95", {}).items()}
        return cls(**known, extra={k: v for k, v in row.items() if k not in _KEYS})


_KEYS = {f.name for f in fields(Record)} - {"extra"}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("skelact")
    except PackageNotFoundError:
        return "unknown"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


# ---------------------------------------------------------------------------------------------- files


def write_records(path: str | Path, records: Iterable[Record], append: bool = False) -> Path:
    """Write `results.json` to a temporary name beside it and rename: readers see the old file or the new one.

    Args:
        path: the file.
        records: what to write.
        append: keep what the file already holds and add to it.
    """
    path = Path(path)
    rows = [r.to_dict() for r in records]
    if append and path.exists():
        rows = [r.to_dict() for r in read_records(path)] + rows
    text = json.dumps(rows, indent=1, allow_nan=False) + "\n"
    return _replace(path, text.encode())


def _replace(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def read_records(path: str | Path) -> list[Record]:
    """The records of a `results.json`, or of the one inside a run directory.

    Raises:
        ResultsError: no such file, not JSON, or an entry without the keys of a record.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        rows = json.loads(path.read_text())
        return [Record.from_dict(row) for row in rows]
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file; give a run directory or a results.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError, ValueError) as error:
        raise ResultsError(f"{path}: not a list of result records ({error})") from None


def save_scores(
    path: str | Path,
    names: Sequence[str],
    labels: Array,
    scores: Mapping[str, Array],
    groups: Sequence[str] | None = None,
) -> Path:
    """Write per-clip class scores to `scores.npz`; entries already in the file under other keys stay.

    Args:
        path: the file.
        names: N clip names.
        labels: `(N,)` classes.
        scores: key (for example `linear/umurl/all`) -> `(N, classes)`, kept as float16 where it is, else as float32.
        groups: N names of the recordings that the clips stem from, for clustered intervals.

    Raises:
        ResultsError: the file holds scores of other clips.
    """
    path = Path(path)
    columns = {"names": np.asarray(names, dtype=str), "labels": np.asarray(labels, dtype=np.int64)}
    columns["groups"] = columns["names"] if groups is None else np.asarray(groups, dtype=str)
    for key, value in scores.items():
        if len(value) != len(columns["names"]):
            raise ValueError(f"scores {key!r} have {len(value)} rows, there are {len(columns['names'])} names")
    kept: dict[str, Array] = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as old:
            if not np.array_equal(old["names"], columns["names"]):
                raise ResultsError(f"{path}: holds scores of other clips; write to another run directory")
            kept = {k: old[k] for k in old.files if k.startswith("scores/")}
    for key, value in scores.items():
        kept[f"scores/{key}"] = np.asarray(value, np.float16 if np.asarray(value).dtype == np.float16 else np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez_compressed(partial, **columns, **kept)  # type: ignore[arg-type]
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class Scores:
    """Per-clip scores of one run: `names (N,)`, `labels (N,)`, `groups (N,)`, and key -> `(N, classes)` float."""

    names: Array
    labels: Array
    groups: Array
    scores: dict[str, Array]

    def entry(self, key: str | None = None) -> Array:
        """Scores `(N, classes)` under a key; the only entry without one."""
        if key is None and len(self.scores) == 1:
            return next(iter(self.scores.values()))
        if key not in self.scores:
            raise ResultsError(f"no scores under {key!r}; the file has {', '.join(sorted(self.scores)) or 'none'}")
        return self.scores[key]


def load_scores(path: str | Path) -> Scores:
    """Read `scores.npz` (or the one inside a run directory); never unpickles."""
    path = Path(path)
    path = path / "scores.npz" if path.is_dir() else path
    try:
        with np.load(path, allow_pickle=False) as file:
            scores = {k.removeprefix("scores/"): file[k] for k in file.files if k.startswith("scores/")}
            return Scores(file["names"], file["labels"], file["groups"], scores)
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file; the run has not written per-clip scores") from None
    except (KeyError, ValueError, OSError) as error:
        raise ResultsError(f"{path}: not a scores file ({error})") from None


# ---------------------------------------------------------------------------------------------- intervals


def t_interval(values: Sequence[float] | Array, level: float = 0.95) -> tuple[float, float]:
    """Student t-interval of the mean of independent repetitions; (nan, nan) for fewer than two."""
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return math.nan, math.nan
    half = t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def bootstrap_interval(
    values: Array,
    groups: Sequence[str] | Array | None = None,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over clips, drawing whole groups where they are given.

    Clips of one recording (three simulated cameras of one motion, say) are not independent; drawing recordings
    instead of clips keeps the interval honest (Cameron, Gelbach and Miller, 2008). Groups with the same sum and size
    are drawn together as one multinomial category, which is exactly the same bootstrap and costs almost nothing.

    Args:
        values: `(N,)` numbers, for example 100 * correct.
        groups: N group names.
        level: coverage.
        draws: bootstrap repetitions.
        seed: of the resampling.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return math.nan, math.nan
    means = _resampled_means(values, groups, draws, seed)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def _resampled_means(values: Array, groups: Sequence[str] | Array | None, draws: int, seed: int) -> Array:
    if groups is None:
        total, size = values, np.ones(len(values))
    else:
        if len(groups) != len(values):
            raise ValueError(f"{len(groups)} groups for {len(values)} values")
        _, inverse = np.unique(np.asarray(groups), return_inverse=True)
        total, size = np.bincount(inverse, weights=values), np.bincount(inverse).astype(np.float64)
    kinds, count = np.unique(np.stack([total, size], 1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // len(kinds))
    means = []
    for first in range(0, draws, chunk):
        weight = rng.multinomial(len(total), count / count.sum(), size=min(chunk, draws - first))
        means.append((weight @ kinds[:, 0]) / (weight @ kinds[:, 1]))
    return np.concatenate(means)


@dataclass(frozen=True)
class Intervals:
    """Intervals `(low, high)` of one mean: over `seeds` alone, over `clips` alone, over `both` sources of chance."""

    both: tuple[float, float]
    seeds: tuple[float, float]
    clips: tuple[float, float]


def repeated_interval(
    values: Array,
    groups: Sequence[str] | Array | None = None,
    estimates: Sequence[float] | Array | None = None,
    draws: int = 4_000,
    bounds: tuple[float, float] = (0.0, 100.0),
) -> Intervals:
    """Interval of a mean over R repetitions (seeds, label lists) and N clips.

    The half-widths of the t-interval over repetitions and of the clip bootstrap of the mean over repetitions are added
    in quadrature, below and above apart. The bootstrap also sees part of the noise between repetitions, so the sum is
    rather too wide than too narrow. A bootstrap over five seeds would be too narrow, hence the t-interval.

    Args:
        values: `(R, N)` numbers of each repetition and clip, for example 100 * correct.
        groups: N group names; whole groups are drawn.
        estimates: `(R,)` the metric of each repetition where it is not the mean over clips.
        draws: bootstrap repetitions.
        bounds: the metric's range; an interval does not leave it.
    """
    values = np.asarray(values, dtype=np.float64)
    runs = values.mean(1) if estimates is None else np.asarray(estimates, dtype=np.float64)
    middle, per_clip = float(runs.mean()), values.mean(0)
    low, high = bootstrap_interval(per_clip, groups, draws=draws)
    clips = low - float(per_clip.mean()), high - float(per_clip.mean())
    seeds = t_interval(runs)
    spread = 0.0 if math.isnan(seeds[0]) else seeds[1] - middle
    both = (middle - math.hypot(spread, clips[0]), middle + math.hypot(spread, clips[1]))

    def cut(interval: tuple[float, float]) -> tuple[float, float]:
        return max(interval[0], bounds[0]), min(interval[1], bounds[1])

    return Intervals(cut(both), seeds, cut((middle + clips[0], middle + clips[1])))


def paired_test(
    first: str | Path | Scores, second: str | Path | Scores, key: str | None = None, key2: str | None = None
) -> dict[str, float | int | tuple[float, float]]:
    """Compare two runs on the same clips, joined by clip name.

    Args:
        first: a scores file, run directory or :class:`Scores`.
        second: the same for the other run.
        key: which scores; needed where a file holds several.
        key2: of the second run, default: the same key.

    Returns:
        `top1`, `top1_other` and `difference` in points with `ci95` (bootstrap over clips, clustered by group),
        `mcnemar_p` (exact two-sided binomial test on the clips where exactly one is right), their counts
        `only_first` and `only_second`, and `n`.

    Raises:
        ResultsError: the runs were scored on different clips or labels.
    """
    from scipy.stats import binomtest

    a = first if isinstance(first, Scores) else load_scores(first)
    b = second if isinstance(second, Scores) else load_scores(second)
    order_a, order_b = np.argsort(a.names), np.argsort(b.names)
    if not np.array_equal(a.names[order_a], b.names[order_b]):
        alone = np.setxor1d(a.names, b.names)
        raise ResultsError(
            f"the runs were scored on different clips ({len(alone)} are in only one, first {alone[:1]}); "
            "a paired test needs the same test split"
        )
    if not np.array_equal(a.labels[order_a], b.labels[order_b]):
        raise ResultsError("the runs give the same clips different labels; were they made from different stores?")
    right_a = (a.entry(key).argmax(1) == a.labels)[order_a]
    right_b = (b.entry(key if key2 is None else key2).argmax(1) == b.labels)[order_b]
    difference = 100.0 * (right_a.astype(np.float64) - right_b)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return {
        "top1": 100.0 * float(right_a.mean()),
        "top1_other": 100.0 * float(right_b.mean()),
        "difference": float(difference.mean()),
        "ci95": bootstrap_interval(difference, a.groups[order_a]),
        "mcnemar_p": float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
        "only_first": only_a,
        "only_second": only_b,
        "n": len(right_a),
    }
