"""Classifiers from contrastive checkpoints and from scratch: streams, presets, ensembles, resume, ranks."""

import numpy as np
import pytest
import torch

import skelact
from skelact.data.splits import label_subset
from skelact.engine.run import load_run
from skelact.results import load_scores, read_records

DATA = [
    "data=custom",
    "data.name=tiny",
    "frames=8",
    "data.batch_size=8",
    "callbacks=minimal",
    "trainer.accelerator=cpu",
]
NETWORK = ["backbone=stgcn", "backbone.hidden=2", "backbone.num_features=4"]
PRETRAIN = [*DATA, *NETWORK, "augment=skeletonclr", "method.embedding=4", "trainer.max_epochs=1"]
METHODS = {
    "caca": ["method=caca", "method.projector_hidden=6", "method.predictor_hidden=6", "method.cross_epoch=1"],
    "skeletonclr": ["method=skeletonclr", "method.queue_size=20"],
    "released": ["method=skeletonclr", "method.queue_size=20", "preset=as_released"],
}
TRAIN = ["max_steps=2", "warmup=0", "batch_size=8", "optimizer=sgd", "schedule=milestones", "lr=0.05"]
OWN = ["callbacks=minimal", "trainer=cpu", *(f"protocol.{option}" for option in TRAIN)]
SCRATCH = [
    *DATA, *NETWORK, "protocol=supervised", "method=supervised", "augment=none", "trainer.max_epochs=-1",
    "method.optimizer.lr=0.01", "method.scheduler=null",
]  # fmt: skip


def content(run, file="last.ckpt"):
    return torch.load(run / "checkpoints" / file, weights_only=True)


def same(one, other):
    """Whether weights and optimiser are equal to the last bit."""
    parts = [(c["state_dict"], c["optimizer_states"][0]["state"]) for c in (one, other)]
    torch.testing.assert_close(*parts, rtol=0, atol=0)
    return one["global_step"] == other["global_step"]


@pytest.fixture(scope="module")
def pretrained(home):
    """Run directories of short pretrainings, by name."""
    from skelact.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKELACT_DATA", str(home / "data"))
        patch.chdir(home)
        for name, options in METHODS.items():
            assert main([*PRETRAIN, *options, f"run_dir=contrastive/{name}"]) == 0
    return {name: home / "contrastive" / name for name in METHODS}


def test_three_questions_after_pretraining_leave_it_alone(skelact_run, pretrained, tmp_path):
    options = [f"protocols.{name}.{option}" for name in ("finetune", "semi") for option in TRAIN]
    options += ["protocols.linear.epochs=2", "protocols.linear.seeds=2", "protocols.linear.labels=[all]"]
    asked = "evaluate=[linear,finetune,semi]"
    assert skelact_run(*PRETRAIN, *METHODS["caca"], *options, asked, "run_dir=run", tiny=False) == 0
    run = tmp_path / "run"
    assert same(content(run), content(pretrained["caca"])) and type(skelact.load(run)).__name__ == "CACA"
    rows = [(r.protocol, r.extra.get("encoder"), r.extra.get("labels")) for r in read_records(run)]
    kinds = ("pretrained", "untrained", "raw_pose")
    few = [("semi", kind, labels) for kind in kinds for labels in ("1 %", "5 %", "10 %")]
    assert rows[1:] == [*(("linear", k, "all") for k in kinds), *(("finetune", k, "all") for k in kinds), *few]
    _, data, _ = load_run(run)
    names, labels = data.clip_names("train+val"), data.labels("train+val")
    lists = [label_subset(names, labels, fraction=fraction) for fraction in (0.01, 0.05, 0.1)]
    assert all(set(labels[rows]) == {0, 1, 2} for rows in lists)
    found = {r.extra["labels"]: r.extra["train_clips"] for r in read_records(run) if r.protocol == "semi"}
    assert list(found.values()) == [len(rows) for rows in lists]
    keys = load_scores(run).scores
    assert {"finetune/caca/all", "semi/caca/1 %", "semi/caca (untrained)/10 %", "semi/raw pose (1-NN)/5 %"} < set(keys)


