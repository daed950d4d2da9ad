from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from skelact.data.embedded import open_store
from skelact.data.prepare import locked, prepare_dataset
from skelact.data.readers.nw_ucla import NWUCLAReader
from skelact.data.store import Store
from skelact.errors import SkelactError

from .originals import write_ucla

FILES = ("frames.npy", "clips.npz", "card.json")


def _same(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in FILES)


def test_report_counts_and_progress_bar(tmp_path, capsys):
    write_ucla(tmp_path / "raw")
    report = prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / "s")
    assert report.clips == 12 and report.skipped == [] and report.kept == 0
    assert report.fingerprint == Store(tmp_path / "s").fingerprint and report.frames == Store(tmp_path / "s").shape[0]
    assert "12 clips" in str(report) and "prepared nw_ucla" in capsys.readouterr().out


def test_killed_and_started_again_gives_the_same_store(tmp_path):
    write_ucla(tmp_path / "raw")
    prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / "want", progress=False)
    script = textwrap.dedent("""
        import os, signal, sys
        from skelact.data.prepare import locked, prepare_dataset
        from skelact.data.readers.nw_ucla import NWUCLAReader

        class Dying(NWUCLAReader):
            count = 0
            def read(self, item):
                self.count += 1
                if self.count == 6:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().read(item)

        prepare_dataset(Dying(), sys.argv[1], sys.argv[2], progress=False)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "raw"), str(tmp_path / "got")], env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "got").exists() and (tmp_path / "got.partial").is_dir()
    with pytest.raises(SkelactError, match="no store yet"):
        open_store(tmp_path / "got", "nw_ucla")
    report = prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / "got", progress=False)
    assert report.kept == 5 and report.clips == 12
    assert _same(tmp_path / "got", tmp_path / "want")


class _Interrupted(NWUCLAReader):
    """Stops like Ctrl-C at the given file."""

    stop = 0

    def read(self, item):
        if self.stop == 0:
            raise KeyboardInterrupt
        self.stop -= 1
        return super().read(item)


@pytest.mark.parametrize("change", ["mend", "rewrite", "add", "remove"])
def test_originals_that_change_between_runs(tmp_path, change):
    """A resumed run ends in the store of an uninterrupted run over the originals as they are now."""
    paths = write_ucla(tmp_path / "raw")
    whole = paths[1].read_text()
    if change in ("mend", "add"):
        paths[1].write_text(whole[:50]) if change == "mend" else paths[1].unlink()
    reader = _Interrupted()
    reader.stop = 6
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(reader, tmp_path / "raw", tmp_path / "got", progress=False)
    if change == "remove":
        paths[1].unlink()
    elif change == "rewrite":
        paths[1].write_text(whole.replace("0.", "1."))
    else:
        paths[1].write_text(whole)
    prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / "got", progress=False)
    prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / "want", progress=False)
    assert _same(tmp_path / "got", tmp_path / "want")


def test_damaged_files_are_named_skipped_and_counted(tmp_path):
    paths = write_ucla(tmp_path / "raw")
    paths[0].write_text(paths[0].read_text()[:200])
    paths[5].write_text(paths[5].read_text().replace('"label": ', '"label": 1'))
    report = prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / "s", progress=False)
    assert report.clips == 10 and [entry[0] for entry in report.skipped] == [str(paths[0]), str(paths[5])]
    assert "line 1" in report.skipped[0][1] and "2 damaged, skipped" in str(report)
    card = Store(tmp_path / "s").card
    assert [entry[0] for entry in card["skipped"]] == [paths[0].name, paths[5].name]


def test_strict_writes_the_store_and_raises_at_the_end(tmp_path):
    paths = write_ucla(tmp_path / "raw")
    paths[3].write_text("{}")
    with pytest.raises(SkelactError, match=rf"(?s){paths[3].name}.*strict: 1 of 12"):
        prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / "s", strict=True, progress=False)
    assert len(Store(tmp_path / "s")) == 11


def test_nothing_usable(tmp_path):
    for path in write_ucla(tmp_path / "raw"):
        path.write_text("[]")
    with pytest.raises(SkelactError, match=r"none of 12 clips could be used: .*json.*: .*; in all 12 x"):
        prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SkelactError, match=r"no clips found in .*aAA_sSS_eEE_vVV"):
        prepare_dataset(NWUCLAReader(), tmp_path / "empty", tmp_path / "s", progress=False)
    with pytest.raises(SkelactError, match="does not exist"):
        prepare_dataset(NWUCLAReader(), tmp_path / "nowhere", tmp_path / "s", progress=False)
    with pytest.raises(SkelactError, match="source=FOLDER"):
        prepare_dataset(NWUCLAReader(), None, tmp_path / "s", progress=False)


def test_workers_give_the_same_store(tmp_path):
    paths = write_ucla(tmp_path / "raw")
    paths[4].write_text("{")
    reports = [
        prepare_dataset(NWUCLAReader(), tmp_path / "raw", tmp_path / f"s{n}", workers=n, progress=False) for n in (1, 2)
    ]
    assert reports[0].skipped == reports[1].skipped and len(reports[0].skipped) == 1
    assert _same(tmp_path / "s1", tmp_path / "s2")


def test_processes_that_meet_at_first_use_share_one_store(tmp_path):
    # Processes of their own: one forked from a process with threads inherits whatever they had locked.
    code = "import sys; from skelact.data.embedded import open_store as o; print(o(sys.argv[1], 'hdm05').fingerprint)"
    command = [sys.executable, "-c", code, str(tmp_path / "hdm05")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    prints = [process.communicate()[0] for process in started]
    assert len(set(prints)) == 1 and prints[0].strip()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hdm05", "hdm05.lock"]


def _hold(target, held, go):
    with locked(target):
        held.set()
        go.wait(30)


def test_a_second_preparation_of_one_store_waits_and_says_so(tmp_path, capfd):
    write_ucla(tmp_path / "raw")
    context = multiprocessing.get_context("fork")
    held, go = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(tmp_path / "s", held, go))
    first.start()
    assert held.wait(30)
    arguments = (NWUCLAReader(), tmp_path / "raw", tmp_path / "s", False, 1, False)
    second = context.Process(target=prepare_dataset, args=arguments)
    second.start()
    second.join(0.3)
    assert second.is_alive() and not (tmp_path / "s").exists()
    go.set()
    second.join(30)
    first.join(30)
    assert second.exitcode == 0 and len(Store(tmp_path / "s")) == 12
    assert "waiting for the process that prepares" in capfd.readouterr().err
