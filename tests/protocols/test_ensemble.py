"""Late fusion against AimCLR's ensemble script; see tests/golden/evaluation/README.md."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.errors import SkelactError
from skelact.protocols.ensemble import FUSED, Ensemble, fuse, top
from skelact.protocols.fusion import fit_weights
from skelact.protocols.linear import LinearProbe
from skelact.results import Record, ResultsError, Scores, load_scores, save_scores, write_records

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "evaluation" / "ensemble.npz", allow_pickle=False))
STREAMS = ("joint", "bone", "motion")


def run(stream, order=None):
    order = np.arange(200) if order is None else order
    names = np.array([f"clip{row:03d}" for row in order])
    labels = GOLDEN["labels"][order]
    return Scores(names, labels, names, {f"linear/{stream}": GOLDEN[f"score_{stream}"][order]})


def test_the_published_fusion_joined_by_name(tmp_path):
    weights = GOLDEN["alpha_joint_bone_motion"]
    plain = fuse([run(stream) for stream in STREAMS], weights)
    assert top(plain.scores[FUSED], plain.labels) == pytest.approx(100 * float(GOLDEN["top1"]), abs=0)
    assert top(plain.scores[FUSED], plain.labels, 5) == pytest.approx(100 * float(GOLDEN["top5"]), abs=0)
    mixed = []
    for seed, stream in enumerate(STREAMS):  # through files, each in an order of its own
        one = run(stream, np.random.default_rng(seed).permutation(200))
        save_scores(tmp_path / stream / "scores.npz", one.names, one.labels, one.scores)
        mixed.append(load_scores(tmp_path / stream))
    fused = fuse(mixed, weights)
    back = np.argsort(fused.names)
    assert np.array_equal(fused.scores[FUSED][back], plain.scores[FUSED])
    assert np.array_equal(fused.labels[back], GOLDEN["labels"])


@pytest.mark.parametrize("stream", STREAMS)
def test_single_streams(stream):
    fused = fuse([run(stream)])
    assert np.array_equal(fused.scores[FUSED], GOLDEN[f"score_{stream}"])
    assert top(fused.entry(), fused.labels) == pytest.approx(float(GOLDEN[f"single_{stream}_top1_percent"]))
    assert top(fused.entry(), fused.labels, 5) == pytest.approx(100 * float(GOLDEN[f"single_{stream}_top5"]))


def test_refusals():
    joint, bone = run("joint"), run("bone")
    fewer = replace(bone, names=bone.names[:-1], labels=bone.labels[:-1], scores={"a": bone.entry()[:-1]})
    more = {"a": bone.entry(), "b": bone.entry()}
    for runs, options, message in (
        ([], {}, "no runs"),
        ([joint, bone], {"weights": [1.0]}, "2 runs need as many weights and keys, got 1 and 2"),
        ([joint, fewer], {}, "run 2 has 199 clips and the first 200, not the same: clip199"),
        ([fewer, joint], {}, "run 2 has 200 clips and the first 199, not the same: clip199"),
        ([joint, replace(bone, names=np.array(["one"] * 200))], {}, "run 2 has several rows of one clip"),
        ([joint, replace(bone, labels=bone.labels + 1)], {}, "run 2 has another label of clip clip000"),
        ([joint, replace(bone, scores={"a": bone.entry()[:, :5]})], {}, "5 classes, the first 60"),
        ([joint, replace(bone, scores=more)], {}, "no scores under None"),
    ):
        with pytest.raises(ResultsError, match=message):
            fuse(runs, **options)
    assert fuse([joint, replace(bone, scores=more)], keys=[None, "b"]).entry().shape == (200, 60)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 4), st.integers(0, 999))
def test_neither_the_order_of_clips_nor_that_of_runs_matters(size, seed):
    random = np.random.default_rng(seed)
    names, labels = np.array([f"c{i}" for i in range(30)]), random.integers(0, 4, 30)
    values, weights = random.normal(size=(size, 30, 4)).astype(np.float32), random.random(size)

    def of(place, rows):
        return Scores(names[rows], labels[rows], names[rows], {"a": values[place][rows]})

    plain = fuse([of(place, np.arange(30)) for place in range(size)], weights)
    order = random.permutation(size)
    mixed = fuse([of(place, random.permutation(30)) for place in order], weights[order])
    back = np.argsort(mixed.names)
    forth = np.argsort(plain.names)
    assert np.array_equal(mixed.names[back], plain.names[forth])
    np.testing.assert_allclose(mixed.entry()[back], plain.entry()[forth], rtol=1e-5, atol=1e-6)


def finished(folder, method="umurl", seed=0, clips=40, val=True, **changes):
    """A run directory as linear evaluation leaves it, with scores that are right for two clips of three."""
    random = np.random.default_rng(seed)
    extra = {"labels": "all", "streams": "joint", "encoder": "pretrained"}
    options = {"data": "made", "split": "xsub", "seed": 0, "fingerprint": "f", "parameters": 10, "gflops": 0.5}
    rows = [
        Record("linear", name, metrics={"top1": 1.0}, extra=extra, **(options | changes))
        for name in (method, f"{method} (untrained)", "raw pose")
    ]
    write_records(folder / "results.json", rows)
    for file in ("scores.npz", "scores_val.npz") if val else ("scores.npz",):
        order = random.permutation(clips)
        labels = order % 6
        scores = {f"linear/{r.method}/all": np.eye(6)[labels] + 0.7 * random.normal(size=(clips, 6)) for r in rows}
        save_scores(folder / file, [f"{file}{i}" for i in order], labels, scores, [f"g{i // 2}" for i in order])
    return folder


def test_runs_are_joined_and_judged(tmp_path):
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b", "aimclr", 1)
    one, other, whole = Ensemble([a, b], weights=[0.25, 1]).run(scores=tmp_path / "c" / "scores.npz")
    assert [r.method for r in (one, other, whole)] == ["umurl", "aimclr", "umurl + aimclr"]
    assert {r.protocol for r in (one, other, whole)} == {"ensemble"}
    saved = load_scores(tmp_path / "c")
    for record, run, key in (
        (one, a, "linear/umurl/all"),
        (other, b, "linear/aimclr/all"),
        (whole, tmp_path / "c", None),
    ):
        found = load_scores(run)
        assert record.metrics["top1"] == pytest.approx(top(found.entry(key), found.labels))
        assert record.metrics["top5"] == pytest.approx(top(found.entry(key), found.labels, 5))
        assert record.ci95["top1"][0] < record.metrics["top1"] < record.ci95["top1"][1]
    assert whole.extra["weights"] == {"umurl": 0.25, "aimclr": 1.0} and whole.selection == "none (weights given)"
    assert (whole.parameters, whole.gflops, whole.fingerprint, whole.seed) == (20, 1.0, "f", 0)
    best = max(one, other, key=lambda r: r.metrics["top1"])
    difference = whole.extra["differences"][f"best run alone ({best.method})"]
    assert difference["difference"] == pytest.approx(whole.metrics["top1"] - best.metrics["top1"])
    assert list(saved.scores) == ["ensemble/umurl + aimclr/all"]
    write_records(tmp_path / "c" / "results.json", [one, other, whole])
    again = Ensemble([tmp_path / "c", a], weights=[1, 0]).run()  # an ensemble is a run like any other
    assert again[-1].metrics == whole.metrics and again[0].method == "umurl + aimclr"


def test_weights_are_fitted_on_validation_scores_alone(tmp_path):
    runs = [finished(tmp_path / name, name, seed) for seed, name in enumerate("ab")]
    val = [load_scores(run / "scores_val.npz") for run in runs]
    order = [np.argsort(v.names) for v in val]
    scores = [v.entry(f"linear/{n}/all")[o] for v, n, o in zip(val, "ab", order, strict=True)]
    expected = fit_weights(scores, val[0].labels[order[0]])
    *_, whole = Ensemble(runs, weights="val").run(scores=tmp_path / "c" / "scores.npz")
    assert list(whole.extra["weights"].values()) == pytest.approx(expected)
    assert whole.selection == "val:weights"
    assert load_scores(tmp_path / "c" / "scores_val.npz").scores.keys() == {"ensemble/a + b/all"}
    bare = finished(tmp_path / "d", "d", val=False)
    with pytest.raises(SkelactError, match=r"weights=val: .*scores_val\.npz has no 'linear/d/all'"):
        Ensemble([runs[0], bare], weights="val").run()
    *_, whole = Ensemble([runs[0], bare]).run(scores=tmp_path / "e" / "scores.npz")
    assert whole.selection == "none (equal weights)" and not (tmp_path / "e" / "scores_val.npz").exists()


def test_probabilities_are_added_where_asked(tmp_path):
    runs = [finished(tmp_path / name, name, seed) for seed, name in enumerate("ab")]
    Ensemble(runs, fuse="probabilities").run(scores=tmp_path / "c" / "scores.npz")
    np.testing.assert_allclose(load_scores(tmp_path / "c").entry().sum(1), 2.0, rtol=1e-5)


def test_an_ensemble_of_streams_is_late_fusion(data, make, tmp_path):
    probe = LinearProbe(
        "umurl", seeds=2, epochs=5, labels="all", fusion="late", weights=[0.6, 0.6, 0.4], baselines=False
    )
    write_records(tmp_path / "results.json", probe.run(make(0), data, scores=tmp_path / "scores.npz"))
    keys = [f"linear/umurl/all/{stream}" for stream in ("joint", "bone", "motion")]
    records = Ensemble([tmp_path] * 3, [0.6, 0.6, 0.4], keys).run(scores=tmp_path / "c" / "scores.npz")
    assert [r.method for r in records] == ["umurl joint", "umurl bone", "umurl motion", "umurl"]
    np.testing.assert_allclose(
        load_scores(tmp_path / "c").entry(), load_scores(tmp_path).entry("linear/umurl/all"), atol=1e-4
    )
    assert Ensemble([tmp_path]).run()[-1].extra["keys"] == ["linear/umurl/all"]  # the fused row is the run's own


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
    a = finished(tmp_path / "a")
    for place, (changes, message) in enumerate((
        ({"fingerprint": "g"}, "fingerprint f, but .* g"),
        ({"split": "xview"}, "split xsub, but .* xview"),
        ({"data": "other"}, "data made, but .* other"),
        ({"clips": 42}, "run 2 has 42 clips and the first 40"),
    )):  # fmt: skip
        with pytest.raises(SkelactError, match=message):
            Ensemble([a, finished(tmp_path / str(place), **changes)]).run()
    with pytest.raises(SkelactError, match="comes twice"):
        Ensemble([a, a]).run()
    with pytest.raises(SkelactError, match="2 numbers for 1"):
        Ensemble([a], weights=[1, 2]).run()
    with pytest.raises(SkelactError, match="give a key"):
        Ensemble([a], keys=["x", "y"])
    with pytest.raises(SkelactError, match=r"protocol\.runs"):
        Ensemble([])
    with pytest.raises(SkelactError, match="no such file"):
        Ensemble([tmp_path / "nowhere"]).run()
    with pytest.raises(SkelactError, match=r"has no scores under 'x'; there are linear/umurl/all"):
        Ensemble([a], keys=["x"]).run()


def test_two_candidates_need_a_key(tmp_path):
    a = finished(tmp_path / "a")
    found = load_scores(a)
    save_scores(
        a / "scores.npz",
        found.names,
        found.labels,
        {"retrieval/umurl/all": found.entry("linear/umurl/all")},
        found.groups,
    )
    assert Ensemble([a]).run()[-1].extra["keys"] == ["linear/umurl/all"]
    save_scores(
        a / "scores.npz",
        found.names,
        found.labels,
        {"finetune/umurl/all": found.entry("linear/umurl/all")},
        found.groups,
    )
    with pytest.raises(SkelactError, match=r"protocol\.keys .* there are linear/umurl/all"):
        Ensemble([a]).run()
    with pytest.raises(SkelactError, match=r"no record of 'retrieval/umurl/all'"):
        Ensemble([a], keys=["retrieval/umurl/all"]).run()
