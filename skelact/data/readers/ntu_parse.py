"""The text of a Kinect v2 `.skeleton` file as arrays.

Layout: the number of frames; in each frame the number of bodies; for each body a line of 10 fields that begins with
the body's ID, the number of joints (25) and 25 lines of 12 fields: x y z, position in the depth image, position in
the colour image, orientation w x y z, tracking state. Lines end with CR LF or LF.

Files as the recorder wrote them go through a path that reads all numbers at once and then checks that every number
stands on the line where it belongs. Anything else is read line by line, which either succeeds all the same or says
which line is wrong and why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np

from skelact.data.readers.base import DamagedClip
from skelact.data.readers.numbers import parse_numbers

JOINTS, JOINT_FIELDS, BODY_FIELDS = 25, 12, 10
#: A Kinect v2 tracks six bodies; a count beyond this is damage, not a crowd.
MAX_BODIES = 16
MAX_FRAMES = 100_000
#: Metres. The sensor sees ten; a coordinate beyond this is damage.
MAX_COORDINATE = 1e4
_FIELDS = ("x", "y", "z", "depth x", "depth y", "colour x", "colour y", "orientation w", "orientation x",
           "orientation y", "orientation z", "tracking state")  # fmt: skip
_NUMBER = re.compile(rb"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
#: What printf makes of numbers that are none, of glibc and of older Windows run-times.
_NON_FINITE = re.compile(rb"[-+]?(?:nan(?:\(\w*\))?|inf(?:inity)?|1\.#[a-z]+0*)", re.IGNORECASE)
_COUNT = re.compile(rb"\d{1,19}")
_BODY = JOINTS * JOINT_FIELDS + BODY_FIELDS + 1
_BODY_LINES = np.array([BODY_FIELDS - 1, BODY_FIELDS, *(BODY_FIELDS + JOINT_FIELDS * np.arange(1, JOINTS + 1))])


@dataclass(frozen=True, eq=False, repr=False)
class Bodies:
    """All bodies of a file in the order in which it lists them.

    Attributes:
        nbody: `(T,)` int64 bodies in each frame.
        ids: `(n,)` int64 ID of each listed body, frame after frame.
        joints: `(n, 25, 12)` float64 fields of its joints; image positions and orientations may be NaN.
    """

    nbody: np.ndarray
    ids: np.ndarray
    joints: np.ndarray

    @cached_property
    def frame(self) -> np.ndarray:
        """`(n,)` frame of each listed body."""
        return np.repeat(np.arange(len(self.nbody)), self.nbody)

    @cached_property
    def slot(self) -> np.ndarray:
        """`(n,)` its position in the frame's list."""
        return np.arange(len(self.ids)) - np.repeat(np.cumsum(self.nbody) - self.nbody, self.nbody)

    def dense(self, values: np.ndarray, slots: int | None = None) -> np.ndarray:
        """`(T, slots, ...)` from `(n, ...)`, zero where no body is listed.

        Args:
            values: one entry a listed body.
            slots: only the first so many of each frame; all by default.
        """
        slots = int(self.nbody.max(initial=0)) if slots is None else slots
        result = np.zeros((len(self.nbody), slots, *values.shape[1:]), values.dtype)
        kept = self.slot < slots
        result[self.frame[kept], self.slot[kept]] = values[kept]
        return result

    @property
    def body_id(self) -> np.ndarray:
        """`(T, B)` int64, 0 where no body is listed."""
        return self.dense(self.ids)

    @property
    def xyz(self) -> np.ndarray:
        """`(T, B, 25, 3)` float32 metres, camera frame: x right, y up, z away."""
        return self.dense(self.joints[..., :3].astype(np.float32))

    @property
    def depth(self) -> np.ndarray:
        """`(T, B, 25, 2)` float32 pixels of the 512 x 424 depth image."""
        return self.dense(self.joints[..., 3:5].astype(np.float32))

    @property
    def color(self) -> np.ndarray:
        """`(T, B, 25, 2)` float32 pixels of the 1920 x 1080 colour image."""
        return self.dense(self.joints[..., 5:7].astype(np.float32))

    @property
    def quat(self) -> np.ndarray:
        """`(T, B, 25, 4)` float32 orientations w x y z."""
        return self.dense(self.joints[..., 7:11].astype(np.float32))

    @property
    def tracking(self) -> np.ndarray:
        """`(T, B, 25)` int8: 0 not tracked, 1 inferred, 2 tracked."""
        return self.dense(self.joints[..., 11].astype(np.int8))


def parse_skeleton(data: bytes, path: str = "") -> Bodies:
    """Read the content of a `.skeleton` file.

    Args:
        data: the file.
        path: its name, for messages.

    Raises:
        DamagedClip: naming the line and the reason.
    """
    bodies = parse_at_once(data)
    return parse_by_line(data, path) if bodies is None else bodies


