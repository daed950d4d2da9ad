"""Pickles of strangers: plain data come out whole, everything else is refused by name, and nothing runs."""

from __future__ import annotations

import copyreg
import os
import pickle
import tracemalloc
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.data.unpickle import UnpickleError, load, loads

PLAIN = {
    "text": ["", "plain", "ümläut", "x" * 300, "\\n\n"],
    "numbers": [0, -5, 255, 65536, 10**12, -(10**18), 1.5, float("inf"), True, False, None],
    "bytes": [b"", b"ab\xff", b"y" * 300],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    0.5: {"nested": [{"deep": ({1: "one"},)}]},
}
ARRAYS = [
    np.arange(24, dtype=np.float16).reshape(2, 3, 4), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(10)[::2], np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2), np.array(5.0), np.zeros((0, 17, 3), "f4"),
    np.array([True, False]), np.arange(3, dtype=">i4"), np.array(["ab", "cde"]), np.array([b"x", b"yz"]),
    np.float32(2.5), np.int16(-3), np.str_("name"), np.bool_(True),
]  # fmt: skip


def same(a, b):
    if isinstance(b, (np.ndarray, np.generic)):
        return np.shape(a) == np.shape(b) and np.asarray(a).dtype.kind == b.dtype.kind and bool(np.all(a == b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_and_arrays_come_out_whole(protocol):
    assert loads(pickle.dumps(PLAIN, protocol)) == PLAIN
    for array, found in zip(ARRAYS, loads(pickle.dumps(ARRAYS, protocol)), strict=True):
        assert same(found, array), array
    shared = [1]
    twice = loads(pickle.dumps([shared, shared], protocol))
    assert twice[0] is twice[1]


@pytest.mark.parametrize("core", ["core", "_core"])
def test_both_spellings_of_numpy(core):
    data = pickle.dumps(np.arange(6, dtype=np.float16), protocol=2)
    other = "_core" if core == "core" else "core"
    data = data.replace(f"numpy.{other}.".encode(), f"numpy.{core}.".encode())
    assert f"numpy.{core}.multiarray".encode() in data
    np.testing.assert_array_equal(loads(data), np.arange(6))


def test_written_by_python_2():
    array = np.arange(3, dtype="<f4")
    raw = array.tobytes()
    data = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    data += b"(K\x01(K\x03tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR"
    data += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbI00\nU" + bytes([len(raw)]) + raw + b"tb."
    np.testing.assert_array_equal(loads(data), array)


class Runs:
    """Says what to call when it is unpickled."""

    def __init__(self, call, *given):
        self.what = call, given

    def __reduce__(self):
        return self.what


CANARY = "skelact-canary"


def touch(path):
    Path(path).write_text("ran")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Runs(os.system, f"touch {CANARY}"), r"asks for '\w+.system'"),
        (Runs(eval, f"open({CANARY!r}, 'w')"), r"asks for '\w+.eval'"),
        (Runs(touch, CANARY), "touch'"),
        (Runs(np.load, CANARY), r"asks for 'numpy.load'"),
        (Runs(getattr, "", "join"), "getattr'"),
        (OrderedDict(a=1), "collections.OrderedDict'"),
        (Fraction(1, 2), "fractions.Fraction'"),
        (1 + 2j, "complex'"),
        (Path("x"), "Path'"),
        (np.random.default_rng(0), "asks for 'numpy.random"),
        (touch, "touch'"),
        (np.float32, "asks for 'numpy.float32'"),
        (np.array([None, Runs(touch, CANARY)], dtype=object), "dtype 'O8'"),
        (np.array([(1, 2.0)], dtype="i4,f4"), "dtype 'V8'"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "dtype 'M8'"),
        (np.ma.masked_array([1]), "asks for 'numpy.ma"),
        (np.ndarray, "bare global name"),
    ],
)
def test_everything_else_is_refused_by_name_and_nothing_runs(protocol, value, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"split": {}, "annotations": [value]}, protocol)
    path = tmp_path / "clips.pkl"
    path.write_bytes(data)
    with pytest.raises(UnpickleError, match=named) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}, byte ")
    assert not (tmp_path / CANARY).exists()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends before"),
        (b"\x80\x06N.", "protocol 6"),
        (b"(ios\nsystem\n.", "INST"),
        (b"(cos\nsystem\n", "asks for 'os.system'"),
        (b"Pid\n.", "PERSID"),
        (b"K\x01Q.", "BINPERSID"),
        (b"\x82\x01.", "EXT1"),
        (b"\x8f.", "a set"),
        (b"\x97.", "buffer kept elsewhere"),
        (b"\xff.", "0xff is no instruction"),
        (b"K\x01", "ends before"),
        (b".", "not there"),
        (b"(.", "not there"),
        (b"t.", "never opened"),
        (b"K\x01K\x02a.", "appends to int"),
        (b"](K\x01u.", "sets items of list"),
        (b"}(K\x01u.", "sets items of dict"),
        (b"h\x05.", "never stored"),
        (b"g-1\n.", "never stored"),
        (b"Np-1\n.", "negative"),
        (b"X\xff\xff\xff\xffab.", "cut short"),
        (b"\x8e" + b"\xff" * 8 + b".", "cut short"),
        (b"\x8b\x40\x42\x0f\x00" + b"\x01" * 1_000_000 + b".", "whole number of 1000000 bytes"),
        (b"I" + b"9" * 5000 + b"\n.", "end of a line"),
        (b"X\x01\x00\x00\x00\xff.", "UnicodeDecodeError"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "latin1"),
        (b"cnumpy\nndarray\n(K\x05tR.", "numpy.ndarray"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftC\x01btR.",
            "other than an empty",
        ),
        (b"]K\x01b.", "other than a tuple"),
        (b"])b.", "neither a fresh array nor a dtype"),
        (b"}]K\x01s.", "kind list"),
    ],
)
def test_broken_programs_are_named(data, reason):
    with pytest.raises(UnpickleError, match=reason):
        loads(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"]" * 150_000 + b"a" * 149_999 + b".", "more than 32 deep"),
        (b"N" + b"\x85" * 150_000 + b".", "more than 32 deep"),
        (b"}N" + b"\x85" * 150_000 + b"Ns.", "kind tuple"),  # hashing it would overflow the stack
        (b"(" * 150_000 + b".", "not there"),
    ],
    ids=["lists", "tuples", "key", "marks"],
)
def test_absurd_nesting(data, reason):
    with pytest.raises(UnpickleError, match=reason):
        loads(data)


