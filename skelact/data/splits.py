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

from skelact.data.table import ClipTable
from skelact.errors import SkelactError

PARTS = ("train", "val", "test", "train+val")
#: Enters every few-label draw; a change of the drawing rule must change it, and with it every list.
LABEL_RULE = "v1"
#: The split of new classes, which every labelled store has.
ONESHOT = "oneshot"
#: Every so manyth class is new where neither the set nor the user says which are.
EVERY = 3


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


def split_rule(store: ClipTable, split: str, novel: int | Sequence[int | str] | None = None) -> SplitRule:
    """The rule of a split: the card's, or of `oneshot` that of :func:`oneshot_rule` where the card has none.

    Args:
        store: the clips.
        split: its name.
        novel: the new classes of `oneshot`, see :func:`oneshot_rule`; the card's rule for it then does not count.

    Raises:
        SplitError: there is no such split (the message lists those that are), or `novel` does not fit.
    """
    rules = store.card["splits"]
    if novel is not None and split != ONESHOT:
        raise SplitError(f"data.novel={novel} chooses the new classes of data.split={ONESHOT}, not of {split!r}")
    if split == ONESHOT and (novel is not None or split not in rules):
        return oneshot_rule(store.columns, store.class_names, EVERY if novel is None else novel)
    if split not in rules:
        have = ", ".join(sorted({*rules, ONESHOT}))
        raise SplitError(f"{store.name} has no split {split!r}; choose data.split from: {have}")
    return SplitRule.from_dict(rules[split])


def resolve(store: ClipTable, split: str, novel: int | Sequence[int | str] | None = None) -> dict[str, np.ndarray]:
    """Rows of train, val, test and train+val of a named split; of `oneshot` also its exemplars.

    Raises:
        SplitError: there is no such split, or its rule does not fit the clips.
    """
    return split_rule(store, split, novel).parts(store.columns)


def oneshot_rule(
    columns: Mapping[str, np.ndarray], class_names: Sequence[str], novel: int | Sequence[int | str] = EVERY
) -> SplitRule:
    """The one-shot split of any set: some classes are new, the clips of all others train.

    Frozen rule, v1. `novel=n`: labels 0, n, 2n, ... are new (6 gives the new classes of NTU RGB+D 120's protocol). Of
    the other classes, ascending, every n-th from the second on validates (every third where the new ones are named),
    unless either side would keep fewer than two. Exemplars of the new classes by :func:`choose_exemplars`.

    Args:
        columns: of the clips table; `label` and `name` are used, and what :func:`choose_exemplars` looks at.
        class_names: by label.
        novel: a number, or the new classes by name or label.

    Raises:
        SplitError: an unknown class, or fewer than two classes on either side.
    """
    there = np.unique(columns["label"][columns["label"] >= 0]).tolist()
    step = novel if isinstance(novel, int) else EVERY
    if step < 2:
        raise SplitError(f"data.novel={novel}: every class would be new; give a number above 1 or a list of classes")
    new = [label for label in there if label % step == 0] if isinstance(novel, int) else _labels(novel, class_names)
    rest = [label for label in there if label not in new]
    if missing := [class_names[label] for label in new if label not in there]:
        raise SplitError(f"data.novel: there are no clips of {', '.join(missing)}")
    if len(new) < 2 or len(rest) < 2:
        raise SplitError(f"data.novel={novel}: {len(new)} new classes and {len(rest)} others; each must be two or more")
    val = rest[1::step]
    rows = np.flatnonzero(np.isin(columns["label"], new))
    return SplitRule(
        "label",
        train=tuple(rest),
        test=tuple(new),
        val=("label", tuple(val)) if min(len(val), len(rest) - len(val)) > 1 else None,
        exemplars=("name", tuple(columns["name"][choose_exemplars(columns, rows)].tolist())),
    )


def choose_exemplars(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """One clip of each class, filmed alike: what one-shot recognition compares with, where a set names no exemplars.

    Frozen rule, v1. Subject and camera (as far as there are such columns) are those with clips of the most of these
    classes, the lowest of equals; of these clips the exemplar is the first by name. A class without such a clip takes
    the first of all its clips.

    Args:
        columns: of the clips table.
        rows: `(n,)` rows to choose from, with a label each.

    Returns:
        `(K,)` rows, one for each class, ascending by class.
    """
    rows = rows[np.argsort(columns["name"][rows], kind="stable")]
    label = columns["label"][rows]
    factors = [columns[factor][rows].tolist() for factor in ("subject", "camera") if factor in columns]
    conditions: list[tuple[Any, ...]] = list(zip(*factors, strict=True)) or [()] * len(rows)
    classes: dict[tuple[Any, ...], set[int]] = {}
    for condition, own in zip(conditions, label.tolist(), strict=True):
        classes.setdefault(condition, set()).add(own)
    best = min(classes, key=lambda condition: (-len(classes[condition]), condition), default=())
    alike = np.array([condition == best for condition in conditions], bool)
    first = [np.flatnonzero((label == own) & (alike if own in classes[best] else True))[0] for own in np.unique(label)]
    return rows[first]


def _labels(classes: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Labels of classes given by name or label, ascending."""
    known = {**{str(label): label for label in range(len(names))}, **{name: k for k, name in enumerate(names)}}
    if unknown := [str(one) for one in classes if str(one) not in known]:
        raise SplitError(f"data.novel: there is no class {unknown[0]!r}; the classes are {', '.join(names)}")
    return sorted({known[str(one)] for one in classes})


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
