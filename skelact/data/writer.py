"""Writing a store, so that an interrupted run leaves the old one or the new one, and continues where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from skelact.data.npyfile import HEADER, GrowingNpy, NpyRows
from skelact.data.store import CARD, CLIPS, FORMAT, FRAMES, MASK, file_entry, fingerprint, note_verified
from skelact.errors import SkelactError

_JOURNAL = "journal.jsonl"
_RESERVED = ("name", "start", "length", "label")


def refuse_foreign(target: Path) -> None:
    """Raise where the target is something else than a store: it would be replaced, and its content lost."""
    if target.exists() and not (target / CARD).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise SkelactError(f"{target} is there already and is no store; it is not replaced: choose another target")


class StoreWriter:
    """Write clips one after another; `with` finishes the store, or on an error leaves what is done for later.

    Everything goes to `<target>.partial`, with a line in a journal once a clip's frames are on disk. A writer that
    finds such a folder of the same dataset keeps its whole clips (:attr:`done`) and drops the torn end.

    Args:
        target: the store's folder; an existing store there is replaced at the very end.
        card: what the reader knows: name, layout (plain dict), channels, unit, fps, persons, class_names, source,
            licence, citation, splits.
        dtype: float32 or float16.
        masked: whether clips carry masks.

    Raises:
        SkelactError: the target is there and no store, a clip of the wrong shape or with coordinates that are not
            finite, a name given twice.
    """

    def __init__(self, target: str | Path, card: dict[str, Any], dtype: str = "float32", masked: bool = False) -> None:
        self.target = Path(target)
        refuse_foreign(self.target)
        self.partial = self.target.with_name(self.target.name + ".partial")
        self.card: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **card}))
        if np.dtype(dtype).name not in ("float32", "float16"):
            raise SkelactError(f"a store holds float32 or float16, not {dtype}")
        joints = len(self.card["layout"]["joints"])
        self.row = (int(self.card["persons"]), joints, len(self.card["channels"]))
        self.dtype, self.masked = np.dtype(dtype), masked
        head = {**self.card, "dtype": self.dtype.name, "masked": masked}
        head.pop("splits", None)  # a new split rule does not make finished clips stale
        self._head = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
        self._old = self.target.with_name(self.target.name + ".old")
        if self._old.exists() and not self.target.exists():
            os.replace(self._old, self.target)  # an earlier run died between its two renames
        self.partial.mkdir(parents=True, exist_ok=True)
        self.done = self._recover()
        self._names = {entry["name"] for entry in self.done}
        rows = self._rows(len(self.done))
        self._frames = GrowingNpy(self.partial / FRAMES, self.dtype, self.row, rows)
        self._mask = GrowingNpy(self.partial / MASK, np.dtype(bool), self.row[:2], rows) if masked else None
        self._rewrite_journal()
        self._finished = False

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.close()
        elif not self._finished:
            self.finish()

    def add(
        self,
        name: str,
        frames: np.ndarray,
        label: int,
        mask: np.ndarray | None = None,
        stamp: Any = None,
        **columns: int | str,
    ) -> None:
        """Append one clip.

        Args:
            name: unique name of the clip.
            frames: `(T, M, V, C)`, T >= 1; joints that the mask calls unobserved must still be finite (zero).
            label: class, -1 where unknown.
            mask: `(T, M, V)` bool, only for a masked store; None means all observed.
            stamp: anything JSON that tells one version of the source file from another; kept until the end.
            **columns: subject, camera and the like; the same columns for every clip.
        """
        self._admit(name, columns)
        if frames.ndim != 4 or frames.shape[1:] != self.row or len(frames) < 1:
            raise SkelactError(f"clip {name!r} has shape {frames.shape}, expected (T >= 1, {self.row})")
        values = np.ascontiguousarray(frames, self.dtype)
        if not np.isfinite(values).all():
            raise SkelactError(f"clip {name!r} has coordinates that are not finite in {self.dtype.name}")
        crc = zlib.crc32(values.data.cast("B"))
        if mask is not None and (not self.masked or mask.shape != frames.shape[:3]):
            raise SkelactError(f"clip {name!r} has a mask {mask.shape} that the store cannot take")
        if self._mask is not None:
            bits = np.ones(frames.shape[:3], bool) if mask is None else np.ascontiguousarray(mask, bool)
            crc = zlib.crc32(bits.data.cast("B"), crc)
            self._mask.append(bits)
        self._frames.append(values)
        self._enter(name, columns, {"length": len(values), "label": int(label), "crc": crc, "stamp": stamp})

    def truncate(self, count: int) -> None:
        """Forget all clips after the first `count`."""
        self._journal.close()
        for entry in self.done[count:]:
            self._names.discard(entry["name"])
        del self.done[count:]
        self._truncate_files(count)
        self._rewrite_journal()

    def finish(self, extra: dict[str, Any] | None = None) -> None:
        """Write table and card and put the store in its place.

        Args:
            extra: more card entries (they do not enter the fingerprint).
        """
        if not self.done:
            self.close()
            raise SkelactError(f"nothing to write to {self.target}: there is no clip")
        self._frames.finish()
        if self._mask is not None:
            self._mask.finish()
        self._journal.close()
        self._write_table()
        names = self._files()
        card = {**self.card, **(extra or {})}
        card["counts"] = {
            "clips": len(self.done),
            "frames": self._rows(len(self.done)),
            "per_class": np.bincount(
                [e["label"] for e in self.done if e["label"] >= 0], minlength=len(card["class_names"])
            ).tolist(),
        }
        card["statistics"] = self._statistics()
        card["files"] = {name: file_entry(self.partial / name) for name in names}
        card["fingerprint"] = fingerprint(card)
        (self.partial / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name in [*names, CARD]:
            with open(self.partial / name, "rb") as stream:
                os.fsync(stream.fileno())
        note_verified(self.partial, card)
        if self.target.exists():
            shutil.rmtree(self._old, ignore_errors=True)
            os.replace(self.target, self._old)
        os.replace(self.partial, self.target)
        (self.target / _JOURNAL).unlink()  # only now: killed before, the next run needs it
        shutil.rmtree(self._old, ignore_errors=True)
        self._finished = True

    def close(self) -> None:
        """Stop without finishing; a later writer continues."""
        self._frames.close()
        if self._mask is not None:
            self._mask.close()
        self._journal.close()

    def _files(self) -> list[str]:
        return [FRAMES, CLIPS] + ([MASK] if self.masked else [])

    def _admit(self, name: str, columns: Mapping[str, int | str]) -> None:
        """Refuse a clip whose name or columns do not go with those before it."""
        if name in self._names:
            raise SkelactError(f"clip name {name!r} is given twice; names must be unique")
        if any(key in _RESERVED for key in columns):
            raise SkelactError(f"column names {', '.join(_RESERVED)} are taken (clip {name!r})")
        if self.done and set(columns) != set(self.done[0]["columns"]):
            raise SkelactError(f"clip {name!r} has columns {sorted(columns)}, others {sorted(self.done[0]['columns'])}")

    def _enter(self, name: str, columns: Mapping[str, int | str], facts: dict[str, Any]) -> None:
        """Note a clip whose bytes are on disk."""
        plain = {key: value if isinstance(value, str) else int(value) for key, value in columns.items()}
        entry = {"name": name, "columns": plain, **facts}
        self._journal.write(json.dumps(entry) + "\n")
        self._journal.flush()
        self.done.append(entry)
        self._names.add(name)

    def _truncate_files(self, count: int) -> None:
        self._frames.truncate(self._rows(count))
        if self._mask is not None:
            self._mask.truncate(self._rows(count))

    def _rows(self, count: int) -> int:
        return sum(entry["length"] for entry in self.done[:count])

    def _rewrite_journal(self) -> None:
        temporary = self.partial / (_JOURNAL + ".new")
        lines = [json.dumps({"head": self._head}), *(json.dumps(entry) for entry in self.done)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, self.partial / _JOURNAL)
        self._journal = open(self.partial / _JOURNAL, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def _recover(self) -> list[dict[str, Any]]:
        """The journal's clips whose bytes are all there and right, up to the first that is not."""
        try:
            lines = (self.partial / _JOURNAL).read_text(encoding="utf-8").splitlines()
            if json.loads(lines[0]) != {"head": self._head}:
                return []
        except (OSError, ValueError, IndexError):
            return []
        done: list[dict[str, Any]] = []
        names: set[str] = set()
        size = int(np.prod(self.row)) * self.dtype.itemsize
        bits = int(np.prod(self.row[:2]))
        position = 0
        try:
            with open(self.partial / FRAMES, "rb") as frames:
                masks = open(self.partial / MASK, "rb") if self.masked else None  # noqa: SIM115 - closed below
                try:
                    for line in lines[1:]:
                        entry = json.loads(line)
                        count = entry["length"]
                        frames.seek(HEADER + position * size)
                        values = frames.read(count * size)
                        crc = zlib.crc32(values)
                        if masks is not None:
                            masks.seek(HEADER + position * bits)
                            crc = zlib.crc32(masks.read(count * bits), crc)
                        if len(values) != count * size or crc != entry["crc"] or entry["name"] in names:
                            break
                        position += count
                        done.append(entry)
                        names.add(entry["name"])
                finally:
                    if masks is not None:
                        masks.close()
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a torn last line: what came before it is whole
        return done

    def _write_table(self) -> None:
        length = np.array([entry["length"] for entry in self.done], np.int64)
        table: dict[str, np.ndarray] = {
            "name": np.array([entry["name"] for entry in self.done]),
            "start": np.cumsum(length) - length,
            "length": length,
            "label": np.array([entry["label"] for entry in self.done], np.int64),
        }
        for key in sorted(self.done[0]["columns"]):
            values = [entry["columns"][key] for entry in self.done]
            whole = all(isinstance(value, int) for value in values)
            table[key] = np.array(values, np.int64) if whole else np.array([str(value) for value in values])
        # savez stamps 1980 on its members, so equal tables are equal bytes
        np.savez(self.partial / CLIPS, **table)  # type: ignore[arg-type]

    def _statistics(self) -> dict[str, Any]:
        """What `card["statistics"]` holds, in the store's unit: see :func:`statistics`."""
        return statistics(NpyRows(self.partial / FRAMES), NpyRows(self.partial / MASK) if self.masked else None)


