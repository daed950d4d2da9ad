"""The questions themselves, on a made-up dataset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from skelact.backbones.umurl import UmURLEncoder
from skelact.clips import RaggedClips
from skelact.data.datamodules import SkeletonDataModule
from skelact.errors import SkelactError
from skelact.methods.umurl import UmURL
from skelact.protocols.base import forward_gflops
from skelact.protocols.features import FeatureTable, extract
from skelact.protocols.heads import Recipe
from skelact.protocols.linear import LinearProbe, choose_rate, train_heads
from skelact.protocols.missing import MissingStreams
from skelact.protocols.pretrain import Pretrain
from skelact.protocols.retrieval import Retrieval, few_label_correct
from skelact.results import load_scores, read_records, write_records
from skelact.transforms.sampling import CenterCrop

STREAMS = ("joint", "bone", "motion")


def test_retrieval_rows_and_numbers(data, make, tmp_path) -> None:
    method = make(0)
    records = Retrieval(k=(1, 5), draws=3).run(method, data, untrained=make, seed=4, scores=tmp_path / "scores.npz")
    assert [(r.method, r.extra["labels"]) for r in records] == [
        (name, labels) for name in ("umurl", "umurl (untrained)", "raw pose") for labels in ("all", "1/class")
    ]
    gallery, queries = (extract(method, data, part) for part in ("train+val", "test"))
    for k in (1, 5):
        model = KNeighborsClassifier(k, metric="cosine").fit(gallery.features.numpy(), gallery.labels.numpy())
        expected = 100 * model.score(queries.features.numpy(), queries.labels.numpy())
        assert records[0].metrics[f"knn{k}"] == pytest.approx(expected)
    low, high = records[0].ci95["knn1"]
    assert low <= records[0].metrics["knn1"] <= high
    assert set(records[1].metrics) == {"knn1"} and records[1].extra["repetitions"] == 3
    assert records[0].gflops > 0 and records[4].gflops is None
    assert records[0].parameters == sum(p.numel() for p in method.backbone.parameters())
    assert records[4].parameters == 0
    scores = load_scores(tmp_path)
    assert scores.names.tolist() == data.clip_names("test")
    right = 100 * (scores.entry("retrieval/umurl/all").argmax(1) == scores.labels).mean()
    assert right == pytest.approx(records[0].metrics["knn1"])
    assert read_records(write_records(tmp_path / "results.json", records))[0].metrics == records[0].metrics


def test_few_label_galleries_hold_the_listed_clips_only(data, make) -> None:
    gallery, queries = (extract(make(0), data, part) for part in ("train+val", "test"))
    for draw, (right, scores, size) in enumerate(few_label_correct(queries, gallery, 3, 2, 2, [1])):
        from skelact.data.splits import label_subset

        rows = label_subset(gallery.names, gallery.labels.numpy(), per_class=2, draw=draw)
        assert size == len(rows) == 6
        model = KNeighborsClassifier(1, metric="cosine").fit(
            gallery.features[rows].numpy(), gallery.labels[rows].numpy()
        )
        expected = model.predict(queries.features.numpy()) == queries.labels.numpy()
        assert np.array_equal(right[1], expected)
        assert np.array_equal(scores.argmax(1).numpy() == queries.labels.numpy(), expected)


def test_linear_learns_the_made_up_motions(data, make, tmp_path) -> None:
    records = LinearProbe(seeds=3, epochs=20, draws=4).run(make(0), data, untrained=make, run_dir=tmp_path)
    everything, few = records[0], records[1]
    assert everything.metrics["top1"] > 80 and everything.metrics["top5"] == 100
    assert everything.selection.startswith("val:lr, refit") and few.selection.startswith("none")
    assert everything.extra["lr"] in LinearProbe().recipe.rates and few.extra["lr"] is None
    assert everything.extra["repetitions"] == 3 and few.extra["repetitions"] == 4
    encoder = sum(p.numel() for p in make(0).backbone.parameters())
    assert everything.parameters == encoder + 3 * (32 + 1) and everything.extra["steps"] == 500
    assert set(everything.ci95) == {"top1", "top5", "mean_class"} == set(everything.extra["ci95_clips"])
    for r in records:
        for name, (low, high) in r.ci95.items():
            assert low <= r.metrics[name] <= high
            for inner in (r.extra["ci95_seeds"][name], r.extra["ci95_clips"][name]):
                assert low <= max(inner[0], 0) + 1e-9 and high >= min(inner[1], 100) - 1e-9
    assert list(everything.extra["differences"]) == ["umurl (untrained)", "raw pose"]
    for other, found in everything.extra["differences"].items():
        (twin,) = (r for r in records if (r.method, r.extra["labels"]) == (other, "all"))
        assert found["metric"] == "top1"
        assert found["difference"] == pytest.approx(everything.metrics["top1"] - twin.metrics["top1"])
        assert found["ci95"][0] <= found["difference"] <= found["ci95"][1]
    assert not any("differences" in r.extra for r in records[2:])
    assert len(list((tmp_path / "features").iterdir())) == 3  # train, val, test of the method given


def test_weighted_retrieval_is_called_so(data, make) -> None:
    plain, few = Retrieval(k=[1, 5], draws=2, baselines=False).run(make(0), data)
    weighted, few_weighted = Retrieval(k=[1, 5], draws=2, baselines=False, temperature=0.1).run(make(0), data)
    assert weighted.metrics["wknn1"] == plain.metrics["knn1"] and set(weighted.metrics) == {"wknn1", "wknn5"}
    assert few_weighted.metrics == {"wknn1": few.metrics["knn1"]}
    assert weighted.extra["temperature"] == 0.1 and "temperature" not in plain.extra
    with pytest.raises(ValueError, match="above 0"):
        Retrieval(temperature=0)


def test_an_untrained_method_is_called_so_and_has_no_twin(data, make) -> None:
    records = Retrieval(k=[1], labels="all").run(
        make(0), data, untrained=make, encoder="untrained", checkpoint="x.ckpt"
    )
    assert [r.method for r in records] == ["umurl (untrained)", "raw pose"]
    assert [r.checkpoint for r in records] == [None, None]


def test_without_validation_the_rate_needs_no_labels(store, make) -> None:
    data = SkeletonDataModule(str(store), "noval")
    (record,) = LinearProbe(seeds=2, labels="all", baselines=False).run(make(0), data)
    assert record.selection == "none (rate by curvature), last epoch"


def test_published_recipe_uses_its_own_rate(data, make) -> None:
    (record,) = LinearProbe("umurl", seeds=2, labels="all", baselines=False).run(make(0), data)
    assert record.extra["lr"] == 0.03 and record.extra["steps"] == 150 and record.extra["recipe"] == "umurl"


def test_choose_rate_never_takes_one_that_diverges() -> None:
    labels = torch.arange(40) % 2
    features = 5.0 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + labels[:, None]
    table = FeatureTable(features, labels, [str(i) for i in range(40)], np.arange(40))
    train, val = table.select(np.arange(30)), table.select(np.arange(30, 40))
    assert choose_rate(train, val, 2, Recipe((1e30, 1e-2), 8, 5), 0) == 1e-2


def test_standardisation_of_few_labels_uses_all_clips_but_no_label(data, make) -> None:
    table = extract(make(0), data, "train+val")
    heads = train_heads(table, 3, LinearProbe().recipe, 1, None, 2, 0)
    assert torch.allclose(heads.mean, table.features.mean(0), atol=1e-5)
    wrong = FeatureTable(table.features, table.labels.clone(), table.names, table.groups)
    from skelact.protocols.base import label_rows

    used = {int(i) for draw in range(2) for i in label_rows(table, 1, draw)}
    unused = [i for i in range(len(table)) if i not in used]
    assert unused
    assert torch.equal(train_heads(wrong, 3, LinearProbe().recipe, 1, None, 2, 0).weight, heads.weight)


def test_missing_asks_every_subset_of_both_heads(data, make) -> None:
    records = MissingStreams(seeds=2, epochs=5, draws=2).run(make(0), data)
    assert [(r.method, r.extra["labels"], r.extra["head"]) for r in records] == [
        (name, labels, head)
        for name in ("umurl", "raw pose")
        for labels in ("all", "1/class")
        for head in ("fixed", "own")
    ]
    names = ["joint", "bone", "motion", "bone+joint", "joint+motion", "bone+motion", "bone+joint+motion"]
    for r in records:
        for measure in ("top1", "top5", "knn1"):
            own = [f"{measure}/{n}" for n in ("mean", *names, "incomplete", "worst")]
            rest = [m for m in r.metrics if m.startswith(measure) and not m.startswith(("top1/present", "top1/rate"))]
            assert rest == own
        values = [r.metrics[f"top1/{n}"] for n in names]
        assert r.metrics["top1/mean"] == pytest.approx(np.mean(values))
        assert r.metrics["top1/worst"] <= min(values) + 1e-9
    fixed, own = records[0].metrics, records[1].metrics
    full = "bone+joint+motion"
    assert fixed[f"top1/{full}"] == own[f"top1/{full}"] and fixed[f"knn1/{full}"] == own[f"knn1/{full}"]
    linear = LinearProbe(seeds=2, epochs=5, labels="all", baselines=False).run(make(0), data)[0]
    assert linear.metrics["top1"] == pytest.approx(own[f"top1/{full}"])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(SkelactError, match="labels"):
        Retrieval(labels="some")
    with pytest.raises(SkelactError, match="baselines"):
        Retrieval(baselines=["random"])
    with pytest.raises(ValueError, match="heads"):
        MissingStreams(heads=["other"])
    with pytest.raises(ValueError, match="seeds"):
        LinearProbe(seeds=0)


def test_pretrain_fits_and_reports(data, make, tmp_path) -> None:
    import pytorch_lightning as pl

    from skelact.transforms.sampling import CropResize
    from skelact.transforms.views import ViewMaker

    method = make(0)
    method.augment = ViewMaker(CropResize(8), views=4)
    method.optimizer = torch.optim.Adam
    data.batch_size = 8
    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    (record,) = Pretrain().run(method, data, trainer=trainer, seed=5, run_dir=tmp_path)
    assert record.protocol == "pretrain" and record.metrics["steps"] == 3 and record.seed == 5
    assert record.gflops > 0 and record.samples_per_s > 0 and record.checkpoint is None
    assert np.isfinite(record.metrics["loss"])


@pytest.mark.parametrize(("streams", "published"), [(("joint",), 1.740), (STREAMS, 2.536)])
def test_forward_cost_is_the_published_one(streams, published) -> None:
    """GFLOPs of one clip in the paper's table of costs: two persons, 64 frames, one modality or all three fused."""
    encoder = UmURLEncoder("ntu25", persons=2, frames=64, width=1024, streams=STREAMS)
    method = UmURL(encoder, "ntu25", CenterCrop(64), streams=STREAMS, projector_width=8)
    assert forward_gflops(method, TwoPersons(), streams=streams) == pytest.approx(published, rel=0.02)


class TwoPersons:
    """One clip of 80 frames."""

    def batches(self, part, batch_size, device):
        yield RaggedClips.pack([torch.randn(80, 2, 25, 3)])
