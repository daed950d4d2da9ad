"""Runs of a sweep told apart by what was swept, and two runs compared clip by clip."""

import csv
import io

import numpy as np
import pytest
import yaml

from skelact.gathering import compare_runs, flat, gather_results, paired_csv, paired_rows
from skelact.results import Record, ResultsError, save_scores, write_records
from skelact.tables import csv_text, differences, print_tables, table_rows


def write_run(folder, seed, config, rows=(("umurl", "pretrained", 80.0),), protocol="linear"):
    records = [
        Record(
            protocol=protocol, method=method, data="hdm05", split="xsub", seed=seed, metrics={"top1": top1},
            extra={"labels": "all", "encoder": encoder},
        )
        for method, encoder, top1 in rows
    ]  # fmt: skip
    write_records(folder / "results.json", records)
    whole = {"seed": seed, "run_dir": str(folder), "name": folder.name, "data": {"seed": seed}, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))


def lr(value, **more):
    return {"method": {"optimizer": {"lr": value}, "sampler": {"frames": 8}}, "frames": 8, **more}


def found(tmp_path):
    return [(r.method, r.extra.get("setting"), r.extra["seeds"], r.metrics["top1"]) for r in gather_results([tmp_path])]


def test_what_was_swept_makes_rows_of_their_own(tmp_path):
    for number, (rate, seed, top1) in enumerate([(0.1, 0, 80.0), (0.1, 1, 82.0), (0.2, 0, 90.0), (0.2, 1, 92.0)]):
        rows = [("umurl", "pretrained", top1), ("raw pose", "raw_pose", 50.0 + seed)]
        write_run(tmp_path / str(number), seed, lr(rate), rows)
    records = gather_results([tmp_path])
    assert [(r.method, r.extra.get("setting"), r.extra["seeds"], r.metrics["top1"]) for r in records] == [
        ("umurl", {"method.optimizer.lr": 0.1}, [0, 1], 81.0),
        ("umurl", {"method.optimizer.lr": 0.2}, [0, 1], 91.0),
        ("raw pose", None, [0, 1], 50.5),  # a learning rate is nothing to it
    ]
    # t-interval of 80 and 82: half-width 12.706 * sqrt(2) / sqrt(2)
    assert records[0].ci95["top1"] == pytest.approx((81 - 12.706, min(100, 81 + 12.706)), abs=1e-3)
    header, rows = table_rows(records)
    assert [row[header.index("setting")] for row in rows] == ["method.optimizer.lr=0.1", "method.optimizer.lr=0.2", ""]
    lines = list(csv.DictReader(io.StringIO(csv_text(records))))
    assert [(line["setting"], line["seed"]) for line in lines[:2]] == [
        ("method.optimizer.lr=0.1", "0 1"),
        ("method.optimizer.lr=0.2", "0 1"),
    ]


def test_one_key_stands_for_those_that_go_with_it(tmp_path):
    for number, frames in enumerate((8, 16)):
        config = {
            "frames": frames,
            "method": {"sampler": {"frames": frames}},
            "list": [{"frames": frames}],
            "a": [1, 2],
        }
        write_run(tmp_path / str(number), 0, config)
    assert [setting for _, setting, _, _ in found(tmp_path)] == [{"frames": 8}, {"frames": 16}]


def test_two_keys_that_were_swept_together(tmp_path):
    for number, (rate, width) in enumerate([(0.1, 8), (0.1, 16), (0.2, 8), (0.2, 16)]):
        rows = [("umurl", "pretrained", 80.0 + number), ("umurl (untrained)", "untrained", float(width))]
        write_run(tmp_path / str(number), 0, lr(rate, width=width), rows)
    settings = [(method, setting) for method, setting, _, _ in found(tmp_path)]
    assert settings[:4] == [
        ("umurl", {"width": width, "method.optimizer.lr": rate}) for rate in (0.1, 0.2) for width in (8, 16)
    ]
    assert settings[4:] == [("umurl (untrained)", {"width": 8}), ("umurl (untrained)", {"width": 16})]


def test_what_a_run_is_not_told_by(tmp_path):
    """Where it ran and lies, the options of other protocols, and a checkpoint of each seed."""
    for seed in (0, 1):
        config = {
            "checkpoint": f"runs/{seed}",
            "trainer": {"devices": seed + 1, "precision": "32-true"},
            "data": {"store": f"/{seed}", "seed": seed},
            "selected": "linear",
            "protocol": {"epochs": 9, "seed": seed},
            "protocols": {"linear": {"epochs": 9}, "retrieval": {"draws": seed}},
        }
        write_run(tmp_path / str(seed), seed, config)
    assert found(tmp_path) == [("umurl", None, [0, 1], 80.0)]


