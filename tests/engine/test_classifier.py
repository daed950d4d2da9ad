"""Commands that train classifiers: what they start from, what they leave, and how they go on."""

import json
import os

import pytest
import torch
import yaml

import skelact
from skelact.engine.classifier import take_backbone
from skelact.errors import SkelactError
from skelact.results import load_scores, read_records

SHORT = ["protocol.max_steps=3", "protocol.warmup=0", "protocol.batch_size=8", "callbacks=minimal", "trainer=cpu"]
MILESTONES = "protocol.schedule=milestones"


def config(path):
    return yaml.safe_load((path / "config.yaml").read_text())


def state(run, file="last.ckpt"):
    return torch.load(run / "checkpoints" / file, weights_only=True)["state_dict"]


def backbone(run):
    return {name: value for name, value in state(run).items() if name.startswith("backbone.")}


def test_finetuning_starts_from_the_checkpoint_and_leaves_a_classifier(skelact_run, trained, tmp_path):
    arguments = ["protocol=finetune", *SHORT, "protocol.lr=0", "protocol.weight_decay=0", "protocol.seeds=2"]
    assert skelact_run(f"checkpoint={trained}", *arguments, "run_dir=run", "evaluate=[linear]", tiny=False) == 0
    run = tmp_path / "run"
    start = {name: value for name, value in state(trained).items() if name.startswith("backbone.")}
    assert start.keys() == backbone(run).keys() and all(torch.equal(v, start[k]) for k, v in backbone(run).items())
    again = backbone(run / "finetune/pretrained/seed1")
    assert all(torch.equal(value, start[name]) for name, value in again.items())
    scratch = backbone(run / "finetune/untrained/seed0")
    assert not all(torch.equal(value, start[name]) for name, value in scratch.items())
    heads = [state(path)["heads.all.weight"] for path in (run, run / "finetune/pretrained/seed1")]
    assert not torch.equal(*heads)
    method = skelact.load(run)
    views = torch.randn(2, 1, 8, 6, 3)
    assert method.logits(views).shape == (2, 3) and type(method).__name__ == "Supervised"
    assert not torch.equal(method.logits(views), method.logits(views, ["joint"]))
    records = read_records(run)
    assert [r.method for r in records[:3]] == ["umurl", "umurl (untrained)", "raw pose (1-NN)"]
    assert [r.protocol for r in records] == ["finetune"] * 3 + ["linear"] * 6
    own = records[0]
    assert own.checkpoint == str(run / "checkpoints/last.ckpt") == records[3].checkpoint
    assert own.extra["steps"] == 3 and own.extra["train_clips"] == 24 and own.extra["repetitions"] == 2
    assert (own.extra["source"], own.extra["trained"], own.extra["mode"]) == ("tiny default", "all", "train")
    scores = load_scores(run)
    seeds = [skelact.load(path) for path in (run, run / "finetune/pretrained/seed1")]
    from skelact.engine.run import load_run

    _, data, _ = load_run(run)
    batch = next(data.batches("test"))
    expected = torch.stack([one.classify(batch) for one in seeds]).mean(0).detach()
    torch.testing.assert_close(torch.from_numpy(scores.entry("finetune/umurl/all")), expected, rtol=1e-4, atol=1e-5)
    assert config(run)["data"] == config(trained)["data"]  # what follows sees the data as they were


def test_few_labels_after_pretraining_leave_its_checkpoint_alone(skelact_run, tmp_path):
    options = [f"protocols.semi.{o.partition('.')[2]}" for o in SHORT if o.startswith("protocol.")]
    options += ["protocols.semi.fractions=[0.2,0.5]", "protocols.semi.baselines=false", "protocols.semi.lr=0"]
    assert skelact_run("trainer.max_steps=2", "evaluate=[semi,retrieval]", *options, "run_dir=run") == 0
    run = tmp_path / "run"
    assert type(skelact.load(run)).__name__ == "UmURL"
    folders = [run / f"semi/pretrained/{f}_percent_draw0_seed0" for f in (20, 50)]
    given = {name: value for name, value in state(run).items() if name.startswith("backbone.")}
    for folder in folders:
        assert type(skelact.load(folder)).__name__ == "Supervised"
        assert all(torch.equal(value, given[name]) for name, value in backbone(folder).items())
        assert config(folder)["training_data"]["label_rule"] == "names"
    records = [r for r in read_records(run) if r.protocol == "semi"]
    assert [(r.extra["labels"], r.extra["train_clips"]) for r in records] == [("20 %", 6), ("50 %", 12)]
    assert [r.checkpoint for r in records] == [str(folder / "checkpoints/last.ckpt") for folder in folders]
    assert {r.protocol for r in read_records(run)} == {"pretrain", "semi", "retrieval"}


def test_supervised_and_validation_chooses(skelact_run, tmp_path):
    own = ["method.optimizer.lr=0.01", "method.scheduler=null", "protocol.selection=val", "trainer.max_steps=7"]
    own += ["evaluate=[retrieval]", "protocols.retrieval.labels=[all]"]
    tiny = [
        "data=custom", "data.name=tiny", "data.batch_size=8", "frames=8", "callbacks=minimal", "trainer=cpu",
        "augment=none", "trainer.max_epochs=-1",
    ]  # fmt: skip
    network = ["backbone=stgcn", "backbone.hidden=4", "backbone.num_features=8", "method.streams=[joint,motion]"]
    arguments = ["protocol=supervised", "method=supervised", *tiny, *network, *own, "run_dir=run"]
    assert skelact_run(*arguments, tiny=False) == 0
    run = tmp_path / "run"
    first, poses, then, *_ = read_records(run)
    assert then.protocol == "retrieval" and then.checkpoint == first.checkpoint
    assert first.method == "supervised stgcn" and first.selection == "val:top1, its epoch"
    assert first.checkpoint == str(run / "checkpoints/best.ckpt") and first.extra["train_clips"] == 18
    assert poses.method == "raw pose (1-NN)"
    assert {"heads.joint.weight", "heads.motion.weight"} < set(state(run, "best.ckpt"))
    assert "val/top1" in (run / "metrics.csv").read_text().splitlines()[0]


