"""Tables of decimal numbers in text, parsed a block at a time.

Numbers written as plain decimals ("-0.394752") are read as integers with the point taken out and divided by their
power of ten. Below 2**53 both are exact, so the quotient is the correctly rounded value that `float` gives, at a
seventh of the time.
"""

from __future__ import annotations

import warnings

import numpy as np

_POWERS = 10.0 ** np.arange(23)  # exact in float64
#: Point and fifteen digits, or sixteen digits that are divided by one.
_LONGEST = 16


class BadTable(ValueError):
    """A line that is not the numbers it should be.

    Attributes:
        line: its number, from 0.
        reason: what is wrong with it.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line + 1}: {reason}")
        self.line, self.reason = line, reason


def parse_table(text: bytes, width: int) -> np.ndarray:
    """Lines of `width` numbers each, as `(lines, width)` float64; "nan" and "inf" are numbers here.

    Args:
        text: whole lines; the last may lack its line end. CR LF is as good as LF.
        width: numbers in each line.

    Raises:
        BadTable: the first line with more or fewer numbers, or with something that is not a number.
    """
    buffer = np.frombuffer(text, np.uint8)
    starts, ends = _tokens(buffer)
    counts = _per_line(buffer, starts)
    if len(text) == 0 or text.endswith(b"\n"):
        counts = counts[:-1]
    if (counts != width).any():
        line = int(np.flatnonzero(counts != width)[0])
        raise BadTable(line, f"has {int(counts[line])} numbers, expected {width}")
    values = _decimals(text, buffer, starts, ends)
    if values is None:
        values = _parse(text, np.float64, len(starts))
    if values is None:
        raise _blame(text)
    return values.reshape(-1, width)


def words_per_line(text: bytes) -> np.ndarray:
    """Number of whitespace-separated words in each line, `(lines,)`; text after the last line end is a line too."""
    buffer = np.frombuffer(text, np.uint8)
    return _per_line(buffer, _tokens(buffer)[0])


def parse_numbers(text: bytes) -> np.ndarray | None:
    """All whitespace-separated numbers of a text as float64 `(numbers,)`; None when one of its words is not one."""
    buffer = np.frombuffer(text, np.uint8)
    starts, ends = _tokens(buffer)
    values = _decimals(text, buffer, starts, ends)
    return _parse(text, np.float64, len(starts)) if values is None else values


def _tokens(buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last byte of every word."""
    inside = np.zeros(len(buffer) + 2, bool)
    np.greater(buffer, 32, out=inside[1:-1])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return edges[::2], edges[1::2]


def _per_line(buffer: np.ndarray, starts: np.ndarray) -> np.ndarray:
    breaks = np.flatnonzero(buffer == 10)
    return np.diff(np.concatenate([[0], np.searchsorted(starts, breaks), [len(starts)]]))


def _decimals(text: bytes, buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    """Plain decimals by way of integers; None when some word is anything else."""
    points = np.flatnonzero(buffer == 46)
    if not len(starts) or (ends - starts).max() > _LONGEST:
        return None
    if len(points) == len(starts):
        places = ends - points - 1
        if (points < starts).any() or (places < 0).any():
            return None
    else:
        word = np.searchsorted(starts, points, side="right") - 1
        if len(np.unique(word)) != len(word):
            return None
        places = np.zeros(len(starts), np.int64)
        places[word] = ends[word] - points - 1
    whole = _parse(text.translate(None, b"."), np.int64, len(starts))
    return None if whole is None else whole / _POWERS[places]


def _parse(text: bytes, dtype: type, count: int) -> np.ndarray | None:
    """NumPy's own reading; None unless it finds exactly `count` numbers and nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy before 2.3 warns of what it could not read, later ones raise
        try:
            values: np.ndarray = np.fromstring(text, dtype, sep=" ")
        except (ValueError, Warning):
            return None
    return values if len(values) == count else None


def _blame(text: bytes) -> BadTable:
    """The first word that is not a number, looked for one by one."""
    for number, line in enumerate(text.split(b"\n")):
        for word in line.split():
            if _parse(word, np.float64, 1) is None:
                return BadTable(number, f"'{word[:20].decode('ascii', 'backslashreplace')}' is not a number")
    return BadTable(0, "holds bytes that are not text")
