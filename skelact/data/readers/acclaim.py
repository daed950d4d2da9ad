"""Acclaim motion capture: a skeleton text (ASF), motion texts (AMC), and the joint positions that follow from both.

The format is the one described by the Acclaim games company and used by Vicon and the CMU and HDM05 collections. A
bone b has a direction and a length in the global frame of the rest pose, an axis frame C given by three angles, and
the rotations M that the motion text gives about that frame's axes. Its turn against its parent is C M C^-1, and its
joint (its far end) lies at the parent's joint plus the turned direction times the length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skelact.data.readers.base import DamagedClip
from skelact.data.readers.tables import parse_words, words_per_line

_ROOT_ORDER = ("tx", "ty", "tz", "rx", "ry", "rz")
_FRAME = re.compile(rb"(?m)^[ \t]*\d+[ \t]*\r?$")
_NAME = re.compile(rb"(?m)^[ \t]*([A-Za-z_][^\s]*)")


@dataclass(frozen=True)
class Acclaim:
    """A skeleton: the root, then the bones in the order of the file.

    Args:
        names: of the bones; `root` first.
        parents: index of each one's parent; the root is its own.
        offsets: `(V, 3)` from parent joint to joint in the rest pose, inch; zero for the root.
        frames: `(V, 3, 3)` axis frames C.
        orders: `(V)` order in which the rotations apply, for example "XYZ".
        freedoms: what the motion text gives for each bone, in its order: rx ry rz, and for the root tx ty tz too.
        scale: inches in one unit of the file.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: np.ndarray
    frames: np.ndarray
    orders: tuple[str, ...]
    freedoms: tuple[tuple[str, ...], ...]
    scale: float

    def positions(self, motion: np.ndarray) -> np.ndarray:
        """Joint positions of a motion.

        Args:
            motion: `(T, D)` as :func:`read_amc` returns it: the freedoms of all bones side by side; angles in radians.

        Returns:
            `(T, V, 3)` in inches, float64.
        """
        angles = np.zeros((len(motion), len(self.names), 3))
        root = np.zeros((len(motion), 3))
        column = 0
        for bone, freedoms in enumerate(self.freedoms):
            for freedom in freedoms:
                axis = "xyz".index(freedom[1])
                if freedom[0] == "r":
                    angles[:, bone, axis] = motion[:, column]
                else:
                    root[:, axis] = motion[:, column] * self.scale
                column += 1
        turns = np.empty((len(motion), len(self.names), 3, 3))
        for order in set(self.orders):
            bones = [bone for bone, own in enumerate(self.orders) if own == order]
            turns[:, bones] = _rotation(angles[:, bones], order)
        turns = self.frames @ turns @ self.frames.transpose(0, 2, 1)
        joints = np.empty((len(motion), len(self.names), 3))
        joints[:, 0] = root
        for bone, parent in enumerate(self.parents[1:], start=1):  # parents come first
            turns[:, bone] = turns[:, parent] @ turns[:, bone]
            joints[:, bone] = joints[:, parent] + turns[:, bone] @ self.offsets[bone]
        return joints


def _rotation(angles: np.ndarray, order: str) -> np.ndarray:
    """Rotation matrices `(..., 3, 3)` from angles about x, y, z `(..., 3)` in radians, applied in the given order."""
    turn = np.broadcast_to(np.eye(3), (*angles.shape, 3))
    for axis in order:
        k = "XYZ".index(axis)
        a, b = (k + 1) % 3, (k + 2) % 3
        one = np.zeros((*angles.shape, 3))
        one[..., k, k] = 1
        one[..., a, a] = one[..., b, b] = np.cos(angles[..., k])
        one[..., b, a] = np.sin(angles[..., k])
        one[..., a, b] = -one[..., b, a]
        turn = one @ turn
    return turn


def read_asf(path: Path) -> Acclaim:
    """A skeleton text.

    Raises:
        DamagedClip: with the line, or the bone, that is wrong.
    """
    where = ""
    try:
        section, lines = "", path.read_bytes().decode("latin-1").splitlines()
        units, root, tree = {"length": "1", "angle": "deg"}, {"axis": ["XYZ"], "order": list(_ROOT_ORDER)}, []
        bones: list[dict[str, list[str]]] = []
        for number, line in enumerate(lines, start=1):
            where, words = f"line {number}", line.split("#")[0].split()
            if not words:
                continue
            if words[0].startswith(":"):
                section = words[0].lower()
            elif section == ":units":
                units[words[0].lower()] = words[1]
            elif section == ":root":
                root[words[0].lower()] = words[1:]
            elif section == ":bonedata" and words[0] == "begin":
                bones.append({})
            elif section == ":bonedata" and words[0] != "end":
                bones[-1][words[0].lower()] = words[1:]
            elif section == ":hierarchy" and words[0] not in ("begin", "end"):
                tree.append(words)
        where = "the skeleton as a whole"
        return _skeleton(units, root, bones, tree)
    except (KeyError, IndexError, ValueError, ArithmeticError) as error:
        raise DamagedClip(path, where, f"is not an ASF skeleton ({error})") from None


