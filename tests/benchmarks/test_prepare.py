"""The figures of `skelact benchmark prepare` come out, at a small size."""

import json

from skelact.benchmarks.prepare import measure
from skelact.cli import main


def test_figures_come_out():
    found = measure(clips=24, seconds=0.05, stored=200)
    assert found["stored clips"] == 200 and found["times smaller"] > 2.5
    assert found["times faster"] > 1.5  # 4 on an idle machine
    assert found["size padded to 300 frames [GB]"] * 1e9 == 200 * 300 * 2 * 25 * 3 * 4
    if "peak memory, a reader process [MB]" in found:
        assert found["peak memory, a reader process [MB]"] < 150  # none of them has imported torch
    assert all(value > 0 for value in found.values())


def test_kinds_of_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "simulate", "clips=2", "target=raw", "output=numbers.json"]) == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["files"] == 2
    assert len(list(tmp_path.rglob("*.skeleton"))) == 2
    for arguments, words in ((["simulate"], "target=FOLDER"), (["nothing"], "prepare, simulate, data")):
        assert main(["benchmark", *arguments]) == 2
        assert words in capsys.readouterr().err
