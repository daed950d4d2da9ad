from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skelact.data.readers.tables import BadTable, parse_table, parse_words, words_per_line

numbers = st.one_of(
    st.floats(-1e6, 1e6).map(lambda v: f"{v:.6f}"),
    st.floats(width=32).map(repr),
    st.integers(-(10**17), 10**17).map(str),
    st.from_regex(r"\A[+-]?([0-9]{1,12}\.?[0-9]{0,9}|\.[0-9]{1,9})\Z"),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
@example([["-0.394752", "5.", ".5"], ["1", "-0", "+7.25"]], "\n")
def test_the_same_values_as_float(rows, end):
    text = end.join(" ".join(row) for row in rows).encode()
    want = np.array([[float(word) for word in row] for row in rows])
    np.testing.assert_array_equal(parse_table(text, 3), want)
    np.testing.assert_array_equal(parse_table(text + end.encode(), 3), want)
    np.testing.assert_array_equal(parse_words(text), want.ravel())
    assert words_per_line(text).tolist() == [3] * len(rows)


def test_six_decimals_are_exact_to_the_last_bit():
    values = np.random.default_rng(0).integers(-(10**8), 10**8, 30000)
    words = [f"{value / 1e6:.6f}" for value in values]
    np.testing.assert_array_equal(parse_words(" ".join(words).encode()), [float(word) for word in words])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
@example(b"1-2 3")
@example(b"1.-2 3 . 4")
@example(b"1..2 3")
@example(b"0x10 1_0")
@example(b"1\x002 3")
@example(b"1,2\n3")
def test_any_bytes_give_numbers_or_the_line(text):
    try:
        values = parse_table(text, 2)
    except BadTable as error:
        assert 0 <= error.line <= text.count(b"\n")
        return
    words = text.split()
    assert values.size == len(words) and values.shape[1] == 2
    np.testing.assert_array_equal(values.ravel(), [float(word) for word in words])


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (b"1 2\n3\n", 1, "has 1 numbers, expected 2"),
        (b"1 2\n\n3 4\n", 1, "has 0 numbers"),
        (b"1 2\n3 4\n5 x\n", 2, "'x' is not a number"),
        (b"1 2\n3 1-2\n", 1, "'1-2' is not a number"),
    ],
)
def test_the_bad_line_is_named(text, line, reason):
    with pytest.raises(BadTable, match=reason) as caught:
        parse_table(text, 2)
    assert caught.value.line == line
