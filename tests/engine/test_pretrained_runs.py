"""Runs whose backbone begins with released weights."""

import json

import pytest
import torch

import skelact
from skelact.backbones.dstformer import DSTformer
from skelact.results import read_records

SIZES = {"width": 8, "token_features": 4, "depth": 1, "num_heads": 2, "max_frames": 12}
OPTIONS = [
    "data=custom", "data.name=tiny", "frames=8", "data.batch_size=8", "callbacks=minimal", "trainer.accelerator=cpu",
    "backbone=dstformer", *(f"backbone.{key}={value}" for key, value in SIZES.items()), "augment=none",
    "method=supervised", "method.head=action", "method.head_hidden=6", "method.scheduler=null", "method.optimizer.lr=0",
    "method.optimizer.weight_decay=0", "protocol=supervised", "protocol.baselines=false",
    "trainer.max_epochs=-1", "backbone.pretrained=released.bin",
]  # fmt: skip


@pytest.fixture
def released(home, tmp_path):
    """State of the encoder in a file of MotionBERT's form, for the joints of the tiny store."""
    layout = json.loads((home / "data" / "tiny" / "card.json").read_text())["layout"]
    torch.manual_seed(8)
    state = DSTformer(layout, **SIZES).state_dict()
    torch.save(
        {"model_pos": {f"module.{k}": v for k, v in state.items() if k != "mask_token"}}, tmp_path / "released.bin"
    )
    return state


def begins_with(released, run):
    own = skelact.load(run).backbone.state_dict()
    return all(torch.equal(own[name], value) for name, value in released.items() if name != "mask_token")


def test_every_training_of_a_run_begins_with_them(skelact_run, released, tmp_path):
    assert skelact_run(*OPTIONS, "protocol.seeds=2", "trainer.max_steps=1", "run_dir=run", tiny=False) == 0
    runs = [path.parents[1] for path in (tmp_path / "run").rglob("last.ckpt")]
    assert len(runs) == 2 and all(begins_with(released, run) for run in runs)
    assert {record.extra["encoder"] for record in read_records(tmp_path / "run")} == {"pretrained"}
    assert {record.extra["source"] for record in read_records(tmp_path / "run")} == {"released.bin"}


def test_what_was_trained_does_not_need_the_file(skelact_run, released, tmp_path):
    assert skelact_run(*OPTIONS, "trainer.max_steps=1", "run_dir=run", tiny=False) == 0
    (tmp_path / "released.bin").unlink()
    assert begins_with(released, tmp_path / "run")
    assert skelact_run("resume=run", "trainer.max_steps=2", tiny=False) == 0
    finetune = ["max_steps=1", "warmup=0", "batch_size=8", "optimizer=sgd", "schedule=milestones", "lr=0.1"]
    finetune = [f"protocol.{option}" for option in finetune]
    assert skelact_run("checkpoint=run", "protocol=finetune", *finetune, "run_dir=tuned", tiny=False) == 0


def test_files_that_do_not_fit_are_refused(skelact_run, released, capsys):
    assert skelact_run(*OPTIONS, "backbone.width=16", "trainer.max_steps=1", tiny=False) == 2
    assert "released.bin: its encoder has other sizes; set backbone.width=8" in capsys.readouterr().err
    assert skelact_run(*OPTIONS, "backbone.pretrained=none.bin", "trainer.max_steps=1", tiny=False) == 2
    assert "none.bin: no such checkpoint file" in capsys.readouterr().err
