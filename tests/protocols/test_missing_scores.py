"""The table of subset scores: numbers by hand, and what must not change them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.errors import SkelactError
from skelact.protocols.features import subset_name, subsets
from skelact.protocols.subset_scores import SubsetScores, choose_subsets, hits

TWO = ("depth", "rgb")


def table(right, streams=TWO, asked=None, available=None, labels=None):
    right = np.asarray(right, dtype=bool)
    clips = right.shape[2]
    return SubsetScores(
        streams,
        subsets(streams) if asked is None else asked,
        {"top1": right},
        np.zeros(clips, np.int64) if labels is None else np.asarray(labels),
        [f"clip{i}" for i in range(clips)],
        np.arange(clips),
        np.ones((clips, len(streams)), dtype=bool) if available is None else np.asarray(available),
    )


def test_numbers_by_hand():
    right = [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 0, 0], [0, 0, 0, 1]], [[1, 1, 1, 1], [1, 1, 1, 0]]]
    metrics, ci95, extra = table(right, labels=[0, 0, 0, 1]).summary([0.0])
    assert next(iter(metrics)) == "top1/mean"  # what rows are compared by, and what sweepers see
    expected = {
        "top1/depth": 37.5, "top1/rgb": 37.5, "top1/depth+rgb": 87.5, "top1/mean": 162.5 / 3,
        "top1/incomplete": 37.5, "top1/present1": 37.5, "top1/present2": 87.5, "top1/rate0": 87.5,
        "top1/worst": 25.0,  # the lowest of each repetition: 25 (depth), 25 (rgb)
        "drop/depth": 50.0, "drop/rgb": 50.0, "drop/incomplete": 50.0,
        "drop_percent/depth": 400 / 7, "drop_percent/rgb": 400 / 7, "drop_percent/incomplete": 400 / 7,
        "mean_class/depth": 25.0, "mean_class/rgb": 100 * (1 / 3 + 1 / 2) / 2, "mean_class/depth+rgb": 75.0,
    }  # fmt: skip
    assert metrics == pytest.approx(expected)
    assert extra["worst"] == "depth" and "unanswered" not in extra and "skipped" not in extra
    nothing, _, _ = table(np.zeros((3, 1, 2))).summary()  # nothing to lose: no share of it
    assert nothing["drop/depth"] == 0 and not any(name.startswith("drop_percent") for name in nothing)
    assert ci95["drop/depth"][0] < 50 < ci95["drop/depth"][1] and "drop/depth" in extra["ci95_clips"]


def test_five_first_and_no_answer():
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [0, 0, 0, 0, 0, 0]])
    labels = torch.tensor([1, 5, 0])
    top1, top5 = hits(scores, labels, torch.tensor([True, True, False]))
    assert top1.tolist() == [False, False, False] and top5.tolist() == [True, False, False]
    assert hits(scores, labels)[0].tolist() == [False, False, True]  # a class of equal scores is no answer
    found = table(np.ones((3, 1, 3)), available=[[1, 1], [0, 1], [0, 0]])
    assert found.summary()[2]["unanswered"] == {"depth": 2, "rgb": 1, "depth+rgb": 1}


def test_a_part_of_the_subsets_has_no_rates():
    asked = choose_subsets(TWO, given=[["rgb"], ["rgb", "depth"], ["rgb"]])
    assert asked == [("rgb",), TWO]
    metrics, _, extra = table(np.ones((2, 1, 3)), asked=asked).summary([0.1])
    assert "rates" in extra["skipped"] and not any("rate" in name for name in metrics)
    for given_ in ([[]], [["audio"]]):
        with pytest.raises(SkelactError, match=r"protocol\.subsets.*depth, rgb"):
            choose_subsets(TWO, given=given_)


def test_many_streams_are_asked_in_part():
    assert len(choose_subsets("abcde")) == 31
    groups = dict.fromkeys("abc", "skeleton") | {"d": "depth", "e": "depth", "f": "rgb"}
    found = {"".join(subset) for subset in choose_subsets("abcdef", groups)}
    assert found == {
        *"abcdef",
        "bcdef",
        "acdef",
        "abdef",
        "abcef",
        "abcdf",
        "abcde",
        "abcdef",
        "abc",
        "def",
        "de",
        "abcf",
    }


THREE = ("a", "b", "c")
answers = st.integers(0, 2**32 - 1).map(lambda seed: table(np.random.default_rng(seed).random((7, 2, 40)) < 0.5, THREE))


@settings(max_examples=15, deadline=None)
@given(answers, st.randoms())
def test_what_holds_for_every_table(found, random):
    values = {name: each.mean() for name, each in found.percent([0.0, 0.3, 1.0]).items()}
    assert values["top1/rate0"] == values["top1/a+b+c"]
    assert values["top1/rate1"] < 100 or values["top1/present1"] == 100
    for size in (1, 2, 3):
        own = [values[f"top1/{subset_name(s)}"] for s in subsets(THREE) if len(s) == size]
        assert values[f"top1/present{size}"] == pytest.approx(np.mean(own))
    every = [values[f"top1/{subset_name(s)}"] for s in subsets(THREE)]
    assert values["top1/mean"] == pytest.approx(np.mean(every))
    assert values["top1/incomplete"] == pytest.approx(np.mean(every[:-1]))
    order = list(range(40))
    random.shuffle(order)
    other = SubsetScores(
        THREE,
        found.subsets,
        {"top1": found.right["top1"][:, :, order]},
        found.labels[order],
        [found.names[i] for i in order],
        found.groups[order],
        found.available[order],
    )
    shuffled = other.percent([0.3])
    assert {name: each.mean() for name, each in shuffled.items()} == pytest.approx(
        {name: value for name, value in values.items() if name in shuffled}
    )


def test_rates_are_shares_of_missing_streams():
    """A table of which single streams are wrong and the rest right counts how often two or more stay."""
    right = np.array([len(subset) > 1 for subset in subsets(THREE)])[:, None, None].repeat(4000, 2)
    found = table(right, THREE)
    for rate in (0.1, 0.5, 0.9):
        two = (1 - rate) ** 3 + 3 * rate * (1 - rate) ** 2
        assert found.at_rate(rate).mean() == pytest.approx(two, abs=0.015)
    lacking = table(right, THREE, available=np.array([[True, True, False]]).repeat(4000, 0))
    # a clip without c answers under {a, b} as under {a, b, c}; one of its two streams always stays
    assert lacking.at_rate(0.0).mean() == 1
