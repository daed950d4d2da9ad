"""How fast NTU's text becomes a store, and how fast the store gives batches, beside the plain way of each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skelact.benchmarks.line_by_line_ntu import read_line_by_line
from skelact.benchmarks.simulated_ntu import names, skeleton_frames, write
from skelact.benchmarks.steps import resident
from skelact.data.dealing import cores
from skelact.data.prepare import prepare_dataset
from skelact.data.readers.ntu import NTUReader
from skelact.data.readers.ntu_parse import parse_skeleton
from skelact.data.readers.ntu_protocols import parse_name
from skelact.data.store import Store
from skelact.data.writer import StoreWriter

if TYPE_CHECKING:
    from skelact.clips import RaggedClips

#: Clips of NTU RGB+D 60 without the official list of missing skeletons.
FULL = 56_578
PADDED = 300
BATCH = 128


def measure(clips: int | None = None, seconds: float = 5.0, seed: int = 0, stored: int = FULL) -> dict[str, Any]:
    """Parsing, preparing, opening and reading, on made-up files of NTU's form and lengths.

    Args:
        clips: simulated files that are parsed and prepared; None takes 800.
        seconds: measuring time of each repeated part.
        seed: of the batches.
        stored: clips of the made-up store that is opened and read.

    Returns:
        The figures by name, times in the unit that stands in it.
    """
    clips = clips or 800
    with tempfile.TemporaryDirectory(prefix="skelact-") as name:
        folder = Path(name)
        out: dict[str, Any] = {"simulated files": float(clips)}
        made = write(folder / "raw", clips, workers=1, progress=False)
        out["MB of text"] = made["bytes"] / 1e6
        out |= _parsing(sorted((folder / "raw").rglob("*.skeleton")), seconds)
        out |= _preparing(folder)
        shutil.rmtree(folder / "raw")
        out |= _store(folder / "store", stored)
        out |= _reading(folder / "store", seconds, seed)
    return out


def _parsing(files: list[Path], seconds: float) -> dict[str, float]:
    """Both parsers on the same files nearest to 270 KB, one core."""
    some = sorted(files, key=lambda path: abs(path.stat().st_size - 270_000))[:20]
    texts = [path.read_bytes() for path in some]
    size = sum(map(len, texts)) / len(texts)
    ours = _best(lambda: [parse_skeleton(text) for text in texts], seconds) / len(texts)
    whole = _best(lambda: [parse_skeleton(path.read_bytes()) for path in some], seconds) / len(texts)
    plain = _best(lambda: [read_line_by_line(path) for path in some[:5]], seconds) / 5
    return {
        "parsed file [KB]": size / 1e3,
        "skelact [ms/file]": 1e3 * ours,
        "skelact with reading the file [ms/file]": 1e3 * whole,
        "line by line [ms/file]": 1e3 * plain,
        "times faster": plain / whole,
        "skelact [MB/s]": size / ours / 1e6,
    }


def _preparing(folder: Path) -> dict[str, float]:
    out = {}
    peaks = [0.0]
    for workers in sorted({1, min(2, cores()), cores()}):
        target = folder / f"prepared{workers}"
        before = sum(os.times()[:4])
        with _watched(peaks):
            report = prepare_dataset(NTUReader(), folder / "raw", target, workers=workers, progress=False)
        words = "1 process" if workers == 1 else f"{workers} reader processes"
        out[f"prepare, {words} [clips/s]"] = report.clips / report.seconds
        out[f"prepare, {words} [processor ms/clip]"] = 1e3 * (sum(os.times()[:4]) - before) / report.clips
        shutil.rmtree(target)
    if own := _peak_memory(os.getpid()):
        out["peak memory, preparing process, with torch [MB]"] = own
    if peaks[0]:
        out["peak memory, a reader process [MB]"] = peaks[0]
    return out


@contextlib.contextmanager
def _watched(peaks: list[float]) -> Iterator[None]:
    """Keep in `peaks[0]` the most memory that a child of this process ever had."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            peaks[0] = max([peaks[0], *(_peak_memory(child.pid or 0) for child in multiprocessing.active_children())])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _peak_memory(process: int) -> float:
    """Megabytes, by the kernel; getrusage would count for a child what its parent had. 0 where it cannot be told."""
    try:
        return resident("VmHWM", process) / 1e3
    except (OSError, ValueError, StopIteration):
        return 0.0


