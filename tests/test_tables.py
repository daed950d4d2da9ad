"""Runs gathered over seeds, and how they are printed."""

from __future__ import annotations

import csv
import io

import pytest

from skelact.results import Record, ResultsError, write_records
from skelact.tables import csv_text, gather_results, markdown, rich_tables, table_rows


def record(**changes) -> Record:
    values = {"protocol": "linear", "method": "umurl", "data": "hdm05", "split": "xsub", "seed": 0}
    values |= {"metrics": {"top1": 90.0}, "ci95": {"top1": (89.0, 91.0)}, "extra": {"labels": "all"}}
    return Record(**(values | changes))


def test_seeds_are_averaged_and_settings_kept_apart(tmp_path):
    for seed, top1 in enumerate((80.0, 82.0, 84.0)):
        rows = [
            record(seed=seed, metrics={"top1": top1}),
            record(seed=seed, method="raw pose", extra={"labels": "1/class"}),
        ]
        write_records(tmp_path / str(seed) / "results.json", rows)
    found = gather_results([tmp_path])
    assert [(r.method, r.extra["seeds"]) for r in found] == [("umurl", [0, 1, 2]), ("raw pose", [0, 1, 2])]
    assert found[0].metrics == {"top1": 82.0}
    assert found[0].ci95["top1"] == pytest.approx((82 - 4.9683, 82 + 4.9683), abs=1e-3)


def test_one_seed_keeps_its_own_interval(tmp_path):
    write_records(tmp_path / "results.json", [record()])
    assert gather_results([tmp_path])[0].ci95 == {"top1": (89.0, 91.0)}
    with pytest.raises(ResultsError, match=r"no results\.json"):
        gather_results([tmp_path / "nothing"]) if (tmp_path / "nothing").mkdir() is None else None


def test_cells():
    header, rows = table_rows([record(), record(method="raw pose", metrics={"top1": 50.0, "top5": 70.0}, ci95={})])
    assert header == ["protocol", "data", "method", "labels", "top1", "top5"]
    assert rows[0][-2:] == ["90.0 [89.0, 91.0]", ""] and rows[1][-2:] == ["50.0", "70.0"]


def test_subset_metrics_get_a_row_per_measure():
    metrics = {"top1/joint": 60.0, "top1/mean": 61.0, "knn1/joint": 50.0}
    header, rows = table_rows([record(metrics=metrics, ci95={"top1/joint": (58.0, 62.0)})])
    assert header[-3:] == ["measure", "joint", "mean"]
    assert [r[-3:] for r in rows] == [["top1", "60.0 ±2.0", "61.0"], ["knn1", "50.0", ""]]


def test_legacy_selection_is_named_in_the_table():
    assert "selection" in table_rows([record(selection="legacy_best")])[0]
    assert "selection" not in table_rows([record(selection="val:lr")])[0]


def test_markdown_csv_and_terminal_say_the_same():
    records = [record(), record(protocol="retrieval", metrics={"knn1": 70.0}, ci95={})]
    assert markdown(records).count("| umurl |") == 2
    rows = list(csv.DictReader(io.StringIO(csv_text(records))))
    assert [(r["metric"], r["value"], r["low"]) for r in rows] == [("top1", "90.0", "89.0"), ("knn1", "70.0", "")]
    assert [t.title for t in rich_tables(records)] == ["linear: hdm05 xsub", "retrieval: hdm05 xsub"]
