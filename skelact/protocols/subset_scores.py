"""What is right under every subset of streams: the one table of which all numbers of `missing` are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skelact.errors import SkelactError
from skelact.protocols.base import summarise
from skelact.protocols.features import Subset, subset_name
from skelact.results import repeated_interval
from skelact.transforms.corruptions import name_keys
from skelact.transforms.draws import Draws
from skelact.transforms.dropping import Bernoulli, subsets_of

RATES = tuple(round(0.1 * i, 1) for i in range(1, 10))
RATE_SEEDS = 5
"""Draws that a missing rate is averaged over; fixed, so that all runs see the same clips without the same streams."""


def choose_subsets(
    streams: Sequence[str], groups: Mapping[str, str] | None = None, given: Sequence[Sequence[str]] | None = None
) -> list[Subset]:
    """The subsets that are asked, small ones first, streams in the method's order.

    All 2^M - 1 of up to five streams. Beyond: single ones, all but one, all, and where it is known which sensor each is
    of, each sensor's and all but a sensor's.

    Args:
        streams: of the method.
        groups: stream -> the sensor that it is of.
        given: other ones.

    Raises:
        SkelactError: one of those given is empty or names another stream.
    """
    if given is not None:
        for subset in given:
            if not subset or set(subset) - set(streams):
                raise SkelactError(f"protocol.subsets: {list(subset)} must be some of {', '.join(streams)}")
        found = {tuple(s for s in streams if s in subset) for subset in given}
    else:
        found = set(subsets_of(streams))
        sensor_of = groups or {}
        for sensor in set(sensor_of.values()):
            sides = ([s for s in streams if (sensor_of.get(s) == sensor) is own] for own in (True, False))
            found |= {tuple(side) for side in sides if side}
    return sorted(found, key=lambda subset: (len(subset), [streams.index(s) for s in subset]))


def hits(scores: Tensor, labels: Tensor, answered: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Whether the class is the first and among the first five, `(..., N)` bool each.

    Args:
        scores: `(..., N, C)`.
        labels: `(N,)`.
        answered: broadcast to `(..., N)` bool; where False nothing is right. None: everywhere.
    """
    near = (scores.topk(min(5, scores.shape[-1]), -1).indices == labels[:, None]).any(-1)
    first = scores.argmax(-1) == labels
    return (first, near) if answered is None else (first & answered, near & answered)


def half(scores: Tensor) -> np.ndarray:
    """Scores as they are kept, float16."""
    return scores.clamp(-6e4, 6e4).half().cpu().numpy()