def test_a_stopped_finetuning_goes_on(skelact_run, trained, tmp_path):
    common = [f"checkpoint={trained}", "protocol=finetune", *SHORT, MILESTONES, "protocol.baselines=false"]
    assert skelact_run(*common, "protocol.max_steps=5", "run_dir=whole", tiny=False) == 0
    assert skelact_run(*common, "protocol.max_steps=2", "run_dir=part", tiny=False) == 0
    assert skelact_run("resume=part", "trainer.max_steps=5", tiny=False) == 0
    whole, part = (state(tmp_path / name) for name in ("whole", "part"))
    assert all(torch.equal(value, part[name]) for name, value in whole.items())
    records = [read_records(tmp_path / name)[0] for name in ("whole", "part")]
    assert records[0].metrics == records[1].metrics and records[1].extra["steps"] == 5


def test_transfer_converts_joints_and_names_both_datasets(skelact_run, tmp_path):
    small = ["frames=8", "backbone.width=8", "method.projector_width=16", "data.batch_size=8", "callbacks=minimal"]
    pretrain = ["data=hdm05", "data.layout=ntu25", *small, "trainer=cpu", "trainer.max_steps=1", "run_dir=source"]
    assert skelact_run(*pretrain, tiny=False) == 0
    options = ["protocol=transfer", *SHORT, "protocol.baselines=false", "protocol.linear=true"]
    assert skelact_run("checkpoint=source", "data=hdm05_views", *options, "run_dir=run", tiny=False) == 0
    assert config(tmp_path / "run")["data"]["layout"] == "ntu25"
    first, *others = read_records(tmp_path / "run")
    assert (first.protocol, first.data, first.extra["source"]) == ("transfer", "hdm05_views", "hdm05 xsub")
    assert others[0].protocol == "linear" and others[0].extra["source"] == "hdm05 xsub"
    assert others[0].checkpoint == "source" and others[0].method == "umurl"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["protocol=finetune"], ["checkpoint=RUN", "protocol=supervised"]),
        (["protocol=supervised"], ["method=supervised"]),
        (["evaluate=[transfer]"], ["evaluate: transfer"]),
        (["checkpoint=TRAINED", "protocol=supervised"], ["leave checkpoint out", "finetune"]),
        (["checkpoint=TRAINED", "protocol=transfer"], ["data=NAME", "tiny default itself"]),
        (["checkpoint=TRAINED", "protocol=finetune", "protocol.recipe=best"], ["recipe=best", "skelemixclr_finetune"]),
        (["checkpoint=TRAINED", "protocol=transfer", "data=hdm05"], ["stick", "hdm05_31", "no conversion"]),
    ],
)
def test_commands_that_cannot_be_run_say_why(skelact_run, trained, arguments, words, capsys):
    arguments = [argument.replace("TRAINED", str(trained)) for argument in arguments]
    assert skelact_run(*arguments, tiny=not any("checkpoint" in a for a in arguments)) == 2
    text = capsys.readouterr().err
    assert len(text.strip().splitlines()) == 1 and all(word in text for word in words), text


def test_weights_that_do_not_fit_are_refused(trained):
    source = skelact.load(trained)
    method = skelact.load(trained)
    del source.backbone.mm_fusion
    with pytest.raises(SkelactError, match=r"here: .*missing \['mm_fusion"):
        take_backbone(method, source, "here")
    method.backbone.mm_fusion = torch.nn.Identity()
    method.backbone.j_emb.t_embedding[0] = torch.nn.Linear(3, 3)
    with pytest.raises(SkelactError, match=r"size mismatch for j_emb.t_embedding.0"):
        take_backbone(method, source)


@pytest.mark.ddp
def test_two_processes_finetune_as_one_does(skelact_run, trained, tmp_path, monkeypatch):
    """The same weights and numbers, then a second training on the first process alone."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    common = [f"checkpoint={trained}", "protocol=finetune", *SHORT, "protocol.optimizer=sgd", "protocol.lr=0.05"]
    common += ["protocol.selection=val", "protocol.max_steps=4", "data.eval_batch_size=64"]  # one rank's share is empty
    assert skelact_run(*common, "run_dir=one", tiny=False) == 0
    before = dict(os.environ)
    common[common.index("trainer=cpu")] = "trainer=ddp"
    two = ["trainer.devices=2", "trainer.accelerator=cpu", "run_dir=two"]
    assert skelact_run(*common, *two, tiny=False) == 0
    assert {k: v for k, v in os.environ.items() if before.get(k) != v} == {}
    one = state(tmp_path / "one")
    for name, value in state(tmp_path / "two").items():
        torch.testing.assert_close(value, one[name], rtol=1e-3, atol=1e-5, msg=name)
    records = [json.loads((tmp_path / d / "results.json").read_text()) for d in ("one", "two")]
    assert [r["method"] for r in records[1]] == ["umurl", "umurl (untrained)", "raw pose (1-NN)"]
    assert [r["metrics"] for r in records[0]] == [r["metrics"] for r in records[1]]
    assert records[0][0]["epochs_chosen"] == records[1][0]["epochs_chosen"]
