"""A user's own clips: `.npy`, `.npz` or `.csv` files and a clips table.

The formats are described in docs/datasets.md.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers.base import Clip, DamagedClip, Item, Reader, refuse_non_finite
from skelact.errors import SkelactError
from skelact.skeleton.layouts import Layout, get_layout

TABLE = "clips.csv"
_REQUIRED = ("name", "file", "label")


class CustomReader(Reader):
    """Read a folder with `clips.csv` and the clips it names.

    Args:
        layout: joint layout of the clips: a name, a mapping or a YAML file.
        name: name of the dataset.
        persons: person slots, M; None: 1; clips with fewer people have their empty slots masked.
        channels: channel names of a joint; None takes x, y(, z) from the layout. `score` may come last.
        fps: frames per second.
        unit: unit of the coordinates.
        splits: name -> rule `{factor, train, test?, val?: {factor, values}}`; None makes one called `default` from
            the column `split` (values train, val, test).
        missing: what not-a-number coordinates mean: `error` refuses the clip, `nan` takes such joints as unobserved.
        class_names: names of the classes in label order; None takes the labels of the table, sorted (as numbers
            where all are).
    """

    def __init__(
        self,
        layout: str | Mapping[str, Any] | Layout,
        name: str = "custom",
        persons: int | None = None,
        channels: Sequence[str] | int | None = None,
        fps: float = 30.0,
        unit: str = "m",
        splits: Mapping[str, Any] | None = None,
        missing: str = "error",
        class_names: Sequence[str] | None = None,
    ) -> None:
        if missing not in ("error", "nan"):
            raise SkelactError(f"missing={missing!r} is not one of error, nan")
        self.name, self.persons, self.fps, self.unit = name, int(persons or 1), float(fps), unit
        self.layout = get_layout(layout)
        axes = ("x", "y", "z")[: self.layout.dims]
        if channels is None or isinstance(channels, int):
            extra = 0 if channels is None else channels - len(axes)
            if extra not in (0, 1):
                raise SkelactError(
                    f"layout {self.layout.name!r} has {len(axes)} coordinates; channels={channels} cannot be"
                )
            channels = (*axes, *("score",)[:extra])
        self.channels = tuple(channels)
        self.splits, self.missing = splits, missing
        self._given_classes = None if class_names is None else [str(label) for label in class_names]
        self._classes: list[str] = []
        self.masked = missing == "nan" or self.persons > 1

    def scan(self, source: str | Path | None) -> list[Item]:
        """One item for each row of the clips table, in its order; a row that cannot be used is damage.

        Raises:
            SkelactError: no table, a required column is missing, or a column has a name of the store's own.
        """
        folder = self.locate(source)
        table = folder / TABLE
        header, rows = _table(folder)
        if absent := [key for key in _REQUIRED if key not in header]:
            raise SkelactError(f"{table} lacks the column {', '.join(absent)}; it has {', '.join(header)}")
        if taken := sorted({"start", "length"} & set(header)):
            raise SkelactError(f"{table}: column {', '.join(taken)} is the store's own; call it otherwise")
        good: list[dict[str, str]] = []
        damaged: list[Item] = []
        lines: dict[str, int] = {}
        for line, row in rows:
            reason = self._wrong(folder, row, lines)
            if reason:
                damaged.append(Item(f"{TABLE} line {line}", table, damage=(f"line {line}", reason)))
                continue
            good.append({key: str(row[key]).strip() for key in header})
            lines[good[-1]["name"]] = line
        self._classes = self._given_classes or _sorted_labels([row["label"] for row in good])
        extra = [key for key in header if key not in _REQUIRED]
        whole = {key: all(_is_whole(row[key]) for row in good) for key in extra}
        items = []
        for row in good:
            columns = {key: int(row[key]) if whole[key] else row[key] for key in extra}
            items.append(Item(row["name"], folder / row["file"], self._classes.index(row["label"]), columns))
        return items + damaged

    def _wrong(self, folder: Path, row: Mapping[Any, Any], lines: Mapping[str, int]) -> str:
        """What is wrong with a row of the table; empty when nothing is."""
        if None in row or None in row.values():
            return "has more or fewer fields than the heading"
        if empty := [key for key, value in row.items() if not value.strip()]:
            return f"{empty[0]} is empty"
        name, file, label = (row[key].strip() for key in _REQUIRED)
        if name in lines:
            return f"name {name!r} was given in line {lines[name]} already"
        if self._given_classes is not None and label not in self._given_classes:
            return f"label {label!r} is not one of {', '.join(self._given_classes)}"
        try:
            inside = (folder / file).resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError, RuntimeError):  # a zero byte, a name too long, links in a ring
            return f"file {file[:80]!r} cannot be a file's name"
        return "" if inside else f"file {file!r} lies outside {folder}"

    def read(self, item: Item) -> Clip:
        """Frames `(T, M, V, C)` float32, and a mask where the data can have gaps."""
        if not item.path.is_file():
            raise DamagedClip(item.path, "", "is missing")
        suffix = item.path.suffix.lower()
        if suffix == ".csv":
            values, mask = _read_csv(item.path), None
        elif suffix in (".npy", ".npz"):
            values, mask = _read_numpy(item.path)
        else:
            raise DamagedClip(item.path, "", f"has ending {suffix!r}; known are .npy .npz .csv")
        frames = self._shaped(values, item)
        if mask is not None:
            mask = mask[:, None] if mask.ndim == 2 else mask
            if mask.ndim == 3 and mask.shape[1] < self.persons:
                mask = np.pad(mask, ((0, 0), (0, self.persons - mask.shape[1]), (0, 0)))
            if mask.shape != frames.shape[:3]:
                raise DamagedClip(item.path, "mask", f"has shape {mask.shape}, the frames have {frames.shape[:3]}")
            if not self.masked and not mask.all():
                raise DamagedClip(item.path, "mask", "hides joints; set data.reader.missing=nan to carry masks")
        return self._checked(frames, mask, item)

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The dataset card's entries."""
        from skelact.data.splits import SplitRule  # brings torch, which worker processes do not need

        splits = self.splits
        if splits is None:
            found = {str(item.columns["split"]) for item in items if "split" in item.columns}
            rule: dict[str, Any] = {"factor": "split", "train": ["train", "val"], "test": ["test"]}
            if "val" in found:
                rule["val"] = {"factor": "split", "values": ["val"]}
            splits = {"default": rule} if found else {}
        return {
            "name": self.name,
            "layout": self.layout.to_dict(),
            "channels": list(self.channels),
            "unit": self.unit,
            "fps": self.fps,
            "persons": self.persons,
            "class_names": self._classes,
            "splits": {key: SplitRule.from_dict(rule).to_dict() for key, rule in splits.items()},
            "source": "the user's own clips",
            "licence": "",
            "citation": "",
        }

    def _shaped(self, values: np.ndarray, item: Item) -> np.ndarray:
        """`(T, M, V, C)` from `(T, M, V, C)`, `(T, V, C)` or flat rows `(T, M*V*C)`; fewer persons get empty slots."""
        joints, channels = self.layout.num_joints, len(self.channels)
        expected = (
            f"(T, {self.persons}, {joints}, {channels}), (T, {joints}, {channels}) or (T, persons*{joints * channels})"
        )
        frames = values
        if frames.ndim == 2 and frames.shape[1] and frames.shape[1] % (joints * channels) == 0:
            frames = frames.reshape(len(frames), -1, joints, channels)
        elif frames.ndim == 3:
            frames = frames[:, None]
        fits = frames.ndim == 4 and frames.shape[2:] == (joints, channels) and 1 <= frames.shape[1] <= self.persons
        if not fits or len(frames) < 1:
            raise DamagedClip(item.path, "", f"has shape {values.shape}, expected {expected} with T >= 1")
        empty = np.full((len(frames), self.persons - frames.shape[1], joints, channels), np.nan)
        return (
            np.concatenate([frames.astype(np.float64), empty], axis=1) if empty.shape[1] else frames.astype(np.float64)
        )

    def _checked(self, frames: np.ndarray, mask: np.ndarray | None, item: Item) -> Clip:
        """Turn gaps into a mask where that was asked for, refuse every other number that is not finite."""
        gaps = np.isnan(frames).any(axis=-1)
        allowed = gaps if self.missing == "nan" else gaps & np.isnan(frames).all(axis=(0, 2, 3))[None, :, None]
        seen = ~allowed if mask is None else mask & ~allowed
        if allowed.any():
            frames = np.where(allowed[..., None], 0.0, frames)
        refuse_non_finite(frames, item, self.layout.joints)
        if not seen.any():
            raise DamagedClip(item.path, "", "no joint was observed in any frame")
        return Clip(np.where(seen[..., None], frames, 0.0).astype(np.float32), seen if self.masked else None)


