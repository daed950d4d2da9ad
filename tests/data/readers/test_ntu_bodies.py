from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.data.readers import ntu_bodies as ways
from skelact.data.readers.ntu_parse import Bodies, parse_skeleton
from tests.data.readers.ntu_files import FIRST_ID, GOLDEN, NAMES, content, person, walk, write

A, B, C, D = (FIRST_ID + k for k in range(4))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "synth.npz") as stored:
        return dict(stored)


def frames_of(bodies, chosen):
    return chosen.gather(bodies.joints[..., :3].astype(np.float32))


def two(frames):
    """Golden arrays in the clips' form (T, 2, 25, 3)."""
    if frames.ndim == 2:  # (T, 75 or 150)
        frames = np.pad(frames, ((0, 0), (0, 150 - frames.shape[1]))).reshape(-1, 2, 25, 3)
    if frames.shape[-1] == 2:  # (3, T, 25, 2)
        frames = frames.transpose(1, 3, 2, 0)
    if frames.shape[1] != 2 or len(frames) in (1, 2):  # (M, T, 25, 3)
        frames = np.pad(frames.swapaxes(0, 1), ((0, 0), (0, 2 - len(frames)), (0, 0), (0, 0)))
    return frames


@pytest.mark.parametrize("name", NAMES)
def test_every_way_equals_its_golden_output(name, golden):
    bodies = parse_skeleton(content(name))
    pairs = {"aimclr_joint": ways.file_order, "umurl_top2": ways.energy, "pyskl_kp32": ways.pyskl,
             "ctr60_denoised": ways.denoise, "ctr120_denoised": ways.denoise}  # fmt: skip
    compared = 0
    for key, way in pairs.items():
        if f"{name}/{key}" in golden:
            got, want = frames_of(bodies, way(bodies)), two(golden[f"{name}/{key}"])
            assert got.dtype == want.dtype and np.array_equal(got, want), key
            compared += 1
    assert compared == (4 if name in ("S018C001P045R002A120", "S020C003P061R001A061") else 5)


@pytest.mark.parametrize("name", NAMES)
def test_the_second_person_of_ntu120_is_a_copy_where_the_golden_says(name, golden):
    bodies = parse_skeleton(content(name))
    single, double = ways.denoise(bodies), ways.denoise(bodies, double=True)
    assert np.array_equal(double.rows >= 0, golden[f"{name}/ctr120_present"])
    copied = golden[f"{name}/ctr120_denoised"].shape[1] == 75
    assert np.array_equal(double.rows, single.rows[:, [0, 0]] if copied else single.rows)


def bodies_of(frames):
    """Parsed bodies of frames of (ID, joints) pairs."""
    return parse_skeleton(write(frames))


def ids(bodies, chosen):
    return np.where(chosen.rows >= 0, bodies.ids[chosen.rows], 0)


def test_tracks_of_the_stored_files():
    """Followed through a change of the listing order, without ghost and chair, and with gaps where they are."""
    seen = {name: ways.tracks(parse_skeleton(content(name))) for name in NAMES}
    present = {name: chosen.rows >= 0 for name, chosen in seen.items()}
    swapped = parse_skeleton(content("S002C002P003R002A058"))
    person_ids = ids(swapped, seen["S002C002P003R002A058"])
    assert [len(set(person_ids[:, k][person_ids[:, k] > 0])) for k in (0, 1)] == [1, 1]
    assert np.flatnonzero(~present["S002C002P003R002A058"][:, 0]).tolist() == [0, 1, 2, 3, 33, 34, 35]
    assert present["S003C003P006R001A055"].all()  # two people, the ghost of 7 frames gone
    assert present["S005C001P010R001A011"].sum(axis=0).tolist() == [30, 0]  # the flat body gone
    assert np.flatnonzero(~present["S004C002P008R002A010"][:, 0]).tolist() == [0, 1, 12, 13, 14, 31]
    assert np.flatnonzero(~present["S006C003P019R002A027"][:, 0]).tolist() == [14, 15, 16, 17]  # tracked anew
    assert not present["S006C003P019R002A027"][:, 1].any()
    gap = np.flatnonzero(~present["S018C001P045R002A120"].all(axis=1)).tolist()
    assert gap == [12, 13, 14, 15, 16]  # CTR-GCN's way closes it
    assert all(chosen.observed for chosen in seen.values())


