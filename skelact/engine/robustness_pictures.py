"""`skelact plot kind=robustness`: curves, heat map and noise sweep of one run or several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from skelact.errors import SkelactError
from skelact.results import Record

Points = dict[str, dict[float, tuple[float, float, float]]]


def robustness_figures(runs: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Figures by file name, of the records of some runs by the name of the run.

    Raises:
        SkelactError: no run has records of the protocol.
    """
    from skelact.plots_robustness import noise_curves, robustness_heatmap, severity_curves

    robust, sweeps = (_rows(runs, protocol) for protocol in ("robustness", "noise_sweep"))
    if not robust and not sweeps:
        raise SkelactError(f"{', '.join(runs)}: no results of protocol robustness; run it with evaluate=[robustness]")
    figures: dict[str, Any] = {}
    if robust:
        title = _title(robust)
        curves = {name: _severities(record) for name, record in robust.items()}
        dashed = [name for name, record in robust.items() if record.extra.get("fill") != "none"]
        for name in dashed:  # what cannot be filled has no second line
            curves[name] = {c: curves[name][c] for c in robust[name].extra["filled"]}
        figures["robustness_curves.png"] = severity_curves(curves, dashed, title)
        rows = {name: _means(record) for name, record in robust.items()}
        figures["robustness_heatmap.png"] = robustness_heatmap(rows, f"{title}, mean over severities")
    if sweeps:
        figures["noise_sweep.png"] = noise_curves({n: _sweep(r) for n, r in sweeps.items()}, _title(sweeps))
    return figures


def _rows(runs: Mapping[str, Sequence[Record]], protocol: str) -> dict[str, Record]:
    """Records by their name in a legend; of several runs with the run's, and the baselines of the first alone."""
    rows: dict[str, Record] = {}
    several = sum(any(r.protocol == protocol for r in records) for records in runs.values()) > 1
    for run, records in runs.items():
        found = [r for r in records if r.protocol == protocol]
        if rows:
            found = [r for r in found if r.method == found[0].method]
        for record in found:
            own = several and record.method == found[0].method
            name = f"{record.method} ({run})" if own else record.method
            fill = record.extra.get("fill", "none")
            rows[name if fill == "none" else f"{name}, {fill}"] = record
    return rows


def _title(rows: Mapping[str, Record]) -> str:
    return ", ".join(dict.fromkeys(f"{r.data} {r.split}" for r in rows.values()))


def _point(record: Record, metric: str) -> tuple[float, float, float]:
    return record.metrics[metric], *record.ci95.get(metric, (math.nan, math.nan))


def _severities(record: Record) -> Points:
    found: Points = {}
    for metric in record.metrics:
        _, *path = metric.split("/")
        if len(path) == 2:
            found.setdefault(path[0], {0: _point(record, "top1/clean")})[int(path[1])] = _point(record, metric)
    return found


def _means(record: Record) -> dict[str, float]:
    """Clean accuracy, the corruptions, their mean."""
    names = [m.removeprefix("top1/") for m in record.metrics if m.startswith("top1/") and m.count("/") == 1]
    order = ["clean", *(name for name in names if name not in ("clean", "mean", "worst")), "mean"]
    return {name: record.metrics[f"top1/{name}"] for name in order}


def _sweep(record: Record) -> Points:
    found: Points = {}
    for metric in record.metrics:
        kind, sigma = metric.split("/")
        found.setdefault(kind, {})[float(sigma)] = _point(record, metric)
    return found