def test_streams_of_a_contrastive_method_get_heads_of_their_own(skelact_run, pretrained, tmp_path):
    run = [*OWN, "protocol.lr=0", "protocol.fusion=mean", "protocol.baselines=false", "run_dir=run"]
    assert skelact_run(f"checkpoint={pretrained['caca']}", "protocol=finetune", *run, tiny=False) == 0
    method, source = skelact.load(tmp_path / "run"), skelact.load(pretrained["caca"])
    assert set(method.heads) == {"joint", "motion", "bone"} and method.heads["bone"].in_features == 4
    for name, value in source.backbone.named_parameters():
        assert torch.equal(method.backbone.get_parameter(name), value), name
    views = torch.randn(2, 1, 8, 6, 3)
    each = torch.stack([method.logits(views, [stream]) for stream in method.streams])
    torch.testing.assert_close(method.logits(views), each.mean(0))
    (record,) = read_records(tmp_path / "run")
    assert record.method == "caca" and record.extra["streams"] == "joint+motion+bone"


@pytest.mark.parametrize(("name", "mode"), [("released", "eval"), ("skeletonclr", "train")])
def test_the_preset_says_in_which_mode_it_is_trained(skelact_run, pretrained, tmp_path, name, mode):
    run = [*OWN, "protocol.baselines=false", "run_dir=run"]
    assert skelact_run(f"checkpoint={pretrained[name]}", "protocol=finetune", *run, tiny=False) == 0
    source, method = skelact.load(pretrained[name]).backbone, skelact.load(tmp_path / "run").backbone
    start = dict(source.named_buffers())
    moved = {key for key, value in method.named_buffers() if not torch.equal(value, start[key])}
    assert bool(moved) == (mode == "train") and all("running" in key or "num_batches" in key for key in moved)
    layers = [key for key, _ in source.named_parameters() if key.endswith("conv.weight")]
    assert layers and not any(torch.equal(source.get_parameter(k), method.get_parameter(k)) for k in layers)
    (record,) = read_records(tmp_path / "run")
    assert record.extra["mode"] == mode and list(method.streams) == ["joint"]


def test_an_ensemble_of_a_finetuned_and_a_supervised_run(skelact_run, pretrained, tmp_path):
    joint = [f"checkpoint={pretrained['skeletonclr']}", "protocol=finetune", *OWN, "protocol.selection=val"]
    assert skelact_run(*joint, "run_dir=joint", tiny=False) == 0
    bone = [*SCRATCH, "method.streams=[bone]", "trainer.max_steps=4", "protocol.selection=val"]
    assert skelact_run(*bone, "run_dir=bone", tiny=False) == 0
    for run in ("joint", "bone"):
        method, data, _ = load_run(tmp_path / run)
        best = content(tmp_path / run, "best.ckpt")["state_dict"]
        method.load_state_dict(best)
        for part, file in (("test", "scores.npz"), ("val", "scores_val.npz")):
            scores = load_scores(tmp_path / run / file)
            assert scores.names.tolist() == data.clip_names(part)
            own = next(key for key in scores.scores if "raw" not in key and "untrained" not in key)
            logits = method.classify(next(data.batches(part))).detach().numpy()
            np.testing.assert_allclose(scores.entry(own), logits, rtol=1e-4, atol=1e-5)
    ensemble = ["protocol=ensemble", "protocol.runs=[joint,bone]"]
    assert skelact_run(*ensemble, "protocol.weights=val", "run_dir=both", tiny=False) == 0
    assert skelact_run(*ensemble, "protocol.weights=[0.6,0.4]", "run_dir=given", tiny=False) == 0
    *_, whole = read_records(tmp_path / "both")
    assert whole.selection == "val:weights" and whole.extra["streams"] == "joint+bone"
    keys = ["finetune/skeletonclr/all", "supervised/supervised stgcn/all"]
    assert whole.extra["keys"] == keys
    each = [load_scores(tmp_path / run).entry(key) for run, key in zip(("joint", "bone"), keys, strict=True)]
    expected = 0.6 * each[0] + 0.4 * each[1]
    np.testing.assert_allclose(load_scores(tmp_path / "given").entry(), expected, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "both" / "scores_val.npz").exists()


