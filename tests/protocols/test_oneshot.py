"""One-shot recognition: the reference's predictions, and what counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.backbones.umurl import UmURLEncoder
from skelact.data.datamodules import SkeletonDataModule
from skelact.data.readers.ntu_protocols import NOVEL
from skelact.data.splits import label_subset
from skelact.data.writer import StoreWriter
from skelact.errors import SkelactError
from skelact.methods.supcon import SupCon
from skelact.protocols.features import FeatureTable
from skelact.protocols.oneshot import OneShot, judge, nearest_exemplar
from skelact.results import load_scores
from skelact.skeleton.layouts import get_layout
from skelact.transforms.sampling import CenterCrop

GOLDEN = Path(__file__).parents[1] / "golden" / "maskclr" / "oneshot.npz"


def golden():
    return {key: torch.from_numpy(np.array(value)) for key, value in np.load(GOLDEN, allow_pickle=False).items()}


def test_predictions_equal_the_reference():
    data = golden()
    found, cosine = nearest_exemplar(data["query_emb"], data["anchor_emb"], data["anchor_label"])
    torch.testing.assert_close(cosine.T, data["cosine"], rtol=0, atol=1e-6)
    assert torch.equal(found, data["pred"])
    assert (found == data["query_label"]).double().mean().item() == pytest.approx(data["accuracy"].item(), abs=1e-6)
    assert [action - 1 for action in NOVEL] == data["oneshot_classes"].tolist()


def test_lengths_do_not_matter_and_the_first_of_equals_wins():
    """Anchor 5 is parallel to anchor 2: which of the two wins hangs on rounding, in the reference, too."""
    data = golden()
    labels = data["anchor_label"]
    found, cosine = nearest_exemplar(data["query2"], data["anchor2"], labels)
    torch.testing.assert_close(cosine.T, data["cosine2"], rtol=0, atol=1e-6)
    pair = {labels[2].item(), labels[5].item()}
    for ours, theirs in zip(found.tolist(), data["pred2"].tolist(), strict=True):
        assert ours == theirs or {ours, theirs} == pair
    axes = torch.eye(3)
    assert nearest_exemplar(axes[:1], torch.stack([axes[1], axes[0], axes[0]]), torch.tensor([7, 9, 8]))[0] == 9


def row(features, labels, groups):
    names = [f"{group}-{k}" for k, group in enumerate(groups)]
    return FeatureTable(torch.tensor(features), torch.tensor(labels), names, np.array(groups))


def test_queries_of_an_exemplars_recording_are_not_counted():
    exemplars = row([[1.0, 0.0], [0.0, 1.0]], [0, 1], ["a", "b"])
    queries = row([[1.0, 0.1], [0.1, 1.0], [1.0, 0.2], [1.0, 0.3]], [0, 1, 0, 1], ["a", "c", "d", "e"])
    right, counted, _ = judge(queries, exemplars)
    assert counted == 3 and right == pytest.approx([200 / 3, 100, 100, 0])
    with pytest.raises(SkelactError, match="nothing to judge"):
        judge(queries.select(np.array([0])), exemplars)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Nine classes of motions, four subjects, three clips of each."""
    layout = get_layout("kinect20")
    card = {
        "name": "many", "layout": layout.to_dict(), "channels": ["x", "y", "z"], "unit": "m", "fps": 30.0, "persons": 1,
        "class_names": [f"class {label}" for label in range(9)], "source": "", "licence": "", "citation": "",
        "splits": {"xsub": {"factor": "subject", "train": [1, 2]}},
    }  # fmt: skip
    draw = np.random.default_rng(0)
    motions = draw.normal(size=(9, 1, layout.num_joints, 3))
    path = tmp_path_factory.mktemp("oneshot") / "many"
    with StoreWriter(path, card) as writer:
        for label in range(9):
            for subject in (1, 2, 3, 4):
                for take in range(3):
                    frames = np.sin(np.linspace(0, 3, 12))[:, None, None, None] * motions[label]
                    frames = frames + 0.8 * draw.normal(size=(12, 1, layout.num_joints, 3))
                    writer.add(f"a{label}s{subject}t{take}", frames.astype(np.float32), label, subject=subject)
    return path


