"""The protocol robustness, on a made-up dataset and on one in image coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skelact.backbones.stgcn import STGCN
from skelact.data.datamodules import SkeletonDataModule
from skelact.data.writer import StoreWriter
from skelact.engine.robustness_pictures import robustness_figures
from skelact.errors import SkelactError
from skelact.methods.supervised import Supervised
from skelact.protocols.linear import LinearProbe, clip_accuracies
from skelact.protocols.reference import corruption_errors
from skelact.protocols.retrieval import Retrieval
from skelact.protocols.robustness import SIGMAS, Robustness
from skelact.protocols.training import part_logits
from skelact.results import load_scores, read_records, write_records
from skelact.skeleton.layouts import get_layout
from skelact.tables import csv_text, markdown, rich_tables
from skelact.transforms.corruptions import CORRUPTIONS
from skelact.transforms.sampling import CenterCrop

SOME = ["joint_noise", "joint_loss", "low_frame_rate"]


def classifier(data, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = STGCN(data.layout, persons=1, channels=data.num_channels, hidden=4, num_features=8, dropout=0.0)
        layout = data.layout.to_dict()
        return Supervised(backbone, layout, CenterCrop(8), data.num_classes, streams=["joint"], head_init=100.0)


@pytest.fixture
def supervised(data):
    return classifier(data)


def test_a_classifier_is_judged_by_its_own_logits(data, supervised, tmp_path):
    supervised.train()
    records = Robustness(severities=[1, 5]).run(
        supervised, data, untrained=lambda seed: classifier(data, seed), scores=tmp_path / "scores.npz"
    )
    assert supervised.training
    rows = [("supervised stgcn", fill) for fill in ("none", "interpolate")]
    rows += [("raw pose", fill) for fill in ("none", "interpolate")]
    assert [(r.method, r.extra["fill"]) for r in records] == rows
    plain, filled, raw, _ = records
    logits = part_logits(supervised, data, "test", torch.device("cpu"))
    right = clip_accuracies(logits, torch.from_numpy(data.labels("test")))["top1"]
    assert plain.metrics["top1/clean"] == filled.metrics["top1/clean"] == pytest.approx(float(right.mean()))
    (neighbour,) = Retrieval([1], "all", baselines=["raw_pose"]).run(supervised, data)[1:]
    assert raw.metrics["top1/clean"] == pytest.approx(neighbour.metrics["knn1"])
    skipped = {"person_swap", "second_person_missing", "ghost_person", "confidence"}
    assert set(plain.extra["skipped"]) == skipped
    means = []
    for name in set(CORRUPTIONS) - skipped:
        cells = [plain.metrics[f"top1/{name}/{severity}"] for severity in (1, 5)]
        means.append(plain.metrics[f"top1/{name}"])
        assert means[-1] == pytest.approx(np.mean(cells))
        if not CORRUPTIONS[name].hides:
            assert all(filled.metrics[f"top1/{name}/{s}"] == c for s, c in zip((1, 5), cells, strict=True))
    assert plain.metrics["top1/mean"] == pytest.approx(np.mean(means))
    assert plain.metrics["top1/worst"] == min(means) == plain.metrics[f"top1/{plain.extra['worst']}"]
    assert set(plain.ci95) == set(plain.metrics)
    for metric, (low, high) in plain.ci95.items():
        assert low <= plain.metrics[metric] <= high
    assert plain.extra["differences"]["raw pose"]["difference"] == pytest.approx(
        plain.metrics["top1/mean"] - raw.metrics["top1/mean"]
    )
    assert plain.parameters == sum(p.numel() for p in supervised.parameters()) and plain.gflops > 0

    scores = load_scores(tmp_path)
    kept = scores.entry("robustness/supervised stgcn/none/drift/5")
    assert kept.dtype == np.float16 and kept.shape == (12, 3)
    assert 100 * (kept.argmax(1) == scores.labels).mean() == pytest.approx(plain.metrics["top1/drift/5"])
    stored = [key for key in scores.scores if key.startswith("robustness/supervised stgcn/interpolate/")]
    assert stored and all(CORRUPTIONS[key.split("/")[3]].hides for key in stored)
    assert read_records(write_records(tmp_path / "results.json", records))[0].metrics == plain.metrics


def test_an_encoder_gets_the_heads_of_linear_evaluation(data, make):
    records = Robustness(["part_occlusion"], [5], "none", seeds=2, epochs=20).run(make(0), data, untrained=make, seed=1)
    linear = LinearProbe(seeds=2, epochs=20, labels="all", baselines=["untrained"]).run(
        make(0), data, untrained=make, seed=1
    )
    assert [r.method for r in records] == ["umurl", "umurl (untrained)", "raw pose"]
    for found, expected in zip(records[:2], linear, strict=True):
        assert found.metrics["top1/clean"] == pytest.approx(expected.metrics["top1"])
        assert found.extra["lr"] == expected.extra["lr"] and found.selection == expected.selection
        assert found.parameters == expected.parameters and found.extra["repetitions"] == 2
    assert records[0].metrics["top1/mean"] < records[0].metrics["top1/clean"]


def test_results_depend_neither_on_batches_nor_on_the_seed_of_the_run(store, data, supervised):
    options = {"corruptions": SOME, "severities": [2, 4], "baselines": False}
    first = Robustness(**options).run(supervised, data)
    other = SkeletonDataModule(str(store), "xsub", eval_batch_size=16)
    again = Robustness(**options).run(supervised, other, seed=5)
    assert [r.metrics for r in first] == [r.metrics for r in again]
    changed = Robustness(**options, seed=1).run(supervised, data)
    assert changed[0].extra["suite"] != first[0].extra["suite"]


def test_a_run_against_itself_has_errors_of_a_hundred_percent(data, supervised, tmp_path):
    run = tmp_path / "base"
    options = {"corruptions": SOME, "severities": [1, 3, 5]}
    records = Robustness(**options).run(supervised, data, scores=run / "scores.npz")
    write_records(run / "results.json", records)
    for where in (run, run / "results.json", run / "scores.npz"):
        again, *_ = Robustness(**options, reference=where, baselines=False).run(supervised, data)
        assert again.metrics["mce"] == pytest.approx(100)
        assert again.ci95["mce"] == pytest.approx((100, 100))
        assert again.metrics.get("relative_mce", 100) == pytest.approx(100)
        assert again.extra["reference"] == "supervised stgcn (base)"
        found = again.extra["differences"]["reference supervised stgcn (base)"]
        assert found["difference"] == 0 and found["metric"] == "top1/mean"
    other, filled = Robustness(**options, reference=run, baselines=False, label="other").run(classifier(data, 1), data)
    assert (other.method, filled.method) == ("other", "other")
    ratios = [
        sum(100 - other.metrics[f"top1/{name}/{s}"] for s in (1, 3, 5))
        / sum(100 - records[0].metrics[f"top1/{name}/{s}"] for s in (1, 3, 5))
        for name in SOME
    ]
    assert other.metrics["mce"] == pytest.approx(100 * np.mean(ratios))
    low, high = other.ci95["mce"]
    assert low < other.metrics["mce"] < high
    found = other.extra["differences"]["reference supervised stgcn (base)"]["difference"]
    assert found == pytest.approx(other.metrics["top1/mean"] - records[0].metrics["top1/mean"])
    text = markdown([other, filled])
    assert "| mce |" in text.replace("relative_mce", "") and "joint_loss" in text and "joint_loss/3" not in text
    assert "top1/joint_loss/3" in csv_text([other])


def test_references_that_were_asked_other_questions_are_refused(store, data, supervised, tmp_path):
    record, *_ = Robustness(["drift"], [1], baselines=False).run(supervised, data)
    write_records(tmp_path / "results.json", [record])
    for options, part in (
        ({"corruptions": ["drift"], "severities": [1, 2]}, "lacks drift/2"),
        ({"corruptions": ["drift"], "severities": [1], "seed": 3}, "suite"),
    ):
        with pytest.raises(SkelactError, match=part):
            Robustness(**options, reference=tmp_path, baselines=False).run(supervised, data)
    with pytest.raises(SkelactError, match="split xsub, here it is noval"):
        other = SkeletonDataModule(str(store), "noval")
        Robustness(["drift"], [1], reference=tmp_path, baselines=False).run(supervised, other)
    record.protocol = "linear"
    write_records(tmp_path / "results.json", [record])
    with pytest.raises(SkelactError, match="no records of robustness"):
        Robustness(reference=tmp_path)


def test_corruption_errors_are_ratios_of_sums():
    own = {"top1/clean": 90.0, "top1/a/1": 80.0, "top1/a/2": 60.0, "top1/b/1": 90.0, "top1/b/2": 90.0}
    other = {"top1/clean": 80.0, "top1/a/1": 70.0, "top1/a/2": 50.0, "top1/b/1": 80.0, "top1/b/2": 80.0}
    errors, undefined = corruption_errors(own, other, ["a", "b"], [1, 2])
    assert errors == {"mce": pytest.approx((75 + 50) / 2), "relative_mce": pytest.approx(100.0)}
    assert undefined == ["b"]  # the reference loses nothing there


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"corruptions": ["rain"]}, "rain is not known"),
        ({"corruptions": []}, "at least one"),
        ({"severities": [0]}, "severities"),
        ({"fills": ["zero"]}, "zero is not known"),
        ({"reference": "nowhere"}, "no such file"),
    ],
)
def test_wrong_options_are_named(options, part):
    with pytest.raises(SkelactError, match=part):
        Robustness(**options)


def test_what_does_not_suit_the_data_is_said(data, supervised):
    with pytest.raises(SkelactError, match="one person slot"):
        Robustness(["person_swap"]).run(supervised, data)
    with pytest.raises(SkelactError, match="unit of made_up is 'm'"):
        Robustness(SOME, noise_sweep=True).run(supervised, data)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """2D clips of two persons with scores, joints missing here and there."""
    layout = get_layout("coco17")
    card = {
        "name": "images", "layout": layout.to_dict(), "channels": ["x", "y", "score"], "fps": 30.0, "persons": 2,
        "unit": "half of the longer image side", "pipeline": "centered", "class_names": ["a", "b"],
        "source": "made up", "licence": "none", "citation": "none",
        "splits": {"xsub": {"factor": "subject", "train": [1, 2]}},
    }  # fmt: skip
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "images"
    with StoreWriter(path, card, masked=True) as writer:
        for subject in (1, 2, 3):
            for take in range(6):
                clip = 0.3 * rng.normal(size=(12, 2, 17, 3)).clip(-3, 3) + take % 2
                mask = rng.random((12, 2, 17)) < 0.9
                mask[:, 1] &= take > 2
                clip[..., 2] = rng.uniform(0.5, 1, clip.shape[:3])
                clip[~mask] = 0
                writer.add(f"s{subject}t{take}", clip.astype(np.float32), take % 2, mask=mask, subject=subject)
        writer.finish()
    return path


def test_two_persons_with_scores_get_all_corruptions_and_the_sweep(images, tmp_path):
    data = SkeletonDataModule(str(images), "xsub", layout="h36m17", normalize="none")
    method = classifier(data)
    records = Robustness(severities=[5], noise_sweep=True, baselines=False).run(method, data)
    plain, _, sweep = records
    assert "skipped" not in plain.extra
    assert {m.split("/")[1] for m in plain.metrics if m.count("/") == 2} == set(CORRUPTIONS)
    assert sweep.protocol == "noise_sweep" and len(sweep.metrics) == 2 * len(SIGMAS)
    assert sweep.metrics["spatial/0"] == sweep.metrics["spatiotemporal/0"] and "spatial/0.1" in sweep.metrics
    tables = rich_tables(records)
    assert len(tables) == 3
    figures = robustness_figures({"one": records, "two": records})
    assert set(figures) == {"robustness_curves.png", "robustness_heatmap.png", "noise_sweep.png"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / name)
    legend = [text.get_text() for text in figures["robustness_curves.png"].legends[0].get_texts()]
    assert legend == [f"supervised stgcn ({run}){fill}" for run in ("one", "two") for fill in ("", ", interpolate")]
    with pytest.raises(SkelactError, match="no results of protocol robustness"):
        robustness_figures({"one": []})
