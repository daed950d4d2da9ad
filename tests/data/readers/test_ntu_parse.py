from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.benchmarks.line_by_line_ntu import read_line_by_line
from skelact.data.readers.base import DamagedClip
from skelact.data.readers.ntu_bodies import PIPELINES
from skelact.data.readers.ntu_parse import parse_at_once, parse_by_line, parse_skeleton
from tests.data.readers.ntu_files import FILES, FIRST_ID, GOLDEN, NAMES, content, person, walk, write


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "synth.npz") as stored:
        return dict(stored)


def same(left, right):
    for key in ("nbody", "ids", "joints"):
        assert np.array_equal(getattr(left, key), getattr(right, key), equal_nan=key == "joints"), key


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_golden_parse(name, golden):
    bodies = parse_at_once(content(name))
    same(bodies, parse_by_line(content(name)))
    found = {
        "nbody": bodies.nbody, "body_id": bodies.body_id, "xyz": bodies.xyz, "color": bodies.color,
        "depth": bodies.depth, "quat": bodies.quat, "track": bodies.tracking,
    }  # fmt: skip
    compared = 0
    for key, value in found.items():
        if f"{name}/parse_{key}" in golden:
            want = golden[f"{name}/parse_{key}"]
            assert value.dtype == want.dtype and np.array_equal(value, want), key
            compared += 1
    assert compared in (3, 7)
    assert np.array_equal(read_line_by_line(FILES / f"{name}.skeleton"), bodies.xyz)


@pytest.mark.parametrize("name", NAMES)
def test_line_ends_do_not_matter(name):
    unix = content(name).replace(b"\r\n", b"\n")
    same(parse_at_once(unix), parse_at_once(unix.replace(b"\n", b"\r\n")))
    same(parse_skeleton(unix), parse_at_once(unix.rstrip()))


_coordinate = st.one_of(st.floats(-9, 9).map("{:.7g}".format), st.sampled_from(["0", "-0", "1e-05", "-3.25E-7", "4."]))
_other = st.one_of(_coordinate, st.floats(-1e300, 1e300).map(repr))
_odd = st.sampled_from(["-1.#IND", "1.#QNAN", "nan", "-inf", "Infinity", "NaN", "+1.5", "-nan(ind)"])


@st.composite
def _files(draw, odd):
    frames = draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    pool = [[draw(_coordinate) for _ in range(3)] + [draw(_other) for _ in range(8)] for _ in range(3)]
    if odd:
        pool[0][draw(st.integers(3, 10))] = draw(_odd)
    text = [str(len(frames))]
    for count in frames:
        text.append(str(count))
        for _ in range(count):
            text += [f"{draw(st.integers(0, 2**63 - 1))} 0 1 1 1 1 0 {draw(_other)} -0.5 2", "25"]
            text += [" ".join([*pool[k % 3], "012"[k % 3]]) for k in range(25)]
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    return (newline.join(text) + draw(st.sampled_from(["", newline]))).encode()


@settings(max_examples=40, deadline=None)
@given(_files(odd=False))
def test_both_paths_agree(data):
    fast = parse_at_once(data)
    assert fast is not None
    same(fast, parse_by_line(data))


@settings(max_examples=20, deadline=None)
@given(_files(odd=True))
def test_non_finite_text_outside_the_coordinates_is_nan(data):
    bodies = parse_skeleton(data)
    same(bodies, parse_by_line(data))
    assert np.isfinite(bodies.joints[..., :3]).all() and np.isfinite(bodies.xyz).all()


def test_ids_are_exact():
    ids = [2**56 + 44734, 2**56 + 44738, 2**63 - 1]
    joints = person(np.random.default_rng(0))
    data = write([[(body, joints) for body in ids]] * 2)
    for parse in (parse_at_once, parse_by_line):
        assert parse(data).body_id.tolist() == [ids, ids]
    assert float(ids[0]) == float(ids[1])  # why they are not read as floats


def _edit(line, text):
    """The smallest file with one line (counted from 1) replaced, removed or cut."""
    lines = write(walk(2), "\n").decode().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    return ("\n".join(lines) + "\n").encode()