def parse_at_once(data: bytes) -> Bodies | None:
    """The fast path; None for every file that is not exactly of the usual form."""
    text = data.rstrip() + b"\n"
    if returns := text.count(b"\r"):
        if returns != text.count(b"\r\n"):
            return None
        text = text.translate(None, b"\r")
    numbers = parse_numbers(text)
    if numbers is None or not numbers.whole[0] or not 1 <= numbers.values[0] <= MAX_FRAMES:
        return None
    values, total = numbers.values, len(numbers.values)
    frames: list[int] = []
    starts: list[int] = []
    position = 1
    for _ in range(int(values[0])):
        count = values.item(position) if position < total else -1
        if not 0 <= count <= MAX_BODIES or count != int(count):
            return None
        frames.append(position)
        first, position = position + 1, position + 1 + _BODY * int(count)
        starts += range(first, position, _BODY)
    if position != total:
        return None
    frame, start = np.array(frames), np.array(starts, np.int64)
    line_ends = np.concatenate([[0], frame, (start[:, None] + _BODY_LINES).ravel()])
    line_ends.sort()
    whole = numbers.whole
    plain = whole[frame].all() and whole[start].all() and whole[start + BODY_FIELDS].all()
    if not plain or not np.array_equal(line_ends, numbers.line_ends) or (values[start + BODY_FIELDS] != JOINTS).any():
        return None
    begins, ends = numbers.starts[start].tolist(), numbers.ends[start].tolist()
    ids = [int(text[begin:end]) for begin, end in zip(begins, ends, strict=True)]
    if max(ids, default=0) >= 2**63:
        return None
    joints = values[start[:, None] + np.arange(BODY_FIELDS + 1, _BODY)].reshape(-1, JOINTS, JOINT_FIELDS)
    good = np.abs(joints[..., :3]).max(initial=0) <= MAX_COORDINATE
    state = joints[..., 11]
    if not good or ((state != 2) & (state != 1) & (state != 0)).any():
        return None
    return _bodies(values[frame].astype(np.int64), ids, joints)


def parse_by_line(data: bytes, path: str = "") -> Bodies:
    """The strict path: line by line, with the place of the first fault.

    Raises:
        DamagedClip: naming the line and the reason.
    """
    lines = _Lines(data, path)
    frames = lines.count("the number of frames", 1, MAX_FRAMES)
    nbody: list[int] = []
    ids: list[int] = []
    joints: list[list[float]] = []
    for frame in range(frames):
        nbody.append(lines.count(f"the number of bodies of frame {frame}", 0, MAX_BODIES))
        for body in range(nbody[-1]):
            place = f"body {body} of frame {frame}"
            fields = lines.fields(BODY_FIELDS, place)
            if not _COUNT.fullmatch(fields[0]) or int(fields[0]) >= 2**63:
                lines.fail(f"{_show(fields[0])} is not a body ID ({place})")
            ids.append(int(fields[0]))
            for field in fields[1:]:
                lines.number(field, place)
            lines.count(f"the number of joints of {place}", JOINTS, JOINTS)
            joints += [lines.joint(f"joint {joint} of {place}") for joint in range(JOINTS)]
    lines.finish(frames)
    return _bodies(np.array(nbody, np.int64), ids, np.array(joints, np.float64).reshape(-1, JOINTS, JOINT_FIELDS))


class _Lines:
    """The lines of a file, one after another; whatever is wrong is raised with its line number."""

    def __init__(self, data: bytes, path: str) -> None:
        self.lines = data.rstrip().splitlines()
        self.path, self.position = path, 0

    def fail(self, reason: str) -> NoReturn:
        raise DamagedClip(self.path, f"line {self.position}", reason)

    def fields(self, count: int, what: str) -> list[bytes]:
        if self.position == len(self.lines):
            raise DamagedClip(self.path, f"line {self.position + 1}", f"the file ends where {what} should follow")
        fields = self.lines[self.position].split()
        self.position += 1
        if len(fields) < count and self.position == len(self.lines):
            self.fail(f"the file ends in the middle of {what}")
        if len(fields) != count:
            self.fail(f"has {len(fields)} fields instead of {count} ({what})")
        return fields

    def count(self, what: str, least: int, most: int) -> int:
        (field,) = self.fields(1, what)
        if not _COUNT.fullmatch(field):
            self.fail(f"{_show(field)} is not {what}")
        if not least <= (number := int(field)) <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            self.fail(f"{what} is {number}, not {wanted}")
        return number

    def number(self, field: bytes, what: str) -> float:
        if _NUMBER.fullmatch(field):
            return float(field)
        if not _NON_FINITE.fullmatch(field):
            self.fail(f"{_show(field)} is not a number ({what})")
        return np.nan

    def joint(self, place: str) -> list[float]:
        fields = self.fields(JOINT_FIELDS, place)
        values = [self.number(field, place) for field in fields]
        for value, field, name in zip(values[:3], fields, _FIELDS, strict=False):
            if not abs(value) <= MAX_COORDINATE:
                self.fail(f"{name} is {_show(field)}, not a coordinate in metres ({place})")
        if values[-1] not in (0, 1, 2):
            self.fail(f"{_FIELDS[-1]} is {_show(fields[-1])}, not 0, 1 or 2 ({place})")
        return values

    def finish(self, frames: int) -> None:
        if self.position < len(self.lines):
            self.position += 1
            self.fail(f"more follows after the {frames} frames promised")


def _show(field: bytes) -> str:
    """A field for a message: short, printable."""
    text = field.decode("ascii", "backslashreplace")
    return repr(text if len(text) <= 24 else text[:21] + "...")


def _bodies(nbody: np.ndarray, ids: list[int], joints: np.ndarray) -> Bodies:
    beyond = ~(np.abs(joints) <= np.finfo(np.float32).max)
    if beyond.any():  # never a coordinate or a state, both paths have looked
        joints[beyond] = np.nan
    return Bodies(nbody, np.array(ids, np.int64), joints)
