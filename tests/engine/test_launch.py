"""Several processes from one frozen config."""

import csv
import json
import os

import pytest
import torch

from skelact.engine.launch import processes
from skelact.errors import SkelactError


@pytest.mark.parametrize(
    ("trainer", "count"),
    [
        ({"devices": 1}, 1),
        ({"devices": 3}, 3),
        ({"devices": "2"}, 2),
        ({"devices": [0, 1]}, 2),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({}, 1),
    ],
)
def test_processes(trainer, count):
    assert processes(trainer) == count


@pytest.mark.parametrize("devices", ["many", 0, -3])
def test_wrong_devices_are_named(devices):
    with pytest.raises(SkelactError, match="devices"):
        processes({"devices": devices})


@pytest.mark.ddp
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_do_what_one_does(skelact_run, tmp_path, monkeypatch, count):
    """The same losses and weights with the global batch on one process and on several, then a probe on the first."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    common = ["trainer.max_steps=4", "evaluate=[retrieval]", "preset=corrected"]
    assert skelact_run(*common, "run_dir=one") == 0
    before = dict(os.environ)
    assert skelact_run(*common, "trainer=ddp", f"trainer.devices={count}", "run_dir=two") == 0
    assert {k: v for k, v in os.environ.items() if before.get(k) != v} == {}
    states = [torch.load(tmp_path / d / "checkpoints" / "last.ckpt", weights_only=True) for d in ("one", "two")]
    assert states[0]["global_step"] == states[1]["global_step"] == 4
    for name, value in states[0]["state_dict"].items():
        if name.endswith(("bias", "running_mean")):
            continue  # some have a gradient of exactly zero: Adam turns its rounding into steps of full size
        torch.testing.assert_close(states[1]["state_dict"][name], value, rtol=2e-3, atol=2e-4, msg=name)
    rows = [list(csv.DictReader((tmp_path / d / "metrics.csv").open())) for d in ("one", "two")]
    losses = [[float(row["train/loss"]) for row in table] for table in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 4
    records = [json.loads((tmp_path / d / "results.json").read_text()) for d in ("one", "two")]
    assert [r["protocol"] for r in records[0]] == [r["protocol"] for r in records[1]]


@pytest.mark.ddp
@pytest.mark.slow
def test_the_error_of_a_rank_is_told(skelact_run, capsys):
    assert skelact_run("trainer=ddp", "trainer.devices=2", "data.batch_size=7", "run_dir=bad") == 2
    assert "multiple of 2" in capsys.readouterr().err