def _peak(data):
    tracemalloc.start()
    try:
        with pytest.raises(UnpickleError) as caught:
            loads(data)
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


def test_memory_bombs():
    array = pickle.dumps(np.zeros((50, 34), np.float16), protocol=2)
    bombs = {
        "holds": array.replace(b'K2K"', b'J\xff\xff\xff\x7fK"'),  # a shape larger than its bytes
        "not there": b"r\xff\xff\xff\x7f.",  # a memo of 2**31 places
        "ends before": b"Nr\xff\xff\xff\x7fr\xff\xff\xff\x7f0",
    }
    bombs["bytes, but"] = bombs.pop("holds")
    # 20 kB of text made into bytes again and again, four bytes of program for each copy
    text = b"\x8c\x06latin1q\x01X\x20\x4e\x00\x00" + b"a" * 20_000 + b"q\x00"
    bombs["many times"] = b"c_codecs\nencode\nq\x02](" + text + b"h\x02h\x00h\x01\x86R" * 50_000 + b"e."
    for reason, data in bombs.items():
        peak, message = _peak(data)
        assert reason in message, (reason, message)
        assert peak < 5_000_000 + 12 * len(data), (reason, peak)


def test_colliding_keys_end_soon():
    values = b"".join(b"\x8a\x10" + ((k + 1) * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(3000))
    parts = [values[k : k + 19 * 500] for k in range(0, len(values), 19 * 500)]
    data = b"}" + b"".join(b"(" + part + b"u" for part in parts) + b"."
    with pytest.raises(UnpickleError, match="not all found by text"):
        loads(data)


def test_files(tmp_path):
    path = tmp_path / "a.pkl"
    with pytest.raises(UnpickleError, match="No such file"):
        load(path)
    with pytest.raises(UnpickleError, match="directory"):
        load(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(UnpickleError, match="is empty"):
        load(path)
    path.write_bytes(pickle.dumps(PLAIN))
    assert load(path) == PLAIN


SAMPLES = [pickle.dumps([PLAIN, ARRAYS[:4], {"frame_dir": "S001"}], protocol) for protocol in (0, 2, 3, 5)]


def _ends_well(data):
    try:
        loads(data)
    except UnpickleError as error:
        assert len(str(error)) < 1000


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_pickles(data):
    """Bytes changed, cut, repeated: an answer or our error, and nothing else."""
    content = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["replace", "flip", "cut", "insert", "repeat"]))
        if kind == "replace":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 40))]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(max_size=8))
        else:
            content[at:at] = content[at : at + 30]
        if not content:
            break
    _ends_well(bytes(content))


PIECES = [bytes([code]) for code in b"NK)]}(tedsua012bR.\x85\x86\x87\x88\x89\x94"] + [
    b"K\x03", b"J\xff\xff\xff\xff", b"C\x02ab", b"C\x01b", b"X\x02\x00\x00\x00f4", b"X\x01\x00\x00\x00<", b"q\x00",
    b"h\x00", b"q\x01", b"h\x01", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n",
    b"X\x06\x00\x00\x00latin1",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy._core.numeric\n_frombuffer\n",
    b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R", b"X\x02\x00\x00\x00f4\x89\x88\x87R", b"c__builtin__\nbytes\n",
    b"X\x01\x00\x00\x00C",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_random_programs(pieces):
    _ends_well(b"".join(pieces) + b".")


def test_extension_registry_is_not_asked():
    copyreg.add_extension("os", "system", 240)
    try:
        with pytest.raises(UnpickleError, match="EXT1"):
            loads(b"\x82\xf0X\x04\x00\x00\x00true\x85R.")
    finally:
        copyreg.remove_extension("os", "system", 240)
