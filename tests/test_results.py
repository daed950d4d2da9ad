"""Records, intervals, paired tests and tables."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from skelact.results import (
    Record,
    ResultsError,
    bootstrap_interval,
    load_scores,
    paired_test,
    read_records,
    repeated_interval,
    save_scores,
    t_interval,
    write_records,
)


def record(**changes) -> Record:
    values = {"protocol": "linear", "method": "umurl", "data": "hdm05", "split": "xsub", "seed": 0}
    values |= {"metrics": {"top1": 90.0}, "ci95": {"top1": (89.0, 91.0)}, "extra": {"labels": "all"}}
    return Record(**(values | changes))


def test_records_survive_the_file_and_have_the_agreed_keys(tmp_path):
    file = write_records(tmp_path / "results.json", [record(gflops=1.5, parameters=7)])
    row = json.loads(file.read_text())[0]
    assert set(row) == {
        "protocol", "method", "data", "split", "seed", "metrics", "ci95", "selection", "checkpoint", "fingerprint",
        "parameters", "gflops", "wall_s", "samples_per_s", "device", "version", "labels",
    }  # fmt: skip
    back = read_records(tmp_path)[0]
    assert back == record(gflops=1.5, parameters=7)
    write_records(file, [record(seed=1)], append=True)
    assert [r.seed for r in read_records(file)] == [0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_numbers_that_json_cannot_hold(tmp_path):
    file = write_records(
        tmp_path / "results.json", [record(metrics={"loss": math.nan}, ci95={}, extra={"n": np.int64(3)})]
    )
    assert math.isnan(read_records(file)[0].metrics["loss"])
    assert read_records(file)[0].extra == {"n": 3}


@pytest.mark.parametrize("text", ["{", "[1]", '[{"protocol": "linear"}]'])
def test_broken_results_are_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=r"results\.json"):
        read_records(tmp_path)
    with pytest.raises(ResultsError, match="no such file"):
        read_records(tmp_path / "absent")


def test_extra_may_not_hide_a_field():
    with pytest.raises(ValueError, match="seed"):
        record(extra={"seed": 3})


def test_t_interval_by_hand():
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2) and high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert all(map(math.isnan, t_interval([1.0])))


def test_bootstrap_is_the_binomial_for_single_clips_and_wider_for_groups():
    values = 100.0 * (np.arange(400) % 4 > 0)
    low, high = bootstrap_interval(values)
    half = 1.96 * 100 * math.sqrt(0.75 * 0.25 / 400)
    assert (high - low) / 2 == pytest.approx(half, rel=0.06) and (low + high) / 2 == pytest.approx(75, abs=0.3)
    values = np.repeat(100.0 * (np.arange(100) % 4 > 0), 4)  # four equal clips per recording
    low, high = bootstrap_interval(values, [f"g{i // 4}" for i in range(400)])
    assert (high - low) / 2 == pytest.approx(2 * half, rel=0.06)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)


def test_bootstrap_of_groups_of_different_size_equals_plain_resampling():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 200)
    values = rng.random(200)
    total, size = np.bincount(groups, values, 40), np.bincount(groups, minlength=40)
    pick = rng.integers(0, 40, (20_000, 40))
    plain = np.quantile(total[pick].sum(1) / size[pick].sum(1), [0.025, 0.975])
    assert bootstrap_interval(values, groups, draws=20_000) == pytest.approx(tuple(plain), abs=0.004)


def scores(right: np.ndarray) -> np.ndarray:
    return np.stack([1.0 - right, right], 1)


def test_paired_test_joins_by_name(tmp_path):
    names, labels = [f"c{i}" for i in range(100)], np.ones(100, dtype=int)
    a, b = np.arange(100) < 90, np.arange(100) < 80
    save_scores(tmp_path / "a" / "scores.npz", names, labels, {"linear": scores(a), "knn": scores(b)})
    back = slice(None, None, -1)
    save_scores(tmp_path / "b" / "scores.npz", names[back], labels[back], {"linear": scores(b)[back]})
    found = paired_test(tmp_path / "a", tmp_path / "b", "linear")
    assert found["difference"] == pytest.approx(10) and (found["only_first"], found["only_second"]) == (10, 0)
    assert found["mcnemar_p"] == pytest.approx(2 * 0.5**10)
    low, high = found["ci95"]
    assert 3 < low < 10 < high < 17
    with pytest.raises(ResultsError, match="linear"):
        paired_test(tmp_path / "a", tmp_path / "b")  # two entries: which?


def test_paired_test_refuses_other_clips_and_labels(tmp_path):
    labels = np.ones(3, dtype=int)
    one = save_scores(tmp_path / "a.npz", ["x", "y", "z"], labels, {"s": np.eye(3)})
    two = save_scores(tmp_path / "b.npz", ["x", "y", "w"], labels, {"s": np.eye(3)})
    three = save_scores(tmp_path / "c.npz", ["x", "y", "z"], labels * 0, {"s": np.eye(3)})
    with pytest.raises(ResultsError, match="different clips"):
        paired_test(one, two)
    with pytest.raises(ResultsError, match="different labels"):
        paired_test(one, three)


def test_scores_of_several_protocols_share_a_file(tmp_path):
    file = tmp_path / "scores.npz"
    save_scores(file, ["x", "y"], np.array([0, 1]), {"linear/umurl/all": np.eye(2)}, ["g", "g"])
    save_scores(file, ["x", "y"], np.array([0, 1]), {"retrieval/umurl/all": np.eye(2)[::-1]}, ["g", "g"])
    found = load_scores(tmp_path)
    assert sorted(found.scores) == ["linear/umurl/all", "retrieval/umurl/all"] and found.groups.tolist() == ["g", "g"]
    with pytest.raises(ResultsError, match="other clips"):
        save_scores(file, ["x", "z"], np.array([0, 1]), {"linear": np.eye(2)})
    file.write_bytes(b"PK broken")
    with pytest.raises(ResultsError, match="not a scores file"):
        load_scores(file)


def test_interval_over_repetitions_and_clips_by_hand():
    rng = np.random.default_rng(0)
    values = 100.0 * (rng.random((5, 200)) < 0.8)
    found = repeated_interval(values)
    assert found.seeds == t_interval(values.mean(1))
    middle = values.mean()
    expected = math.hypot(found.seeds[1] - middle, found.clips[1] - middle)
    assert found.both[1] - middle == pytest.approx(expected)
    one = repeated_interval(values[:1])
    assert one.both == pytest.approx(one.clips) and math.isnan(one.seeds[0])
    assert repeated_interval(np.full((3, 10), 100.0)).both == (100.0, 100.0)


def test_interval_covers_both_sources_of_chance():
    """Coverage on a made-up truth: seeds shift the accuracy, clips differ in difficulty; each alone is too narrow."""
    rng, truth, trials = np.random.default_rng(1), 70.0, 200
    hits = {"both": 0, "seeds": 0, "clips": 0}
    for _ in range(trials):
        seed, clip = rng.normal(0, 2, (5, 1)), rng.normal(0, 20, 150)
        found = repeated_interval(truth + seed + clip + rng.normal(0, 10, (5, 150)), draws=400)
        for name in hits:
            low, high = getattr(found, name)
            hits[name] += low <= truth <= high
    assert hits["both"] / trials > 0.93
    assert hits["clips"] < hits["both"] and hits["seeds"] < hits["both"]