def method(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = UmURLEncoder("kinect20", 1, 8, width=16, streams=("joint", "motion"))
        return SupCon(encoder, "kinect20", CenterCrop(8), embedding=8, **options).eval()


def test_rows_and_what_they_say(many, tmp_path):
    data = SkeletonDataModule(str(many), "oneshot", eval_batch_size=7)
    records = OneShot(draws=3).run(method(), data, untrained=method, scores=tmp_path / "scores.npz")
    rows = [(r.method, r.extra["labels"]) for r in records]
    names = ("supcon", "supcon (untrained)", "raw pose")
    assert rows == [(name, labels) for name in names for labels in ("exemplars", "random exemplars")]
    first, random = records[:2]
    assert (first.extra["way"], first.extra["queries"], first.extra["novel"]) == (3, 33, [0, 3, 6])
    assert first.extra["exemplars"] == ["a0s1t0", "a3s1t0", "a6s1t0"] and first.extra["repetitions"] == 1
    assert first.extra["space"] == "embedding" and "space" not in records[-1].extra
    assert (random.extra["queries"], random.extra["repetitions"]) == (30, 3) and "ci95_seeds" in random.extra
    assert first.ci95["top1"][0] < first.metrics["top1"] < first.ci95["top1"][1] or first.metrics["top1"] in (0, 100)
    assert set(first.extra["differences"]) == {"supcon (untrained)", "raw pose"}
    scores = load_scores(tmp_path / "scores.npz")
    kept = scores.scores["oneshot/supcon/exemplars"]
    assert kept.shape == (33, 9) and (np.delete(kept, [0, 3, 6], 1) == -1).all()
    assert 100 * (kept.argmax(1) == data.labels("test")).mean() == pytest.approx(first.metrics["top1"])


def _embedded(network, data, part):
    views, mask = network.sample(next(iter(data.batches(part, 200))))
    with torch.no_grad():
        return network.embed_features(views, None, mask).numpy()


def test_random_exemplars_are_one_of_each_class_of_the_test_part(many):
    data, network = SkeletonDataModule(str(many), "oneshot"), method()
    _, record = OneShot(draws=4, baselines=False).run(network, data)
    clips, labels, names = _embedded(network, data, "test"), data.labels("test"), data.clip_names("test")
    wanted = []
    for draw in range(4):
        chosen = label_subset(names, labels, per_class=1, draw=draw)
        rest = np.setdiff1d(np.arange(len(labels)), chosen)
        wanted.append(100 * (labels[chosen][(clips[rest] @ clips[chosen].T).argmax(1)] == labels[rest]).mean())
    assert record.metrics["top1"] == pytest.approx(np.mean(wanted), abs=1e-3)
    assert record.extra["std"]["top1"] == pytest.approx(np.std(wanted, ddof=1), abs=1e-3)


def test_settings_are_chosen_on_classes_of_their_own(many, tmp_path):
    data, network = SkeletonDataModule(str(many), "oneshot"), method()
    found = OneShot(part="val", draws=0, baselines=["raw_pose"]).run(network, data, scores=tmp_path / "scores.npz")
    assert [r.extra["part"] for r in found] == ["val", "val"] and not list(tmp_path.iterdir())
    assert found[0].extra["novel"] == [2, 7] and found[0].extra["queries"] == 22
    clips, labels, names = _embedded(network, data, "val"), data.labels("val"), np.array(data.clip_names("val"))
    chosen = np.flatnonzero(np.isin(names, ["a2s1t0", "a7s1t0"]))
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    right = labels[chosen][(clips[rest] @ clips[chosen].T).argmax(1)] == labels[rest]
    assert found[0].metrics["top1"] == pytest.approx(100 * right.mean(), abs=1e-3)


def test_the_space_is_the_methods_unless_given(many, make):
    data = SkeletonDataModule(str(many), "oneshot")
    options = {"draws": 0, "baselines": False}
    assert OneShot(**options).run(make(0), data)[0].extra["space"] == "feature"
    assert OneShot(**options, space="feature").run(method(), data)[0].extra["space"] == "feature"
    protocol = OneShot(**options)
    assert [protocol.run(m, data)[0].extra["space"] for m in (method(), make(0))] == ["embedding", "feature"]


def test_questions_that_cannot_be_asked(many, tmp_path):
    with pytest.raises(SkelactError, match=r"take data\.split=oneshot .* not data\.split=xsub"):
        OneShot().run(method(), SkeletonDataModule(str(many), "xsub"))
    for options in ({"part": "train"}, {"space": "logits"}):
        with pytest.raises(SkelactError, match="protocol"):
            OneShot(**options)
    rule = {
        "factor": "label", "train": [0], "test": [1, 2], "exemplars": {"factor": "name", "values": ["clip1", "lost"]},
    }  # fmt: skip
    card = SkeletonDataModule(str(many), "xsub").card
    keys = ("name", "layout", "channels", "unit", "fps", "persons", "source", "licence", "citation")
    own = {key: card[key] for key in keys} | {"class_names": ["a", "b", "c"], "splits": {"oneshot": rule}}
    with StoreWriter(tmp_path / "lost", own) as writer:
        for k in range(9):
            writer.add(f"clip{k}", np.ones((9, 1, 20, 3), np.float32), k % 3)
    with pytest.raises(SkelactError, match="exemplars of c are missing"):
        OneShot().run(method(), SkeletonDataModule(str(tmp_path / "lost"), "oneshot"))


def test_one_command_trains_and_judges(raw_clips, tmp_path, monkeypatch, capsys):
    from skelact.cli import main
    from skelact.results import read_records

    monkeypatch.setenv("SKELACT_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    source = raw_clips(tmp_path / "clips", clips=40, classes=4)
    choice = ["data=custom", "data.name=four"]
    assert main(["prepare", *choice, f"source={source}", f"layout={source / 'stick.yaml'}"]) == 0
    small = ["frames=8", "backbone.width=8", "callbacks=minimal", "augment.transform.transforms.0.joints=2"]
    small += ["trainer.accelerator=cpu", "trainer.max_epochs=-1", "trainer.max_steps=4", "method.embedding=8"]
    data = ["data.split=oneshot", "data.novel=2", "data.per_class=2", "data.batch_size=4"]
    ask = ["method=supcon", "evaluate=[oneshot]", "protocols.oneshot.draws=2", "run_dir=run"]
    assert main([*choice, *small, *data, *ask]) == 0
    found = [r for r in read_records(tmp_path / "run" / "results.json") if r.protocol == "oneshot"]
    assert [r.method for r in found[::2]] == ["supcon", "supcon (untrained)", "raw pose"]
    assert all(r.split == "oneshot" and r.extra["novel"] == [0, 2] for r in found)
    assert "random exemplars" in capsys.readouterr().out
    again = ["checkpoint=run", "protocol=oneshot", "protocol.draws=0", "protocol.baselines=false", "run_dir=again"]
    assert main(again) == 0
    (same,) = read_records(tmp_path / "again" / "results.json")
    assert same.metrics == found[0].metrics
