"""From a source's files to a store: with progress, damaged files named and skipped, and safe to interrupt."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from skelact.data.readers.base import Clip, DamagedClip, Item, Reader, read_or_damage
from skelact.data.store import CARD
from skelact.errors import SkelactError


@dataclass
class Report:
    """What a preparation did.

    Attributes:
        target: the store.
        clips, frames: what it holds.
        kept: clips taken over from an interrupted run.
        skipped: (file, where, reason) of each damaged clip.
        fingerprint: of the store.
    """

    target: Path
    clips: int = 0
    frames: int = 0
    kept: int = 0
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    fingerprint: str = ""

    def __str__(self) -> str:
        kept = f", {self.kept} of them kept from an interrupted run" if self.kept else ""
        lines = [f"{self.target}: {self.clips} clips, {self.frames} frames{kept}; fingerprint {self.fingerprint}"]
        lines += [f"skipped {path}{f', {where}' if where else ''}: {reason}" for path, where, reason in self.skipped]
        if self.skipped:
            lines.append(f"{len(self.skipped)} damaged, skipped")
        return "\n".join(lines)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold `<target>.lock` across processes; a process that dies lets go of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(target.name + ".lock"), "a+b") as stream:
        try:
            import fcntl
        except ImportError:  # Windows: its own call, a byte of the file
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
            yield
            return
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def prepare_dataset(
    reader: Reader,
    source: str | Path | None,
    target: str | Path,
    strict: bool = False,
    workers: int = 1,
    progress: bool = True,
    dtype: str = "float32",
    only_if_missing: bool = False,
) -> Report:
    """Read every clip of a source into a store.

    Interrupted and started again it keeps the finished clips, and the store is bit for bit the one of an
    uninterrupted run, whatever the number of workers. An existing store is replaced when the new one is whole.

    Args:
        reader: reader of the dataset.
        source: its folder or file; None for embedded data.
        target: the store's folder.
        strict: raise at the end, after the store was written, when clips were damaged.
        workers: reader processes; 1 reads in this process.
        progress: show a bar.
        dtype: of the frames, float32 or float16.
        only_if_missing: do nothing when another process has made the store meanwhile.

    Raises:
        SkelactError: the source cannot be read at all, no clip was usable, or `strict` and some were damaged.
    """
    target = Path(target)
    with locked(target):
        if only_if_missing and (target / CARD).is_file():
            return Report(target)
        report = _prepare(reader, source, target, workers, progress, dtype)
    if strict and report.skipped:
        raise SkelactError(
            f"{report}\nstrict: {len(report.skipped)} of {len(report.skipped) + report.clips} clips are damaged"
        )
    return report


def _prepare(
    reader: Reader, source: str | Path | None, target: Path, workers: int, progress: bool, dtype: str
) -> Report:
    items = reader.scan(source)
    if not items:
        raise SkelactError(f"{reader.name}: no clips found in {source}")
    report = Report(target)
    with reader.make_writer(target, reader.card(items), dtype) as writer:
        kept = {entry["name"]: entry["stamp"] for entry in writer.done}
        current = {item.name for item in items if kept.get(item.name) == _stamp(item)}
        todo = [item for item in items if item.name not in current]
        position = 0  # clips of the writer that are in their final place
        results = _results(reader, todo, workers)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not progress) as bar:
            task = bar.add_task(f"preparing {reader.name}", total=len(items))
            for item in items:
                bar.advance(task)
                matches = position < len(writer.done) and writer.done[position]["name"] == item.name
                if item.name in current and matches:
                    position += 1
                    report.kept += 1
                    continue
                # An earlier run's order no longer fits (a file was added, mended or changed): read again from here.
                outcome = read_or_damage(reader, item) if item.name in current else next(results)
                if isinstance(outcome, DamagedClip):
                    report.skipped.append((outcome.path, outcome.where, outcome.reason))
                    continue
                if position < len(writer.done):
                    writer.truncate(position)
                writer.add(
                    item.name, outcome.frames, item.label, outcome.mask, stamp=_stamp(item), **dict(item.columns)
                )
                position += 1
        if position < len(writer.done):
            writer.truncate(position)
        if not position:
            raise SkelactError(
                f"{reader.name}: none of {len(items)} clips could be used\n" + "\n".join(map(str, report.skipped[:5]))
            )
        writer.finish({"skipped": [[os.path.basename(p), where, reason] for p, where, reason in report.skipped]})
        report.clips, report.frames = position, sum(entry["length"] for entry in writer.done)
    report.fingerprint = reader.open_store(target).fingerprint
    return report


def _stamp(item: Item) -> list[int] | None:
    try:
        return item.stamp()
    except OSError:
        return None


def _results(reader: Reader, items: list[Item], workers: int) -> Iterator[Clip | DamagedClip]:
    """Outcomes in the order of `items`; with workers, a bounded number ahead."""
    if workers <= 1 or len(items) < 2:
        for item in items:
            yield read_or_damage(reader, item)
        return
    pending = iter(items)
    # spawn: the parent may hold threads (progress bar, torch) that must not be forked
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        queue = [pool.submit(read_or_damage, reader, item) for item in islice(pending, 4 * workers)]
        while queue:
            outcome = queue.pop(0).result()
            queue += [pool.submit(read_or_damage, reader, item) for item in islice(pending, 1)]
            yield outcome
