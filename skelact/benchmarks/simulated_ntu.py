"""Made-up NTU RGB+D 60 files of full size: the official names, lengths as in the set, motions of HDM05.

NTU's own files may not be redistributed. These let everything from preparation to retrieval run at full size by the
commands that a user with the real files types. The (set-up, performer) pairs are made up, apart from those that the
official list of missing skeletons names; the sizes of all splits come out as published. The 60 "actions" are variations
of the eleven motion classes embedded in the package: accuracies on them say nothing about NTU RGB+D.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.dealing import cores
from skelact.data.readers.ntu_protocols import TRAIN_SUBJECTS_60, missing_skeletons
from skelact.errors import SkelactError

PERFORMERS, SETUPS, CAMERAS, REPETITIONS, ACTIONS = 40, 17, 3, 2, 60
CLIPS = 56_880
FOLDER = "nturgb+d_skeletons"
#: (set-up, performer) pairs with a performer of the training and of the test side: 40 320 and 16 560 clips.
_PAIRS = (112, 46)
#: The actions with two persons begin here.
_MUTUAL = 50
#: Training performers move as three of the five actors, test performers as the other two.
_ACTORS = {True: ("bd", "bk", "dg"), False: ("mm", "tr")}
_LINE = " ".join(["%.7g"] * 11 + ["%d"]) + "\r\n"
_BLOCK = "25\r\n" + _LINE * 25
NOTE = (
    "Made up by `skelact benchmark simulate`: names and counts are those of NTU RGB+D 60, nothing else is.\n"
    "The motions are variations of HDM05 (CC BY-SA 3.0, Mueller et al. 2007).\n"
    "Results on these files say nothing about NTU RGB+D.\n"
)
_BYTES = 300_000  # of a file, roughly, to see beforehand whether there is room


def name_of(setup: int, camera: int, performer: int, repetition: int, action: int) -> str:
    """The official form of a name."""
    return f"S{setup:03d}C{camera:03d}P{performer:03d}R{repetition:03d}A{action:03d}"


def numbers_of(name: str) -> tuple[int, ...]:
    """Set-up, camera, performer, repetition and action of a name."""
    return tuple(int(name[k + 1 : k + 4]) for k in range(0, 20, 4))


def pairs(missing: Iterable[str]) -> list[tuple[int, int]]:
    """158 (set-up, performer) pairs: those of the names in `missing`, of the one-shot exemplars, and made-up ones.

    Args:
        missing: names that must exist.
    """
    found = {(1, 8), *((numbers_of(name)[0], numbers_of(name)[2]) for name in missing)}
    other = [(s, p) for s in range(1, SETUPS + 1) for p in range(1, PERFORMERS + 1) if (s, p) not in found]
    other.sort(key=lambda pair: _digest(f"pair {pair}"))  # arbitrary but fixed
    # performers without any set-up come first, so that every one of the 40 takes part
    first = {performer: pair for pair in reversed(other) if (performer := pair[1]) not in {p for _, p in found}}
    other.sort(key=lambda pair: first.get(pair[1]) != pair)
    for side, count in zip((True, False), _PAIRS, strict=True):
        have = sum((performer in TRAIN_SUBJECTS_60) == side for _, performer in found)
        found |= set(islice((pair for pair in other if (pair[1] in TRAIN_SUBJECTS_60) == side), count - have))
    return sorted(found)


def names(clips: int = CLIPS) -> list[str]:
    """Names of the simulated clips, sorted; fewer than all are drawn by their hashes.

    Args:
        clips: how many, at most 56 880.

    Raises:
        SkelactError: none, or more than there are.
    """
    if not 1 <= clips <= CLIPS:
        raise SkelactError(f"clips={clips}: the simulated NTU RGB+D 60 has 1 to {CLIPS} clips")
    every = [
        name_of(setup, camera, performer, repetition, action)
        for setup, performer in pairs(_missing())
        for camera in range(1, CAMERAS + 1)
        for repetition in range(1, REPETITIONS + 1)
        for action in range(1, ACTIONS + 1)
    ]
    return sorted(every if clips == len(every) else sorted(every, key=_digest)[:clips])


def write(
    target: str | Path, clips: int = CLIPS, workers: int = 0, progress: bool = True, archive: bool = False
) -> dict[str, float]:
    """Write simulated `.skeleton` files.

    Args:
        target: a new folder, or with `archive` a new zip file (members stored, not compressed).
        clips: how many files.
        workers: processes; 0 takes all cores.
        progress: show a bar.
        archive: write one zip.

    Returns:
        Files, bytes and seconds.

    Raises:
        SkelactError: the target exists, or the disk has too little room.
    """
    from rich.progress import Progress

    target = Path(target).expanduser()
    chosen = names(clips)
    if target.exists() and (archive or any(target.iterdir())):
        raise SkelactError(f"target={target} exists; give a new {'file' if archive else 'folder'}")
    place = target.parent if archive else target
    place.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(place).free) < clips * _BYTES:
        raise SkelactError(f"{target}: {clips} files need {clips * _BYTES / 1e9:.0f} GB, {free / 1e9:.0f} are free")
    groups: dict[tuple[int, int], list[str]] = {}
    for name in chosen:
        _, _, performer, _, action = numbers_of(name)
        groups.setdefault((performer, action), []).append(name)
    begin, total = time.perf_counter(), 0
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(disable=not progress))
        task = bar.add_task("simulating NTU RGB+D 60", total=clips)
        folder = None if archive else target / FOLDER
        if folder is not None:
            folder.mkdir()
            (folder / "READ_ME.txt").write_text(NOTE, encoding="utf-8")
        else:
            out = stack.enter_context(zipfile.ZipFile(target, "x", zipfile.ZIP_STORED))
            out.writestr(zipfile.ZipInfo(f"{FOLDER}/READ_ME.txt"), NOTE)
        for made in _spread(_make, [(some, folder) for some in groups.values()], workers or cores()):
            for name, content in made:
                total += content if isinstance(content, int) else len(content)
                if not isinstance(content, int):
                    out.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}.skeleton"), content)
            bar.advance(task, len(made))
    return {"files": float(clips), "bytes": float(total), "seconds": time.perf_counter() - begin}


def _spread(
    work: Callable[..., Any], tasks: list[tuple[Any, ...]], workers: int
) -> Iterator[list[tuple[str, int | bytes]]]:
    """Results of tasks in order, a few ahead."""
    if workers < 2:
        yield from (work(*task) for task in tasks)
        return
    pending = iter(tasks)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(_material(),)) as pool:
        queue = deque(pool.submit(work, *task) for task in islice(pending, 3 * workers))
        while queue:
            result = queue.popleft().result()
            queue.extend(pool.submit(work, *task) for task in islice(pending, 1))
            yield result


def _make(some: list[str], folder: Path | None) -> list[tuple[str, int | bytes]]:
    """Files of one performer and action; written to `folder`, or handed back."""
    made: list[tuple[str, int | bytes]] = []
    blocks: dict[tuple[int, int], list[_Frames]] = {}
    for name in some:
        _, camera, performer, repetition, action = numbers_of(name)
        if (camera, repetition) not in blocks:
            blocks[camera, repetition] = _bodies(camera, performer, repetition, action)
        content = skeleton_text(name, blocks[camera, repetition], name in _missing())
        if folder is not None:
            (folder / f"{name}.skeleton").write_bytes(content)
        made.append((name, len(content) if folder is not None else content))
    return made


def skeleton_text(name: str, bodies: list[_Frames], empty: bool = False) -> bytes:
    """One file in the official form (CR LF, body IDs near 2^56).

    Args:
        name: of the clip; the only source of randomness.
        bodies: for each person the text of one cycle of frames, played to and fro.
        empty: no body in any frame, as many a file of the missing list has it.
    """
    draw = np.random.RandomState(np.frombuffer(_digest(name), "<u4"))
    frames = _length(draw)
    chance = draw.uniform(size=4)
    first = 2**56 + int(draw.randint(1 << 20)) * 8
    heads = [b"%d 0 1 1 1 1 0 %.7g %.7g 2\r\n" % (first + 4 * k, *draw.uniform(-0.3, 0.3, 2)) for k in range(2)]
    cycle = len(bodies[0])
    place = (int(draw.randint(2 * cycle)) + np.arange(frames)) % (2 * cycle)
    place = np.where(place < cycle, place, 2 * cycle - 1 - place).tolist()
    gap, gap_length = int(draw.randint(frames)), int(draw.randint(1, 6)) if chance[0] < 0.03 else 0
    late = int(draw.randint(1, frames // 4)) if chance[1] < 0.1 else 0  # the second person comes later
    flip = int(draw.randint(1, frames)) if chance[2] < 0.05 else frames  # the order of listing changes
    ghost = range(gap, gap + 6) if chance[3] < 0.04 else range(0)  # a short second body that is nobody
    lines = [b"%d\r\n" % frames]
    for frame, at in enumerate(place):
        if empty or gap <= frame < gap + gap_length:
            lines.append(b"0\r\n")
            continue
        listed = [(heads[0], bodies[0][at])]
        if len(bodies) > 1 and frame >= late:
            listed.append((heads[1], bodies[1][at]))
        elif len(bodies) == 1 and frame in ghost:
            listed.append((heads[1], bodies[0][0]))
        lines.append(b"%d\r\n" % len(listed))
        for head, block in listed if frame < flip else listed[::-1]:
            lines += (head, block)
    return b"".join(lines)


def skeleton_frames(name: str) -> int:
    """Frames of a simulated clip: 32 to 300, median 75, mean 83."""
    return _length(np.random.RandomState(np.frombuffer(_digest(name), "<u4")))


def _length(draw: np.random.RandomState) -> int:
    return int(np.clip(np.rint(75 * np.exp(0.45 * draw.standard_normal())), 32, 300))


def _bodies(camera: int, performer: int, repetition: int, action: int) -> list[_Frames]:
    """Text of the frames of each person, seen by one camera."""
    draw = np.random.RandomState(np.frombuffer(_digest(f"{camera} {performer} {repetition} {action}"), "<u4"))
    actors = _ACTORS[performer in TRAIN_SUBJECTS_60]
    count = 2 if action >= _MUTUAL else 1
    made = []
    for person in range(count):
        xyz = _motion(action, actors[(performer + person) % len(actors)], performer * 2 + repetition + person)
        xyz = xyz * (0.9 + 0.2 * draw.uniform())
        turn = (camera - 2) * np.pi / 4 + 0.15 * draw.standard_normal() + np.pi * person
        about = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
        where = np.array([(person - (count - 1) / 2) * 0.9, -0.1, 2.8 + 0.8 * draw.uniform()])
        xyz = xyz @ about.T + where + 0.01 * draw.standard_normal(xyz.shape)
        made.append(_Frames(xyz, draw))
    return made


def _motion(action: int, actor: str, take: int) -> np.ndarray:
    """`(T, 25, 3)` metres about the first frame's spine: one of eleven motions in one of six variations."""
    base, variation = (action - 1) % 11, (action - 1) // 11
    motions, mirror = _material()
    takes = motions[base, actor]
    xyz = takes[take % len(takes)]
    if variation in (1, 4):
        xyz = xyz[:, mirror] * np.array([-1.0, 1.0, 1.0])
    if variation in (2, 4, 5):  # sways
        angle = 0.5 * np.sin(np.arange(len(xyz)) / 4)[:, None]
        x, y = xyz[..., 0], xyz[..., 1]
        xyz = np.stack([x + np.sin(angle) * y, np.cos(angle) * y, xyz[..., 2]], axis=-1)
    if variation in (3, 5):  # twice as fast
        xyz = xyz[:: 2 if len(xyz) > 20 else 1]
    return xyz