@pytest.mark.parametrize("stop", [2, 3])  # at the end of an epoch, and in the middle of one
def test_a_stopped_supervised_training_goes_on(skelact_run, tmp_path, stop):
    """With dropout, momentum, and an epoch that validation chooses: all of it to the last bit."""
    options = [*SCRATCH, "method.streams=[joint,motion]", "method.dropout=0.2", "protocol.selection=val"]
    assert skelact_run(*options, "trainer.max_steps=6", "run_dir=whole", tiny=False) == 0
    assert skelact_run(*options, f"trainer.max_steps={stop}", "run_dir=part", tiny=False) == 0
    assert skelact_run("resume=part", "trainer.max_steps=6", tiny=False) == 0
    for file in ("last.ckpt", "best.ckpt"):
        assert same(content(tmp_path / "whole", file), content(tmp_path / "part", file))
    whole, part = (read_records(tmp_path / name) for name in ("whole", "part"))
    assert [r.metrics for r in whole] == [r.metrics for r in part]
    assert whole[0].extra["epochs_chosen"] == part[0].extra["epochs_chosen"] and part[0].extra["steps"] == 6


def test_scores_of_clips_that_were_trained_on_are_not_kept(skelact_run, tmp_path):
    common = [*SCRATCH, "trainer.max_steps=1"]
    for run, options in (("all", []), ("train", ["data.fit=train"])):
        assert skelact_run(*common, *options, f"run_dir={run}", tiny=False) == 0
    assert not (tmp_path / "all" / "scores_val.npz").exists() and (tmp_path / "train" / "scores_val.npz").exists()
    clips = [[r.extra["train_clips"] for r in read_records(tmp_path / run)] for run in ("all", "train")]
    assert clips == [[24, 24], [18, 18]]  # the neighbours of the raw pose are looked for among the same clips


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["protocol=finetune", "checkpoint=nowhere"], ["nowhere does not exist"]),
        (["protocol=semi", "checkpoint=RUN", "data.label_fraction=0.5"], ["data.label_fraction", "protocol=semi"]),
        (["protocol=finetune", "checkpoint=RUN", "protocol.selection=val", "data.fit=train"], ["data.fit=..."]),
        (["protocol=semi", "checkpoint=RUN", "protocol.recipe=aimclr"], ["recipe=aimclr", "skelact_semi_v1"]),
        ([*PRETRAIN, *METHODS["caca"], "+method.foo=1"], ["skelact.methods.caca.CACA", "unexpected", "'foo'"]),
    ],
)
def test_commands_that_cannot_be_run_say_why(skelact_run, pretrained, arguments, words, capsys):
    arguments = [argument.replace("RUN", str(pretrained["skeletonclr"])) for argument in arguments]
    assert skelact_run(*arguments, tiny=False) == 2
    text = capsys.readouterr().err
    assert len(text.strip().splitlines()) == 1 and all(word in text for word in words), text


@pytest.mark.ddp
@pytest.mark.slow  # finetuning on two processes is among the fast ones
def test_two_processes_train_from_scratch_as_one_does(skelact_run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = [*SCRATCH, "backbone.dropout=0", "method.streams=[joint,bone]", "trainer.max_steps=4"]
    options += ["method.optimizer._target_=torch.optim.SGD", "protocol.selection=val"]
    assert skelact_run(*options, "run_dir=one", tiny=False) == 0
    assert skelact_run(*options, "trainer=ddp", "trainer.devices=2", "run_dir=two", tiny=False) == 0
    one, two = (content(tmp_path / name)["state_dict"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    records = [read_records(tmp_path / name) for name in ("one", "two")]
    assert [r.method for r in records[1]] == ["supervised stgcn", "raw pose (1-NN)"]
    assert [r.metrics for r in records[0]] == [r.metrics for r in records[1]]
    assert (tmp_path / "two" / "scores_val.npz").exists()
