"""Pose files in the form of pyskl (Duan et al., "PYSKL: towards good practices for skeleton action recognition", 2022).

One pickle holds a data set: `split`, lists of clip names, and `annotations`, one dict a clip: `frame_dir` (its name),
`label`, `total_frames`, `keypoint` `(M, T, V, C)` and for 2D poses `keypoint_score` `(M, T, V)`, `img_shape` (height,
width). Kinetics-400 keeps the key points in files of their own. The pickles are read by
:mod:`skelact.data.unpickle`, which runs nothing that they say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers import ntu_protocols
from skelact.data.readers.base import Clip, DamagedClip, Item, Reader, refuse_non_finite
from skelact.data.readers.pyskl_fields import as_dict, as_numbers, brief, image_sides, name_of, people_in, stamp_of
from skelact.data.readers.pyskl_poses import (
    COORDINATES,
    REPAIRS,
    best_people,
    exchange,
    scale_points,
    swapped_frames,
    unpack_skeletons,
)
from skelact.data.readers.pyskl_splits import SplitTable, held_out
from skelact.data.unpickle import UnpickleError, load
from skelact.errors import SkelactError

MAX_PERSONS = 2
#: Bounds beyond which a number in a file is taken as damage, not as a size to allocate.
MAX_CLASSES, MAX_FRAMES = 10_000, 100_000


class PysklReader(Reader):
    """Read a pyskl pickle: x, y, score in an image, or x, y, z.

    Args:
        name: name of the dataset.
        layout: joint layout of the file: `coco17`, `ntu25` for the 3D annotations, or another name or mapping.
        persons: person slots, M; None: as many as the file has at most, but no more than 2. Of more people those with
            the highest mean score stay, in the file's order.
        min_score: joints of a score up to this are masked (their coordinates stay in the store); None masks none.
        coordinates: `pixel`, `centered`, `pyskl` or `motionbert`, see
            :func:`skelact.data.readers.pyskl_poses.scale_points`. 3D poses stay as they are (`pixel`).
        repair: undo exchanged identities of two people: `none`, `motionbert` (its rule, coordinates only, as released)
            or `corrected` (scores move with their coordinates); None: `motionbert` with those coordinates, else `none`.
        masked: write masks, with zero coordinates for people who are not there; None: unless the coordinates are
            `motionbert`, which are then what the released code sees: absent people at (-1, -1) in clips of two.
        keypoints: folder of Kinetics' key point files; None looks below the source.
        num_classes: number of classes; None: the largest label of the file and one.
        class_names: names of the classes; None: their numbers.
        ntu: 60 or 120: the clips are those of NTU RGB+D. Other names and impossible numbers are damage; class names,
            validation and published counts are those of :mod:`skelact.data.readers.ntu_protocols`.
        fps: frames per second.
        source, licence, citation: texts for the card.
    """

    in_process = True  # one file holds everything: handing it to worker processes costs more than reading it here

    def __init__(
        self,
        name: str,
        layout: str | Mapping[str, Any] = "coco17",
        persons: int | None = None,
        min_score: float | None = 0.0,
        coordinates: str = "pixel",
        repair: str | None = None,
        masked: bool | None = None,
        keypoints: str | Path | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        ntu: int | None = None,
        fps: float = 30.0,
        source: str = "",
        licence: str = "",
        citation: str = "",
    ) -> None:
        from skelact.skeleton.layouts import get_layout

        self.name, self.layout, self.fps, self.min_score = name, get_layout(layout), float(fps), min_score
        self.flat = self.layout.dims == 2
        repair = repair or ("motionbert" if coordinates == "motionbert" else "none")
        for key, value, known in (("coordinates", coordinates, COORDINATES), ("repair", repair, REPAIRS)):
            if value not in known:
                raise SkelactError(f"{key}={value!r} is not one of {', '.join(known)}")
        if not self.flat and (coordinates != "pixel" or repair != "none"):
            raise SkelactError(f"{name}: coordinates and repair are for 2D poses; layout {self.layout.name} is 3D")
        if persons is not None and persons < 1:
            raise SkelactError(f"{name}: persons={persons}; there must be at least one")
        if repair != "none" and (persons or 0) > 2:
            raise SkelactError(f"{name}: repair={repair} is for two people, persons={persons}")
        self.coordinates, self.repair = coordinates, repair
        self.masked = coordinates != "motionbert" if masked is None else bool(masked)
        self.keypoints = None if keypoints is None else Path(keypoints).expanduser()
        self._texts = {"source": source, "licence": licence, "citation": citation}
        if ntu not in (None, *ntu_protocols.SPLITS):
            raise SkelactError(f"{name}: ntu={ntu} is not one of 60, 120")
        self.ntu = ntu
        if ntu is not None and class_names is None:
            class_names = ntu_protocols.CLASSES[:ntu]
        self._classes = None if class_names is None else [str(text) for text in class_names]
        self._count = num_classes if self._classes is None else len(self._classes)
        self._given_persons, self.persons = persons, persons or 1
        self._path: Path | None = None
        self._content: dict[str, Any] | None = None
        self._rules: dict[str, Any] = {}
        self._kept: tuple[Path, Any] | None = None  # the Kinetics key point file read last

    def __getstate__(self) -> dict[str, Any]:
        """Without the file's content, which another process reads again when it must."""
        return {**self.__dict__, "_content": None, "_kept": None}

    def scan(self, source: str | Path | None) -> list[Item]:
        """One item for each annotation, in the file's order (Kinetics: key point file by key point file).

        Raises:
            SkelactError: no such file, not a pickle of plain data, or without the two entries.
        """
        self._path = self._find(source)
        self._content = self._open(self._path)
        found = self._content["annotations"]
        items: list[Item] = []
        first: dict[str, int] = {}
        status = self._path.stat()
        folder = self._keypoint_files(self._path)
        for key, note in enumerate(found):
            where = f"annotations[{key}]"
            name = name_of(note)
            label, trouble = self._label_of(note)
            if name is None:
                name, trouble = where, "is not a mapping with a frame_dir of text"
            elif name in first:
                trouble = f"the name {name!r} was given by annotations[{first[name]}] already"
            elif not trouble and self.ntu:
                trouble = _not_of_ntu(name, label, self.ntu)
            first.setdefault(name, key)
            damage = (where if name == where else f"{where} {name}", trouble) if trouble else None
            path, version = self._path, None
            if not damage and "keypoint" not in note and isinstance(note.get("raw_file"), str):
                path = folder / (re.split(r"[/\\]", note["raw_file"])[-1] or "kpfile")  # never anywhere else
                version = (status.st_size, status.st_mtime_ns, *stamp_of(path))
            items.append(Item(name, path, label, {}, key, version=version, damage=damage))
        return self._finish(items)

    def read(self, item: Item) -> Clip:
        """Frames `(T, M, V, 3)` float32: x, y, score, or x, y, z; and a mask where the reader writes them."""
        if item.damage is not None:
            raise DamagedClip(item.path, *item.damage)
        where = f"annotations[{item.key}] {item.name}"
        points, scores = self._pose(item, where)
        _, total, joints, _ = points.shape
        self._finite(points, scores, item, where)
        seen = (points != 0).any(axis=(-2, -1))  # (M, T)
        if len(points) > self.persons:
            kept = best_people(seen[..., None] if scores is None else scores, self.persons)
            points, seen = points[kept], seen[kept]
            scores = None if scores is None else scores[kept]
        if not seen.any():
            raise DamagedClip(item.path, where, "has no person in any frame")
        observed = np.broadcast_to(seen[..., None], (*seen.shape, joints))
        if scores is not None and self.min_score is not None:
            observed = observed & (scores > self.min_score)
        if self.flat:
            assert scores is not None
            points = self._scaled(points, scores, item, where)
            if self.repair != "none" and len(points) == 2:
                swapped = swapped_frames(points)
                points, observed, seen = (exchange(values, swapped) for values in (points, observed, seen))
                scores = exchange(scores, swapped) if self.repair == "corrected" else scores
            if self.masked:
                points = np.where(seen[..., None, None], points, 0)
            points = np.concatenate([points, scores[..., None]], axis=-1)
        frames = np.zeros((total, self.persons, joints, 3), np.float32)
        frames[:, : len(points)] = points.swapaxes(0, 1)
        if not self.masked:
            return Clip(frames)
        mask = np.zeros(frames.shape[:3], bool)
        mask[:, : len(points)] = observed.swapaxes(0, 1)
        return Clip(frames, mask)

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The dataset card's entries."""
        labels = [item.label for item in items if item.damage is None]
        names = self._classes or [str(label) for label in range(self._count or max(labels, default=0) + 1)]
        units = {"pixel": "px", "centered": "half of the longer image side", "pyskl": "half of the image's own sides"}
        card = {
            "name": self.name,
            "layout": self.layout.to_dict(),
            "channels": ["x", "y", "score"] if self.flat else ["x", "y", "z"],
            "unit": units.get(self.coordinates, units["centered"]) if self.flat else "m",
            "fps": self.fps,
            "persons": self.persons,
            "class_names": names,
            "splits": self._rules,
            **self._texts,
        }
        if self.flat:
            card |= {"pipeline": self.coordinates, "repair": self.repair, "min_score": self.min_score}
        if self.ntu:
            counts = ntu_protocols.published(self.ntu)
            if "exemplars" not in self._rules.get("oneshot", {}):
                counts["splits"].pop("oneshot", None)
            card["published"] = counts
        return card

    def _find(self, source: str | Path | None) -> Path:
        path = self.locate(source)
        if path.is_dir():
            files = sorted(path.glob("*.pkl"))
            if len(files) != 1:
                found = ", ".join(file.name for file in files[:5]) or "none"
                raise SkelactError(
                    f"{self.name}: {path} should hold one .pkl file, it has {found}; name the file itself"
                )
            return files[0]
        return path

    def _open(self, path: Path) -> dict[str, Any]:
        try:
            content = load(path)
        except UnpickleError as error:
            raise SkelactError(f"{self.name}: {error}") from None
        if isinstance(content, list):  # a file of annotations alone
            content = {"split": {}, "annotations": content}
        good = isinstance(content, dict) and isinstance(content.get("annotations"), (list, tuple))
        if not good or not isinstance(content.get("split", {}), dict):
            raise SkelactError(f"{self.name}: {path} is not {{split: {{...}}, annotations: [...]}} as pyskl files are")
        for key, names in content.setdefault("split", {}).items():
            if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in (key, *names)):
                raise SkelactError(f"{self.name}: {path}, split {str(key)[:40]!r} is not a list of clip names")
        return content

    def _keypoint_files(self, path: Path) -> Path:
        """The folder of Kinetics' key point files: given, or beside the list."""
        if self.keypoints is not None:
            return self.keypoints
        below = [entry for entry in sorted(path.parent.iterdir()) if entry.is_dir() and any(entry.glob("*.pkl"))]
        return next((entry for entry in below if entry.name == "kpfiles"), below[0] if below else path.parent)

    def _label_of(self, note: Any) -> tuple[int, str]:
        label = note.get("label") if isinstance(note, dict) else None
        if not isinstance(label, (int, np.integer)) or isinstance(label, bool):
            return -1, f"its label is {brief(label)}, not a whole number"
        if not 0 <= label < (self._count or MAX_CLASSES):
            return -1, f"its label {brief(label)} is not one of 0 .. {(self._count or MAX_CLASSES) - 1}"
        return int(label), ""

    def _finish(self, items: list[Item]) -> list[Item]:
        """Columns, splits, persons and notes, which need all annotations."""
        assert self._content is not None
        found = self._content["annotations"]
        sound = [item for item in items if item.damage is None]
        table = SplitTable(self._content["split"], [item.name for item in sound])
        ntu = {item.name: of_name for item in sound if (of_name := ntu_protocols.parse_name(item.name))}
        notes = list(table.notes)
        if named := len(ntu) == len(sound):
            if other := sum(ntu[item.name]["action"] != item.label + 1 for item in sound):
                notes.append(f"{other} clips have another label than their name says")
        elif ntu:
            notes.append(f"{len(sound) - len(ntu)} names are not of NTU's scheme; no clip gets its columns")
        if self.flat and (bare := sum("keypoint_score" not in as_dict(found[i.key]) for i in sound if not i.version)):
            notes.append(f"{bare} clips have no keypoint_score; it is taken as 1")
        subjects = {key: numbers["subject"] for key, numbers in ntu.items()} if named else None
        known = ntu_protocols.SPLITS[self.ntu] if self.ntu else {}
        self._rules = table.rules(subjects, known)
        if named and "oneshot" in known:
            self._rules.setdefault("oneshot", known["oneshot"])
        self.notes = notes
        people = max((people_in(found[item.key]) for item in sound), default=1)
        self.persons = self._given_persons or max(min(people, MAX_PERSONS), 1)
        result = []
        for item in items:
            note = as_dict(found[item.key])
            columns: dict[str, int | str] = {**table.columns(item.name)}
            if named:
                columns |= ntu.get(item.name, dict.fromkeys(ntu_protocols.FACTORS, 0))
            else:
                columns["held_out"] = int(held_out(item.name))
            if self.flat:
                columns["height"], columns["width"] = image_sides(note) or (0, 0)
            total = note.get("total_frames", 0)
            columns["total_frames"] = int(total) if isinstance(total, (int, np.integer)) else 0
            result.append(replace(item, columns=columns))
        return sorted(result, key=lambda item: "" if item.path == self._path else str(item.path))

    def _annotation(self, item: Item) -> dict[str, Any]:
        if self._content is None:
            assert self._path is not None
            self._content = self._open(self._path)
        return as_dict(self._content["annotations"][item.key])

    def _pose(self, item: Item, where: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Points `(M, T, V, 2 or 3)` and scores `(M, T, V)`, float32, of checked shape."""
        note = self._annotation(item)
        joints, dims = self.layout.num_joints, self.layout.dims
        if "keypoint" not in note and "frame_inds" in note:
            return self._unpacked(note, item, where)
        points, scores = as_numbers(note.get("keypoint")), note.get("keypoint_score")
        if points is None or points.ndim != 4 or points.shape[2] != joints or points.shape[3] not in (dims, 3):
            found = brief(note.get("keypoint")) if points is None else f"of shape {points.shape}"
            raise DamagedClip(item.path, where, f"keypoint is {found}, expected (M, T, {joints}, {dims}) of numbers")
        if 0 in points.shape:
            raise DamagedClip(item.path, where, f"keypoint is of shape {points.shape}: nobody, or no frame")
        total = note.get("total_frames", points.shape[1])
        if not isinstance(total, (int, np.integer)) or total != points.shape[1]:
            raise DamagedClip(
                item.path, where, f"total_frames is {brief(total)}, keypoint has {points.shape[1]} frames"
            )
        if not self.flat:
            return points, None
        if scores is None and points.shape[3] == 3:
            scores = points[..., 2]
        scores = np.ones(points.shape[:3], np.float32) if scores is None else as_numbers(scores)
        if scores is None or scores.shape != points.shape[:3]:
            raise DamagedClip(item.path, where, f"keypoint_score does not fit keypoint, of shape {points.shape}")
        return points[..., :2], scores

    def _unpacked(self, note: Mapping[str, Any], item: Item, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Kinetics' variant: all skeletons of the video in a row, each with its frame."""
        joints, total = self.layout.num_joints, note.get("total_frames")
        if self._kept is None or self._kept[0] != item.path:
            try:
                self._kept = item.path, load(item.path)
            except UnpickleError as error:
                self._kept = item.path, error
        content = self._kept[1]
        if isinstance(content, UnpickleError):
            raise DamagedClip(item.path, where, f"{content.where}: {content.reason}".removeprefix(": "))
        entry = as_dict(content).get(item.name)
        if entry is None:
            raise DamagedClip(item.path, where, "has no skeletons in this key point file")
        skeletons = as_numbers(entry.get("keypoint") if isinstance(entry, dict) else entry)
        if skeletons is None or skeletons.shape[1:] != (joints, 3) or not self.flat:
            found = "no numbers" if skeletons is None else f"of shape {skeletons.shape}"
            raise DamagedClip(item.path, where, f"its skeletons are {found}, expected (S, {joints}, 3)")
        frames = note["frame_inds"]
        whole = isinstance(frames, np.ndarray) and frames.dtype.kind in "iu"
        if not whole or frames.shape != (len(skeletons),) or not isinstance(total, (int, np.integer)):
            raise DamagedClip(
                item.path, where, f"frame_inds does not name a frame for each of {len(skeletons)} skeletons"
            )
        frames = frames.astype(np.int64)
        if not len(frames):
            raise DamagedClip(item.path, where, "has no skeleton in any frame")
        if not 0 < total <= MAX_FRAMES or frames.min() < 0 or frames.max() >= total:
            found = f"{frames.min()} .. {frames.max()}"
            raise DamagedClip(item.path, where, f"frame_inds has {found} in a video of {brief(total)} frames")
        pose = unpack_skeletons(skeletons, frames, int(total), self.persons)
        return pose[..., :2], pose[..., 2]

    def _scaled(self, points: np.ndarray, scores: np.ndarray, item: Item, where: str) -> np.ndarray:
        image = image_sides(self._annotation(item))
        if image is None and self.coordinates != "pixel":
            raise DamagedClip(item.path, where, f"has no img_shape, which coordinates={self.coordinates} needs")
        return scale_points(points, *(image or (1, 1)), self.coordinates, scores)

    def _finite(self, points: np.ndarray, scores: np.ndarray | None, item: Item, where: str) -> None:
        values = points if scores is None else np.concatenate([points, scores[..., None]], axis=-1)
        try:
            refuse_non_finite(values.swapaxes(0, 1), item, self.layout.joints)
        except DamagedClip as error:
            raise DamagedClip(item.path, f"{where}, {error.where}", error.reason) from None


def _not_of_ntu(name: str, label: int, sets: int) -> str:
    """What keeps a clip from being one of NTU RGB+D."""
    factors = ntu_protocols.parse_name(name)
    if factors is None:
        return "is not named by the scheme SsssCcccPpppRrrrAaaa"
    if factors["action"] != label + 1:
        return f"has label {label}, its name says {factors['action'] - 1}"
    return ntu_protocols.impossible(factors, sets)
