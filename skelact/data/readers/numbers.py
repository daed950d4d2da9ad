"""Decimal numbers of a whole text at once, equal to `float()` bit for bit.

A number of up to 15 digits is an integer below 2^53 over a power of ten up to 10^22: both are exact in double
precision, so one division gives the correctly rounded value (Clinger, PLDI 1990). The integers are put together from
eight digits at a time inside 64-bit words. Longer numbers and those with an exponent, which are rare, go through
`float()` one by one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

_NUMBER = re.compile(rb"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_POWERS = 10.0 ** np.arange(23)
_DIGITS = 15  # the longest number that is exact this way
_PAD = b" " * 16
_LINE_FEED, _BLANK = 10, 32
_SIGNS = np.array([1.0, -1.0])
#: Bytes of a little-endian word that belong to a number of 0..8 digits: the last ones.
_KEEP = np.array([0x0F0F0F0F0F0F0F0F >> 8 * (8 - n) << 8 * (8 - n) for n in range(9)], np.uint64)
_JOIN = [
    (np.uint64(8), np.uint64(10), np.uint64(0x00FF00FF00FF00FF)),
    (np.uint64(16), np.uint64(100), np.uint64(0x0000FFFF0000FFFF)),
    (np.uint64(32), np.uint64(10000), np.uint64(0x00000000FFFFFFFF)),
]


class Numbers(NamedTuple):
    """Numbers of a text.

    Attributes:
        values: `(n,)` float64.
        starts: `(n,)` where each number begins.
        ends: `(n,)` where the blank or line feed after it stands.
        line_ends: `(lines,)` position among the numbers of the last one of each line.
        whole: `(n,)` bool, written with digits alone.
    """

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    line_ends: np.ndarray
    whole: np.ndarray


def parse_numbers(text: bytes) -> Numbers | None:
    """Numbers of a text in which exactly one blank or line feed follows each of them; None for any other text."""
    code = np.frombuffer(text, np.uint8)
    if not len(code) or code[-1] != _LINE_FEED or code[0] <= _BLANK:
        return None
    marks = np.flatnonzero((code <= _BLANK) | (code == ord(".")))
    kinds = code[marks]
    last = np.flatnonzero(kinds <= _BLANK)  # of the marks of each number: the separator behind it
    ends, separators = marks[last], kinds[last]
    gaps = np.diff(last, prepend=-1)  # 2 where there is one point before the separator
    if ((separators != _BLANK) & (separators != _LINE_FEED)).any() or gaps.max() > 2:
        return None
    pointed = gaps == 2
    fraction = (ends - marks[last - 1] - 1) * pointed
    starts = np.concatenate([[0], ends[:-1] + 1])
    negative = code[starts] == ord("-")

    digits = text.translate(None, b".-+")
    shown = np.frombuffer(digits, np.uint8)
    stops = np.flatnonzero(shown < ord("0"))
    if len(stops) != len(ends):  # something below the digits that is no separator
        return None
    length = np.diff(stops, prepend=-1) - 1
    odd = np.flatnonzero(shown > ord("9"))
    if length.min() < 1 or len(odd) > len(ends) or ((shown[odd] | 32) != ord("e")).any():
        return None
    values = _integers(digits, stops, length).astype(np.float64)
    values /= _POWERS[np.minimum(fraction, 22)]
    values *= _SIGNS[negative.view(np.uint8)]
    exponents = np.unique(np.searchsorted(stops, odd))
    inner = 0
    for k in exponents.tolist():
        word = text[starts[k] : ends[k]]
        if not _NUMBER.fullmatch(word):
            return None
        values[k] = float(word)
        inner += word.count(b"-", 1) + word.count(b"+", 1)
    plus = text.count(b"+") if b"+" in text else 0
    if np.count_nonzero(code == ord("-")) + plus != np.count_nonzero(negative) + inner:
        return None  # a sign inside a number
    for k in np.flatnonzero(length > _DIGITS).tolist():
        values[k] = float(text[starts[k] : ends[k]])
    whole = length == ends - starts
    whole[exponents] = False
    return Numbers(values, starts, ends, np.flatnonzero(separators == _LINE_FEED), whole)


def _integers(digits: bytes, stops: np.ndarray, length: np.ndarray) -> np.ndarray:
    """`(n,)` uint64 from the digits before each stop; meaningless where there are more than 15."""
    padded = _PAD + digits
    words = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))
    result = _eight(words[stops + (len(_PAD) - 8)], np.minimum(length, 8))
    long = np.flatnonzero(length > 8)
    if len(long):
        upper = _eight(words[stops[long] + (len(_PAD) - 16)], np.minimum(length[long] - 8, 8))
        result[long] += upper * np.uint64(10**8)
    return result


def _eight(words: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Value of the last `count` of eight ASCII digits, in place; neighbours are joined pairwise, three times."""
    words &= _KEEP[count]
    for shift, ten, mask in _JOIN:
        upper = words >> shift
        words *= ten
        words += upper
        words &= mask
    return words
