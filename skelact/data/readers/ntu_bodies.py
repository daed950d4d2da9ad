"""Which two bodies of a Kinect v2 recording become the two persons of a clip.

The published systems differ here, and their numbers cannot be compared across the ways:

* `file_order`: the first two listed in each frame (ST-GCN, Yan et al., AAAI 2018; AimCLR, Guo et al., AAAI 2022);
* `energy`: the two most moving of the first four places of the list (2s-AGCN, Shi et al., CVPR 2019; UmURL, Sun et
  al., ACM MM 2023);
* `denoise`: by body ID; short and flat bodies removed, tracks joined, empty frames cut out (CTR-GCN, Chen et al.,
  ICCV 2021; MAMP, Mao et al., ICCV 2023);
* `pyskl`: the same with other rules of detail (PYSKL, Duan et al., ACM MM 2022);
* `tracks`: by body ID with the same removal, but nothing is moved in time and what was not seen is masked.

The order of listing is no identity: it may change from frame to frame. Only the last three follow a person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from skelact.data.readers.ntu_parse import Bodies

#: A body seen in so many frames or fewer is noise.
SHORT = 11
#: A frame is flat when the body is wider than this share of its height ...
FLATNESS = 0.8
#: ... and a body is noise (a chair, a table) when this share of its frames is flat.
FLAT_SHARE = 0.69754
#: Metres. A track continues another one when it begins no farther from where that one was last seen.
RETRACK = 1.0
_SPINE = 1


class Chosen(NamedTuple):
    """Two persons of a clip.

    Attributes:
        rows: `(T, 2)` positions among the listed bodies, -1 where there is none.
        observed: whether -1 means not seen (mask it) rather than a zero skeleton.
    """

    rows: np.ndarray
    observed: bool = False

    def gather(self, values: np.ndarray) -> np.ndarray:
        """`(T, 2, ...)` of `(n, ...)`, zero where there is no body."""
        result = values[self.rows] if len(values) else np.zeros((*self.rows.shape, *values.shape[1:]), values.dtype)
        result[self.rows < 0] = 0
        return result


@dataclass(eq=False)
class _Track:
    """What one body ID saw: rows among the listed bodies, the frame of each, and how much it moves."""

    rows: np.ndarray
    frames: np.ndarray
    xyz: np.ndarray  # (len, 25, 3) float32
    motion: float

    @property
    def start(self) -> int:
        return int(self.frames[0])

    @property
    def end(self) -> int:
        return int(self.frames[-1])


def file_order(bodies: Bodies) -> Chosen:
    """The first two bodies listed in each frame; frames without any stay, as zeros."""
    return _by_slot(bodies, [0, 1])


def energy(bodies: Bodies) -> Chosen:
    """The two places of the first four with the largest sum of the standard deviations of x, y and z."""
    energies = np.zeros(4)
    for slot in range(4):
        xyz = bodies.joints[bodies.slot == slot, :, :3]
        xyz = xyz[xyz.sum(axis=-1).sum(axis=-1) != 0]
        if len(xyz):
            energies[slot] = sum(xyz[..., axis].std() for axis in range(3))
    return _by_slot(bodies, np.argsort(energies)[::-1][:2].tolist())


def denoise(bodies: Bodies, double: bool = False) -> Chosen:
    """Tracks by body ID without noise, joined and cut as CTR-GCN's preparation does it.

    A track counts its frames from its first one, without frames that have no body: what follows a gap moves forward.

    Args:
        bodies: a parsed file.
        double: a clip with one body ID gets it as second person too (NTU RGB+D 120) instead of zeros (60).
    """
    tracks = _closed(bodies)
    several = len(tracks) > 1
    if several and len(tracks := _long(tracks)) > 1:
        tracks = _by_motion(_upright(tracks, last=1))
    spans = [(tracks[0].start, tracks[0].end), (0, 0)]
    rows = _lay(_join(tracks, spans, 0), int(np.count_nonzero(bodies.nbody)))
    if several:
        rows = rows[Chosen(rows).gather(bodies.joints[..., :3].astype(np.float32)).sum(axis=(1, 2, 3)) != 0]
    if double and len(tracks) == 1:
        rows = rows[:, [0, 0]]
    return Chosen(rows)


def pyskl(bodies: Bodies) -> Chosen:
    """As :func:`denoise`, with PYSKL's rules where they differ.

    Bodies are ranked before the removal; tracks that share one frame overlap; empty frames are cut at both ends
    only; a second person that is there in the first frame while the first is not becomes the first.
    """
    tracks = _by_motion(_closed(bodies))
    if len(tracks) > 1 and len(tracks := _long(tracks)) > 1:
        tracks = _upright(tracks, last=0) or tracks[:1]
    if len(tracks) == 1:
        return Chosen(np.stack([tracks[0].rows, np.full_like(tracks[0].rows, -1)], axis=1))
    rows = _lay(_join(tracks, [(0, 0), (0, 0)], 1), max(track.end for track in tracks) + 1)
    filled = np.flatnonzero(np.abs(Chosen(rows).gather(bodies.joints[..., :3])).sum(axis=(1, 2, 3)) >= 1e-5)
    rows = rows[filled[0] : filled[-1] + 1] if len(filled) else rows
    return Chosen(rows[:, ::-1] if rows[0, 0] < 0 <= rows[0, 1] else rows)


def tracks(bodies: Bodies) -> Chosen:
    """Two persons followed by body ID, every frame of the file in its place.

    Short and flat tracks are removed as in :func:`denoise`. The most moving track leads the first person. Every
    other one, most moving first, continues the person it does not overlap with in time and to whose nearest pose in
    time it is nearest, if that is within :data:`RETRACK`; else it begins the second person, or, when there is one
    already, continues the nearer person that it does not overlap with. A track that overlaps with both is dropped.
    """
    found = sorted(_tracks(bodies), key=lambda track: (track.start, bodies.ids[track.rows[0]]))
    if len(found) > 1:
        found = _long(found)
    if len(found) > 1:
        found = _upright(found, last=1)
    persons: list[list[_Track]] = []
    for track in _by_motion(found):
        free = [(_distance(track, person), k) for k, person in enumerate(persons) if not _overlaps(track, person)]
        nearest = min(free, default=(np.inf, -1))
        if nearest[0] > RETRACK and len(persons) < 2:
            persons.append([track])
        elif free:
            persons[nearest[1]].append(track)
    placed = [(track, slot) for slot, person in enumerate(persons) for track in person]
    return Chosen(_lay(placed, len(bodies.nbody)), observed=True)


#: The ways by name.
PIPELINES: dict[str, Callable[..., Chosen]] = {
    "tracks": tracks, "file_order": file_order, "energy": energy, "denoise": denoise, "pyskl": pyskl,
}  # fmt: skip


def _by_slot(bodies: Bodies, slots: list[int]) -> Chosen:
    rows = np.full((len(bodies.nbody), 2), -1)
    for person, slot in enumerate(slots):
        listed = np.flatnonzero(bodies.slot == slot)
        rows[bodies.frame[listed], person] = listed
    return Chosen(rows)


def _tracks(bodies: Bodies) -> list[_Track]:
    """One track an ID, by first appearance. An ID listed twice in a frame counts once."""
    _, first, owner = np.unique(bodies.ids, return_index=True, return_inverse=True)
    result = []
    for number in np.argsort(first).tolist():
        rows = np.flatnonzero(owner == number)
        rows = rows[np.diff(bodies.frame[rows], prepend=-1) > 0]
        xyz = bodies.joints[rows, :, :3].astype(np.float32)
        result.append(_Track(rows, bodies.frame[rows], xyz, _motion(xyz)))
    return result


def _closed(bodies: Bodies) -> list[_Track]:
    """Tracks whose frames are counted without empty ones, and without gaps from the first one on."""
    place = np.cumsum(bodies.nbody > 0) - 1
    result = _tracks(bodies)
    for track in result:
        track.frames = place[track.start] + np.arange(len(track.rows))
    return result


def _motion(xyz: np.ndarray) -> float:
    """Sum over the axes of the variance over all joints and frames, in the precision of the files' readers."""
    return float(np.var(xyz.reshape(-1, 3), axis=0).sum())


