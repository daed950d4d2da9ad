"""From a source's files to a store: with progress, damaged files named and skipped, and safe to interrupt."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from skelact.data.dealing import Outcomes, read_all, worker_count
from skelact.data.published import Count, compare
from skelact.data.readers.base import DamagedClip, Item, Reader
from skelact.data.store import CARD
from skelact.data.writer import refuse_foreign
from skelact.errors import SkelactError

#: Damaged clips that the report names; all of them stand in the store's card.
NAMED = 10


@dataclass
class Report:
    """What a preparation did.

    Attributes:
        target: the store.
        clips, frames: what it holds.
        kept: clips taken over from an interrupted run.
        skipped: (file, where, reason) of each damaged clip.
        fingerprint: of the store.
        notes: what the reader noticed besides damage.
        published: counts of the store beside the published ones.
        source: where the published counts stand.
        seconds: how long it took.
        workers: processes that read.
    """

    target: Path
    clips: int = 0
    frames: int = 0
    kept: int = 0
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    published: list[Count] = field(default_factory=list)
    source: str = ""
    seconds: float = 0.0
    workers: int = 1

    def __str__(self) -> str:
        kept = f", {self.kept} of them kept from an interrupted run" if self.kept else ""
        lines = [f"{self.target}: {self.clips} clips, {self.frames} frames{kept}; fingerprint {self.fingerprint}"]
        if self.seconds:
            rate = (self.clips + len(self.skipped) - self.kept) / self.seconds
            readers = f", {self.workers} reader processes" if self.workers > 1 else ""
            lines.append(f"{_clock(self.seconds)}, {rate:.0f} clips/s{readers}")
        lines += self.notes
        if self.published:
            source = f" ({self.source})" if self.source else ""
            lines.append(f"beside the published counts{source}: {', '.join(map(str, self.published))}")
        return "\n".join(lines + summarise(self.skipped))


def summarise(skipped: Sequence[tuple[str, str, str]]) -> list[str]:
    """The first :data:`NAMED` damaged clips by name, the others counted by reason."""
    if not skipped:
        return []
    lines = [f"skipped {path}{f', {where}' if where else ''}: {reason}" for path, where, reason in skipped[:NAMED]]
    others = Counter(re.sub(r"\d+", "N", reason) for _, _, reason in skipped[NAMED:])
    if others:
        lines.append(f"and {sum(others.values())} more, all named in the store's {CARD}:")
        lines += [f"  {count} x {reason}" for reason, count in others.most_common()]
    return [*lines, f"{len(skipped)} damaged, skipped"]


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{seconds:.1f} s" if seconds < 60 else f"{whole // 60} min {whole % 60} s"


class _Rate(ProgressColumn):
    """Clips per second, over the last half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} clips/s", style="progress.data.speed")


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
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"waiting for the process that prepares {target}", file=sys.stderr)
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
        workers: reader processes; 1 reads in this process, 0 takes all cores where there are clips enough.
        progress: show a bar.
        dtype: of the frames, float32 or float16.
        only_if_missing: do nothing when another process has made the store meanwhile.

    Raises:
        SkelactError: the source cannot be read at all, no clip was usable, or `strict` and some were damaged.
    """
    target = Path(target)
    refuse_foreign(target)
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
    begin = time.perf_counter()
    items = reader.scan(source)
    if not items:
        raise SkelactError(f"{reader.name}: no clips found in {source}")
    stamps = [_stamp(item) for item in items]
    report = Report(target, notes=tuple(reader.notes))
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(reader.make_writer(target, reader.card(items), dtype))
        bar = stack.enter_context(_bar(progress))
        task = bar.add_task(f"preparing {reader.name}", total=len(items))
        kept = {entry["name"]: entry["stamp"] for entry in writer.done}
        same = [stamp is not None and kept.get(item.name) == stamp for item, stamp in zip(items, stamps, strict=True)]
        report.workers = 1 if reader.in_process else worker_count(workers, len(items) - sum(same))
        position = 0  # clips of the writer that are in their final place

        def read_from(first: int) -> Outcomes:
            todo = [k for k in range(first, len(items)) if not same[k]]
            results = read_all(reader, [items[k] for k in todo], report.workers, [(stamps[k] or [0])[0] for k in todo])
            return stack.enter_context(contextlib.closing(results))

        def forget(first: int) -> Outcomes:
            """An earlier run's order no longer fits (a file was added, mended or changed): read again from here."""
            writer.truncate(position)
            results.close()
            same[first:] = [False] * (len(items) - first)
            return read_from(first)

        results = read_from(0)
        for k, item in enumerate(items):
            bar.advance(task)
            if same[k]:
                if position < len(writer.done) and writer.done[position]["name"] == item.name:
                    position += 1
                    report.kept += 1
                    continue
                results = forget(k)
            outcome = next(results)
            if isinstance(outcome, DamagedClip):
                inside = f"/{item.member}" if item.member and item.member not in outcome.path else ""
                report.skipped.append((outcome.path + inside, outcome.where, outcome.reason))
                continue
            if position < len(writer.done):
                results = forget(k + 1)
            writer.add(item.name, outcome.frames, item.label, outcome.mask, stamp=stamps[k], **dict(item.columns))
            position += 1
        if position < len(writer.done):
            writer.truncate(position)
        if not position:
            raise SkelactError(
                f"{reader.name}: none of {len(items)} clips could be used\n" + "\n".join(summarise(report.skipped))
            )
        bar.update(task, description=f"preparing {reader.name}: hashing")
        writer.finish({"skipped": [[os.path.basename(p), where, reason] for p, where, reason in report.skipped]})
        bar.update(task, description=f"prepared {reader.name}")
    store = reader.open_store(target)
    report.clips, report.frames, report.fingerprint = len(store), store.shape[0], store.fingerprint
    report.published = compare(store.card, store.columns)
    report.source = str((store.card.get("published") or {}).get("source", ""))
    report.seconds = time.perf_counter() - begin
    return report


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        disable=not shown,
    )


def _stamp(item: Item) -> list[int] | None:
    try:
        return item.stamp()
    except OSError:
        return None
