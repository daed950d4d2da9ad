"""Runs gathered over seeds, and how they are printed."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from skelact.gathering import gather_results
from skelact.results import Record, ResultsError, write_records
from skelact.tables import csv_text, differences, markdown, print_tables, rich_tables, table_rows


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
    assert header == ["protocol", "data", "labels", "method", "top1", "top5"]
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


def subset_record(method: str, labels: str, head: str) -> Record:
    names = ["joint", "bone", "motion", "bone+joint", "joint+motion", "bone+motion", "bone+joint+motion"]
    metrics = {f"{m}/{n}": 55.5 for m in ("top1", "knn1") for n in [*names, "mean", "worst"]}
    ci95 = {name: (40.0, 71.0) for name in metrics}
    return record(protocol="missing", method=method, metrics=metrics, ci95=ci95, extra={"labels": labels, "head": head})


def test_printed_cells_are_never_cut_or_wrapped():
    methods = ("umurl", "umurl (untrained)", "raw pose")
    subsets = [subset_record(m, n, h) for m in methods for n in ("all", "1/class") for h in ("fixed", "own")]
    plain = [record(method=m, extra={"labels": n}) for m in methods for n in ("all", "1/class")]
    stream = io.StringIO()
    print_tables([*plain, *subsets], Console(file=stream, width=60))
    text = stream.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= 150
    lines = [line for line in text.splitlines() if "55.5" in line]
    assert len(lines) == 18 and all(line.count("55.5 ±15.5") == 9 for line in lines)
    assert [line.split()[0] for line in lines[::3]] == ["fixed,", "own,", "own,"] * 2
    rows = [line.split()[:2] for line in text.splitlines() if "90.0 [89.0, 91.0]" in line]
    assert rows == [[n, m.split()[0]] for n in ("all", "1/class") for m in methods]
    assert "fixed: one classifier trained on all" in text


def test_many_streams_keep_to_the_single_ones_and_all():
    names = ["a", "b", "c", "d", "a+b", "a+c", "a+d", "b+c", "b+d", "c+d", "a+b+c+d"]
    metrics = {f"top1/{n}": 50.0 for n in [*names, "mean", "worst"]}
    (table,) = rich_tables([record(protocol="missing", metrics=metrics, extra={"labels": "all", "head": "own"})])
    assert [c.header for c in table.columns][2:] == ["a", "b", "c", "d", "all", "mean", "worst"]


def test_paired_differences_are_printed_and_averaged(tmp_path):
    for seed, value in enumerate((4.0, 6.0)):
        found = {"raw pose": {"metric": "top1", "difference": value, "ci95": [value - 3, value + 3]}}
        extra = {"labels": "all", "differences": found, "ci95_clips": {"top1": [86.0, 94.0]}}
        write_records(tmp_path / str(seed) / "results.json", [record(seed=seed, extra=extra)])
    (one,) = gather_results([tmp_path / "0"])
    assert differences([one]) == ["labels all, top1: umurl - raw pose: +4.0 [1.0, 7.0]"]
    assert differences([one])[0] in markdown([one])
    (both,) = gather_results([tmp_path])
    # seeds 4 and 6: half-width of the t-interval 12.706; clips: 3
    assert differences([both]) == ["labels all, top1: umurl - raw pose: +5.0 [-8.1, 18.1]"]
    assert both.ci95["top1"] == pytest.approx((86.0, 94.0)) and both.extra["ci95_seeds"]["top1"] == (90.0, 90.0)


def fused(**changes) -> Record:
    extra = {"labels": "all", "streams": "joint+bone", "fusion": "late", "weights": {"joint": 0.6, "bone": 0.4}}
    return record(**({"extra": extra} | changes))


def test_streams_and_fusion_are_told_where_rows_differ():
    single = record(extra={"labels": "all", "streams": "joint", "fusion": "single"})
    header, rows = table_rows([single, fused()])
    assert header[3:6] == ["method", "streams", "fusion"]
    assert [row[4:6] for row in rows] == [["joint", ""], ["joint+bone", "late 0.6/0.4"]]
    assert table_rows([fused(selection="val:lr, val:weights")])[1][0][4] == "late 0.6/0.4 (val)"
    raw = record(method="raw pose", extra={"labels": "all", "streams": "joint", "encoder": "raw_pose"})
    plain = record(extra={"labels": "all", "streams": "joint+bone"})
    assert {"streams", "fusion"}.isdisjoint(table_rows([plain, raw])[0])
    found = {"raw pose": {"metric": "top1", "difference": 1.0, "ci95": [0.0, 2.0]}}
    for one in (single, both := fused()):
        one.extra["differences"] = found
    assert differences([single, both]) == ["labels all, top1: umurl joint+bone - raw pose: +1.0 [0.0, 2.0]"]
    assert csv_text([both]).splitlines()[1].split(",")[7:9] == ["joint+bone", "late 0.6/0.4"]


def test_fitted_weights_are_averaged_over_and_given_ones_kept_apart(tmp_path):
    for seed, selection in (
        (0, "none (weights given)"),
        (1, "none (weights given)"),
        (2, "val:weights"),
        (3, "val:weights"),
    ):
        one = fused(seed=seed, selection=selection)
        one.extra["weights"] = {"joint": 0.1 * seed, "bone": 0.5}
        write_records(tmp_path / str(seed) / "results.json", [one])
    found = gather_results([tmp_path])
    assert [r.extra["seeds"] for r in found] == [[0], [1], [2, 3]]
    assert "weights" not in found[2].extra and table_rows(found[2:])[1][0][4] == "late (val)"
