"""A run that was stopped ends where the uninterrupted one does (one that was killed: test_kills.py)."""

import csv
import os
import shutil

import pytest
import torch

from skelact.results import read_records


def weights(run):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {
        **content["state_dict"],
        **{f"adam{i}": s["exp_avg"] for i, s in content["optimizer_states"][0]["state"].items()},
    }


def assert_same(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.fixture(scope="module")
def whole(home, tiny_options):
    """Seven steps without a break: the training part has three batches an epoch."""
    from skelact.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKELACT_DATA", str(home / "data"))
        patch.chdir(home)
        assert main([*tiny_options, "trainer.max_steps=7", "run_dir=whole"]) == 0
    return home / "whole"


@pytest.mark.parametrize(
    "steps", [pytest.param(1, marks=pytest.mark.slow), 2, 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_longer_run_continues_a_shorter_one(skelact_run, tmp_path, whole, steps):
    """Within an epoch and at its end; the directory keeps its frozen config."""
    assert skelact_run(f"trainer.max_steps={steps}", "run_dir=part") == 0
    before = (tmp_path / "part" / "config.yaml").read_text()
    assert skelact_run("resume=part", "trainer.max_steps=7", tiny=False) == 0
    assert (tmp_path / "part" / "config.yaml").read_text() == before
    assert os.listdir(tmp_path) == ["part"]
    assert_same(tmp_path / "part", whole)
    assert read_records(tmp_path / "part")[0].metrics["samples_per_s"] > 0  # of the steps after the break
    rows = list(csv.DictReader((tmp_path / "part" / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(7))


@pytest.mark.parametrize("stops", [(2, 3), (2, 4)])
def test_a_run_is_continued_twice(skelact_run, tmp_path, whole, stops):
    """At an epoch's end, then within the next or at its end: as a job does that is queued again and again."""
    assert skelact_run(f"trainer.max_steps={stops[0]}", "run_dir=part") == 0
    for step in (stops[1], 7):
        assert skelact_run("resume=part", f"trainer.max_steps={step}", tiny=False) == 0
    assert_same(tmp_path / "part", whole)


def test_by_epochs(skelact_run, tmp_path):
    common = ["trainer.max_steps=-1"]
    assert skelact_run(*common, "trainer.max_epochs=3", "run_dir=three") == 0
    assert skelact_run(*common, "trainer.max_epochs=1", "run_dir=part") == 0
    assert skelact_run("resume=part", "trainer.max_epochs=3", tiny=False) == 0
    assert_same(tmp_path / "part", tmp_path / "three")


def test_other_overrides_are_refused(skelact_run, tmp_path, trained, capsys):
    shutil.copytree(trained, tmp_path / "run")
    assert skelact_run("resume=run", "seed=3", tiny=False) == 2
    text = capsys.readouterr().err
    assert "seed=..." in text and "trainer.max_steps" in text
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    assert skelact_run("resume=run", tiny=False) == 2
    assert "last.ckpt" in capsys.readouterr().err


def test_within_an_epoch_of_a_schedule_that_counts_its_steps(skelact_run, tmp_path):
    """How many they are must not be asked of a loader that does not know yet where it goes on."""
    options = [
        "data=custom", "data.name=tiny", "data.batch_size=8", "frames=8", "callbacks=minimal", "trainer=cpu",
        "augment=umurl", "augment.transform.transforms.0.joints=2", "backbone.width=8", "method=actionmae",
        "method.width=8", "method.num_heads=2", "method.fusion_depth=1", "protocol=supervised",
        "protocol.baselines=false",
    ]  # fmt: skip
    assert skelact_run(*options, "trainer.max_steps=4", "run_dir=whole", tiny=False) == 0
    assert skelact_run(*options, "trainer.max_steps=2", "run_dir=part", tiny=False) == 0
    assert skelact_run("resume=part", "trainer.max_steps=4", tiny=False) == 0
    assert_same(tmp_path / "part", tmp_path / "whole")
