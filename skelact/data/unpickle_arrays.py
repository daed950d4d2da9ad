"""The few calls that pickles of NumPy arrays make, each answered by a function of our own that checks its arguments."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

_DTYPE = re.compile(r"[<>=|]?(?:b1|\?|[iu][1248]|f[248]|[US]\d{1,5}|[bBhHiIlLqQefd])")


class Refused(Exception):
    """Something that pickles of plain data do not hold; the machine adds file and byte."""


class Name:
    """A global name that a file asked for and may use; never the thing itself."""

    __slots__ = ("call",)

    def __init__(self, call: str) -> None:
        self.call = call


class Latin1:
    """Bytes that the file spells as text, between reading them and the call that asks for them."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw


ENCODE = Name("encode")
#: "module name" as files spell it, across NumPy 1 and 2 and Python 2 and 3.
NAMES = {
    "_codecs encode": ENCODE,
    "__builtin__ bytes": Name("bytes"),
    "builtins bytes": Name("bytes"),
    "numpy dtype": Name("dtype"),
    "numpy ndarray": Name("ndarray"),
}
for _core in ("numpy.core", "numpy._core"):
    NAMES[f"{_core}.multiarray _reconstruct"] = Name("reconstruct")
    NAMES[f"{_core}.multiarray scalar"] = Name("scalar")
    NAMES[f"{_core}.numeric _frombuffer"] = Name("frombuffer")


class ArrayMaker:
    """Makes bytes, dtypes, scalars and arrays.

    Args:
        budget: bytes that everything made may take together.
    """

    def __init__(self, budget: int) -> None:
        self.left = budget

    def call(self, name: Name, given: tuple[Any, ...]) -> Any:
        """What calling the name with these arguments gives.

        Raises:
            Refused: the arguments are not those of an array of numbers or text.
        """
        if name.call == "ndarray":
            raise Refused("calls numpy.ndarray, by which no array is stored")
        return getattr(self, f"_{name.call}")(*given)

    def fill(self, target: Any, state: Any) -> None:
        """Give a fresh array its content, or a dtype its byte order."""
        if type(state) is not tuple:
            raise Refused("fills an object with other than a tuple")
        if isinstance(target, np.dtype):
            plain = len(state) in (8, 9) and state[0] in (3, 4) and state[2:5] == (None, None, None)
            if not plain or state[1] not in ("<", ">", "|", "="):
                raise Refused("describes a dtype that is not a plain number or text")
            sizes = (target.itemsize, target.alignment) if target.kind in "US" else (-1, -1)
            target.__setstate__((3, state[1], None, None, None, *sizes, 0))  # type: ignore[attr-defined]
        elif type(target) is np.ndarray and target.shape == (0,) and target.dtype == np.int8:
            if len(state) not in (4, 5):
                raise Refused(f"fills an array with {len(state)} values")
            shape, dtype, fortran, raw = state[-4:]
            raw = self._checked(dtype, raw, shape)
            target.__setstate__((1, shape, dtype, bool(fortran), bytes(raw)))  # type: ignore[arg-type]
        else:
            raise Refused(f"fills {type(target).__name__}, which is neither a fresh array nor a dtype")

    def _encode(self, text: Any, codec: Any = None) -> bytes:
        # how protocols 0 to 2 hold bytes; mmcv, and so pyskl, writes protocol 2
        if not isinstance(text, (str, Latin1)) or codec != "latin1":
            raise Refused("encodes other than text to latin1")
        return text.raw if isinstance(text, Latin1) else self.latin1(text).raw

    def latin1(self, text: str) -> Latin1:
        """Text as the bytes it stands for."""
        self._spend(len(text))
        return Latin1(text.encode("latin-1"))

    def _bytes(self) -> bytes:
        return b""

    def _dtype(self, code: Any, align: Any = False, copy: Any = False) -> np.dtype:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            what = repr(code[:20]) if isinstance(code, str) else f"of a {type(code).__name__}"
            raise Refused(f"has an array of dtype {what}; only numbers and text are read")
        return np.dtype(code, align=False, copy=True)

    def _reconstruct(self, kind: Any, shape: Any, code: Any) -> np.ndarray:
        if not isinstance(kind, Name) or kind.call != "ndarray" or shape != (0,) or code not in (b"b", "b"):
            raise Refused("makes an array other than an empty one to be filled")
        return np.empty(0, np.int8)

    def _scalar(self, dtype: Any, raw: Any = None) -> Any:
        return np.frombuffer(self._checked(dtype, raw, ()), dtype, 1)[0]

    def _frombuffer(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
        raw = self._checked(dtype, raw, shape)
        flat = np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)
        if order == "K" and type(axes) is tuple and all(type(axis) is int for axis in axes):
            return flat.reshape(shape).transpose(axes)
        if order not in ("C", "F", "A"):
            raise Refused("orders the axes of an array in an unknown way")
        return flat.reshape(shape, order=order)

    def _checked(self, dtype: Any, raw: Any, shape: Any) -> bytes | bytearray:
        """An array's bytes, if they fit dtype and shape."""
        if not isinstance(dtype, np.dtype) or dtype.kind not in "biufUS" or not dtype.itemsize:
            raise Refused("makes an array without a dtype of numbers or text")
        if isinstance(raw, str):  # written by Python 2
            raw = raw.encode("latin-1")
        if not isinstance(raw, (bytes, bytearray)):
            raise Refused(f"fills an array with a {type(raw).__name__} instead of bytes, as arrays of objects do")
        if type(shape) is not tuple or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
            raise Refused("has an array whose shape is not a tuple of whole numbers")
        need = math.prod(shape) * dtype.itemsize
        if need != len(raw):
            raise Refused(
                f"has an array of shape {shape} and dtype {dtype}, {need} bytes, but holds {len(raw)} of them"
            )
        self._spend(need)
        return raw

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise Refused("unfolds to many times the size of the file")
