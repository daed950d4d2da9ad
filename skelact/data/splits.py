"""Splits: which clips train, validate and test, and which of them carry labels.

A rule speaks of a column of the clips table (subject, camera, setup, ...), never of positions. Validation is cut from
the training side by held-out values, so that the test side is touched once. Few-label lists depend on clip names
alone: not on processes, order or library versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skelact.data.store import Store
from skelact.errors import SkelactError

PARTS = ("train", "val", "test", "train+val")
#: Enters every few-label draw; a change of the drawing rule must change it, and with it every list.
LABEL_RULE = "v1"


class SplitError(SkelactError):
    """An unknown split or part, a rule about a column that does not exist, or a part without clips."""


@dataclass(frozen=True)
class SplitRule:
    """One split.

    Args:
        factor: column that separates training from test.
        train: its values on the training side (validation included).
        test: its values on the test side; None means all other values.
        val: `(column, values)`, the clips of the training side held out for validation; None for no validation.
        exemplars: `(column, values)`, the clips of the test side that one-shot recognition compares the others with;
            they make a part of their own and leave the test part. None for no such part.
    """

    factor: str
    train: tuple[Any, ...]
    test: tuple[Any, ...] | None = None
    val: tuple[str, tuple[Any, ...]] | None = None
    exemplars: tuple[str, tuple[Any, ...]] | None = None

    @classmethod
    def from_dict(cls, rule: Mapping[str, Any]) -> SplitRule:
        """From the card's form `{factor, train, test?, val?: {factor, values}, exemplars?: {factor, values}}`."""
        try:
            test = rule.get("test")
            return cls(
                factor=str(rule["factor"]),
                train=tuple(rule["train"]),
                test=None if test is None else tuple(test),
                val=_clause(rule.get("val")),
                exemplars=_clause(rule.get("exemplars")),
            )
        except (KeyError, TypeError) as error:
            clause = "{factor, values}"
            raise SplitError(
                f"a split rule must be {{factor, train, test?, val?: {clause}, exemplars?: {clause}}}: {rule!r}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as the card keeps them."""
        rule: dict[str, Any] = {"factor": self.factor, "train": list(self.train)}
        if self.test is not None:
            rule["test"] = list(self.test)
        for name, clause in (("val", self.val), ("exemplars", self.exemplars)):
            if clause is not None:
                rule[name] = {"factor": clause[0], "values": list(clause[1])}
        return rule

    def parts(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows of every part of :data:`PARTS`, and of "exemplars" if there is a rule for it.

        Returns:
            ascending int64 rows by part; a part may be empty.

        Raises:
            SplitError: the rule does not fit the columns, or a clip would stand on both sides.
        """
        side = _among(columns, self.factor, self.train)
        test = ~side if self.test is None else _among(columns, self.factor, self.test)
        if (side & test).any():
            raise SplitError(f"a value of {self.factor} stands on both sides of the split: {self}")
        val = np.zeros_like(side) if self.val is None else side & _among(columns, *self.val)
        chosen = {"train": side & ~val, "val": val, "test": test, "train+val": side}
        if self.exemplars is not None:
            chosen["exemplars"] = test & _among(columns, *self.exemplars)
            chosen["test"] = test & ~chosen["exemplars"]
        return {part: np.flatnonzero(rows) for part, rows in chosen.items()}


def _clause(clause: Mapping[str, Any] | None) -> tuple[str, tuple[Any, ...]] | None:
    return None if clause is None else (str(clause["factor"]), tuple(clause["values"]))


def _among(columns: Mapping[str, np.ndarray], factor: str, values: Sequence[Any]) -> np.ndarray:
    if factor not in columns:
        raise SplitError(f"the split asks for column {factor!r}; the clips have {', '.join(sorted(columns))}")
    column = columns[factor]
    if column.dtype.kind == "U":
        return np.isin(column, [str(value) for value in values])
    try:
        return np.isin(column, [int(value) for value in values])
    except (TypeError, ValueError):
        raise SplitError(f"column {factor!r} holds whole numbers, the split asks for {list(values)}") from None


def resolve(store: Store, split: str) -> dict[str, np.ndarray]:
    """Rows of train, val, test and train+val of a named split of the store's card.

    Raises:
        SplitError: there is no such split (the message lists those that are), or its rule does not fit the clips.
    """
    rules = store.card["splits"]
    if split not in rules:
        have = ", ".join(sorted(rules)) or "none"
        raise SplitError(f"{store.name} has no split {split!r}; choose data.split from: {have}")
    return SplitRule.from_dict(rules[split]).parts(store.columns)


def part_rows(parts: Mapping[str, np.ndarray], part: str, split: str, name: str) -> np.ndarray:
    """Rows of one part, refusing an unknown or an empty one with a message that names dataset, split and part."""
    if part not in parts:
        raise SplitError(f"unknown part {part!r}; the parts of this split are {', '.join(parts)}")
    if len(parts[part]) == 0:
        raise SplitError(
            f"part {part!r} of split {split!r} of {name} has no clips; check the split rule or the clips table"
        )
    return parts[part]


def label_subset(
    names: Sequence[str] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    fraction: float | None = None,
    per_class: int | None = None,
    draw: int = 0,
) -> np.ndarray:
    """Positions of the clips that keep their label when only a few may.

    Within each class the clips are ranked by the SHA-256 of `"v1:<draw>:<name>"` and the first ones taken, so lists
    are nested: the 1 % list lies inside the 10 % list of the same draw.

    Args:
        names: `(N,)` clip names.
        labels: `(N,)` classes; clips with a negative one are never taken.
        fraction: of each class, rounded half up, at least one clip.
        per_class: clips of each class (all where there are fewer).
        draw: which list.

    Returns:
        Ascending int64 positions into `names`; everything when neither fraction nor per_class is given.
    """
    if fraction is not None and per_class is not None:
        raise SkelactError("give a label fraction or a number of labels per class, not both")
    if fraction is not None and not 0 < fraction <= 1:
        raise SkelactError(f"a label fraction lies in (0, 1], got {fraction}")
    if per_class is not None and per_class < 1:
        raise SkelactError(f"labels per class must be at least 1, got {per_class}")
    classes = np.asarray(labels)
    if fraction is None and per_class is None:
        return np.arange(len(classes))
    rank = [hashlib.sha256(f"{LABEL_RULE}:{draw}:{name}".encode()).digest() for name in names]
    taken: list[int] = []
    for label in np.unique(classes[classes >= 0]).tolist():
        rows = sorted(np.flatnonzero(classes == label).tolist(), key=rank.__getitem__)
        count = per_class if fraction is None else max(1, int(fraction * len(rows) + 0.5))
        taken += rows[:count]
    return np.array(sorted(taken), np.int64)