def _table(folder: Path) -> tuple[list[str], list[tuple[int, dict[Any, Any]]]]:
    """Heading of the clips table, and its rows with their line numbers."""
    table = folder / TABLE
    try:
        with open(table, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = [str(key).strip() for key in reader.fieldnames or ()]
            reader.fieldnames = header
            return header, [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise SkelactError(f"{folder} has no {TABLE} (a table with columns name, file, label)") from None
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise SkelactError(f"{table} cannot be read as a table: {error}") from error


def _is_whole(value: str | None) -> bool:
    text = (value or "").strip()
    return text.removeprefix("-").isdigit() and text.isascii() and len(text) < 19


def _sorted_labels(labels: Sequence[str]) -> list[str]:
    unique = set(labels)
    return sorted(unique, key=int) if all(_is_whole(label) for label in unique) else sorted(unique)


def _read_numpy(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """`frames` and `mask` of an archive, or the one array of a `.npy`; never unpickles."""
    try:
        with open(path, "rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                frames, mask = content, None
            else:
                if "frames" not in content.files:
                    raise DamagedClip(path, "", f"has no array 'frames' (it has {', '.join(content.files) or 'none'})")
                frames = content["frames"]
                mask = content["mask"].astype(bool) if "mask" in content.files else None
    except DamagedClip:
        raise
    except Exception as error:  # NumPy hands through whatever its parsers meet: zlib.error, SyntaxError, ...
        pickled = "allow_pickle" in str(error) or "pickled" in str(error).lower()
        reason = (
            "holds pickled Python objects, which could run code; refused" if pickled else f"cannot be read ({error})"
        )
        raise DamagedClip(path, "", reason) from None
    if not isinstance(frames, np.ndarray) or frames.dtype.kind not in "fiu":
        raise DamagedClip(path, "", f"holds {getattr(frames, 'dtype', 'bytes')}, not numbers")
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged exponent: refused where the numbers are checked
        return frames.astype(np.float64), mask


def _read_csv(path: Path) -> np.ndarray:
    """`(T, columns)` float64; a first line that is not numbers is a heading; an empty field is not-a-number."""
    rows: list[list[float]] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            for number, fields in enumerate(csv.reader(stream), start=1):
                if not fields:
                    continue
                try:
                    row = [float(field) if field.strip() else float("nan") for field in fields]
                except ValueError:
                    if number == 1:
                        continue
                    bad = next(field for field in fields if not _is_number(field))
                    raise DamagedClip(path, f"line {number}", f"{bad!r} is not a number") from None
                if rows and len(row) != len(rows[0]):
                    raise DamagedClip(path, f"line {number}", f"has {len(row)} fields, the lines before {len(rows[0])}")
                rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DamagedClip(path, "", f"is not a CSV text ({error})") from None
    if not rows:
        raise DamagedClip(path, "", "holds no frame")
    return np.array(rows)


def _is_number(field: str) -> bool:
    try:
        float(field or "nan")
    except ValueError:
        return False
    return True
