"""MaskCLR through the command: across the epoch in which the second pathway begins, resumed and on two processes."""

import csv

import pytest
import torch

from skelact.results import read_records

TINY = [
    "data=custom", "data.name=tiny", "data.batch_size=8", "frames=8", "protocol=supervised", "protocol.baselines=false",
    "backbone=dstformer", "backbone.width=8", "backbone.token_features=4", "backbone.depth=1", "backbone.num_heads=2",
    "augment=umurl", "augment.transform.transforms.0.joints=2", "method.head_hidden=8", "method.head_lr=0.01",
    "method.optimizer.lr=0.001",
    "callbacks=minimal", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "trainer.max_epochs=3",
]  # fmt: skip
MASKCLR = [*TINY, "method=maskclr", "method.msk_path_start_epoch=1"]
VARIANTS = {
    "corrected": ["backbone.dropout=0.1"],
    "tcl": ["preset=as_released_c2", "backbone.absent=count", "method.sample_loss=targeted", "method.class_loss=tcl"],
    "class means": ["method.class_loss=class_mean", "method.class_momentum=0.9", "method.masking=targeted"],
}


def content(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def rows(run):
    return list(csv.DictReader((run / "metrics.csv").open()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_continues_across_the_start_of_the_second_pathway(skelact_run, tmp_path, variant):
    options = [*MASKCLR, *VARIANTS[variant]]
    assert skelact_run(*options, "run_dir=whole", tiny=False) == 0
    assert skelact_run(*options, "run_dir=part", "trainer.max_epochs=1", tiny=False) == 0
    assert skelact_run("resume=part", "trainer.max_epochs=3", tiny=False) == 0
    one, other = (content(tmp_path / name)["state_dict"] for name in ("whole", "part"))
    assert one.keys() == other.keys() and not [name for name in one if not torch.equal(one[name], other[name])]
    assert ("memory" in one) == (variant in ("tcl", "class means")) and all(v.isfinite().all() for v in one.values())
    table = rows(tmp_path / "part")
    assert [row["train/loss"] for row in table] == [row["train/loss"] for row in rows(tmp_path / "whole")]
    assert [bool(row["train/sc"]) for row in table] == [False] * 3 + [True] * 6  # three batches an epoch
    (record,) = read_records(tmp_path / "part")
    assert record.extra["mode"] == "train" and "top5" in record.metrics


def test_a_classifier_of_masked_pathways_is_fine_tuned(skelact_run, tmp_path):
    options = [*MASKCLR, "preset=as_released_c2", "trainer.max_epochs=2"]
    assert skelact_run(*options, "run_dir=source", tiny=False) == 0
    tuning = ["protocol=finetune", "protocol.head=action", "protocol.head_hidden=8", "protocol.head_lr=0.01"]
    options = [*tuning, "protocol.epochs=6", "protocol.baselines=false", "trainer.accelerator=cpu", "run_dir=tuned"]
    assert skelact_run("checkpoint=source", *options, tiny=False) == 0
    found = content(tmp_path / "tuned")
    assert [len(group["params"]) for group in found["optimizer_states"][0]["param_groups"]][1] == 6
    assert "heads.all.norm.running_mean" in found["state_dict"]


@pytest.mark.ddp
@pytest.mark.parametrize("method", ["maskclr", pytest.param("motionbert", marks=pytest.mark.slow)])
def test_two_processes_through_the_command(skelact_run, tmp_path, monkeypatch, method):
    """One global batch on one process and on two: the same losses and weights, also where the mask token idles."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Adam would make steps of the rounding errors that are the gradient of a bias before batch normalisation
    own = MASKCLR if method == "maskclr" else [*TINY, "method=motionbert"]
    options = [*own, "optimizer@method.optimizer=sgd", "method.optimizer.weight_decay=0.01", "trainer.max_epochs=2"]
    assert skelact_run(*options, "run_dir=one", tiny=False) == 0
    assert skelact_run(*options, "trainer=ddp", "trainer.devices=2", "run_dir=two", tiny=False) == 0
    one, two = (content(tmp_path / name)["state_dict"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    losses = [[float(row["train/loss"]) for row in rows(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 6