def statistics(frames: np.ndarray | NpyRows, mask: np.ndarray | NpyRows | None) -> dict[str, Any]:
    """Mean and deviation of each channel over observed joints, and how much is absent.

    Args:
        frames: `(F, M, V, C)`; read in slices.
        mask: `(F, M, V)` bool, or None.

    Returns:
        `mean`, `std`: one number a channel; `absent_persons`: share of the frames' person slots in which nobody is
        (no observed joint; without a mask: every number zero); `absent_joints`: with a mask, share of the joints of
        present persons that were not observed.
    """
    channels, step = frames.shape[3], 1 << 12
    total, square = np.zeros(channels), np.zeros(channels)
    slots = present = joints = seen = 0
    for first in range(0, len(frames), step):
        values = np.array(frames[first : first + step], np.float64)
        observed = np.ones(values.shape[:3], bool) if mask is None else np.asarray(mask[first : first + step])
        there = (values != 0).any(axis=(2, 3)) if mask is None else observed.any(axis=2)
        weight, rows = observed.reshape(-1).astype(np.float64), values.reshape(-1, channels)
        total += weight @ rows
        rows *= rows
        square += weight @ rows
        slots += there.size
        present += int(there.sum())
        joints += int(there.sum()) * values.shape[2]
        seen += int(observed.sum())
    count = max(seen, 1)
    mean = total / count
    deviation = np.sqrt(np.maximum(square / count - mean**2, 0))
    found: dict[str, Any] = {
        "mean": [round(v, 6) for v in mean.tolist()],
        "std": [round(v, 6) for v in deviation.tolist()],
        "absent_persons": round(1 - present / max(slots, 1), 6),
    }
    if mask is not None:
        found["absent_joints"] = round(1 - seen / max(joints, 1), 6)
    return found
