"""Joint layouts: what the joints of a skeleton are called and how they hang together.

A layout is a tree of named joints with left-right pairs and body parts. Some come with the library, any other is a
mapping or a YAML file of the same form as :meth:`Layout.to_dict` writes:

```yaml
name: stick
joints: [hip, chest, left_hand, right_hand]
bones: [[chest, hip], [left_hand, chest], [right_hand, chest]]   # child, parent
mirror: [[left_hand, right_hand]]
parts: {torso: [hip, chest], left_arm: [left_hand], right_arm: [right_hand]}
center: hip                                                       # default: the root
shoulders: [left_hand, right_hand]                                # left, right; tells where the body faces
up: y                                                             # x y z, or -y where the axis points down
dims: 3
```
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skelact.errors import SkelactError
from skelact.skeleton import builtin

UP_AXES = ("x", "y", "z", "-x", "-y", "-z")
_KEYS = ("name", "joints", "bones", "mirror", "parts", "center", "shoulders", "up", "dims")


class LayoutError(SkelactError):
    """A joint layout, or a conversion between two, that cannot be."""


@dataclass(frozen=True)
class Layout:
    """A tree of named joints.

    Args:
        name: name of the layout.
        joints: name of each joint, in the order of the V axis.
        parents: index of each joint's parent; the root is its own parent. Bones of the bone stream are child minus
            parent.
        mirror: index that each joint has after left and right are swapped (an involution).
        parts: body part -> indices of its joints (torso, left_arm, right_arm, left_leg, right_leg).
        center: index of the joint taken as the body's centre by the normalisations.
        shoulders: indices of the left and the right shoulder.
        up: axis that points up, one of x y z -x -y -z (image coordinates: -y).
        dims: number of coordinates of a joint; channels after them (a score) are carried along.

    Raises:
        LayoutError: the tree has a cycle, several roots or repeated names, the mirror is not an involution, or an index
            is out of range. The message names the joints.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    mirror: tuple[int, ...]
    parts: dict[str, tuple[int, ...]] = field(hash=False)
    center: int
    shoulders: tuple[int, int]
    up: str = "y"
    dims: int = 3

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_joints(self) -> int:
        """Number of joints, V."""
        return len(self.joints)

    @property
    def root(self) -> int:
        """Index of the joint that is its own parent."""
        return next(joint for joint, parent in enumerate(self.parents) if joint == parent)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) of every joint but the root."""
        return tuple((joint, parent) for joint, parent in enumerate(self.parents) if joint != parent)

    @property
    def outward(self) -> tuple[int, ...]:
        """All joints, every parent before its children (the order in which bones add up to joints)."""
        depth = [len(_path(self.parents, joint)) for joint in range(self.num_joints)]
        return tuple(sorted(range(self.num_joints), key=depth.__getitem__))

    def index(self, joint: str) -> int:
        """Index of a joint by name.

        Raises:
            LayoutError: there is no such joint; the message suggests the nearest name.
        """
        return _index(self.joints, joint, f"layout {self.name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain containers with joints by name, the form :func:`get_layout` reads back from a checkpoint or YAML."""
        names = self.joints
        return {
            "name": self.name,
            "joints": list(names),
            "bones": [[names[child], names[parent]] for child, parent in self.bones],
            "mirror": [[names[a], names[b]] for a, b in enumerate(self.mirror) if a < b],
            "parts": {part: [names[joint] for joint in joints] for part, joints in self.parts.items()},
            "center": names[self.center],
            "shoulders": [names[joint] for joint in self.shoulders],
            "up": self.up,
            "dims": self.dims,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "") -> Layout:
        """The layout written by :meth:`to_dict` or by a user.

        Args:
            content: the mapping; `joints` and `bones` are needed, the rest has defaults (no mirror, no parts, centre =
                root, shoulders = centre).
            source: where it came from, for messages.

        Raises:
            LayoutError: a key, a joint name or the tree is wrong.
        """
        where = source or f"layout {str(content.get('name', 'without a name'))!r}"
        unknown = [str(key) for key in content if key not in _KEYS]
        if unknown:
            raise LayoutError(f"{where}: unknown key {', '.join(map(repr, unknown))}; known are {', '.join(_KEYS)}")
        for key in ("joints", "bones"):
            if key not in content:
                raise LayoutError(f"{where}: the key {key!r} is missing")
        joints = tuple(str(joint) for joint in _sequence(content["joints"], where, "joints"))
        _check_names(joints, where)

        bones = content["bones"]
        pairs = list(bones.items()) if isinstance(bones, Mapping) else _pairs(bones, where, "bones")
        parents = list(range(len(joints)))
        given: dict[int, str] = {}
        for child_name, parent_name in pairs:
            child, parent = (_index(joints, str(joint), f"{where}, bones") for joint in (child_name, parent_name))
            if child == parent:
                continue  # some tables list the root as its own parent
            if child in given:
                raise LayoutError(
                    f"{where}, bones: {joints[child]!r} has two parents, {given[child]!r} and {parent_name!r}"
                )
            given[child] = str(parent_name)
            parents[child] = parent

        mirror = list(range(len(joints)))
        for pair in _pairs(content.get("mirror", ()), where, "mirror"):
            left, right = (_index(joints, str(joint), f"{where}, mirror") for joint in pair)
            for joint in (left, right):
                if mirror[joint] != joint:
                    raise LayoutError(f"{where}, mirror: {joints[joint]!r} is in two pairs")
            mirror[left], mirror[right] = right, left

        parts_given = content.get("parts", {})
        if not isinstance(parts_given, Mapping):
            raise LayoutError(f"{where}: parts must map a part's name to a list of joints")
        parts = {
            str(part): tuple(
                _index(joints, str(joint), f"{where}, part {str(part)!r}")
                for joint in _sequence(members, where, f"parts.{part}")
            )
            for part, members in parts_given.items()
        }
        _check_tree(joints, parents, where)  # before the root is asked for
        root = next(joint for joint, parent in enumerate(parents) if joint == parent)
        center = _index(joints, str(content["center"]), f"{where}, center") if "center" in content else root
        shoulders = [center, center]
        if "shoulders" in content:
            names = _sequence(content["shoulders"], where, "shoulders")
            if len(names) != 2:
                raise LayoutError(f"{where}: shoulders must be two joints, left and right, got {len(names)}")
            shoulders = [_index(joints, str(joint), f"{where}, shoulders") for joint in names]
        return cls(
            name=str(content.get("name", "custom")),
            joints=joints,
            parents=tuple(parents),
            mirror=tuple(mirror),
            parts=parts,
            center=center,
            shoulders=(shoulders[0], shoulders[1]),
            up=str(content.get("up", "y")),
            dims=int(content.get("dims", 3)),
        )


