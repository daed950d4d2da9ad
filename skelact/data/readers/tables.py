"""Tables of numbers in text: fast where they are written plainly, strict everywhere."""

from __future__ import annotations

import warnings

import numpy as np

from skelact.data.readers.numbers import parse_numbers


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
    plain = text.replace(b"\r\n", b"\n") if b"\r" in text else text
    plain = plain.replace(b" \n", b"\n") if b" \n" in plain else plain
    found = parse_numbers(plain if plain.endswith(b"\n") else plain + b"\n")
    if found is not None and (np.diff(found.line_ends, prepend=-1) == width).all():
        return found.values.reshape(-1, width)
    counts = words_per_line(text)
    if len(text) == 0 or text.endswith(b"\n"):
        counts = counts[:-1]
    if (counts != width).any():
        line = int(np.flatnonzero(counts != width)[0])
        raise BadTable(line, f"has {int(counts[line])} numbers, expected {width}")
    values = parse_words(text)
    if values is None:
        raise _blame(text)
    return values.reshape(-1, width)


def words_per_line(text: bytes) -> np.ndarray:
    """Number of whitespace-separated words in each line, `(lines,)`; text after the last line end is a line too."""
    starts = _starts(text)
    breaks = np.flatnonzero(np.frombuffer(text, np.uint8) == 10)
    return np.diff(np.concatenate([[0], np.searchsorted(starts, breaks), [len(starts)]]))


def parse_words(text: bytes) -> np.ndarray | None:
    """All whitespace-separated numbers of a text as float64 `(numbers,)`; None when one of its words is not one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # older NumPy warns of what it could not read, later ones raise
        try:
            values: np.ndarray = np.fromstring(text, np.float64, sep=" ")
        except (ValueError, Warning):
            return None
    return values if len(values) == len(_starts(text)) else None  # "1-2" reads as two numbers


def _starts(text: bytes) -> np.ndarray:
    """First byte of every word."""
    inside = np.zeros(len(text) + 1, bool)
    np.greater(np.frombuffer(text, np.uint8), 32, out=inside[1:])
    return np.flatnonzero(inside[1:] > inside[:-1])


def _blame(text: bytes) -> BadTable:
    """The first word that is not a number, looked for one by one."""
    for number, line in enumerate(text.split(b"\n")):
        for word in line.split():
            if parse_words(word) is None:
                return BadTable(number, f"'{word[:20].decode('ascii', 'backslashreplace')}' is not a number")
    return BadTable(0, "holds bytes that are not text")
