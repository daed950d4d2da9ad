"""Reading pickles of strangers: a small machine that knows plain data and numeric NumPy arrays, and nothing else.

A pickle is a program. `pickle.loads` runs it, and even an unpickler that refuses foreign names can be made to allocate
without end. This one interprets the instructions that plain containers and arrays need (protocols 0 to 5) and calls
nothing that the file names: the few global names that NumPy writes are looked up in a table of its own. Everything
else (classes, functions, persistent ids, sets, object arrays, records) is refused with its name and place. Work and
memory are bounded by the size of the file.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from skelact.data.unpickle_arrays import ENCODE, NAMES, ArrayMaker, Name, Refused
from skelact.errors import SkelactError

#: Containers may lie this deep inside each other; data sets need three or four levels.
MAX_DEPTH = 32
#: Bytes that strings and arrays may take, as a multiple of the file's size (protocol 2 writes bytes as text).
_BUDGET = 4
_MAX_NUMBERED = 1000  # items of a dict with keys other than text
_MAX_NUMBER = 64  # characters, or bytes, of one number
_KEYS = (str, int, float, bytes, type(None), np.generic)
_LEAVES = (*_KEYS, bool, np.ndarray, bytearray, np.dtype)


class UnpickleError(SkelactError):
    """A pickle that is not plain data: the message names file, byte and what was found there."""

    def __init__(self, path: str | Path, where: str, reason: str) -> None:
        super().__init__(f"{path}{f', {where}' if where else ''}: {reason}")
        self.path, self.where, self.reason = str(path), where, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return UnpickleError, (self.path, self.where, self.reason)


def load(path: str | Path) -> Any:
    """The content of a pickle file.

    Args:
        path: file made by `pickle.dump` (any protocol), or by a tool that calls it.

    Returns:
        dict, list, tuple, str, bytes, int, float, bool, None and NumPy arrays and scalars of numbers or text.

    Raises:
        UnpickleError: the file holds anything else, is cut short, or cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            if not stream.seek(0, 2):
                raise UnpickleError(path, "", "is empty")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Machine(data, str(path)).run()
    except OSError as error:
        raise UnpickleError(path, "", error.strerror or str(error)) from None


def loads(data: bytes, name: str = "pickle") -> Any:
    """As :func:`load`, from bytes; `name` stands for the file in messages."""
    return _Machine(data, name).run()