JOINT = "0.1 0.2 3 1 2 3 4 0.5 0.5 0.5 0.5 2"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "line 1: the file ends where the number of frames should follow"),
        (b"\xff\xfe\x00binary", "line 1: '.*' is not the number of frames"),
        (b"\x00" * 5000, "line 1: '.*' is not the number of frames"),
        (_edit(1, "0"), "line 1: the number of frames is 0, not 1 to 100000"),
        (_edit(1, "1000000000"), "line 1: the number of frames is 1000000000, not"),
        (_edit(1, "99999"), "line 58: the file ends where the number of bodies of frame 2 should follow"),
        (_edit(1, "1"), "line 30: more follows after the 1 frames promised"),
        (_edit(1, "2.0"), "line 1: '2.0' is not the number of frames"),
        (_edit(2, "1000000"), "line 2: the number of bodies of frame 0 is 1000000, not 0 to 16"),
        (_edit(2, "-1"), "line 2: '-1' is not the number of bodies of frame 0"),
        (_edit(2, "2"), "line 30: has 1 fields instead of 10 .body 1 of frame 0"),
        (_edit(3, "1e3 0 1 1 1 1 0 0 0 2"), "line 3: '1e3' is not a body ID"),
        (_edit(3, f"{2**63} 0 1 1 1 1 0 0 0 2"), "line 3: '9223372036854775808' is not a body ID"),
        (_edit(3, f"{FIRST_ID} 0 1 1 x 1 0 0 0 2"), "line 3: 'x' is not a number"),
        (_edit(4, "24"), "line 4: the number of joints of body 0 of frame 0 is 24, not 25"),
        (_edit(5, None), "line 29: has 1 fields instead of 12 .joint 24 of body 0 of frame 0"),
        (_edit(6, JOINT + " 1"), "line 6: has 13 fields instead of 12 .joint 1 of body 0 of frame 0"),
        (_edit(6, JOINT.replace("0.2", "abc")), "line 6: 'abc' is not a number .joint 1"),
        (_edit(6, JOINT.replace("0.2", "0,2")), "line 6: '0,2' is not a number"),
        (_edit(6, JOINT.replace("0.2", "1_0")), "line 6: '1_0' is not a number"),
        (_edit(6, JOINT.replace("0.1", "-1.#IND")), "line 6: x is '-1.#IND', not a coordinate in metres"),
        (_edit(6, JOINT.replace("0.2", "nan")), "line 6: y is 'nan', not a coordinate"),
        (_edit(6, JOINT.replace(" 3 ", " 1e999 ", 1)), "line 6: z is '1e999', not a coordinate"),
        (_edit(6, JOINT.replace(" 3 ", " 3e7 ", 1)), "line 6: z is '3e7', not a coordinate"),
        (_edit(6, JOINT[:-1] + "7"), "line 6: tracking state is '7', not 0, 1 or 2"),
        (_edit(6, JOINT.replace("0.2", "é" * 300)), "line 6: '.{30,40}' is not a number"),
        (_edit(57, None), "line 57: the file ends where joint 24 of body 0 of frame 1 should follow"),
    ],
)
def test_damage_is_named_with_line_and_reason(data, reason):
    assert parse_at_once(data) is None
    started = time.perf_counter()
    with pytest.raises(DamagedClip, match=reason):
        parse_skeleton(data, "S001.skeleton")
    assert time.perf_counter() - started < 1


def test_the_message_names_the_file():
    with pytest.raises(DamagedClip, match=r"^some/S001\.skeleton, line 4: ") as caught:
        parse_skeleton(_edit(4, "26"), "some/S001.skeleton")
    assert (caught.value.where, caught.value.path) == ("line 4", "some/S001.skeleton")


def test_blanks_and_tabs_are_tolerated():
    data = write(walk(2))
    odd = data.replace(b" ", b"  ", 5).replace(b" 2\r\n", b"\t2 \r\n", 3) + b"\r\n\r\n"
    assert parse_at_once(odd) is None
    same(parse_skeleton(odd), parse_at_once(data))


def _mutated(data, draw):
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 5, 20])):
        place = draw.randrange(len(data))
        kind = draw.randrange(8)
        if kind > 5:
            place = draw.choice([k for k, byte in enumerate(data) if 48 <= byte <= 57] or [0])
            data[place] = draw.choice(b"0123456789")
        elif kind == 0:
            data[place] = draw.randrange(256)
        elif kind == 1:
            data[place : place + 1] = draw.choice([b"e", b"-", b".", b" ", b"\n", b"\r", b"\t", b"9", b"nan", b"+"])
        elif kind == 2:
            del data[place : place + draw.randrange(1, 200)]
        elif kind == 3:
            data[place:place] = data[draw.randrange(len(data)) :][: draw.randrange(1, 300)]
        elif kind == 4:
            data[place] ^= 1 << draw.randrange(8)
        else:
            return bytes(data[:place])
        if not data:
            return b""
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_are_read_whole_or_refused(name):
    """No other exception, no hang, no wrong shape; and what the fast path accepts the strict one reads alike."""
    draw = random.Random(name)
    lines = content(name).splitlines(keepends=True)
    frames = 0
    end = 1
    while frames < 5:  # the first frames, for speed
        end += 1 + 27 * int(lines[end])
        frames += 1
    small = b"5\r\n" + b"".join(lines[1:end])
    counts = {"read": 0, "refused": 0}
    for _ in range(60):
        data = _mutated(small, draw)
        fast = parse_at_once(data)
        try:
            bodies = parse_by_line(data, name)
        except DamagedClip as error:
            assert fast is None and error.where.startswith("line ") and error.reason
            counts["refused"] += 1
            continue
        counts["read"] += 1
        if fast is not None:
            same(fast, bodies)
        total = int(bodies.nbody.sum())
        assert bodies.joints.shape == (total, 25, 12) and bodies.ids.shape == (total,)
        assert np.isfinite(bodies.xyz).all() and bodies.xyz.shape[:2] == (len(bodies.nbody), bodies.nbody.max())
        for way in PIPELINES.values() if total else ():
            clip = way(bodies).gather(bodies.joints[..., :3])
            assert clip.shape[1:] == (2, 25, 3) and np.isfinite(clip).all()
    assert min(counts.values()) >= 5  # both ways were tried


@pytest.mark.parametrize("name", NAMES[:2])
def test_truncated_files_are_refused(name):
    data = content(name)
    for end in np.linspace(0, len(data) - 20, 40).astype(int).tolist():
        with pytest.raises(DamagedClip, match=r"line \d+: (the file ends|.* is .*, not|.* is not)"):
            parse_skeleton(data[:end])


def test_faster_than_line_by_line(tmp_path):
    """A smoke test with a wide margin; the figure is measured by `skelact benchmark prepare`."""
    name = "S003C003P006R001A055"
    data = content(name)

    def best(call):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return min(times)

    assert best(lambda: read_line_by_line(FILES / f"{name}.skeleton")) > 1.5 * best(lambda: parse_skeleton(data).xyz)
