"""Work dealt out in units to reader processes: the same store, whatever happens to the processes."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from skelact.data.dealing import TASK_CLIPS, read_all, worker_count
from skelact.data.prepare import prepare_dataset
from skelact.data.readers.base import DamagedClip
from skelact.errors import SkelactError

FILES = ("frames.npy", "clips.npz", "card.json")
READER = '''
import json, os, sys, time
from pathlib import Path
import numpy as np
from skelact.data.readers.base import Clip, DamagedClip, Item, Reader

CARD = json.loads((Path(__file__).parent / "card.json").read_text())


class Several(Reader):
    """Files `*.npy` of several clips (K, T, 1, 20, 3); a folder `seen` gets a file for each opening."""

    name = "several"
    notes = ("two lists were looked at",)

    def __init__(self, mode="", in_process=False):
        self.mode, self.in_process = mode, in_process

    def scan(self, source):
        items = []
        for path in sorted(Path(source).glob("*.npy")):
            count = int(path.stem.split("_")[1])
            columns = {"subject": len(items) % 4 + 1}
            items += [Item(f"{path.stem}_{k}", path, k % 3, columns, k) for k in range(count)]
            if path.stem.startswith("a03"):
                items.append(Item("twice", path, 0, columns, damage=("line 3", "the name is given twice")))
        return items

    def read(self, item):
        raise AssertionError("units are read whole")

    def read_unit(self, items):
        assert items[0].name != "twice" and len({item.unit for item in items}) == 1
        path = items[0].path
        (path.parent / "seen" / f"{path.stem}-{time.monotonic_ns()}").touch()
        if self.mode == "slow":
            time.sleep(0.01)
        if self.mode == "die" and path.stem.startswith("a05"):
            os._exit(9)
        if self.mode == "defect" and path.stem.startswith("a05"):
            return
        if "torch" in sys.modules and self.mode == "light":
            raise DamagedClip(path, "", "torch was imported")
        values = np.load(path)
        for item in items:
            if path.stem.startswith("a04") and item.key == 1:
                raise DamagedClip(path, "clip 1", "the file ends here")
            yield Clip(values[item.key])

    def card(self, items):
        return CARD
'''


@pytest.fixture
def several(tmp_path, monkeypatch):
    """The reader's module (importable in reader processes), and a folder of 12 files with 1 to 5 clips."""
    import json

    from .conftest import make_card

    published = {"clips": 34, "splits": {"xsub": {"train+val": 25, "test": 8}}, "source": "a paper"}
    (tmp_path / "card.json").write_text(json.dumps(make_card(published=published)))
    (tmp_path / "made_up_reader.py").write_text(READER)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("made_up_reader")
    importlib.reload(module)
    draw = np.random.default_rng(0)
    (tmp_path / "raw" / "seen").mkdir(parents=True)
    for k in range(12):
        count = k % 5 + 1
        np.save(tmp_path / "raw" / f"a{k:02d}_{count}.npy", draw.standard_normal((count, 3 + k, 1, 20, 3)))
    return module.Several


def _same(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in FILES)


def _opened(tmp_path):
    names = [path.name.split("-")[0] for path in (tmp_path / "raw" / "seen").iterdir()]
    for path in (tmp_path / "raw" / "seen").iterdir():
        path.unlink()
    return sorted(names)


def test_units_go_whole_to_any_number_of_processes(tmp_path, several):
    raw = tmp_path / "raw"
    want = prepare_dataset(several(), raw, tmp_path / "want", progress=False)
    once = _opened(tmp_path)
    assert len(once) == len(set(once)) == 12
    reasons = [(os.path.basename(path)[:3], where) for path, where, _ in want.skipped]
    # the clips after the torn one go with it; the name given twice was never sent to be read
    assert reasons == [("a03", "line 3"), *[("a04", "clip 1")] * 4] and want.clips == 29
    for name, reader, workers in (("two", several("light"), 2), ("held", several(in_process=True), 2)):
        report = prepare_dataset(reader, raw, tmp_path / name, workers=workers, progress=False)
        assert _same(tmp_path / "want", tmp_path / name) and report.skipped == want.skipped
        assert _opened(tmp_path) == once and report.workers == (2 if name == "two" else 1)


