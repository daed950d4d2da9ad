"""`.npy` files that grow: a header of fixed length, rows appended, the row count written in at the end."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

HEADER = 256  # bytes; room for any shape, and a multiple of the 64 that memory maps like
BLOCK = 4096
BLOCKS = 64


def header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The first :data:`HEADER` bytes of a version 1.0 `.npy` file (C order)."""
    text = f"{{'descr': {np.lib.format.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': {tuple(shape)!r}, }}"
    body = text.ljust(HEADER - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + body.encode("latin1")


def read_header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and data offset of a `.npy` file.

    Raises:
        ValueError: not a `.npy` file, Fortran order, Python objects inside, or a size that is not what the
            header says.
    """
    with open(path, "rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        offset = stream.tell()
    if fortran or dtype.hasobject:
        raise ValueError("must be a plain array in C order")
    want = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    size = path.stat().st_size
    if size != want:
        raise ValueError(f"has {size} bytes where its header promises {want} (cut short or changed)")
    return tuple(shape), dtype, offset


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a whole file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_sample(path: Path) -> str:
    """Hex SHA-256 of the size and of :data:`BLOCKS` evenly spaced blocks: quick for files of any size."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        last = max(size - BLOCK, 0)
        for k in range(BLOCKS + 1):
            stream.seek(last * k // BLOCKS)
            digest.update(stream.read(BLOCK))
    return digest.hexdigest()


class NpyRows:
    """Slices of the rows of a `.npy` file, read when asked for: unlike a map's, their memory is given back.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape, self.dtype, self._offset = read_header(path)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        size = int(np.prod(self.shape[1:], dtype=np.int64))
        start = self._offset + first * size * self.dtype.itemsize
        values = np.fromfile(self.path, self.dtype, max(last - first, 0) * size, offset=start)
        return values.reshape(-1, *self.shape[1:])


class GrowingNpy:
    """Append rows to a `.npy` file; :meth:`finish` writes the final header.

    Args:
        path: the file; created, or continued when it exists.
        dtype: of the array.
        row: shape of one row, without the first axis.
        rows: how many rows of an existing file to keep; the rest is cut off.
    """

    def __init__(self, path: Path, dtype: np.dtype, row: tuple[int, ...], rows: int = 0) -> None:
        self.dtype, self.row, self.rows = np.dtype(dtype), tuple(row), rows
        self.row_bytes = int(np.prod(row, dtype=np.int64)) * self.dtype.itemsize
        self._stream: BinaryIO = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - closed by close()
        self._stream.seek(0)
        self._stream.write(header(self.dtype, (0, *self.row)))
        self.truncate(rows)

    def append(self, values: np.ndarray) -> None:
        """Add `(n, *row)` values and hand them to the operating system."""
        self._stream.write(np.ascontiguousarray(values, self.dtype).data)
        self._stream.flush()
        self.rows += len(values)

    def truncate(self, rows: int) -> None:
        """Keep the first `rows` rows."""
        self._stream.flush()
        self._stream.truncate(HEADER + rows * self.row_bytes)
        self._stream.seek(HEADER + rows * self.row_bytes)
        self.rows = rows

    def finish(self) -> None:
        """Write the true shape and close."""
        self._stream.seek(0)
        self._stream.write(header(self.dtype, (self.rows, *self.row)))
        self.close()

    def close(self) -> None:
        """Close without finishing; what was appended stays."""
        self._stream.close()
