"""A sweep that was killed is started again with the same command: what is finished stays, what was begun goes on."""

import signal
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from skelact.engine.finished import differences, last_value
from skelact.engine.run import task
from skelact.engine.settings import ConfigError
from skelact.results import read_records, write_records

SWEEP = ["-m", "seed=1,2,3", "callbacks.checkpoint.every_n_train_steps=2", "run_dir=sweep", "skip_finished=true"]


def state(run):
    """Every file of a run and when it was written; the folder of features is a cache."""
    return {p.relative_to(run): p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_killed_sweep_goes_on(skelact_run, tiny_options, rank_environment, tmp_path, capsys):
    """kill -9 in the second of three jobs, after its fourth step; the last checkpoint is of the second or fourth."""
    code = (
        "import os, signal, skelact.methods.umurl as m\n"
        "step = m.UmURL.training_step\n"
        "def last(self, batch, i=0):\n"
        "    if self.seed == 2 and self.global_step == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, batch, i)\n"
        "m.UmURL.training_step = last\n"
        "from skelact.cli import main; main()"
    )
    environment = {**rank_environment, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code, *tiny_options, *SWEEP]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    sweep = tmp_path / "sweep"
    assert sorted(p.name for p in sweep.glob("[0-9]")) == ["0", "1"]
    before, begun = state(sweep / "0"), torch.load(sweep / "1/checkpoints/last.ckpt", weights_only=True)
    assert begun["global_step"] == 2 and not (sweep / "1/results.json").exists()

    assert skelact_run(*SWEEP) == 0
    told = capsys.readouterr().out
    assert told.count("finished before") == 1 and "sweep/0" in told
    assert state(sweep / "0") == before
    assert [read_records(sweep / job)[0].metrics["steps"] for job in "012"] == [5, 5, 5]
    assert read_records(sweep / "1")[0].metrics["samples_per_s"] > 0
    assert skelact_run("seed=2", "callbacks.checkpoint.every_n_train_steps=2", "run_dir=whole") == 0
    assert all(torch.equal(value, weights(sweep / "1")[name]) for name, value in weights(tmp_path / "whole").items())

    before = state(sweep)
    assert skelact_run(*SWEEP) == 0
    assert capsys.readouterr().out.count("finished before") == 3
    after = state(sweep)
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed <= {"multirun.yaml"}


def test_a_run_killed_between_its_protocols(skelact_run, tmp_path):
    """The training is over: its record stands, and what was not answered is asked again."""
    command = ["evaluate=[retrieval]", "run_dir=run", "skip_finished=true"]
    assert skelact_run(*command) == 0
    run = tmp_path / "run"
    records, trained = read_records(run), weights(run)
    (run / "finished.yaml").unlink()
    write_records(run / "results.json", records[:1])
    assert skelact_run(*command) == 0
    again = read_records(run)
    assert again[0].to_dict() == records[0].to_dict() and "loss" in again[0].metrics
    assert [r.metrics for r in again] == [r.metrics for r in records]
    assert all(torch.equal(value, trained[name]) for name, value in weights(run).items())


def test_another_run_is_refused_or_lost(skelact_run, tmp_path, capsys):
    command = ["run_dir=run", "skip_finished=true", "trainer.max_steps=1"]
    assert skelact_run(*command) == 0
    before = state(tmp_path / "run")
    assert skelact_run(*command, "seed=4") == 2
    told = capsys.readouterr().err
    assert "run holds another run, it differs in seed" in told and "overwrite=true" in told
    assert state(tmp_path / "run") == before
    # continued to another length, the same directory holds the results of another run
    assert skelact_run("resume=run", "trainer.max_steps=2", tiny=False) == 0
    assert skelact_run(*command) == 2
    assert "differs in trainer.max_steps" in capsys.readouterr().err
    assert skelact_run(*command, "overwrite=true") == 0
    assert read_records(tmp_path / "run")[0].metrics["steps"] == 1


def test_a_directory_of_the_hour_cannot_be_found_again(skelact_run, capsys):
    assert skelact_run("skip_finished=true") == 2
    assert "run_dir=FOLDER" in capsys.readouterr().err


def test_the_number_of_a_run_that_is_skipped(skelact_run, tiny_options, tmp_path, monkeypatch):
    monitor = ["+callbacks.online_knn._target_=skelact.callbacks.online_knn.OnlineKNN"]
    options = [*monitor, "+callbacks.online_knn.every_n_epochs=1", f"run_dir={tmp_path}/run", "skip_finished=true"]
    assert skelact_run(*options) == 0

    def number(*more):
        with initialize_config_module("skelact.conf", version_base="1.3"):
            cfg = compose("config", overrides=[*tiny_options, *options, *more], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = f"{tmp_path}/run"
        monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
        HydraConfig.instance().set_config(cfg)
        OmegaConf.set_readonly(cfg, False)
        with open_dict(cfg):
            del cfg["hydra"]
        return task(cfg)

    before = state(tmp_path / "run")
    assert number() == read_records(tmp_path / "run")[0].metrics["loss"]
    assert number("judged_by=val/knn1") == last_value(tmp_path / "run", "val/knn1")
    assert state(tmp_path / "run") == before
    with pytest.raises(ConfigError, match=r"judged_by=val/knn: .* it has .*train/loss.*val/knn1"):
        number("judged_by=val/knn")


def test_what_counts_as_another_run():
    one = {"seed": 1, "run_dir": "a", "method": {"a": [1, 2], "b": [{"c": 1}]}}
    same = {"seed": 1, "run_dir": "b", "logger_id": "x", "method": {"a": [1, 2], "b": [{"c": 1}]}}
    assert differences(one, same) == []
    assert differences(one, {**same, "method": {"a": [1, 3], "b": [{"c": 2}], "d": None}}) == [
        "method.a",
        "method.b.0.c",
        "method.d",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_side_by_side(skelact_run, tmp_path, launcher, capsys):
    """Each in its own folder, also where the time is in its name; what one of them raises is the command's, too."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    assert skelact_run(f"launcher={launcher}", "data.batch_size=0,8") == 2
    assert "data.batch_size=0" in capsys.readouterr().err
    good, begun = (
        sorted(p.parent for p in (tmp_path / "runs").rglob(name)) for name in ("finished.yaml", "config.yaml")
    )
    assert [run.name for run in begun] == ["0", "1"] and begun[0].parent == begun[1].parent and good == begun[1:]
    assert read_records(good[0])[0].metrics["steps"] == 5
