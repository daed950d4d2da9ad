"""Classifiers are trained on the labels that they may see and judged once."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from skelact.callbacks.best_epoch import BestEpoch
from skelact.data.datamodules import SkeletonDataModule
from skelact.data.label_lists import aimclr_label_subset
from skelact.data.splits import label_subset
from skelact.engine.build import build
from skelact.errors import SkelactError
from skelact.methods.supervised import Supervised
from skelact.protocols.finetune import Finetune, Semi, SupervisedTraining
from skelact.protocols.training import RECIPES, Job, Outcome, fit, get_recipe, part_logits
from skelact.results import load_scores
from skelact.transforms.views import ViewMaker


@pytest.fixture
def classifier(make):
    """A classifier around the backbone that `make` builds from a seed."""

    def build_one(seed=0, lr=1e-2):
        source = make(seed)
        torch.manual_seed(seed)
        optimizer = partial(torch.optim.Adam, lr=lr)
        views = ViewMaker(source.sampler, views=None)
        return Supervised(source.backbone, source.layout.to_dict(), source.sampler, 3, views, optimizer=optimizer)

    return build_one


def trainer(folder, epochs, *callbacks):
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks), default_root_dir=folder,
    )  # fmt: skip


def test_a_trained_classifier_its_twin_and_the_poses(data, classifier, tmp_path):
    jobs = []

    def train(job):
        jobs.append(job)
        return fit(classifier(7 + job.seed, lr=0), variant, trainer(tmp_path, 1))

    variant = data.variant(fit="train+val", validation=False, batch_size=12)
    records = Finetune(seeds=2).run(
        classifier(), variant, trainer=trainer(tmp_path, 40), train=train, seed=3, subject="umurl", source="other xsub",
        scores=tmp_path / "scores.npz",
    )  # fmt: skip
    assert jobs == [Job(4), Job(3, pretrained=False), Job(4, pretrained=False)]  # the run's own job is the first
    own, twin, poses = records
    assert [r.method for r in records] == ["umurl", "umurl (untrained)", "raw pose (1-NN)"]
    assert [r.extra["encoder"] for r in records] == ["pretrained", "untrained", "raw_pose"]
    assert own.extra["repetitions"] == 2 and own.extra["train_clips"] == 36 == poses.extra["train_clips"]
    assert own.extra["source"] == "other xsub" and "source" not in twin.extra
    assert own.selection == "none, last epoch" and own.extra["lr"] == 1e-3 and own.protocol == "finetune"
    assert set(own.metrics) == {"top1", "top5", "mean_class"} and set(poses.metrics) == {"top1", "mean_class"}
    assert set(own.extra["differences"]) == {"umurl (untrained)", "raw pose (1-NN)"}
    scores = load_scores(tmp_path)
    assert scores.names.tolist() == data.clip_names("test")
    for record in records:
        shown = scores.entry(f"finetune/{record.method}/all")
        assert shown.shape == (12, 3)
        if record is poses:
            assert 100 * (shown.argmax(1) == scores.labels).mean() == pytest.approx(record.metrics["top1"])


def test_learns_and_the_logits_are_those_of_the_test_part(data, classifier, tmp_path):
    method = classifier()
    variant = data.variant(fit="train+val", validation=False, batch_size=12)
    protocol = SupervisedTraining(baselines=False)
    (record,) = protocol.run(method, variant, trainer=trainer(tmp_path, 40), scores=tmp_path / "scores.npz")
    assert record.method == "supervised umurl" and record.metrics["top1"] > 80
    logits = part_logits(method, data, "test", torch.device("cpu"))
    found = load_scores(tmp_path).entry("supervised/supervised umurl/all")
    np.testing.assert_allclose(found, logits.numpy(), rtol=1e-5, atol=1e-6)
    assert record.parameters == sum(p.numel() for p in method.parameters()) and record.gflops > 0


def test_the_test_part_is_read_once_after_training(data, classifier, tmp_path, monkeypatch):
    read = []

    class Watch(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            read.append("trained")

    deliver = SkeletonDataModule._deliver

    def watched(self, rows, device):
        read.extend(np.asarray(rows).tolist())
        return deliver(self, rows, device)

    monkeypatch.setattr(SkeletonDataModule, "_deliver", watched)
    variant = data.variant(fit="train", validation=True, batch_size=12)
    protocol = SupervisedTraining("val", baselines=False)
    protocol.run(classifier(), variant, trainer=trainer(tmp_path, 3, Watch(), BestEpoch()))
    test = set(data.rows("test").tolist())
    end = read.index("trained")
    assert not test & set(read[:end]) and sorted(row for row in read[end + 1 :] if row in test) == sorted(test)


def test_only_the_first_process_judges(data, classifier, tmp_path):
    asked = []

    def alone():
        asked.append(True)
        return False

    protocol = SupervisedTraining()
    assert protocol.run(classifier(), data, trainer=trainer(tmp_path, 1), alone=alone) == [] and asked == [True]


def test_validation_chooses_the_epoch(data, classifier, tmp_path):
    variant = data.variant(fit="train", validation=True, batch_size=12)
    best, method = BestEpoch(), classifier(lr=3e-2)
    seen = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            values = trainer.callback_metrics
            state = {name: value.clone() for name, value in pl_module.state_dict().items()}
            seen.append((float(values["val/top1"]), -float(values["val/loss"]), state))

    outcome = fit(method, variant, trainer(tmp_path, 6, Watch(), best))
    assert len(seen) == 6
    chosen = max(range(6), key=lambda i: seen[i][:2])
    assert outcome.best_epoch == chosen and outcome.checkpoint.endswith("best.ckpt")
    assert all(torch.equal(value, seen[chosen][2][name]) for name, value in method.state_dict().items())
    right = part_logits(method, variant, "val", torch.device("cpu")).argmax(1).numpy() == variant.labels("val")
    assert 100 * right.mean() == pytest.approx(seen[chosen][0])  # what was logged is exact
    again = BestEpoch()
    again.load_state_dict(best.state_dict())
    assert (again.epoch, again.top1, again.loss) == (chosen, seen[chosen][0], -seen[chosen][1])
    wanted = SupervisedTraining("val").changes(Job(0))
    assert wanted["data"] == {"fit": "train", "validation": True} and wanted["callbacks"]["best_epoch"]


def test_few_labels(data, classifier, tmp_path):
    protocol = Semi([0.25, 0.5], draws=2, recipe=["skelemixclr_semi_1", "skelemixclr_semi_10"], baselines=["raw_pose"])
    asked = []

    def train(job):
        asked.append(job)
        changes = protocol.changes(job)
        assert changes["method"]["optimizer"]["lr"] == {0.25: 0.05, 0.5: 0.1}[job.fraction]
        own = data.variant(**changes["data"])
        names, labels = data.clip_names("train+val"), data.labels("train+val")
        rows = label_subset(names, labels, fraction=job.fraction, draw=job.draw)
        assert own.rows(own.fit).tolist() == data.rows("train+val")[rows].tolist()
        return Outcome(classifier(job.seed), None, 1.0, own.size(own.fit), own.fit, 1, 1.0)

    records = protocol.run(classifier(), data, train=train, seed=5)
    assert asked == [Job(5, True, 0.25, 0), Job(6, True, 0.25, 1), Job(5, True, 0.5, 0), Job(6, True, 0.5, 1)]
    labels = [(r.extra["encoder"], r.extra["labels"], r.extra["train_clips"]) for r in records]
    assert labels == [
        ("pretrained", "25 %", 9), ("pretrained", "50 %", 18), ("raw_pose", "25 %", 9), ("raw_pose", "50 %", 18),
    ]  # fmt: skip
    assert all(r.extra["repetitions"] == 2 for r in records)
    # batches of a class's clips are for the pretraining: recipes shuffle
    assert data.variant(per_class=2).variant(**protocol.changes(Job(0, True, 0.5))["data"]).per_class is None
    released = data.variant(**Semi(0.5, label_rule="aimclr").changes(Job(0, True, 0.5))["data"])
    order = np.argsort(data.clip_names("train+val"))
    rows = order[aimclr_label_subset(data.labels("train+val")[order], 0.5, 0)]
    assert released.rows("train+val").tolist() == sorted(data.rows("train+val")[rows].tolist())


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("skelemixclr_finetune", {0: 0.01, 9: 0.1, 49: 0.1, 50: 0.01, 70: 1e-3, 90: 1e-4, 109: 1e-4}),
        ("skelemixclr_semi_1", {0: 0.05, 39: 0.05, 40: 0.005}),
        ("skelemixclr_semi_10", {0: 0.1, 79: 0.1, 80: 0.01}),
        ("skelact_finetune_v1", {0: 1e-3 / 6, 5: 1e-3, 60: 0.0}),
        ("skelact_semi_v1", {25: 1e-3, 500: 0.0}),
    ],
)
def test_recipes_give_these_rates(name, rates):
    nodes = RECIPES[name].method()
    optimizer = build(nodes["optimizer"])([torch.nn.Parameter(torch.zeros(1))])
    scheduler = build(nodes["scheduler"])(optimizer)
    found = {}
    for unit in range(max(rates) + 1):
        found[unit] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    assert {unit: found[unit] for unit in rates} == pytest.approx(rates)


def test_a_recipe_can_be_changed():
    published = RECIPES["skelemixclr_finetune"]
    assert (published.epochs, published.batch_size, published.nesterov, published.weight_decay) == (
        110,
        128,
        True,
        1e-4,
    )
    assert RECIPES["skelemixclr_semi_10"].trainer() == {"max_epochs": 150, "max_steps": -1, "gradient_clip_val": 5.0}
    short = get_recipe("skelact_finetune_v1", max_steps=40, lr=None)
    assert short.trainer()["max_epochs"] == -1 and short.method()["scheduler"]["total"] == 40 and short.lr == 1e-3
    assert short.method()["scheduler_interval"] == "step"
    assert get_recipe("skelact_semi_v1", epochs=40).trainer()["max_steps"] == -1


@pytest.mark.parametrize(
    ("make_it", "word"),
    [
        (lambda: Finetune("nothing"), "skelact_finetune_v1"),
        (lambda: Finetune(train="some"), "train=some"),
        (lambda: Finetune(augment="extreme"), "augment=extreme"),
        (lambda: Finetune(epochs=3), "warmup=5"),
        (lambda: Finetune(optimizer="lion"), "optimizer=lion"),
        (lambda: Finetune(schedule="linear"), "schedule=linear"),
        (lambda: Finetune(selection="test"), "selection=test"),
        (lambda: Finetune(seeds=0), "seeds=0"),
        (lambda: Finetune(baselines=["random"]), "random"),
        (lambda: Semi([0.1, 2.0]), "fractions"),
        (lambda: Semi(draws=0), "draws=0"),
        (lambda: Semi([0.1, 0.2, 0.3], recipe=["skelact_semi_v1"] * 2), "2 names, 3 fractions"),
    ],
)
def test_wrong_options_are_named(make_it, word):
    with pytest.raises(SkelactError, match=word):
        make_it()


def test_clips_that_the_encoder_cannot_read_and_splits_without_validation(store, classifier, make, tmp_path):
    data = SkeletonDataModule(str(store), "noval")
    with pytest.raises(SkelactError, match="selection=val: split noval"):
        SupervisedTraining("val").run(classifier(), data, trainer=trainer(tmp_path, 1))
    method = classifier()
    method.backbone.persons = 2
    with pytest.raises(SkelactError, match="cannot read clips of made_up"):
        SupervisedTraining().run(method, data, trainer=trainer(tmp_path, 1))
