"""Late fusion against AimCLR's ensemble script; see tests/golden/evaluation/README.md."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skelact.protocols.ensemble import FUSED, fuse, top
from skelact.results import ResultsError, Scores, load_scores, save_scores

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
