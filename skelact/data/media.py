"""The media store: frames or signal rows of all clips of one modality, decoded and resized once.

Training never opens an original video again. A media store is a folder like that of the skeletons
(:mod:`skelact.data.store`), with the same table of clips, card, checks and fingerprint:

* `raw` images: `frames.npy` `(F, H, W, C)` uint8, memory-mapped;
* `jpeg`, `png` images: `frames.npy` `(bytes,)` uint8, the image files one after another, and `sizes.npy` `(F,)` uint32,
  their lengths;
* signals: `frames.npy` `(F, D)` float32.

The clips table has the names and columns of the skeletons, so stores are paired by name
(:mod:`skelact.data.modalities`) and a split rule fits all of them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skelact.clips import RaggedClips
from skelact.data.colour import colour_depth
from skelact.data.npyfile import HEADER, GrowingNpy, read_header
from skelact.data.store import CLIPS, FORMAT, FRAMES, WHOLE_CHECK_BYTES, Store, StoreError
from skelact.data.writer import _JOURNAL, StoreWriter, refuse_foreign
from skelact.errors import SkelactError

SIZES = "sizes.npy"


class MediaWriter(StoreWriter):
    """Write the clips of one modality one after another; interrupted and continued like its base.

    Args:
        target: the store's folder.
        card: name, class_names, fps, unit, source, licence and `media`: modality, kind (`image`, `signal`), encoding
            (`raw`, `jpeg`, `png`) and the shape of a raw row, `[H, W, C]` or `[D]`.
    """

    def __init__(self, target: str | Path, card: dict[str, Any]) -> None:
        self.target = Path(target)
        refuse_foreign(self.target)
        self.partial = self.target.with_name(self.target.name + ".partial")
        self.card: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **card}))
        media = self.card["media"]
        self.encoded = media["encoding"] != "raw"
        self.row = () if self.encoded else tuple(media["shape"])
        self.dtype = np.dtype(np.float32 if media["kind"] == "signal" else np.uint8)
        self.masked, self._mask = False, None
        self._head = hashlib.sha256(json.dumps(self.card, sort_keys=True).encode()).hexdigest()
        self._old = self.target.with_name(self.target.name + ".old")
        if self._old.exists() and not self.target.exists():
            os.replace(self._old, self.target)  # an earlier run died between its two renames
        self.partial.mkdir(parents=True, exist_ok=True)
        self.done = self._recover()
        self._names = {entry["name"] for entry in self.done}
        count = len(self.done)
        self._frames = GrowingNpy(self.partial / FRAMES, self.dtype, self.row, self._units(count))
        sizes = self.partial / SIZES
        self._sizes = GrowingNpy(sizes, np.dtype(np.uint32), (), self._rows(count)) if self.encoded else None
        self._rewrite_journal()
        self._finished = False

    def add(  # type: ignore[override]
        self,
        name: str,
        frames: np.ndarray | Sequence[bytes],
        label: int,
        mask: None = None,
        stamp: Any = None,
        **columns: int | str,
    ) -> None:
        """Append one clip.

        Args:
            name: unique name of the clip.
            frames: `(T, H, W, C)` uint8 or `(T, D)` float32, T >= 1; for an encoded store T image files as bytes.
            label: class, -1 where unknown.
            mask: media have none.
            stamp: anything JSON that tells one version of the source from another.
            **columns: the same as of the skeletons.
        """
        self._admit(name, columns)
        if mask is not None or len(frames) < 1:
            raise SkelactError(f"clip {name!r} has no frames, or a mask, which media do not have")
        length = len(frames)
        if self._sizes is not None:
            pieces = [np.frombuffer(piece, np.uint8) for piece in frames]
            values = np.concatenate(pieces)
            self._sizes.append(np.array([len(piece) for piece in pieces], np.uint32))
        else:
            values = np.ascontiguousarray(frames)
            if values.shape[1:] != self.row or values.dtype != self.dtype:
                raise SkelactError(f"clip {name!r} is {values.dtype} {values.shape}, expected {self.dtype} {self.row}")
            if self.dtype.kind == "f" and not np.isfinite(values).all():
                raise SkelactError(f"clip {name!r} has numbers that are not finite")
        self._frames.append(values)
        crc = zlib.crc32(values.data.cast("B"))
        facts = {"length": length, "units": len(values), "label": int(label), "crc": crc, "stamp": stamp}
        self._enter(name, columns, facts)

    def _truncate_files(self, count: int) -> None:
        self._frames.truncate(self._units(count))
        if self._sizes is not None:
            self._sizes.truncate(self._rows(count))

    def close(self) -> None:
        """Stop without finishing; a later writer continues."""
        super().close()
        if self._sizes is not None:
            self._sizes.close()

    def _files(self) -> list[str]:
        return [FRAMES, CLIPS, *([SIZES] if self.encoded else [])]

    def _units(self, count: int) -> int:
        """Rows of the frames file: frames, or bytes of an encoded store."""
        return sum(entry["units"] for entry in self.done[:count])

    def _write_table(self) -> None:
        if self._sizes is not None:
            self._sizes.finish()
        super()._write_table()

    def _statistics(self) -> dict[str, list[float]]:
        """Mean and deviation of each channel of a signal; of images nothing, which would mean decoding them all."""
        if self.dtype.kind != "f":
            return {}
        values = np.load(self.partial / FRAMES, mmap_mode="r", allow_pickle=False)
        mean, deviation = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
        return {"mean": [round(v, 6) for v in mean.tolist()], "std": [round(v, 6) for v in deviation.tolist()]}

    def _recover(self) -> list[dict[str, Any]]:
        """The journal's clips whose bytes are all there and right, up to the first that is not."""
        done: list[dict[str, Any]] = []
        names: set[str] = set()
        size = int(np.prod(self.row, dtype=np.int64)) * self.dtype.itemsize
        try:
            lines = (self.partial / _JOURNAL).read_text(encoding="utf-8").splitlines()
            if json.loads(lines[0]) != {"head": self._head}:
                return []
            frames = open(self.partial / FRAMES, "rb")  # noqa: SIM115 - closed below
        except (OSError, ValueError, IndexError):
            return []
        try:
            sizes = np.fromfile(self.partial / SIZES, np.uint32, offset=HEADER) if self.encoded else None
            frames.seek(HEADER)
            position = 0
            for line in lines[1:]:
                entry = json.loads(line)
                values = frames.read(entry["units"] * size)
                position += entry["length"]
                good = len(values) == entry["units"] * size and zlib.crc32(values) == entry["crc"]
                if sizes is not None:
                    lengths = sizes[position - entry["length"] : position]
                    good &= len(lengths) == entry["length"] and int(lengths.sum()) == entry["units"]
                if not good or entry["name"] in names:
                    break
                done.append(entry)
                names.add(entry["name"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a torn last line: what came before it is whole
        finally:
            frames.close()
        return done


class MediaStore(Store):
    """The frames or signals of one modality, memory-mapped. Cheap to open, to pickle and to fork.

    Args:
        path: the store's folder.

    Raises:
        StoreError: a file is missing, cut short, changed, or the clips table points outside the frames.
    """

    _files = (FRAMES, CLIPS, SIZES)
    _keys = ("format", "class_names", "media")

    def __repr__(self) -> str:
        return f"MediaStore({str(self.path)!r}: {self.name} {self.modality}, {len(self)} clips)"

    @property
    def modality(self) -> str:
        """Name of the modality."""
        return str(self.card["media"]["modality"])

    @property
    def kind(self) -> str:
        """`image` or `signal`."""
        return str(self.card["media"]["kind"])

    @property
    def encoded(self) -> bool:
        """Whether frames are image files, which must be decoded."""
        return SIZES in self.card["files"]

    @property
    def fps(self) -> float:
        """Frames (rows) per second of the original, before frames were chosen."""
        return float(self.card["fps"])

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(F, H, W, C) of raw images, (F, D) of signals, (F,) of encoded images."""
        return self._shape

    def clips(self, *arguments: Any, **options: Any) -> RaggedClips:
        """A media store has no joints; use :meth:`read`."""
        raise SkelactError(f"{self.path} holds {self.modality}, not skeletons; read its clips with read(row)")

    def read(self, row: int, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Frames of one clip as stored; only the frames asked for are read and decoded.

        Args:
            row: position of the clip in the store.
            indices: `(T,)` frames of the clip in any order, repeated as you like; None for all.

        Returns:
            `(T, H, W, C)` uint8 (C is 3 for rgb, 1 for grey and for the index of coloured depth), or `(T, D)` float32.
        """
        length = int(self.length[row])
        chosen = np.arange(length) if indices is None else np.asarray(indices, np.int64)
        if chosen.ndim != 1 or len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= length:
            raise SkelactError(f"clip {self.names[row]} of {self.path} has frames 0 to {length - 1}, not {indices}")
        positions = int(self.start[row]) + chosen
        if not self.encoded:
            return np.array(self.frames[positions])
        unique, inverse = np.unique(positions, return_inverse=True)
        images = [self.decode(position, row) for position in unique.tolist()]
        try:
            return np.stack(images)[inverse]
        except ValueError:
            raise StoreError(self.path, f"clip {self.names[row]} has frames of different sizes") from None

    def images(self, row: int, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Frames of one clip in colour: `(T, H, W, 3)` uint8, grey repeated, coloured depth from its table."""
        if self.kind != "image":
            raise SkelactError(f"{self.path} holds a signal; it has no images")
        frames = self.read(row, indices)
        if self.card["media"]["colour"] == "jet":
            return colour_depth(frames[..., 0])
        return frames if frames.shape[-1] == 3 else np.repeat(frames, 3, axis=-1)

    def decode(self, position: int, row: int) -> np.ndarray:
        """One frame of an encoded store, by its number in the whole store: `(H, W, C)` uint8; `row` is its clip."""
        from PIL import Image

        first, last = self._ends()[position : position + 2]
        try:
            with Image.open(io.BytesIO(self.frames[first:last].data)) as image:
                pixels = np.asarray(image)
        except Exception as error:  # Pillow hands through whatever its parsers meet
            raise StoreError(
                self.path, f"clip {self.names[row]} has a frame that cannot be decoded ({error})"
            ) from None
        return pixels.reshape(*pixels.shape[:2], -1)

    def _ends(self) -> np.ndarray:
        """`(F + 1,)` first byte of each encoded frame, and the end."""
        if "ends" not in self._maps:
            sizes = np.load(self.path / SIZES, allow_pickle=False)
            self._maps["ends"] = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        return self._maps["ends"]

    def _check_arrays(self) -> tuple[int, ...]:  # type: ignore[override]
        media, shapes = self.card["media"], {}
        self._headers = {}
        for name in (FRAMES, SIZES):
            if name in self.card["files"]:
                self._check_file(name, whole=self.card["files"][name]["bytes"] <= WHOLE_CHECK_BYTES)
                try:
                    shapes[name], dtype, _ = self._headers[name] = read_header(self.path / name)
                except (OSError, ValueError) as error:
                    raise StoreError(self.path / name, str(error)) from error
                want = np.uint32 if name == SIZES else np.float32 if media["kind"] == "signal" else np.uint8
                if dtype != want:
                    raise StoreError(self.path / name, f"has dtype {dtype}")
        if (media["encoding"] != "raw") != (SIZES in shapes):
            raise StoreError(
                self.path, f"{media['encoding']} frames {'with' if SIZES in shapes else 'without'} {SIZES}"
            )
        if SIZES in shapes:
            total = int(np.load(self.path / SIZES, allow_pickle=False).sum(dtype=np.int64))
            if (total,) != shapes[FRAMES]:
                raise StoreError(self.path / SIZES, f"adds up to {total} bytes beside {shapes[FRAMES]}")
            return shapes[SIZES]
        if list(shapes[FRAMES][1:]) != media["shape"]:
            raise StoreError(self.path / FRAMES, f"has shape {shapes[FRAMES]}, the card promises (F, {media['shape']})")
        return shapes[FRAMES]

    def _check_finite(self) -> None:
        if self.kind == "signal" and not (finite := np.isfinite(self.frames).all(axis=1)).all():
            row = int(np.flatnonzero(~finite)[0])
            raise StoreError(self.path / FRAMES, f"row {row} holds a number that is not finite")