def test_a_person_tracked_anew_continues_the_nearer_one():
    draw = np.random.default_rng(3)
    left, right = (-1.0, 0, 3.0), (1.0, 0, 3.0)
    first = [[(A, person(draw, left, 0.03)), (B, person(draw, right, 0.01))] for _ in range(20)]
    both_lost = [[] for _ in range(3)]
    # the one on the right moves most from here on
    second = [[(C, person(draw, right, 0.2)), (D, person(draw, left, 0.01))] for _ in range(20)]
    bodies = bodies_of(first + both_lost + second)
    got = ids(bodies, ways.tracks(bodies))
    assert {tuple(dict.fromkeys(column[column > 0].tolist())) for column in got.T} == {(B, C), (A, D)}
    assert got[0].tolist() == [B, A] and got[20:23].sum() == 0  # the most moving track leads the first person


def test_a_third_person_is_dropped():
    draw = np.random.default_rng(4)
    places = {A: ((-1.0, 0, 3.0), 0.2), B: ((0.0, 0, 3.0), 0.01), C: ((1.0, 0, 3.0), 0.1)}
    bodies = bodies_of([[(body, person(draw, *places[body])) for body in (A, B, C)] for _ in range(15)])
    assert ids(bodies, ways.tracks(bodies)).tolist() == [[A, C]] * 15


def test_a_clip_of_short_tracks_keeps_the_longest():
    bodies = bodies_of(walk(4, body=A) + walk(9, body=B))
    for way in (ways.tracks, ways.denoise, ways.pyskl):
        got = ids(bodies, way(bodies))
        assert set(got[:, 0].tolist()) - {0} == {B} and not got[:, 1].any()


def test_an_id_listed_twice_counts_once():
    frames = walk(15)
    frames[3] = frames[3] * 2
    bodies = bodies_of(frames)
    for way in (ways.tracks, ways.denoise, ways.pyskl):
        chosen = way(bodies)
        assert len(chosen.rows) == 15 and (chosen.rows[:, 1] < 0).all()
    assert (ways.file_order(bodies).rows[3] >= 0).all()


def test_long_clips_are_kept():
    bodies = bodies_of(walk(1000))
    for way in ways.PIPELINES.values():
        assert len(way(bodies).rows) == 1000


@st.composite
def _crowds(draw):
    """Bodies with consistent IDs that come and go, and the same with another listing order in each frame."""
    length, seed = draw(st.integers(1, 40)), draw(st.integers(0, 2**32 - 1))
    spans = draw(st.lists(st.tuples(st.integers(0, 39), st.integers(1, 40)), min_size=1, max_size=5))
    random = np.random.default_rng(seed)
    listed = [[k for k, (first, count) in enumerate(spans) if first <= t < first + count] for t in range(length)]
    joints = {(t, k): person(random, (k - 2.0, 0, 3.0), 0.05 * (k + 1)) for t in range(length) for k in listed[t]}

    def build(order):
        rows = [(t, k) for t in range(length) for k in order(listed[t])]
        return Bodies(
            np.array([len(bodies) for bodies in listed]),
            np.array([FIRST_ID + 7 * k for _, k in rows], np.int64),
            np.array([joints[row] for row in rows]).reshape(-1, 25, 12),
        )

    return build(list), build(lambda bodies: random.permutation(bodies).tolist())


@settings(max_examples=60, deadline=None)
@given(_crowds())
def test_tracks_do_not_depend_on_the_listing_order(crowds):
    plain, shuffled = crowds
    if not len(plain.ids):
        return
    left, right = (ways.tracks(bodies) for bodies in crowds)
    assert np.array_equal(frames_of(plain, left), frames_of(shuffled, right))
    assert np.array_equal(left.rows >= 0, right.rows >= 0)


@settings(max_examples=40, deadline=None)
@given(_crowds())
def test_tracks_move_nothing_in_time_and_show_nobody_twice(crowds):
    bodies = crowds[0]
    if not len(bodies.ids):
        return
    rows = ways.tracks(bodies).rows
    assert len(rows) == len(bodies.nbody)
    frame, slot = np.nonzero(rows >= 0)
    assert len(frame) and np.array_equal(bodies.frame[rows[frame, slot]], frame)
    assert len(set(rows[rows >= 0].tolist())) == len(frame)


@settings(max_examples=40, deadline=None)
@given(_crowds())
def test_every_way_gives_two_persons_of_listed_bodies(crowds):
    bodies = crowds[1]
    if not len(bodies.ids):
        return
    for name, way in ways.PIPELINES.items():
        rows = way(bodies).rows
        assert rows.ndim == 2 and rows.shape[1] == 2 and len(rows) >= 1, name
        assert rows.min() >= -1 and 0 <= rows.max() < len(bodies.ids), name
        if name != "pyskl":
            assert len(rows) <= len(bodies.nbody), name
