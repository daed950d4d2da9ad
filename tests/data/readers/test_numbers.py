from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.data.readers.numbers import parse_numbers

_written = st.one_of(
    st.floats(-1e4, 1e4).map("{:.7g}".format),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-10, 10).map("{:.12f}".format),
    st.integers(-(10**19), 10**19).map(str),
    st.from_regex(r"-?([0-9]{1,20}\.?[0-9]{0,24}|\.[0-9]{1,20})([eE][-+]?[0-9]{1,3})?", fullmatch=True),
)


@settings(deadline=None)
@given(st.lists(st.lists(_written, min_size=1, max_size=12), min_size=1, max_size=8))
def test_every_number_is_what_float_says(lines):
    text = "".join(" ".join(line) + "\n" for line in lines).encode()
    got = parse_numbers(text)
    want = [float(word) for line in lines for word in line]
    assert got is not None
    assert np.array_equal(got.values.view(np.int64), np.array(want).view(np.int64))  # signs of zeros, too
    assert got.line_ends.tolist() == (np.cumsum([len(line) for line in lines]) - 1).tolist()
    assert [text[a:b].decode() for a, b in zip(got.starts, got.ends, strict=True)] == [
        w for line in lines for w in line
    ]
    assert got.whole.tolist() == [word.isdigit() for line in lines for word in line]


@settings(deadline=None)
@given(st.text(alphabet="0123456789.-+eE \n\r\tx/,", max_size=30))
def test_what_is_taken_is_right_and_the_rest_is_left_to_others(text):
    got = parse_numbers(text.encode() + b"\n")
    if got is not None:
        assert got.values.tolist() == [float(word) for word in text.split()]


@pytest.mark.parametrize(
    "text",
    [b"", b"\n", b" 1\n", b"1 \n", b"1  2\n", b"1\n\n2\n", b"1\t2\n", b"1\r\n", b"1 2", b"1.2.3\n", b"--1\n", b"1-2\n",
     b"-\n", b".\n", b"+1\n", b"nan\n", b"1e\n", b"e5\n", b"0x1\n", b"1_0\n", b"1/2\n", b"1,5\n", b"\xb2\n",
     b"1\x00\n"],
)  # fmt: skip
def test_other_texts_are_refused(text):
    assert parse_numbers(text) is None