class _Machine:
    def __init__(self, data: Any, path: str) -> None:
        self.data, self.path, self.size = data, path, len(data)
        self.at = self.op = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.arrays = ArrayMaker(_BUDGET * self.size + 4096)

    def run(self) -> Any:
        steps: list[Callable[[], object]] = [self.refuse] * 256
        for code, name in _STEPS.items():
            steps[code] = getattr(self, name)
        kinds: tuple[tuple[dict[int, Any], Callable[..., None]], ...]
        kinds = ((_CONSTANTS, self.constant), (_NUMBERS, self.plain), (_SIZED, self.sized))
        for table, step in kinds:
            for code, what in table.items():
                steps[code] = partial(step, *what)
        for code, (form, count) in _MEMO.items():
            steps[code] = partial(self.indexed, self.remember if code in b"qr" else self.recall, form, count)
        data, size = self.data, self.size
        try:
            while self.at < size:
                self.op = self.at
                code = data[self.op]
                self.at += 1
                if code == 0x2E:  # STOP
                    value = self.pop()
                    self.check(value)
                    return value
                steps[code]()
        except UnpickleError:
            raise
        except Refused as error:
            self.fail(str(error))
        except MemoryError:
            self.fail("needs more memory than there is")
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError, struct.error) as error:
            self.fail(f"is damaged ({type(error).__name__}: {str(error)[:200]})")
        self.op = self.at
        self.fail("ends before the data do")

    def fail(self, reason: str) -> NoReturn:
        raise UnpickleError(self.path, f"byte {self.op}", reason)

    def refuse(self) -> None:
        code = self.data[self.op]
        if reason := _REFUSED.get(code):
            self.fail(f"{reason}, which data do not need")
        self.fail(f"0x{code:02x} is no instruction of a pickle of plain data")

    def check(self, value: Any) -> None:
        """Every value is of a permitted kind, and nothing is buried deep; level by level, so nothing can overflow."""
        level, seen = [value], set()
        for _ in range(MAX_DEPTH):
            below: list[Any] = []
            for item in level:
                if isinstance(item, (dict, list, tuple)):
                    if id(item) not in seen:
                        seen.add(id(item))
                        below.extend(item.values() if isinstance(item, dict) else item)
                elif not isinstance(item, _LEAVES):
                    self.fail("leaves a bare global name, or half of a call, among the data")
            if not below:
                return
            level = below
        self.fail(f"nests containers more than {MAX_DEPTH} deep")

    # reading

    def take(self, count: int) -> Any:
        end = self.at + count
        if end > self.size:
            self.fail(f"is cut short: {count} bytes are announced, {self.size - self.at} follow")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, form: str, count: int) -> int:
        return struct.unpack("<" + form, self.take(count))[0]

    def line(self, limit: int = 1 << 16) -> bytes:
        end = self.data.find(b"\n", self.at, self.at + limit)
        if end < 0:
            self.fail("lacks the end of a line")
        piece = self.data[self.at : end]
        self.at = end + 1
        return piece

    # the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or (self.marks and self.marks[-1] == len(self.stack)):
            self.fail("takes a value that is not there")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack or (self.marks and self.marks[-1] == len(self.stack)):
            self.fail("works on a value that is not there")
        return self.stack[-1]

    def items(self) -> list[Any]:
        """The values since the last mark, taken off."""
        if not self.marks:
            self.fail("closes what was never opened")
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def discard(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def double(self) -> None:
        self.push(self.top())

    def remember(self, key: int) -> None:
        if key < 0:
            self.fail("remembers under a negative number")
        self.memo[key] = self.top()

    def recall(self, key: int) -> None:
        if key not in self.memo:
            self.fail(f"recalls value {key}, which was never stored")
        self.stack.append(self.memo[key])

    # simple values

    def protocol(self) -> None:
        if (version := self.take(1)[0]) > 5:
            self.fail(f"is of protocol {version}; 5 is the last known")

    def frame(self) -> None:
        if self.number("Q", 8) > self.size - self.at:
            self.fail("is cut short: a frame is longer than the rest of the file")

    def constant(self, value: Any) -> None:
        self.stack.append(value)

    def plain(self, form: str, count: int) -> None:
        self.stack.append(struct.unpack(form, self.take(count))[0])

    def sized(self, form: str, count: int, codec: str) -> None:
        """Text or bytes behind their length. Text of Python 2 is latin-1: it may be an array's data."""
        piece = self.take(struct.unpack(form, self.take(count))[0])
        if codec == "utf-8" and self.stack and self.stack[-1] is ENCODE:
            self.stack.append(self.arrays.latin1(str(piece, codec)))  # the text itself is never kept
        else:
            self.stack.append(str(piece, codec) if codec else piece)

    def int_line(self) -> None:
        text = self.line(_MAX_NUMBER)
        self.push(text == b"01" if text in (b"00", b"01") else int(text))

    def long_line(self) -> None:
        self.push(int(self.line(_MAX_NUMBER).rstrip(b"L")))

    def long1(self) -> None:
        self.long(self.take(1)[0])

    def long4(self) -> None:
        self.long(self.number("i", 4))

    def long(self, count: int) -> None:
        if not 0 <= count <= _MAX_NUMBER:
            self.fail(f"holds a whole number of {count} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def float_line(self) -> None:
        self.push(float(self.line(_MAX_NUMBER)))

    def text_line(self) -> None:
        self.push(str(self.line(self.size), "raw-unicode-escape"))

    # containers

    def tuple1(self) -> None:
        self.stack.append((self.pop(),))

    def tuple2(self) -> None:
        last = self.pop()
        self.stack.append((self.pop(), last))

    def tuple3(self) -> None:
        last, middle = self.pop(), self.pop()
        self.stack.append((self.pop(), middle, last))

    def tuple_(self) -> None:
        self.stack.append(tuple(self.items()))

    def empty_list(self) -> None:
        self.stack.append([])

    def list_(self) -> None:
        self.stack.append(self.items())

    def append(self) -> None:
        self.extend([self.pop()])

    def appends(self) -> None:
        self.extend(self.items())

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            self.fail(f"appends to {type(target).__name__}, not to a list")
        target.extend(values)

    def empty_dict(self) -> None:
        self.stack.append({})

    def dict_(self) -> None:
        values = self.items()
        self.push({})
        self.update(values)

    def set_item(self) -> None:
        value = self.pop()
        self.update([self.pop(), value])

    def set_items(self) -> None:
        self.update(self.items())

    def update(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not dict or len(values) % 2:
            self.fail(f"sets items of {type(target).__name__}, not pairs of a dict")
        for key in values[::2]:
            if not isinstance(key, _KEYS):  # a tuple may be nested so deep that hashing it overflows
                self.fail(f"has a key of kind {type(key).__name__}; keys are text or numbers")
            if len(target) + len(values) // 2 > _MAX_NUMBERED and not isinstance(
                key, (str, bytes)
            ):  # numbers can be made to collide
                self.fail(f"has a dict with more than {_MAX_NUMBERED} items that are not all found by text")
        target.update(zip(values[::2], values[1::2], strict=True))

    # memo

    def put_line(self) -> None:
        self.remember(int(self.line(_MAX_NUMBER)))

    def memoize(self) -> None:
        self.remember(len(self.memo))

    def get_line(self) -> None:
        self.recall(int(self.line(_MAX_NUMBER)))

    def indexed(self, step: Callable[[int], None], form: str, count: int) -> None:
        step(struct.unpack(form, self.take(count))[0])

    # arrays

    def global_(self) -> None:
        self.named(str(self.line(1024), "utf-8", "replace"), str(self.line(1024), "utf-8", "replace"))

    def stack_global(self) -> None:
        name = self.pop()
        self.named(self.pop(), name)

    def named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            self.fail("asks for a global whose name is not text")
        known = NAMES.get(f"{module} {name}")
        if known is None:
            wanted = f"{module[:80]}.{name[:80]}"
            self.fail(f"asks for {wanted!r}: only numbers, text, plain containers and NumPy arrays are read")
        self.push(known)

    def reduce(self) -> None:
        given = self.pop()
        name = self.pop()
        if not isinstance(name, Name) or type(given) is not tuple:
            self.fail(f"calls {type(name).__name__}, which is not permitted")
        self.push(self.arrays.call(name, given))

    def build(self) -> None:
        state = self.pop()
        self.arrays.fill(self.top(), state)


_CONSTANTS = {ord("N"): (None,), 0x88: (True,), 0x89: (False,), ord(")"): ((),)}
_NUMBERS = {ord("K"): ("<B", 1), ord("M"): ("<H", 2), ord("J"): ("<i", 4), ord("G"): (">d", 8)}
_SIZED = {
    0x8C: ("<B", 1, "utf-8"), ord("X"): ("<I", 4, "utf-8"), 0x8D: ("<Q", 8, "utf-8"), ord("U"): ("<B", 1, "latin-1"),
    ord("T"): ("<I", 4, "latin-1"), ord("C"): ("<B", 1, ""), ord("B"): ("<I", 4, ""), 0x8E: ("<Q", 8, ""),
    0x96: ("<Q", 8, ""),
}  # fmt: skip
_MEMO = {ord("q"): ("<B", 1), ord("r"): ("<I", 4), ord("h"): ("<B", 1), ord("j"): ("<I", 4)}
_STEPS = {
    0x80: "protocol", 0x95: "frame", ord("I"): "int_line", ord("L"): "long_line", 0x8A: "long1", 0x8B: "long4",
    ord("F"): "float_line", ord("V"): "text_line", 0x85: "tuple1", 0x86: "tuple2", 0x87: "tuple3", ord("t"): "tuple_",
    ord("]"): "empty_list", ord("l"): "list_", ord("a"): "append", ord("e"): "appends", ord("}"): "empty_dict",
    ord("d"): "dict_", ord("s"): "set_item", ord("u"): "set_items", ord("("): "mark", ord("0"): "discard",
    ord("1"): "items", ord("2"): "double", ord("p"): "put_line", 0x94: "memoize", ord("g"): "get_line",
    ord("c"): "global_", 0x93: "stack_global", ord("R"): "reduce", ord("b"): "build",
}  # fmt: skip
_REFUSED = {
    ord("i"): "makes an object (INST)", ord("o"): "makes an object (OBJ)", 0x81: "makes an object (NEWOBJ)",
    0x92: "makes an object (NEWOBJ_EX)", ord("P"): "asks for something kept elsewhere (PERSID)",
    ord("Q"): "asks for something kept elsewhere (BINPERSID)", 0x82: "asks for a registered extension (EXT1)",
    0x83: "asks for a registered extension (EXT2)", 0x84: "asks for a registered extension (EXT4)",
    0x8F: "makes a set", 0x90: "fills a set", 0x91: "makes a frozen set", 0x97: "asks for a buffer kept elsewhere",
    0x98: "asks for a buffer kept elsewhere", ord("S"): "holds a quoted string of protocol 0",
}  # fmt: skip