def test_report_has_notes_rate_and_published_counts(tmp_path, several):
    report = prepare_dataset(several(), tmp_path / "raw", tmp_path / "s", progress=False)
    text = str(report)
    assert "two lists were looked at" in text and "clips/s" in text and "5 damaged, skipped" in text
    assert [str(count) for count in report.published] == [
        "clips 29 (-5 from 34)",
        "xsub train+val 21 (-4 from 25)",
        "xsub test 8 OK",
    ]
    assert "(a paper): clips 29 (-5 from 34)" in text


def test_tasks_are_bounded_and_in_order(tmp_path, several):
    reader = several()
    items = reader.scan(tmp_path / "raw") * 40
    outcomes = read_all(reader, items, workers=2)
    for item, clip in zip(items[:40], outcomes, strict=False):
        if not isinstance(clip, DamagedClip):
            np.testing.assert_array_equal(clip.frames, np.load(item.path)[item.key])
    time.sleep(0.3)
    outcomes.close()
    assert len(_opened(tmp_path)) <= 9 * TASK_CLIPS  # of 480


def test_a_reader_that_loses_clips_is_a_defect(tmp_path, several):
    with pytest.raises(RuntimeError, match=r"read_unit gave 0 clips of 1"):
        prepare_dataset(several("defect"), tmp_path / "raw", tmp_path / "s", progress=False)


def test_a_reader_process_that_dies_is_told_and_resumed(tmp_path, several):
    with pytest.raises(SkelactError, match="was killed"):
        prepare_dataset(several("die"), tmp_path / "raw", tmp_path / "s", workers=2, progress=False)
    prepare_dataset(several(), tmp_path / "raw", tmp_path / "s", progress=False)
    prepare_dataset(several(), tmp_path / "raw", tmp_path / "want", progress=False)
    assert _same(tmp_path / "s", tmp_path / "want")


def test_number_of_workers(monkeypatch):
    monkeypatch.setattr("skelact.data.dealing.cores", lambda: 8)
    assert [worker_count(0, n) for n in (5, 250, 10_000)] == [1, 2, 8]
    assert worker_count(3, 5) == 3


def _children(pid):
    """Ids of the processes below one."""
    found = []
    for path in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            parent = int((open(f"/proc/{path}/stat").read()).rpartition(")")[2].split()[1])  # noqa: SIM115
            if parent == pid:
                found.append(int(path))
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("clips", [0, 12])
def test_killed_at_any_time_and_started_again(tmp_path, several, clips):
    """kill -9 of the preparing process: its readers end, and the next run makes the uninterrupted store."""
    arguments = (several("slow"), tmp_path / "raw", tmp_path / "got", False, 2, False)
    process = multiprocessing.get_context("fork").Process(target=prepare_dataset, args=arguments)
    process.start()
    journal = tmp_path / "got.partial" / "journal.jsonl"
    end = time.monotonic() + 60
    while time.monotonic() < end:
        readers = _children(process.pid)
        written = journal.read_text().count("\n") - 1 if journal.exists() else -1
        if readers and written >= clips:
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while any(os.path.exists(f"/proc/{reader}") for reader in readers) and time.monotonic() < end:
        time.sleep(0.01)
    assert readers and not any(os.path.exists(f"/proc/{reader}") for reader in readers)
    assert not (tmp_path / "got").exists()
    report = prepare_dataset(several(), tmp_path / "raw", tmp_path / "got", progress=False)
    prepare_dataset(several(), tmp_path / "raw", tmp_path / "want", progress=False)
    assert report.kept >= clips and _same(tmp_path / "got", tmp_path / "want")


def test_originals_that_change_between_runs_are_read_again_by_workers(tmp_path, several):
    raw = tmp_path / "raw"
    with pytest.raises(RuntimeError):
        prepare_dataset(several("defect"), raw, tmp_path / "got", progress=False)  # stops at the sixth file
    kept = np.load(raw / "a02_3.npy")
    np.save(raw / "a02_3.npy", kept + 1)
    np.save(raw / "a01x_1.npy", kept[:1])
    report = prepare_dataset(several(), raw, tmp_path / "got", workers=2, progress=False)
    prepare_dataset(several(), raw, tmp_path / "want", progress=False)
    assert report.kept == 3 and _same(tmp_path / "got", tmp_path / "want")