def _by_motion(found: list[_Track]) -> list[_Track]:
    return sorted(found, key=lambda track: -track.motion)


def _long(found: list[_Track]) -> list[_Track]:
    """Without the short ones; the longest where all are short (the published scripts stop with an error there)."""
    return [track for track in found if len(track.rows) > SHORT] or [max(found, key=lambda track: len(track.rows))]


def _upright(found: list[_Track], last: int) -> list[_Track]:
    """Without flat bodies, leaving at least `last`; the motion of those kept is that of their upright frames."""
    kept = list(found)
    for track in found:
        if last and len(kept) == last:
            break
        extent = track.xyz.max(axis=1) - track.xyz.min(axis=1)
        good = extent[:, 0] <= FLATNESS * extent[:, 1]
        if good.all():
            continue
        if np.count_nonzero(~good) / len(good) >= FLAT_SHARE:
            kept.remove(track)
        else:
            track.motion = min(track.motion, _motion(track.xyz[good]))
    return kept


def _join(found: list[_Track], spans: list[tuple[int, int]], after: int) -> list[tuple[_Track, int]]:
    """Give each track to the first person whose span it does not overlap; spans grow to the hull of their tracks."""
    placed = []
    for number, track in enumerate(found):
        start, end = track.start, track.end + after
        for person, (left, right) in enumerate(spans):
            if min(right, end) - max(left, start) <= 0 or (number == 0 and not after):
                spans[person] = min(left, start), max(right, end)
                placed.append((track, person))
                break
    return placed


def _lay(placed: list[tuple[_Track, int]], length: int) -> np.ndarray:
    rows = np.full((length, 2), -1)
    for track, person in placed:
        rows[track.frames, person] = track.rows
    return rows


def _overlaps(track: _Track, person: list[_Track]) -> bool:
    return any(min(track.end, other.end) >= max(track.start, other.start) for other in person)


def _distance(track: _Track, person: list[_Track]) -> float:
    """Metres between the middles of the spine where the track and its neighbour in time face each other."""
    before = [other for other in person if other.end < track.start]
    if before:
        other = max(before, key=lambda other: other.end)
        return float(np.linalg.norm(track.xyz[0, _SPINE] - other.xyz[-1, _SPINE]))
    other = min(person, key=lambda other: other.start)
    return float(np.linalg.norm(track.xyz[-1, _SPINE] - other.xyz[0, _SPINE]))
