"""Linear evaluation of single streams and of several, by each of the rules that join them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skelact.backbones.stgcn import STGCN
from skelact.data.datamodules import SkeletonDataModule
from skelact.errors import SkelactError
from skelact.methods.base import Method
from skelact.protocols.features import FeatureTable, Subject, extract
from skelact.protocols.fusion import fit_weights, given_weights, simplex
from skelact.protocols.heads import Recipe, batch_order, epoch_order, fit, fit_lists, initial
from skelact.protocols.linear import LinearProbe, train_heads
from skelact.results import load_scores
from skelact.transforms.sampling import CenterCrop

STREAMS = ("joint", "bone", "motion")


class Trunks(Method):
    """A trunk for each stream and nothing to train them with."""


@pytest.fixture
def trunks(data):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = STGCN(data.layout, persons=1, streams=STREAMS, hidden=4, num_features=8)
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Trunks(encoder, data.layout.to_dict(), STREAMS, CenterCrop(8))


def problem(n=90, width=12, classes=4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    return torch.randn(classes, width, generator=generator)[labels] + torch.randn(n, width, generator=generator), labels


def several_heads(features, labels, recipe, rate, batches_of):
    """One nn.Linear for each of three streams, trained together on the sum of logits times `share`."""
    weight, bias = initial(replace(recipe, share=1.0), 4, features.shape[1], 0)
    heads = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    for head, own in zip(heads, weight.chunk(3, 1), strict=True):
        head.weight.data, head.bias.data = own.clone(), bias / 3
    optimizer = torch.optim.SGD(heads.parameters(), rate, recipe.momentum, weight_decay=recipe.weight_decay)
    for rows in batches_of:
        parts = features[rows].chunk(3, 1)
        logits = sum(head(x) for head, x in zip(heads, parts, strict=True)) * recipe.share
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return sum(head(x) for head, x in zip(heads, features.chunk(3, 1), strict=True)) * recipe.share


@pytest.mark.parametrize("share", [1.0, 1 / 3])
@pytest.mark.parametrize(("init", "decay"), [("default", 0.0), (0.2, 0.05)])
def test_sum_and_mean_are_one_wide_head(share, init, decay):
    features, labels = problem()
    recipe = Recipe(0.3, 32, 4, "step", init=init, weight_decay=decay, terms=3, share=share)
    order = [epoch_order(90, e).split(32)[b] for e in range(4) for b in batch_order(3, e, 0)]
    expected = several_heads(features, labels, recipe, 0.3, order)
    found = fit(features, labels, 4, recipe, [0], [0.3]).logits(features)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if not decay:  # the full-batch form of few labels
        rows = torch.arange(20)
        expected = several_heads(features[:20], labels[:20], recipe, 0.3, [rows] * 4)
        found = fit_lists(features, labels, rows[None], 4, recipe, [0], 0.3).logits(features[:20])[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("labels", ["all", 2])
def test_by_the_rule_of_curvature_a_mean_learns_as_fast_as_a_sum(labels):
    features, truth = problem()
    table = FeatureTable(features, truth, [str(i) for i in range(90)], np.arange(90))
    recipe = Recipe((0.1, 0.2), 32, 5, init=0.0, terms=3)
    total = train_heads(table, 4, recipe, labels, None, 2, 0)
    mean = train_heads(table, 4, replace(recipe, share=1 / 3), labels, None, 2, 0)
    torch.testing.assert_close(mean.weight, total.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean.bias, total.bias, rtol=1e-4, atol=1e-5)


def test_a_single_stream_is_its_trunk_alone(data, trunks, tmp_path):
    options = {"seeds": 2, "epochs": 3, "labels": "all"}
    (alone,) = LinearProbe(**options, streams=["bone"], baselines=False).run(
        trunks, data, scores=tmp_path / "scores.npz"
    )
    assert alone.extra["streams"] == "bone" and "fusion" not in alone.extra
    trunk = sum(p.numel() for p in trunks.backbone.parameters()) // 3
    assert alone.parameters == trunk + 3 * (8 + 1)
    subject = Subject("trunks", "pretrained", trunks, data, streams=("bone",))
    own = subject.own("test")[("bone",)].features
    assert own.shape == (12, 8)
    torch.testing.assert_close(own, extract(trunks, data, "test").features[:, 8:16])
    joint, bone, motion, fused = LinearProbe(**options, fusion="late", baselines=False).run(
        trunks, data, scores=tmp_path / "late.npz"
    )
    assert [r.extra["streams"] for r in (joint, bone, motion, fused)] == [*STREAMS, "joint+bone+motion"]
    assert bone.metrics == alone.metrics and bone.gflops == alone.gflops and bone.parameters == alone.parameters
    entry = load_scores(tmp_path / "scores.npz").entry("linear/trunks/all")
    np.testing.assert_allclose(load_scores(tmp_path / "late.npz").entry("linear/trunks/all/bone"), entry, atol=1e-5)
    assert fused.parameters == 3 * bone.parameters and fused.gflops == pytest.approx(3 * bone.gflops)


def test_late_fusion_adds_the_streams_scores_with_weights(data, trunks, tmp_path):
    given_ = {"joint": 0.6, "bone": 0.6, "motion": 0.4}
    probe = LinearProbe(seeds=1, epochs=3, labels=["all", 1], draws=2, fusion="late", weights=given_)
    records = probe.run(trunks, data, scores=tmp_path / "scores.npz")
    assert [(r.method, r.extra["labels"], r.extra["streams"]) for r in records] == [
        (name, labels, streams)
        for name in ("trunks", "raw pose")
        for labels in ("all", "1/class")
        for streams in (*STREAMS, "joint+bone+motion")
    ]
    scores = load_scores(tmp_path)
    for name in ("trunks", "raw pose"):
        for labels in ("all", "1/class"):
            parts = [weight * scores.entry(f"linear/{name}/{labels}/{s}") for s, weight in given_.items()]
            fused = scores.entry(f"linear/{name}/{labels}")
            np.testing.assert_allclose(fused, sum(parts), atol=1e-4)
    fused = records[3]
    assert fused.selection == "val:lr, weights given, refit train+val, last epoch"
    assert fused.extra["weights"] == given_ and set(fused.extra["lr"]) == set(STREAMS)
    assert fused.metrics["top1"] == pytest.approx(
        100 * (scores.entry("linear/trunks/all").argmax(1) == scores.labels).mean()
    )
    best = max(records[:3], key=lambda r: r.metrics["top1"])
    named = fused.extra["differences"][f"best stream alone ({best.extra['streams']})"]
    assert named["difference"] == pytest.approx(fused.metrics["top1"] - best.metrics["top1"])
    assert fused.extra["differences"]["raw pose"]["difference"] == pytest.approx(
        fused.metrics["top1"] - records[11].metrics["top1"]
    )


def test_fitted_weights_are_those_of_the_validation_part(data, trunks, store, tmp_path):
    options = {"seeds": 1, "epochs": 3, "draws": 2, "fusion": "late", "weights": "val", "baselines": False}
    records = LinearProbe(**options, labels=["all", 1]).run(trunks, data, scores=tmp_path / "scores.npz")
    val = load_scores(tmp_path / "scores_val.npz")
    assert val.names.tolist() == data.clip_names("val") and set(val.scores) == {
        "linear/trunks/all", *(f"linear/trunks/all/{s}" for s in STREAMS)
    }  # fmt: skip
    weights = fit_weights([val.entry(f"linear/trunks/all/{s}") for s in STREAMS], val.labels)
    assert list(records[3].extra["weights"].values()) == pytest.approx(weights)
    assert records[3].selection == "val:lr, val:weights, refit train+val, last epoch"
    few = records[7]
    assert few.extra["weights"] == dict.fromkeys(STREAMS, 1.0)
    assert few.selection == "none (rate by curvature), equal weights (no validation labels), last epoch"
    without = SkeletonDataModule(str(store), "noval")
    fused = LinearProbe(**options, labels="all").run(trunks, without, scores=tmp_path / "noval.npz")[-1]
    assert "no validation labels" in fused.selection and not (tmp_path / "noval_val.npz").exists()


def test_validation_scores_come_from_heads_that_have_not_seen_them(data, trunks, tmp_path):
    """Heads after the refit know these clips; with a head for each clip they would know all of them."""
    LinearProbe(seeds=1, lr=0.1, epochs=200, labels="all", baselines=False).run(trunks, data, scores=tmp_path / "a.npz")
    val = load_scores(tmp_path / "a_val.npz")
    tables = {part: extract(trunks, data, part) for part in ("train", "val")}
    head = fit(tables["train"].features, tables["train"].labels, 3, LinearProbe(lr=0.1, epochs=200).recipe, [0], [0.1])
    np.testing.assert_allclose(val.entry(), head.logits(tables["val"].features)[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("fusion", ["sum", "mean"])
def test_an_encoder_of_any_subset_is_asked_stream_by_stream(data, make, fusion):
    method = make(0)
    everything, raw = LinearProbe(seeds=1, epochs=3, labels="all", fusion=fusion, baselines=["raw_pose"]).run(
        method, data
    )
    assert everything.extra["fusion"] == fusion and everything.extra["streams"] == raw.extra["streams"]
    size = sum(p.numel() for p in method.backbone.parameters())
    assert everything.parameters == size + 3 * (3 * method.num_features + 3)
    (single,) = LinearProbe(seeds=1, epochs=3, labels="all", streams="joint", baselines=False).run(method, data)
    assert everything.gflops == pytest.approx(3 * single.gflops)  # three passes, each of one stream


def test_raw_pose_of_the_streams_that_are_asked(data, trunks):
    for streams, expected in ((["motion"], "motion"), (["bone", "joint"], "joint"), (None, "joint")):
        probe = LinearProbe("umurl", seeds=1, epochs=1, labels="all", streams=streams, baselines=["raw_pose"])
        assert probe.run(trunks, data)[1].extra["streams"] == expected


def test_bad_fusions_are_refused(data, trunks):
    for options, message in (
        ({"fusion": "early"}, "joint, sum, mean, late"),
        ({"weights": "val"}, "of fusion=late, not of fusion=joint"),
        ({"fusion": "late", "weights": "best"}, "protocol.weights=best"),
        ({"fusion": "late", "weights": {"joint": -1.0}}, "at least one above 0"),
        ({"fusion": "late", "fuse": "votes"}, "logits, probabilities"),
        ({"fusion": "late", "weights": {"joint": 1.0}}, "each of joint, bone, motion"),
        ({"fusion": "late", "weights": [1.0]}, "1 numbers for 3"),
        ({"fusion": "mean", "streams": ["joint"]}, "two or more streams; there is joint"),
        ({"streams": ["depth"]}, "must be some of this method's: joint, bone, motion"),
        ({"streams": []}, "must be some of this method's"),
    ):
        with pytest.raises(SkelactError, match=message):
            LinearProbe(labels="all", **options).run(trunks, data)


def test_weights_find_the_classifier_that_knows():
    labels = np.arange(60) % 3
    knows, random = 0.4 * np.eye(3)[labels], np.random.default_rng(0).normal(size=(60, 3))
    assert fit_weights([random, knows], labels)[1] > 0.7
    assert fit_weights([knows, knows], labels) == [0.5, 0.5]  # nothing to choose: equal
    assert given_weights("val", "ab") is None and given_weights(None, "ab") == [1.0, 1.0]


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 4), st.integers(0, 99))
def test_fitted_weights_follow_their_classifier(size, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, 30)
    scores = [np.eye(3)[labels] * random.random() + random.normal(size=(30, 3)) for _ in range(size)]
    order, rows = random.permutation(size), random.permutation(30)
    weights = fit_weights(scores, labels)
    moved = fit_weights([scores[i][rows] for i in order], labels[rows])
    assert moved == pytest.approx([weights[i] for i in order])


@pytest.mark.parametrize("size", [1, 2, 3, 8, 30])
def test_grids_stay_small_and_sum_to_one(size):
    points = np.stack(list(simplex(size)))
    assert len(points) <= 2_001 and np.allclose(points.sum(1), 1) and (points >= 0).all()
    assert all((points == corner).all(1).any() for corner in np.eye(size))