def list_layouts() -> list[str]:
    """Names of the layouts that come with the library."""
    return list(LAYOUTS)


def get_layout(layout: Layout | Mapping[str, Any] | str | Path) -> Layout:
    """A layout by name, from a mapping, or from a YAML file.

    Args:
        layout: a :class:`Layout` (returned as it is), the name of one that comes with the library, a mapping in the
            form of :meth:`Layout.to_dict`, or the path of a YAML file with such a mapping.

    Raises:
        LayoutError: unknown name (with the nearest known ones), unreadable file, or a wrong tree.
    """
    if isinstance(layout, Layout):
        return layout
    if isinstance(layout, Mapping):
        return Layout.from_dict(layout)
    text = str(layout)
    if text in LAYOUTS:
        return LAYOUTS[text]
    path = Path(text).expanduser()
    if path.suffix.lower() in (".yaml", ".yml", ".json"):  # JSON is YAML
        return _read(path)
    near = difflib.get_close_matches(text.lower(), LAYOUTS, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise LayoutError(f"unknown layout {text!r}: {hint}Known are {', '.join(LAYOUTS)}; or give a path ending in .yaml")


def _read(path: Path) -> Layout:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LayoutError(f"layout file {path}: there is no such file") from None
    except OSError as error:
        raise LayoutError(f"layout file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LayoutError(f"layout file {path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, Mapping):
        raise LayoutError(f"layout file {path}: expected a mapping with the keys joints and bones")
    content = {"name": path.stem, **content}
    return Layout.from_dict(content, source=f"layout file {path}")


def _sequence(value: Any, where: str, key: str) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise LayoutError(f"{where}: {key} must be a list, got {value!r}")
    return list(value)


def _pairs(value: Any, where: str, key: str) -> list[tuple[Any, Any]]:
    pairs = [_sequence(pair, where, f"an entry of {key}") for pair in _sequence(value, where, key)]
    for pair in pairs:
        if len(pair) != 2:
            raise LayoutError(f"{where}: {key} must hold pairs of joints, got {pair!r}")
    return [(pair[0], pair[1]) for pair in pairs]


def _index(joints: Sequence[str], name: str, where: str) -> int:
    try:
        return joints.index(name)
    except ValueError:
        near = difflib.get_close_matches(name, joints, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise LayoutError(f"{where}: there is no joint {name!r}{hint}") from None


def _path(parents: Sequence[int], joint: int) -> list[int]:
    """Joints from `joint` to the root; ends at the first one met twice where there is a cycle."""
    path = [joint]
    while parents[path[-1]] != path[-1] and parents[path[-1]] not in path:
        path.append(parents[path[-1]])
    return path


def _check_names(joints: Sequence[str], where: str) -> None:
    if not joints:
        raise LayoutError(f"{where}: there are no joints")
    repeated = sorted({joint for joint in joints if joints.count(joint) > 1})
    if repeated:
        raise LayoutError(f"{where}: joints named more than once: {', '.join(map(repr, repeated))}")


def _check_tree(joints: Sequence[str], parents: Sequence[int], where: str) -> None:
    roots = [joints[joint] for joint, parent in enumerate(parents) if joint == parent]
    for joint in range(len(joints)):
        path = _path(parents, joint)
        if parents[path[-1]] != path[-1]:
            loop = path[path.index(parents[path[-1]]) :]
            chain = " -> ".join(joints[link] for link in [*loop, loop[0]])
            raise LayoutError(f"{where}: the bones form a cycle, {chain}")
    if len(roots) != 1:
        raise LayoutError(
            f"{where}: exactly one joint may be without a parent (the root), but {', '.join(map(repr, roots))} are"
        )


def _check(layout: Layout) -> None:
    where, joints, count = f"layout {layout.name!r}", layout.joints, len(layout.joints)
    _check_names(joints, where)

    def within(index: int, what: str) -> None:
        if not 0 <= index < count:
            raise LayoutError(f"{where}: {what} refers to joint {index}, but there are only {count} joints")

    for key, values in (("parents", layout.parents), ("mirror", layout.mirror)):
        if len(values) != count:
            raise LayoutError(f"{where}: {key} has {len(values)} entries for {count} joints")
        for name, value in zip(joints, values, strict=True):
            within(value, f"{key} of {name!r}")
    _check_tree(joints, layout.parents, where)
    for joint, other in enumerate(layout.mirror):
        if layout.mirror[other] != joint:
            raise LayoutError(
                f"{where}: the mirror of {joints[joint]!r} is {joints[other]!r}, "
                f"whose mirror is {joints[layout.mirror[other]]!r}: it must lead back"
            )
    owner: dict[int, str] = {}
    for part, members in layout.parts.items():
        for joint in members:
            within(joint, f"part {part!r}")
            if joint in owner:
                raise LayoutError(f"{where}: joint {joints[joint]!r} is in part {owner[joint]!r} and in part {part!r}")
            owner[joint] = part
    within(layout.center, "center")
    for joint in layout.shoulders:
        within(joint, "shoulders")
    if layout.up not in UP_AXES:
        raise LayoutError(f"{where}: up is {layout.up!r}, must be one of {', '.join(UP_AXES)}")
    if layout.dims not in (2, 3):
        raise LayoutError(f"{where}: dims is {layout.dims}, must be 2 or 3")


LAYOUTS: dict[str, Layout] = {table["name"]: Layout.from_dict(table) for table in builtin.TABLES}
