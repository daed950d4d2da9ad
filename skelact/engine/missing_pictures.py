"""`skelact plot kind=subsets`: bars, heat map and curves over missing rates of one run or several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from skelact.errors import SkelactError
from skelact.results import Record

MEANS = ("mean", "incomplete", "worst")


def missing_figures(runs: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Figures by file name, of the records of some runs by the name of the run.

    Bars for each label setting and head (of classifiers one picture); one heat map of all rows; one
    set of curves of those that have one head for all subsets.

    Raises:
        SkelactError: no run has records of the protocol.
    """
    from skelact.plots import subset_bars
    from skelact.plots_missing import rate_curves, subset_heatmap

    rows = _rows(runs)
    if not rows:
        raise SkelactError(f"{', '.join(runs)}: no results of protocol missing; run it with evaluate=[missing]")
    figures: dict[str, Any] = {}
    for tag in dict.fromkeys(_setting(record) for record in rows.values()):
        some = {name: record for name, record in rows.items() if _setting(record) == tag}
        bars = {
            name.removesuffix(f", {tag}"): {n: _point(record, f"top1/{n}") for n in _columns(record)}
            for name, record in some.items()
        }
        file = f"subsets-{tag.replace('/', '-per-').replace(', ', '-')}.png" if tag else "subsets.png"
        figures[file] = subset_bars(bars, tag and "labels: {}, head: {}".format(*tag.split(", ")))
    title = ", ".join(dict.fromkeys(f"{r.data} {r.split}" for r in rows.values()))
    heat = {name: {n: r.metrics[f"top1/{n}"] for n in _columns(r)} for name, r in rows.items()}
    figures["subsets_heatmap.png"] = subset_heatmap(heat, title)
    shown = {name: record for name, record in rows.items() if record.extra.get("head") != "own"}
    curves = {name: _rates(record) for name, record in shown.items() if any("/rate" in m for m in record.metrics)}
    if curves:
        chance = next((r.extra["chance"] for r in rows.values() if "chance" in r.extra), None)
        figures["missing_rates.png"] = rate_curves(curves, chance, title)
    return figures


def _setting(record: Record) -> str:
    return ", ".join(str(record.extra[key]) for key in ("labels", "head") if key in record.extra)


def _rows(runs: Mapping[str, Sequence[Record]]) -> dict[str, Record]:
    """Records by their name in a legend; of several runs with the run's, and the baselines of the first alone."""
    rows: dict[str, Record] = {}
    found = {run: [r for r in records if r.protocol == "missing"] for run, records in runs.items()}
    found = {run: records for run, records in found.items() if records}
    for number, (run, records) in enumerate(found.items()):
        own = records[0].method
        for record in [r for r in records if not number or r.method == own]:
            name = f"{own} ({run})" if len(found) > 1 and record.method == own else record.method
            same = {
                r.extra.get("fill") for r in records if r.method == record.method and _setting(r) == _setting(record)
            }
            name += f", {record.extra['fill']}" if len(same) > 1 else ""
            rows[", ".join(part for part in (name, _setting(record)) if part)] = record
    return rows


def _columns(record: Record) -> list[str]:
    """Subsets, then the means."""
    names = [m.removeprefix("top1/") for m in record.metrics if m.startswith("top1/")]
    subsets = [n for n in names if n not in MEANS and not n.startswith(("rate", "present"))]
    return subsets + [name for name in MEANS if name in names]


def _point(record: Record, metric: str) -> tuple[float, float, float]:
    return record.metrics[metric], *record.ci95.get(metric, (math.nan, math.nan))


def _rates(record: Record) -> dict[float, tuple[float, float, float]]:
    """By missing rate; 0: all streams."""
    whole = max((n for n in _columns(record) if n not in MEANS), key=lambda name: name.count("+"))
    rates = [m for m in record.metrics if m.startswith("top1/rate")]
    return {0.0: _point(record, f"top1/{whole}")} | {
        float(m.removeprefix("top1/rate")): _point(record, m) for m in rates
    }