@dataclass(frozen=True)
class SubsetScores:
    """Answers of one subject under one fill for S subsets, R repetitions and N clips.

    Args:
        streams: all M of the subject.
        subsets: S of them.
        right: measure (`top1`, `top5`, `knn1`) -> `(S, R, N)` bool.
        labels: `(N,)` classes.
        names: of the clips; what is missing at a rate depends on them alone.
        groups: `(N,)`, for clustered intervals.
        available: `(N, M)` bool, what the clips have.
        scores: `(S, N, C)` float16, means over repetitions, where they are kept.
    """

    streams: Subset
    subsets: Sequence[Subset]
    right: Mapping[str, np.ndarray]
    labels: np.ndarray
    names: Sequence[str]
    groups: np.ndarray
    available: np.ndarray
    scores: np.ndarray | None = None

    @property
    def complete(self) -> bool:
        """Whether all 2^M - 1 subsets are there."""
        return len(self.subsets) == 2 ** len(self.streams) - 1

    def unanswered(self) -> dict[str, int]:
        """Number of clips of which a subset leaves nothing, by subset; those without such clips are left out."""
        table = np.array([[s in subset for s in self.streams] for subset in self.subsets])
        nothing = (~(table[:, None] & self.available).any(2)).sum(1)
        return {subset_name(s): int(n) for s, n in zip(self.subsets, nothing, strict=True) if n}

    def at_rate(self, rate: float, measure: str = "top1") -> np.ndarray:
        """`(R, N)` share of draws in which a clip is right when it lacks each of its streams with a probability.

        One stream always stays. The answers are those under the subset that is left: a look-up.
        """
        number = {self._code(subset): i for i, subset in enumerate(self.subsets)}
        place = np.array([number.get(code, -1) for code in range(2 ** len(self.streams))])
        available, keys = torch.from_numpy(self.available), name_keys(self.names)
        weight = 2 ** np.arange(len(self.streams))
        found = np.zeros(self.right[measure].shape[1:])
        for seed in range(RATE_SEEDS):
            kept = Bernoulli(rate)(Draws(seed, 0, keys), available, self.streams, {}).numpy()
            at = place[(kept | ~self.available) @ weight]  # what a clip does not have changes nothing
            found += self.right[measure][at, :, np.arange(len(at))].T
        return found / RATE_SEEDS

    def _code(self, subset: Subset) -> int:
        return sum(2**i for i, stream in enumerate(self.streams) if stream in subset)

    def percent(self, rates: Sequence[float] = ()) -> dict[str, np.ndarray]:
        """Metric -> `(R, N)` percent of each repetition and clip, `top1/mean` first; `worst` aside.

        Args:
            rates: missing rates, for `top1`, if all subsets are there.
        """
        names = [subset_name(subset) for subset in self.subsets]
        sizes = np.array([len(subset) for subset in self.subsets])
        values: dict[str, np.ndarray] = {}
        for measure, right in self.right.items():
            stack = 100.0 * right.astype(np.float64)
            values[f"{measure}/mean"] = stack.mean(0)
            values |= {f"{measure}/{name}": stack[i] for i, name in enumerate(names)}
            part = sizes < len(self.streams)
            if part.any() and not part.all():
                values[f"{measure}/incomplete"] = stack[part].mean(0)
            if measure == "top1" and len(set(sizes)) > 1:
                values |= {f"top1/present{size}": stack[sizes == size].mean(0) for size in sorted(set(sizes))}
            if measure == "top1" and self.complete and len(self.streams) > 1:
                values |= {f"top1/rate{rate:g}": 100.0 * self.at_rate(rate) for rate in rates}
        return values

    def summary(
        self, rates: Sequence[float] = ()
    ) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, Any]]:
        """Metrics, intervals and further keys of a record.

        The clips of `worst` are those of the subset that is worst on average, which `extra["worst"]` names; its value
        is the mean over repetitions of the lowest. `drop` and `drop_percent`: what is lost of the accuracy with all
        streams, in points (paired over clips and repetitions) and in percent of it.
        """
        values = self.percent(rates)
        estimates: dict[str, np.ndarray] = {}
        worst = ""
        for measure, right in self.right.items():
            runs = 100.0 * right.mean(2)
            lowest = int(runs.mean(1).argmin())
            values[f"{measure}/worst"] = 100.0 * right[lowest].astype(np.float64)
            estimates[f"{measure}/worst"] = runs.min(0)
            worst = worst or subset_name(self.subsets[lowest])
        metrics, ci95, extra = summarise(values, self.groups, estimates)
        extra["worst"] = worst
        if len(self.streams) > 1 and self.streams in self.subsets:
            whole = subset_name(self.streams)
            lost = [*(subset_name(s) for s in self.subsets if s != self.streams), "incomplete"]
            for name in [name for name in lost if f"top1/{name}" in values]:
                difference = values[f"top1/{whole}"] - values[f"top1/{name}"]
                metrics[f"drop/{name}"] = float(difference.mean())
                found = repeated_interval(difference, self.groups, bounds=(-100.0, 100.0))
                ci95[f"drop/{name}"], extra["ci95_clips"][f"drop/{name}"] = found.both, list(found.clips)
                if metrics[f"top1/{whole}"] > 0:
                    metrics[f"drop_percent/{name}"] = 100.0 * metrics[f"drop/{name}"] / metrics[f"top1/{whole}"]
        metrics |= {f"mean_class/{subset_name(s)}": self._by_class(i) for i, s in enumerate(self.subsets)}
        if unanswered := self.unanswered():
            extra["unanswered"] = unanswered
        if not self.complete:
            extra["skipped"] = {"rates": f"not all {2 ** len(self.streams) - 1} subsets are there"}
        return metrics, ci95, extra

    def _by_class(self, number: int) -> float:
        """Mean of the classes' recalls under a subset, in percent."""
        right = next(iter(self.right.values()))[number].mean(0)
        count = np.bincount(self.labels)
        return float(100.0 * (np.bincount(self.labels, right)[count > 0] / count[count > 0]).mean())
