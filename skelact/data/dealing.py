"""Reading a source's clips with several processes: order kept, memory bounded, nothing left behind.

Imports neither torch nor the store, so that reader processes start in a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby, islice
from typing import Any

from skelact.data.readers.base import Clip, DamagedClip, Item, Reader
from skelact.errors import SkelactError

Outcome = Clip | DamagedClip
Outcomes = Generator[Outcome, None, None]

#: A task is as many whole units as fit into both, or one unit: small files share the cost of being sent.
TASK_CLIPS = 16
TASK_BYTES = 4 << 20
#: Below so many clips a process more does not pay for its start.
CLIPS_A_WORKER = 100


def cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system tells
        return os.cpu_count() or 1


def worker_count(workers: int, clips: int) -> int:
    """Reader processes for so many clips; `workers` 0 takes all cores, where there are clips enough for them."""
    return max(1, workers) if workers else max(1, min(cores(), clips // CLIPS_A_WORKER))


def read_all(reader: Reader, items: Sequence[Item], workers: int = 1, sizes: Sequence[int] | None = None) -> Outcomes:
    """The clip of each item, or what is wrong with it, in the order of `items`.

    Args:
        reader: reader of the dataset; one with `in_process` reads in this process whatever `workers` says.
        items: what to read; those with `damage` are not.
        workers: reader processes; 1 reads in this process. With more, 2 * workers + 1 tasks are held at most.
        sizes: bytes of each item's unit, to keep tasks small.

    Raises:
        SkelactError: a reader process died.
    """
    if workers <= 1 or reader.in_process or len(items) < 2:
        yield from _merged(items, _read(reader, _sound(items)))
        return
    pending = _tasks(items, sizes or [0] * len(items))
    # spawn: the parent may hold threads (progress bar, torch) that must not be forked
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(reader,))
    queue: deque[tuple[list[Item], Future[list[Outcome]] | None]] = deque()

    def send(count: int) -> None:
        for task in islice(pending, count):
            sound = _sound(task)
            queue.append((task, pool.submit(_work, sound) if sound else None))

    try:
        send(2 * workers + 1)
        while queue:
            task, future = queue.popleft()
            found = future.result() if future is not None else []
            send(1)
            yield from _merged(task, iter(found))
    except BrokenProcessPool as error:
        raise SkelactError(
            f"{reader.name}: a reader process was killed (out of memory?) or could not start; the same command goes "
            "on where this one stopped, with workers=1 if need be"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _tasks(items: Sequence[Item], sizes: Sequence[int]) -> Iterator[list[Item]]:
    task: list[Item] = []
    total = position = 0
    for _, group in groupby(items, key=lambda item: item.unit):
        unit = list(group)
        size = sizes[position]
        position += len(unit)
        if task and (len(task) + len(unit) > TASK_CLIPS or total + size > TASK_BYTES):
            yield task
            task, total = [], 0
        task += unit
        total += size
    if task:
        yield task


def _sound(items: Sequence[Item]) -> list[Item]:
    return [item for item in items if item.damage is None]


def _merged(items: Sequence[Item], found: Iterator[Outcome]) -> Iterator[Outcome]:
    """Outcomes of all items from those of the sound ones."""
    for item in items:
        yield next(found) if item.damage is None else DamagedClip(item.path, *item.damage)


def _read(reader: Reader, items: Sequence[Item]) -> Iterator[Outcome]:
    for _, group in groupby(items, key=lambda item: item.unit):
        unit = list(group)
        count = 0
        try:
            for outcome in reader.read_unit(unit):
                count += 1
                if count <= len(unit):
                    yield outcome
        except (DamagedClip, OSError) as error:  # the unit cannot be read on: so are the clips that were left
            for item in unit[count:]:
                yield error if isinstance(error, DamagedClip) else _damage(item, error)
            count = len(unit)
        if count != len(unit):
            raise RuntimeError(f"{type(reader).__name__}.read_unit gave {count} clips of {len(unit)} in {unit[0].unit}")


def _damage(item: Item, error: OSError) -> DamagedClip:
    return DamagedClip(item.path, "", error.strerror or str(error))


_reader: Reader | None = None


def _begin(reader: Reader) -> None:
    """In a reader process: keep the reader, leave Ctrl-C to the parent, and go when the parent is gone."""
    global _reader
    _reader = reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(items: list[Item]) -> list[Outcome]:
    assert _reader is not None
    return list(_read(_reader, items))