def _store(path: Path, clips: int) -> dict[str, float]:
    """A store of made-up clips with NTU's names and lengths, and how long it takes to open."""
    reader = NTUReader(missing="keep")
    frames = np.random.default_rng(0).standard_normal((600, 2, 25, 3)).astype(np.float32)
    begin = time.perf_counter()
    with StoreWriter(path, reader.card([])) as writer:
        for k, name in enumerate(names()[:clips]):
            columns: Any = parse_name(name)
            length, first = skeleton_frames(name), k % 300
            writer.add(name, frames[first : first + length], columns["action"] - 1, **columns)
    spent = time.perf_counter() - begin
    opened = [_seconds(lambda: Store(path)) for _ in range(5)]
    store = Store(path)
    size = sum(entry["bytes"] for entry in store.card["files"].values())
    padded = len(store) * PADDED * store.shape[1] * store.shape[2] * store.shape[3] * 4
    return {
        "stored clips": float(len(store)),
        "mean frames of a clip": float(store.length.mean()),
        "written [clips/s]": len(store) / spent,
        "size [GB]": size / 1e9,
        f"size padded to {PADDED} frames [GB]": padded / 1e9,
        "times smaller": padded / size,
        "opening [s]": statistics.median(opened),
    }


def _reading(path: Path, seconds: float, seed: int) -> dict[str, float]:
    """Random training batches from the memory map, once cached, and from memory: clips, and views of them."""
    import torch

    from skelact.data.loading import ClipLoader
    from skelact.transforms.draws import Draws
    from skelact.transforms.normalize import Normalize
    from skelact.transforms.sampling import CropResize

    store = Store(path)
    layout = _layout(store)
    plain, normalised = ClipLoader(store, layout), ClipLoader(store, layout, Normalize("umurl", layout))
    resident = plain.load_all()  # also brings the file into the page cache
    generator = torch.Generator().manual_seed(seed)
    sampler = CropResize(64)

    def batch(clips_of: Callable[[Any], RaggedClips], views: bool) -> None:
        clips = clips_of(torch.randint(len(store), (BATCH,), generator=generator))
        if views:
            sampler(clips, Draws(0, 0, clips.index))

    ways: dict[str, Callable[[], None]] = {
        "batches of 128 from disk": lambda: batch(plain.load, False),
        "batches of 128 from disk, normalised as umurl": lambda: batch(normalised.load, False),
        "views of 64 frames from disk": lambda: batch(plain.load, True),
        "views of 64 frames from disk, normalised as umurl": lambda: batch(normalised.load, True),
        "views of 64 frames from memory": lambda: batch(resident.select, True),
    }
    cost = _in_turns(ways, seconds)
    out = {f"{name} [clips/s]": BATCH / spent for name, spent in cost.items()}
    memory = cost["views of 64 frames from memory"]
    out["views, disk beside memory [%]"] = 100 * memory / cost["views of 64 frames from disk"]
    more = cost["views of 64 frames from disk, normalised as umurl"] - memory
    out["what disk and umurl cost beside memory [ms/clip]"] = 1e3 * max(more, 0.0) / BATCH
    return out


def _in_turns(ways: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Median processor seconds of each way, taken in turns so that they share what else the machine does."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds * len(ways)
    while not all(times.values()) or time.perf_counter() < end:
        for name, way in ways.items():
            begin = time.process_time()
            way()
            times[name].append(time.process_time() - begin)
    return {name: statistics.median(spent) for name, spent in times.items()}


def _layout(store: Store) -> Any:
    from skelact.skeleton.layouts import get_layout

    return get_layout(store.card["layout"])


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _best(work: Callable[[], Any], seconds: float) -> float:
    """Processor seconds of the fastest of some runs; the first one only warms up."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)