class _Frames:
    """The 26 lines of a body's joints, frame by frame, made when first asked for.

    Args:
        xyz: `(T, 25, 3)` metres in the camera's frame.
        draw: source of orientations and tracking states.
    """

    def __init__(self, xyz: np.ndarray, draw: np.random.RandomState) -> None:
        x, y, z = np.moveaxis(xyz, -1, 0)
        z = np.maximum(z, 0.5)
        turn = draw.standard_normal((*x.shape, 4))
        turn /= np.linalg.norm(turn, axis=-1, keepdims=True)
        state = np.where(draw.uniform(size=x.shape) < 0.05, 1.0, 2.0)
        columns = [x, y, z, 256 + 366 * x / z, 212 - 366 * y / z, 960 + 1060 * x / z, 540 - 1060 * y / z]
        self.numbers = np.concatenate([np.stack(columns, axis=-1), turn, state[..., None]], axis=-1)
        self.lines: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, frame: int) -> bytes:
        frame %= len(self)
        if frame not in self.lines:
            self.lines[frame] = (_BLOCK % tuple(self.numbers[frame].ravel().tolist())).encode()
        return self.lines[frame]


Material = tuple[dict[tuple[int, str], list[np.ndarray]], list[int]]
_given: Material | None = None


def _begin(material: Material) -> None:
    """In a writing process: the motions as the parent converted them, so that it need not start torch."""
    global _given
    _given = material


def _material() -> Material:
    return _given or _converted()


@cache
def _converted() -> Material:
    """The embedded motions in the joints of Kinect v2, by class and actor (one without borrows), and the mirror."""
    from skelact.data.readers.hdm05 import HDM05Reader
    from skelact.skeleton.convert import convert
    from skelact.skeleton.layouts import get_layout

    reader = HDM05Reader()
    found: dict[tuple[int, str], list[np.ndarray]] = {}
    for item in reader.scan(None):
        xyz = convert(reader.read(item).frames, "hdm05_31", "ntu25")[0][:, 0].astype(np.float64)
        found.setdefault((item.label, str(item.columns["subject"])), []).append(xyz - xyz[0, 1])
    for side in _ACTORS.values():
        for base in range(11):
            some = [take for actor in side for take in found.get((base, actor), [])]
            for actor in side:
                found.setdefault((base, actor), some)
    return found, list(get_layout("ntu25").mirror)


@cache
def _missing() -> frozenset[str]:
    """Names of the official list that belong to the 60 set."""
    return frozenset(name for name in missing_skeletons() if numbers_of(name)[0] <= SETUPS)


def _digest(text: str) -> bytes:
    return hashlib.sha256(f"simulated ntu v1: {text}".encode()).digest()