def test_options_of_the_records_own_protocol_tell(tmp_path):
    for number, epochs in enumerate((1, 9)):
        node = {"epochs": epochs}
        write_run(tmp_path / str(number), 0, {"selected": "linear", "protocol": node, "protocols": {"linear": node}})
    assert [setting for _, setting, _, _ in found(tmp_path)] == [
        {"protocols.linear.epochs": 1},
        {"protocols.linear.epochs": 9},
    ]


def test_one_seed_asked_of_several_checkpoints(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, 0, {"checkpoint": f"runs/{name}"})
    assert [setting for _, setting, _, _ in found(tmp_path)] == [{"checkpoint": "runs/a"}, {"checkpoint": "runs/b"}]


def test_without_configs_seeds_alone_tell(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed, lr(0.1 * (seed + 1)))
    (tmp_path / "0" / "config.yaml").unlink()
    assert found(tmp_path) == [("umurl", None, [0, 1], 80.0)]
    (tmp_path / "1" / "config.yaml").write_text("a: [")
    with pytest.raises(ResultsError, match=r"config\.yaml: cannot be read"):
        gather_results([tmp_path])


def test_settings_are_in_every_kind_of_table(tmp_path):
    from rich.console import Console

    for number, rate in enumerate((0.1, 0.2)):
        write_run(tmp_path / str(number), 0, lr(rate))
        subset = Record(
            "missing", "umurl", "hdm05", "xsub", 0, {"top1/joint": 70.0}, extra={"labels": "all", "head": "own"}
        )
        write_records(tmp_path / str(number) / "results.json", [subset], append=True)
    records = gather_results([tmp_path])
    records[0].extra["differences"] = {"raw pose": {"metric": "top1", "difference": 1.0, "ci95": [0.0, 2.0]}}
    assert differences(records[:1]) == ["labels all, top1: umurl method.optimizer.lr=0.1 - raw pose: +1.0 [0.0, 2.0]"]
    out = io.StringIO()
    print_tables(records, Console(file=out))
    assert out.getvalue().count("umurl method.optimizer.lr=0.2") == 1
    assert out.getvalue().count("method.optimizer.lr=0.2") == 2


def test_flat_names_every_leaf():
    config = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}, {"e": {}}], "f": [[1, 2]]}
    assert flat(config) == {"a.b": 1, "a.c": (1, 2), "d.0.e": None, "d.1.e": {}, "f.0": (1, 2)}


def scores(right):
    return np.stack([1.0 - right, right], 1)


def test_two_runs_row_by_row(tmp_path):
    names, labels = [f"c{i}" for i in range(100)], np.ones(100, dtype=int)
    groups = [f"g{i // 2}" for i in range(100)]
    good, bad, worst = (scores(np.arange(100) < n) for n in (90, 80, 50))
    one = {
        "linear/umurl/all": good,
        "linear/umurl (untrained)/all": bad,
        "linear/raw pose/all": worst,
        "knn/umurl": good,
    }
    other = {"linear/aimclr/all": bad, "linear/aimclr (untrained)/all": bad[:, ::-1], "linear/raw pose/all": worst}
    save_scores(tmp_path / "a" / "scores.npz", names, labels, one, groups)
    save_scores(tmp_path / "b" / "scores.npz", names, labels, other, groups)
    tests = compare_runs(tmp_path / "a", tmp_path / "b")
    assert list(tests) == [
        ("linear/umurl/all", "linear/aimclr/all"),
        ("linear/umurl (untrained)/all", "linear/aimclr (untrained)/all"),
    ]
    first = tests["linear/umurl/all", "linear/aimclr/all"]
    assert first["difference"] == pytest.approx(10) and first["mcnemar_p"] == pytest.approx(2 * 0.5**10)
    header, rows = paired_rows(tests)
    cells = dict(zip(header, rows[0], strict=True))
    assert cells["scores"] == "linear/umurl/all | linear/aimclr/all" and cells["McNemar p"] == "0.002"
    assert cells["difference"].startswith("+10.0 [") and (cells["only first"], cells["clips"]) == ("10", "100")
    line = next(csv.DictReader(io.StringIO(paired_csv(tests))))
    assert float(line["low"]) == first["ci95"][0] and line["second"] == "linear/aimclr/all"


def test_runs_with_nothing_in_common(tmp_path):
    for name, key in (("a", "linear/umurl/all"), ("b", "retrieval/umurl/all")):
        save_scores(tmp_path / name / "scores.npz", ["x"], np.array([1]), {key: np.eye(2)[:1]})
    with pytest.raises(ResultsError, match=r"no scores in common: linear/umurl/all \| retrieval/umurl/all"):
        compare_runs(tmp_path / "a", tmp_path / "b")
