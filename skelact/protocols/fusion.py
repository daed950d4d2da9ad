"""What each of several classifiers' scores weighs when they are added up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skelact.errors import SkelactError

Weights = str | Mapping[str, float] | Sequence[float] | None
FUSE = ("logits", "probabilities")
EQUAL = "equal weights"


def check(weights: Weights, fuse: str) -> Weights:
    """The weights as they are, if they and what is to be added up can be meant.

    Raises:
        SkelactError: neither words nor numbers that are known.
    """
    if fuse not in FUSE:
        raise SkelactError(f"protocol.fuse={fuse} is not known; choose from {', '.join(FUSE)}")
    if isinstance(weights, str) and weights not in ("equal", "val"):
        raise SkelactError(f"protocol.weights={weights} is neither equal, val, nor a number for each")
    if weights is not None and not isinstance(weights, str):
        numbers = list(weights.values()) if isinstance(weights, Mapping) else list(weights)
        fine = all(isinstance(w, (int, float)) and math.isfinite(w) and w >= 0 for w in numbers)
        if not fine or not any(numbers):
            raise SkelactError(f"protocol.weights={numbers}: give numbers from 0 on, at least one above 0")
    return weights


def given_weights(weights: Weights, names: Sequence[str]) -> list[float] | None:
    """One weight for each name, 1 for each where they are equal; None where they are to be fitted (`val`).

    Raises:
        SkelactError: not a weight for each name.
    """
    if weights is None or weights == "equal":
        return [1.0] * len(names)
    if isinstance(weights, str):
        return None
    if isinstance(weights, Mapping):
        if set(weights) != set(names):
            raise SkelactError(
                f"protocol.weights names {', '.join(map(str, weights))}; give a number for each of {', '.join(names)}"
            )
        return [float(weights[name]) for name in names]
    if len(weights) != len(names):
        raise SkelactError(f"protocol.weights has {len(weights)} numbers for {len(names)}: {', '.join(names)}")
    return [float(weight) for weight in weights]


def simplex(size: int, most: int = 2_000) -> Iterator[NDArray[np.float64]]:
    """Weights `(size,)` that sum to 1: equal ones, then a grid of tenths, or coarser where that has too many points."""
    yield np.full(size, 1.0 / size)
    parts = next((n for n in range(10, 1, -1) if math.comb(n + size - 1, n) <= most), 1)
    for chosen in itertools.combinations_with_replacement(range(size), parts):
        yield np.bincount(chosen, minlength=size) / parts


def fit_weights(scores: Sequence[ArrayLike], labels: ArrayLike) -> list[float]:
    """The weights with which most validation clips are recognised.

    A grid is searched to its end, so that nothing depends on a start or on a step size, and scaling all weights changes
    nothing. On equal accuracies, frequent on small parts, the lower cross-entropy decides, then nearness to equal
    weights.

    Args:
        scores: of each classifier `(N, C)` scores of the same clips.
        labels: `(N,)` classes.
    """
    stack, truth = np.stack([np.asarray(x, dtype=np.float64) for x in scores]), np.asarray(labels)
    best: tuple[int, float, float] | None = None
    found = np.full(len(stack), 1.0 / len(stack))
    for weights in simplex(len(stack)):
        fused = np.einsum("s,snc->nc", weights, stack)
        right = int((fused.argmax(1) == truth).sum())
        if best is not None and right < best[0]:
            continue
        top = fused.max(1, keepdims=True)
        loss = np.log(np.exp(fused - top).sum(1)) + top[:, 0] - fused[np.arange(len(truth)), truth]
        # rounded, so that the order of summation, which is the order of the classifiers, does not decide
        rank = (right, -round(float(loss.mean()), 9), -round(float(((weights - 1 / len(stack)) ** 2).sum()), 9))
        if best is None or rank > best:
            best, found = rank, weights
    return [float(w) for w in found]


def name_weights(names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Weights by name, as records keep them."""
    return {name: round(float(weight), 6) for name, weight in zip(names, weights, strict=True)}