def _skeleton(
    units: dict[str, str], root: dict[str, list[str]], bones: list[dict[str, list[str]]], tree: list[list[str]]
) -> Acclaim:
    """Put the sections of a text together; whatever does not fit raises ValueError, KeyError or IndexError."""
    turn = 1.0 if units["angle"].lower().startswith("rad") else math.pi / 180
    scale = 1 / _finite(units["length"])
    by_name = {bone["name"][0]: bone for bone in bones}
    above = {child: parent for parent, *children in tree for child in children}
    if len(by_name) != len(bones) or not bones:
        raise ValueError(f"{len(bones)} bones, {len(by_name)} names")
    names, waiting = ["root"], list(by_name)
    while waiting:  # parents first, else in the order of the file
        ready = [name for name in waiting if above[name] in names]
        if not ready:
            raise ValueError(f"bone {waiting[0]} does not hang on the root")
        names += ready[:1]
        waiting.remove(ready[0])
    orders, frames, offsets, freedoms = ["XYZ"], [np.eye(3)], [np.zeros(3)], [_freedoms(root["order"], _ROOT_ORDER)]
    orders[0] = _order(root["axis"][0])
    frames[0] = _rotation(np.array([_finite(v) for v in root.get("orientation", ["0"] * 3)[:3]]) * turn, orders[0])
    for name in names[1:]:
        bone = by_name[name]
        axis = bone.get("axis", ["0", "0", "0", "XYZ"])
        orders.append(_order(axis[3]))
        frames.append(_rotation(np.array([_finite(v) for v in axis[:3]]) * turn, orders[-1]))
        direction = np.array([_finite(v) for v in bone["direction"][:3]])
        offsets.append(direction.reshape(3) * _finite(bone["length"][0]) * scale)
        freedoms.append(_freedoms(bone.get("dof", []), _ROOT_ORDER[3:]))
    return Acclaim(
        tuple(names),
        (0, *(names.index(above[name]) for name in names[1:])),
        np.array(offsets),
        np.array(frames),
        tuple(orders),
        tuple(freedoms),
        scale,
    )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _order(text: str) -> str:
    if sorted(text.upper()) != ["X", "Y", "Z"]:
        raise ValueError(f"axis order {text[:20]!r}")
    return text.upper()


def _freedoms(words: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    freedoms = tuple(word.lower() for word in words)
    if len(set(freedoms)) != len(freedoms) or not set(freedoms) <= set(known):
        raise ValueError(f"degrees of freedom {' '.join(words)[:40]!r}")
    return freedoms


def read_amc(path: Path, skeleton: Acclaim) -> np.ndarray:
    """A motion text: `(T, D)` float64, the freedoms of the skeleton's bones side by side, angles in radians.

    Raises:
        DamagedClip: with the line that is wrong.
    """
    content = path.read_bytes()
    start = _FRAME.search(content)
    if start is None:
        raise DamagedClip(path, "", "holds no frame")
    head, body = content[: start.start()], content[start.start() :]
    first_line = head.count(b"\n")
    needed = {name: len(freedoms) for name, freedoms in zip(skeleton.names, skeleton.freedoms, strict=True) if freedoms}
    motion = _regular(body, needed)
    if motion is None:
        motion = _line_by_line(path, body, first_line, needed)
    turn = 1.0 if re.search(rb"(?im)^:radians", head) else math.pi / 180
    factors = [turn if freedom[0] == "r" else 1.0 for freedoms in skeleton.freedoms for freedom in freedoms]
    return motion * np.array(factors)


def _regular(body: bytes, needed: dict[str, int]) -> np.ndarray | None:
    """The motion when every frame lists the same bones in the same order, as writers do; None otherwise."""
    size = len(needed) + 1
    counts = words_per_line(body.rstrip())
    names = [name.decode("ascii", "replace") for name in _NAME.findall(body)]
    order = names[: size - 1]
    if sorted(order) != sorted(needed) or names != order * (len(names) // (size - 1)) or len(counts) % size:
        return None
    if (counts.reshape(-1, size) != [1, *(1 + needed[name] for name in order)]).any():
        return None
    values = parse_words(_NAME.sub(b"", body))
    if values is None or len(values) != len(counts) // size * (1 + sum(needed.values())):
        return None
    table = values.reshape(-1, 1 + sum(needed.values()))
    if (np.diff(table[:, 0]) != 1).any():
        return None
    columns = dict(
        zip(order, np.split(table[:, 1:], np.cumsum([needed[name] for name in order])[:-1], axis=1), strict=True)
    )
    return np.concatenate([columns[name] for name in needed], axis=1)


def _line_by_line(path: Path, body: bytes, first_line: int, needed: dict[str, int]) -> np.ndarray:
    """The same for texts of any order of bones; says which line is wrong."""
    frames: list[dict[str, np.ndarray]] = []
    number = 0
    line = 0

    def close() -> None:
        if frames and (absent := [name for name in needed if name not in frames[-1]]):
            raise DamagedClip(path, f"line {first_line + line}", f"frame {number} ends without {', '.join(absent[:3])}")

    for line, text in enumerate(body.rstrip().split(b"\n"), start=1):
        words = text.split()
        where = f"line {first_line + line}"
        if not words:
            continue
        if len(words) == 1 and re.fullmatch(rb"\d{1,9}", words[0]):
            close()
            if frames and int(words[0]) != number + 1:
                raise DamagedClip(path, where, f"frame {int(words[0])} follows frame {number}")
            number = int(words[0])
            frames.append({})
            continue
        name = words[0].decode("ascii", "backslashreplace")
        if name not in needed:
            raise DamagedClip(path, where, f"{name[:20]!r} is no moving bone of the skeleton")
        if name in frames[-1]:
            raise DamagedClip(path, where, f"bone {name} is given twice in frame {number}")
        values = parse_words(b" ".join(words[1:]))
        if values is None or len(values) != needed[name]:
            raise DamagedClip(path, where, f"bone {name} needs {needed[name]} numbers")
        frames[-1][name] = values
    line += 1
    close()
    return np.stack([np.concatenate([frame[name] for name in needed]) for frame in frames])
