"""The store: a dataset on disk in the form in which batches use it.

A store is a folder of four files that NumPy alone can read, for ever:

* `frames.npy` `(F, M, V, C)` float32 or float16: the frames of all clips, one after another, memory-mapped;
* `mask.npy` `(F, M, V)` bool, only where the source knows which joints were observed;
* `clips.npz`: one row a clip: `name`, `start`, `length`, `label` and the source's columns (subject, camera, ...);
* `card.json`: what the data are: layout, channels, unit, rate, classes, splits, licence, sizes and hashes, and the
  *fingerprint*, one hash over everything that can change a result.

Opening checks sizes, headers, the whole clips table and the frames: all of them in small stores; in large ones sampled
blocks, and every byte once more when a file's time or size is not the one of its last full check (`.verified.json`, a
fifth, hidden file that is no part of the fingerprint and may be missing). :meth:`Store.verify` checks every byte.
Nothing here unpickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skelact.clips import RaggedClips
from skelact.data.npyfile import read_header, sha256_file, sha256_sample
from skelact.data.table import ClipTable
from skelact.errors import SkelactError

FORMAT = 1
CARD, FRAMES, MASK, CLIPS = "card.json", "frames.npy", "mask.npy", "clips.npz"
VERIFIED = ".verified.json"
#: Stores up to this many bytes of frames are hashed and checked for non-finite numbers whole at every opening.
WHOLE_CHECK_BYTES = 64 << 20
_IDENTITY = ("format", "layout", "channels", "unit", "fps", "persons", "class_names", "splits")


class StoreError(SkelactError):
    """A store that cannot be trusted: the message names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"store {path}: {reason}")
        self.path, self.reason = Path(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreError, (self.path, self.reason)


def fingerprint(card: dict[str, Any]) -> str:
    """32 hex digits over the files' hashes and every card entry that can change a result."""
    facts = {key: card.get(key) for key in _IDENTITY}
    if "media" in card:  # stores of frames and signals: what they hold instead of joints
        facts["media"] = card["media"]
    facts["files"] = {name: entry["sha256"] for name, entry in card["files"].items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def file_entry(path: Path) -> dict[str, Any]:
    """Size and hashes of one file, as the card keeps them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path), "sample": sha256_sample(path)}


def note_verified(folder: Path, card: dict[str, Any]) -> None:
    """Remember that every byte fitted the card, with the files' sizes and times; where nothing can be written, not."""
    with contextlib.suppress(OSError):
        times = {name: _stamp(folder / name) for name in card["files"]}
        temporary = folder / f"{VERIFIED}.{os.getpid()}"
        temporary.write_text(json.dumps({"fingerprint": card["fingerprint"], "files": times}) + "\n", encoding="utf-8")
        os.replace(temporary, folder / VERIFIED)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


class Store(ClipTable):
    """A prepared dataset, memory-mapped. Cheap to open, to pickle and to fork: the maps open at first use.

    Args:
        path: the store's folder.

    Attributes:
        card: the dataset card as plain containers.
        columns: the clips table by column name, each `(N,)`; always has name, start, length, label.

    Raises:
        StoreError: a file is missing, cut short, changed, or the clips table points outside the frames.
    """

    _files: tuple[str, ...] = (FRAMES, CLIPS, MASK)  # that such a store may have; the first two it must
    _keys: tuple[str, ...] = _IDENTITY  # that its card must have

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.card = self._read_card()
        self._check_file(CLIPS, whole=True)
        self.columns = self._read_clips()
        self._shape = self._check_arrays()
        self._check_ranges()
        self._maps: dict[str, np.ndarray] = {}
        self._check_large()
        if self.card["files"][FRAMES]["bytes"] <= WHOLE_CHECK_BYTES:
            self._check_finite()

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open and check a store (the same as the constructor)."""
        return cls(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {self.name}, {len(self)} clips, {self._shape[0]} frames)"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(F, M, V, C) of the frames."""
        return self._shape

    @property
    def start(self) -> np.ndarray:
        """`(N,)` int64 first frame of each clip."""
        return self.columns["start"]

    @property
    def length(self) -> np.ndarray:
        """`(N,)` int64 frames of each clip."""
        return self.columns["length"]

    @property
    def frames(self) -> np.ndarray:
        """`(F, M, V, C)` memory map. Copy-on-write: writing to it never reaches the file."""
        return self._map(FRAMES)

    @property
    def mask(self) -> np.ndarray | None:
        """`(F, M, V)` bool memory map, or None where everything was observed."""
        return self._map(MASK) if MASK in self.card["files"] else None

    def clips(
        self,
        rows: Sequence[int] | np.ndarray | None = None,
        residence: str = "disk",
        channels: Sequence[int] | None = None,
    ) -> RaggedClips:
        """Some clips (all by default) in the unit and layout of the store.

        Args:
            rows: `(n,)` positions in the store; also becomes `index` of the result.
            residence: `disk` shares the memory map (any dtype, read as used), `ram` copies the clips' frames to
                one float32 tensor.
            channels: positions of the channels wanted, for `ram`; None takes all. What is left out is never copied.
        """
        if residence not in ("disk", "ram"):
            raise SkelactError(f"residence must be disk or ram here, not {residence!r}")
        index = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        mask = self.mask
        start, length = self.start[index], self.length[index]
        if residence == "disk":
            frames = torch.from_numpy(self.frames)
            masks = None if mask is None else torch.from_numpy(mask)
        else:
            spans = np.stack([start, start + length], axis=1)
            frames = torch.from_numpy(self._joined(spans, channels))
            masks = None if mask is None else torch.from_numpy(self._read(MASK, spans))
            start = np.cumsum(length) - length
        return RaggedClips(
            frames=frames,
            start=torch.from_numpy(np.array(start)),
            length=torch.from_numpy(np.array(length)),
            label=torch.from_numpy(np.array(self.label[index])),
            index=torch.from_numpy(np.array(index)),
            mask=masks,
        )

    def _joined(self, spans: np.ndarray, channels: Sequence[int] | None) -> np.ndarray:
        """Frames of the spans one after another, float32."""
        if channels is None:
            return np.asarray(self._read(FRAMES, spans), np.float32)
        wanted, source = list(channels), self.frames
        joined = np.empty((int((spans[:, 1] - spans[:, 0]).sum()), *self._shape[1:3], len(wanted)), np.float32)
        # runs of neighbouring channels are slices: one copy each
        breaks = [0, *(k for k in range(1, len(wanted)) if wanted[k] != wanted[k - 1] + 1), len(wanted)]
        runs = [(slice(a, b), slice(wanted[a], wanted[a] + b - a)) for a, b in itertools.pairwise(breaks) if b > a]
        first = 0
        for begin, end in spans.tolist():
            for there, here in runs:
                joined[first : first + end - begin, :, :, there] = source[begin:end, :, :, here]
            first += end - begin
        return joined

    def _read(self, name: str, spans: np.ndarray) -> np.ndarray:
        """Rows of an array file, span after span. Read, not mapped: a third of the time for clips in the page cache."""
        path = self.path / name
        shape, dtype, offset = self._headers[name]
        size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        rows = np.empty((int((spans[:, 1] - spans[:, 0]).sum()), *shape[1:]), dtype)
        if not len(rows):
            return rows
        # spans that follow each other are read at once
        breaks = np.flatnonzero(spans[1:, 0] != spans[:-1, 1]) + 1
        begins, ends = spans[np.r_[0, breaks], 0], spans[np.r_[breaks - 1, len(spans) - 1], 1]
        room, first = rows.data.cast("B"), 0
        try:
            with open(path, "rb", buffering=0) as stream:
                for begin, count in zip(begins.tolist(), ((ends - begins) * size).tolist(), strict=True):
                    stream.seek(offset + begin * size)
                    last = first + count
                    while first < last:
                        if not (got := stream.readinto(room[first:last])):
                            raise StoreError(path, "ends too early (it was changed after it was opened)")
                        first += got
        except OSError as error:
            raise StoreError(path, str(error)) from error
        return rows

    def verify(self) -> None:
        """Check every byte against the card and every coordinate for being finite.

        Raises:
            StoreError: naming the file and the reason.
        """
        for name in self.card["files"]:
            self._check_file(name, whole=True)
        self._check_finite()
        note_verified(self.path, self.card)

    def _map(self, name: str) -> np.ndarray:
        if name not in self._maps:
            path = self.path / name
            try:
                shape, dtype, offset = self._headers[name]
                self._maps[name] = np.memmap(path, dtype, mode="c", offset=offset, shape=shape)
            except (OSError, ValueError) as error:
                raise StoreError(path, str(error)) from error
        return self._maps[name]

    def _read_card(self) -> dict[str, Any]:
        path = self.path / CARD
        if not self.path.is_dir():
            raise StoreError(self.path, "there is no such folder")
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(self.path, f"has no {CARD}: not a store, or its preparation never finished") from None
        except (OSError, ValueError) as error:
            raise StoreError(path, f"cannot be read ({error})") from error
        if not isinstance(card, dict) or card.get("format") != FORMAT:
            found = card.get("format") if isinstance(card, dict) else None
            raise StoreError(path, f"format {found!r} is not {FORMAT}, the one this version reads; prepare it again")
        keys = (*self._keys, "name", "files", "fingerprint", "counts")
        if missing := [key for key in keys if key not in card]:
            raise StoreError(path, f"lacks {', '.join(missing)}")
        files = card["files"]
        good = isinstance(files, dict) and {FRAMES, CLIPS} <= set(files) <= set(self._files)
        if not good or any(not {"bytes", "sha256", "sample"} <= set(entry) for entry in files.values()):
            raise StoreError(path, "its list of files is not one of a store")
        if fingerprint(card) != card["fingerprint"]:
            raise StoreError(path, "was changed after it was written (the fingerprint does not fit)")
        return card

    def _check_file(self, name: str, whole: bool) -> None:
        path, entry = self.path / name, self.card["files"][name]
        if not path.is_file():
            raise StoreError(path, "is missing")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise StoreError(path, f"has {size} bytes instead of {entry['bytes']} (cut short or changed)")
        found = sha256_file(path) if whole else sha256_sample(path)
        if found != entry["sha256" if whole else "sample"]:
            raise StoreError(path, "was changed after it was written (its hash does not fit the card)")

    def _check_large(self) -> None:
        """Every byte of the large files that are not as the last full check left them.

        A folder that cannot be written to (read-only media) could not remember it: there the sampled blocks must do.
        """
        large = [name for name, entry in self.card["files"].items() if entry["bytes"] > WHOLE_CHECK_BYTES]
        if not large:
            return
        try:
            known = json.loads((self.path / VERIFIED).read_text(encoding="utf-8"))
            files = known["files"] if known["fingerprint"] == self.fingerprint else {}
        except (OSError, ValueError, TypeError, KeyError):
            files = {}
        changed = [name for name in large if files.get(name) != _stamp(self.path / name)]
        if not changed or not os.access(self.path, os.W_OK):
            return
        size = sum(self.card["files"][name]["bytes"] for name in changed) / 1e9
        print(f"{self.path}: new or touched since its last check; reading all {size:.1f} GB once", file=sys.stderr)
        for name in changed:
            self._check_file(name, whole=True)
        note_verified(self.path, self.card)

    def _read_clips(self) -> dict[str, np.ndarray]:
        path = self.path / CLIPS
        try:
            with np.load(path, allow_pickle=False) as table:
                columns = {key: table[key] for key in table.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise StoreError(path, f"cannot be read ({error})") from error
        for key in ("name", "start", "length", "label"):
            kind = "U" if key == "name" else "i"
            if key not in columns or columns[key].dtype.kind != kind:
                raise StoreError(path, f"column {key} is missing or of the wrong kind")
        if bad := [key for key, values in columns.items() if values.shape != columns["name"].shape or values.ndim != 1]:
            raise StoreError(path, f"columns of different lengths: {', '.join(bad)}")
        return columns

    def _check_arrays(self) -> tuple[int, int, int, int]:
        self._headers: dict[str, tuple[tuple[int, ...], np.dtype, int]] = {}
        shapes = {}
        for name, kind in ((FRAMES, "f"), (MASK, "b")):
            if name not in self.card["files"]:
                continue
            path = self.path / name
            self._check_file(name, whole=self.card["files"][name]["bytes"] <= WHOLE_CHECK_BYTES)
            try:
                shape, dtype, _ = self._headers[name] = read_header(path)
            except (OSError, ValueError) as error:
                raise StoreError(path, str(error)) from error
            if dtype.kind != kind:
                raise StoreError(path, f"has dtype {dtype}")
            shapes[name] = shape
        frames = shapes[FRAMES]
        want = (self.card["persons"], len(self.card["layout"]["joints"]), len(self.card["channels"]))
        if len(frames) != 4 or tuple(frames[1:]) != want:
            raise StoreError(self.path / FRAMES, f"has shape {frames}, the card promises (F, {want})")
        if MASK in shapes and shapes[MASK] != frames[:3]:
            raise StoreError(self.path / MASK, f"has shape {shapes[MASK]} beside frames {frames}")
        return frames

    def _check_ranges(self) -> None:
        path, total = self.path / CLIPS, self._shape[0]
        if len(self) == 0:
            raise StoreError(path, "holds no clip")
        bad = (self.length < 1) | (self.start < 0) | (self.start > total - self.length)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            where = f"frames {self.start[row]} to {self.start[row] + self.length[row]}"
            raise StoreError(path, f"clip {self.names[row]!r} asks for {where} of {total}")
        classes = len(self.card["class_names"])
        if ((self.label < -1) | (self.label >= classes)).any():
            raise StoreError(path, f"a label lies outside 0..{classes - 1}")
        if len(np.unique(self.names)) != len(self):
            raise StoreError(path, "clip names are not unique")

    def _check_finite(self) -> None:
        frames, step = self.frames, 1 << 16
        for first in range(0, len(frames), step):
            finite = np.isfinite(frames[first : first + step]).all(axis=(1, 2, 3))
            if not finite.all():
                frame = first + int(np.flatnonzero(~finite)[0])
                raise StoreError(self.path / FRAMES, f"frame {frame} has a coordinate that is not a finite number")
