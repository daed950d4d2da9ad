"""A model in shards trains as a whole one does; what cannot be shared out is refused."""

import csv
import json

import pytest
import torch

import skelact
from skelact.engine.strategies import ddp_options, sharing
from tests.engine.recipes import RECIPES

SGD = ["method.optimizer._target_=torch.optim.SGD", "~method.optimizer.fused", "method.optimizer.lr=0.01"]
SHARDS = ["trainer=fsdp", "trainer.devices=2", "trainer.accelerator=cpu"]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0, 0.9])  # an optimiser without a state, and one with it
def test_shards_are_the_whole(skelact_run, tmp_path, monkeypatch, momentum):
    """Losses, monitors, weights, continued from a checkpoint, and the protocol afterwards."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = [
        *RECIPES["umurl"],
        *SGD,
        f"+method.optimizer.momentum={momentum}",
        "callbacks=default",
        "callbacks.online_knn.every_n_epochs=1",
    ]
    options += ["evaluate=[retrieval]", "protocols.retrieval.draws=2"]
    assert skelact_run(*options, "run_dir=one", tiny=False) == 0
    assert skelact_run(*options, *SHARDS, "trainer.max_epochs=1", "run_dir=two", tiny=False) == 0
    assert skelact_run("resume=two", "trainer.max_epochs=3", tiny=False) == 0
    states = [torch.load(tmp_path / d / "checkpoints" / "last.ckpt", weights_only=True) for d in ("one", "two")]
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    for name, value in states[0]["state_dict"].items():
        torch.testing.assert_close(states[1]["state_dict"][name], value, rtol=2e-3, atol=2e-4, msg=name)
    records = [json.loads((tmp_path / d / "results.json").read_text()) for d in ("one", "two")]
    assert [r["metrics"] for r in records[0][1:]] == [r["metrics"] for r in records[1][1:]]
    assert skelact.load(tmp_path / "two").encode(torch.randn(2, 1, 8, 6, 3)).isfinite().all()


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("name", ["maskclr", "motionbert", "supcon"])
def test_losses_of_other_methods_in_shards(skelact_run, tmp_path, monkeypatch, name):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = [*RECIPES[name], "backbone.dropout=0", "method.dropout=0", "trainer.max_epochs=2"]
    assert skelact_run(*options, "run_dir=one", tiny=False) == 0
    assert skelact_run(*options, *SHARDS, "run_dir=two", tiny=False) == 0
    tables = [list(csv.DictReader((tmp_path / d / "metrics.csv").open())) for d in ("one", "two")]
    losses = [[float(row["train/loss"]) for row in table] for table in tables]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) >= 4


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("skeletonclr", ["trainer=fsdp"], "SkeletonCLR: its momentum networks are averages of whole weights"),
        ("umurl", ["trainer=fsdp", "method.exclude_from_decay=true"], "exclude_from_decay"),
        ("umurl", ["trainer=fsdp", "trainer.gradient_clip_val=1.0"], "trainer.gradient_clip_val=null"),
        ("umurl", ["trainer=deepspeed"], "needs the package deepspeed"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(skelact_run, capsys, method, options, words):
    if "deepspeed" in words and __import__("importlib.util").util.find_spec("deepspeed"):
        pytest.skip("deepspeed is installed")
    one = ["trainer.devices=1", "trainer.accelerator=cpu", "run_dir=run"]
    assert skelact_run(*RECIPES[method], *options, *one, tiny=False) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "ours"),
    [
        ({"strategy": "ddp", "devices": 2}, True),
        ({"strategy": "auto", "devices": 2}, True),
        ({"strategy": "auto", "devices": 1}, False),
        ({"strategy": "ddp_find_unused_parameters_true", "devices": 2}, False),
    ],
)
def test_buffers_that_are_equal_are_not_broadcast(trainer, ours):
    found = sharing(trainer, None).get("strategy")
    assert (found is not None) == ours
    assert not ours or found._ddp_kwargs == ddp_options()
