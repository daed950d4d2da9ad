"""From the lists of names in a pyskl file to columns and split rules."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_LIST = re.compile(r"(?:(?P<before>[\w.-]{0,60}?)[_-]?)(?P<part>train|val|test)[_-]?(?P<number>\d{0,4})")
MAX_SPLITS = 32
# what follows the video's name: v_Archery_g01_c02, ID_E_000100_000200_A_0001_0005, ..._u_nm_np1_fr_med_3, ID_00012
_PIECE = re.compile(r"_(?:c\d+|E_\d.*|[fhlu]_(?:cm|nm)_.*|\d{5})$")
#: Enters every draw of held-out clips and subjects; a change of the rule must change it.
HOLD_OUT_RULE = "v1"


def origin(name: str) -> str:
    """The video that a clip was cut from, where names of UCF101, FineGYM, HMDB51 or Diving48 tell it; else the name."""
    return _PIECE.sub("", name)


def held_out(name: str) -> bool:
    """Whether a clip belongs to the tenth that validates where there are no subjects; by video, see :func:`origin`."""
    return hashlib.sha256(f"{HOLD_OUT_RULE}:{origin(name)}".encode()).digest()[0] * 10 < 256


def held_out_subjects(subjects: Sequence[int]) -> list[int]:
    """A tenth of the subjects, at least one where there are two; by hash, so the same in every process."""
    ranked = sorted(set(subjects), key=lambda number: hashlib.sha256(f"{HOLD_OUT_RULE}:{number}".encode()).hexdigest())
    return sorted(ranked[: max(len(ranked) // 10, 1)]) if len(ranked) > 1 else []


class SplitTable:
    """The splits of a file.

    `xsub_train` and `xsub_val` make the split `xsub`, `train1` and `test1` the split `1`, `train` and `val` (or `test`)
    the split `default`. Each split is a column `split_<name>` with the values train, val, test or nothing. A list
    called `val` is the test side unless there is a `test` as well. The lists of the one-shot protocol name exemplars
    and test clips of the new classes; the clips in neither are its training side.

    Args:
        lists: list name -> clip names, as in the file.
        names: all annotated clips.

    Attributes:
        notes: what was found besides.
    """

    def __init__(self, lists: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
        self.notes: list[str] = []
        self.names = list(names)
        known = set(self.names)
        grouped: dict[str, dict[str, set[str]]] = {}
        for key, clips in lists.items():
            match = _LIST.fullmatch(key)
            if match is None or len(grouped) == MAX_SPLITS:
                reason = "names neither train, val nor test" if match is None else f"is beyond {MAX_SPLITS} splits"
                self.notes.append(f"list {key[:60]!r} {reason}; it is left out")
                continue
            members = set(clips)
            if len(members) < len(clips):
                self.notes.append(f"list {key!r} has {_some(_repeated(clips))} more than once")
            if absent := sorted(members - known):
                self.notes.append(f"list {key!r} has {len(absent)} names without annotation: {_some(absent)}")
            group = "_".join(part for part in (match["before"], match["number"]) if part) or "default"
            grouped.setdefault(group, {})[match["part"]] = members & known
        self.values = {group: self._roles(group, parts) for group, parts in grouped.items()}
        listed = {name for roles in self.values.values() for name in roles}
        if self.values and (rest := sorted(known - listed)):
            self.notes.append(f"{len(rest)} annotated clips are in no list: {_some(rest)}")

    def columns(self, name: str) -> dict[str, str]:
        """A clip's side in every split."""
        return {f"split_{group}": roles.get(name, "") for group, roles in self.values.items()}

    def rules(self, subjects: Mapping[str, int] | None, known: Mapping[str, Any]) -> dict[str, Any]:
        """Split rules for the card.

        Args:
            subjects: subject of each clip, where names tell; validation then holds out training subjects. Otherwise it
                is the column `held_out`.
            known: the data set's own rules, whose validation is taken over where the split has one.
        """
        rules: dict[str, Any] = {}
        for group, roles in self.values.items():
            factor, found = f"split_{group}", set(roles.values())
            train = "auxiliary" if "exemplar" in found else "train"
            rule: dict[str, Any] = {"factor": factor, "train": [train], "test": ["test"]}
            if "val" in found:
                rule["train"] = [train, "val"]
                rule["val"] = {"factor": factor, "values": ["val"]}
            elif "val" in known.get(group, {}):
                rule["val"] = known[group]["val"]
            elif subjects is None:
                rule["val"] = {"factor": "held_out", "values": [1]}
            elif out := held_out_subjects([subjects[name] for name, role in roles.items() if role == train]):
                rule["val"] = {"factor": "subject", "values": out}
            if "exemplar" in found:
                rule["test"] = ["test", "exemplar"]
                rule["exemplars"] = {"factor": factor, "values": ["exemplar"]}
            rules[group] = rule
        return rules

    def _roles(self, group: str, parts: dict[str, set[str]]) -> dict[str, str]:
        if "test" not in parts and "val" in parts:
            parts = {**parts, "test": parts["val"]}
            del parts["val"]
        train, test = parts.get("train", set()), parts.get("test", set())
        if group.startswith("oneshot"):
            roles = dict.fromkeys((name for name in self.names if name not in test), "auxiliary")
            return {**roles, **dict.fromkeys(test, "test"), **dict.fromkeys(train, "exemplar")}
        if both := sorted(train & (test | parts.get("val", set()))):
            self.notes.append(f"split {group!r}: {len(both)} clips stand on both sides and do not train: {_some(both)}")
        roles = dict.fromkeys(train, "train")
        for part in ("val", "test"):
            roles.update(dict.fromkeys(parts.get(part, ()), part))
        if not train or not test:
            self.notes.append(f"split {group!r} has no {'training' if not train else 'test'} clips")
        return roles


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(repr(name[:80])[1:-1] for name in names[:count]) + (", ..." if len(names) > count else "")
