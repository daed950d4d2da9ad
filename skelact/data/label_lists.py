"""Few-label lists as published systems drew them, to repeat their numbers; new work takes `splits.label_subset`."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from skelact.data.splits import label_subset
from skelact.errors import SkelactError


def aimclr_label_subset(labels: Sequence[int] | np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """The list that AimCLR's semi-supervised training draws from clips in the order of its label file.

    Class by class, in the order in which the classes first appear, `round(fraction * clips)` of the class's clips are
    drawn with Python's `random.sample` after `random.seed(seed)`. Halves round to even, so a class with few clips may
    get none; and the list hangs on the order of the clips. Both are mended in :func:`skelact.data.splits.label_subset`.

    Args:
        labels: `(N,)` classes in the order of the training list (AimCLR's is the order of the file names).
        fraction: share of each class, in (0, 1].
        seed: of the draw; the released settings use 0.

    Returns:
        Ascending int64 positions into `labels`.

    Raises:
        SkelactError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise SkelactError(f"a label fraction lies in (0, 1], got {fraction}")
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(np.asarray(labels).tolist()):
        rows.setdefault(label, []).append(row)
    draw = random.Random(seed)
    taken: list[int] = []
    for members in rows.values():
        taken += draw.sample(members, round(fraction * len(members)))
    return np.array(sorted(taken), np.int64)


def labelled(
    names: np.ndarray,
    labels: np.ndarray,
    rule: str = "names",
    fraction: float | None = None,
    per_class: int | None = None,
    draw: int = 0,
) -> np.ndarray:
    """Positions of the clips that keep their label by a rule: `names` or `aimclr`.

    Args:
        names: `(N,)` clip names.
        labels: `(N,)` classes.
        rule: `names` (:func:`skelact.data.splits.label_subset`), or `aimclr` for a fraction as AimCLR draws it from
            clips in the order of their names.
        fraction: of each class.
        per_class: clips of each class.
        draw: which list.

    Returns:
        Ascending int64 positions.

    Raises:
        SkelactError: an unknown rule, or numbers that do not fit it.
    """
    if rule == "names":
        return label_subset(names, labels, fraction, per_class, draw)
    if rule != "aimclr":
        raise SkelactError(f"data.label_rule={rule!r} is neither names nor aimclr")
    if per_class is not None:
        raise SkelactError("data.label_rule=aimclr draws a label_fraction; leave labels_per_class out")
    if fraction is None:
        return np.arange(len(labels))
    order = np.argsort(names, kind="stable")
    return np.sort(order[aimclr_label_subset(labels[order], fraction, draw)])
