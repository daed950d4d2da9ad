"""The contrastive family through the command: stages, resume, ranks, probes."""

import csv
import json

import pytest
import torch

import skelact

TINY = [
    "data=custom", "data.name=tiny", "backbone=stgcn", "augment=skeletonclr", "frames=8", "data.batch_size=8",
    "backbone.hidden=2", "backbone.num_features=4", "method.streams=[joint,motion,bone]", "method.embedding=4",
    "callbacks=minimal", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "trainer.max_epochs=3",
    "protocols.linear.epochs=2", "protocols.linear.draws=2", "protocols.linear.seeds=2", "protocols.retrieval.draws=2",
    "protocols.missing.epochs=2", "protocols.missing.draws=2", "protocols.missing.seeds=2",
]  # fmt: skip
BOOTSTRAP = ["method.projector_hidden=6", "method.predictor_hidden=6"]
METHODS = {
    "skeletonclr": ["method.queue_size=20"],
    "crosclr": ["method.queue_size=20", "method.cross_epoch=1"],
    "aimclr": ["method.queue_size=20", "method.mining_epoch=1", "augment=aimclr"],
    "skeletonbyol": BOOTSTRAP,
    "cmal": BOOTSTRAP,
    "caca": [*BOOTSTRAP, "method.cross_epoch=1"],
}


def weights(run):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    momenta = {f"momentum{i}": s["momentum_buffer"] for i, s in content["optimizer_states"][0]["state"].items()}
    return content["state_dict"] | momenta


def rows(run):
    return list(csv.DictReader((run / "metrics.csv").open()))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_continues_across_its_stages(skelact_run, tmp_path, method):
    """Three epochs without a break are one epoch, continued for two: the second stage begins where the first ended."""
    options = [*TINY, f"method={method}", *METHODS[method]]
    assert skelact_run(*options, "run_dir=whole", tiny=False) == 0
    assert skelact_run(*options, "run_dir=part", "trainer.max_epochs=1", tiny=False) == 0
    assert skelact_run("resume=part", "trainer.max_epochs=3", tiny=False) == 0
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    table = rows(tmp_path / "part")
    assert [row["train/loss"] for row in table] == [row["train/loss"] for row in rows(tmp_path / "whole")]
    assert all(float(row["train/feature_std"]) > 0 for row in table)
    if method == "caca":  # two batches an epoch
        noted = [int(row["step"]) for row in table if row["train/cos_at_switch"]]
        assert noted == [2] and [bool(row["train/positives"]) for row in table] == [False] * 2 + [True] * 4


def test_streams_fused_and_alone_are_evaluated_after_training(skelact_run, tmp_path):
    questions = "evaluate=[linear,retrieval,missing]"
    options = [*TINY, "method=caca", *METHODS["caca"], "trainer.max_epochs=2", questions, "run_dir=run"]
    late = [
        "protocols.linear.fusion=late",
        "protocols.retrieval.space=embedding",
        "protocols.retrieval.temperature=0.1",
    ]
    assert skelact_run(*options, *late, tiny=False) == 0
    records = json.loads((tmp_path / "run" / "results.json").read_text())
    found = {r["protocol"] for r in records}
    assert found == {"pretrain", "linear", "retrieval", "missing"}
    fusions = {(r["streams"], r.get("fusion")) for r in records if r["protocol"] == "linear" and r["method"] == "caca"}
    assert {("joint", "single"), ("motion", "single"), ("bone", "single")} < fusions
    assert "wknn20" in next(r for r in records if r["protocol"] == "retrieval")["metrics"]
    missing = next(r for r in records if r["protocol"] == "missing")["metrics"]
    assert {"top1/joint", "top1/bone+motion", "top1/bone+joint+motion"} < set(missing)
    method = skelact.load(tmp_path / "run")
    assert method.encode(torch.randn(2, 1, 8, 6, 3)).shape == (2, 12)


@pytest.mark.ddp
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_through_the_command(skelact_run, tmp_path, monkeypatch, count):
    """One global batch on one process and on several: the same losses, probes, weights and queue."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = [*TINY, "method=crosclr", *METHODS["crosclr"], "backbone.dropout=0", "trainer.max_epochs=2"]
    assert skelact_run(*options, "run_dir=one", tiny=False) == 0
    assert skelact_run(*options, "trainer=ddp", f"trainer.devices={count}", "run_dir=two", tiny=False) == 0
    files = [tmp_path / name / "checkpoints" / "last.ckpt" for name in ("one", "two")]
    one, two = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    for key in ("loss", "feature_std", "cos_key"):
        logged = [[float(row[f"train/{key}"]) for row in rows(tmp_path / name)] for name in ("one", "two")]
        assert logged[0] == pytest.approx(logged[1], rel=1e-4) and len(logged[0]) == 4


def test_wrong_combinations_say_what_to_do(skelact_run, capsys):
    assert skelact_run(*TINY, "method=aimclr", "method.queue_size=20", tiny=False) == 0  # two like views and a third
    assert skelact_run(*TINY, "method=skeletonclr", "augment=aimclr", "run_dir=a", tiny=False) == 2
    assert "needs 2 views" in capsys.readouterr().err
    assert skelact_run(*TINY, "method=caca", "method.vote=5", "run_dir=b", tiny=False) == 2
    assert "vote=5" in capsys.readouterr().err
