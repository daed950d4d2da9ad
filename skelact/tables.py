"""Records of runs as tables: gathered over seeds, for the terminal, for Markdown, for spreadsheets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skelact.results import Record, ResultsError, read_records, t_interval

if TYPE_CHECKING:
    from rich.table import Table


def gather_results(directories: Sequence[str | Path]) -> list[Record]:
    """Collect runs, and average those that differ in nothing but the seed.

    Args:
        directories: run directories or folders of them; every `results.json` below is read.

    Returns:
        One record per setting: metrics are means over seeds, `ci95` t-intervals over seeds where there are at least
        two (else the run's own), `extra["seeds"]` the seeds.

    Raises:
        ResultsError: a directory does not exist or holds no results.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for directory in map(Path, directories):
        files = sorted(directory.rglob("results.json")) if directory.is_dir() else [directory]
        if not files:
            raise ResultsError(f"{directory}: no results.json below it; give the directory of a run")
        for record in (r for f in files for r in read_records(f)):
            groups.setdefault(_setting(record), []).append(record)
    return [_average(runs) for runs in groups.values()]


def _setting(record: Record) -> tuple[Any, ...]:
    extra = tuple(str(record.extra.get(k)) for k in ("labels", "head", "encoder", "steps", "recipe", "streams"))
    return (record.protocol, record.method, record.data, record.split, record.selection, record.fingerprint, *extra)


def _average(runs: list[Record]) -> Record:
    first = Record.from_dict(runs[0].to_dict())
    seeds = [r.seed for r in runs]
    first.extra["seeds"] = seeds
    if len(set(seeds)) < 2:
        return Record.from_dict(runs[-1].to_dict() | {"seeds": seeds[-1:]})  # the same run twice: the later one
    latest = list({r.seed: r for r in runs}.values())
    names = [k for k in first.metrics if all(k in r.metrics for r in latest)]
    first.metrics = {k: float(np.mean([r.metrics[k] for r in latest])) for k in names}
    first.ci95 = {k: t_interval([r.metrics[k] for r in latest]) for k in names}
    first.seed, first.checkpoint, first.extra["seeds"] = None, None, [r.seed for r in latest]
    return first


def table_rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table.

    One row per record, a metric's cell is `mean [low, high]`. Metrics named `measure/what` (stream subsets) make one
    row per measure, with a column for each `what` and the shorter cell `mean ±half width`.
    """
    keys = [k for k in ("labels", "head") if any(k in r.extra for r in records)]
    split = any("/" in m for r in records for m in r.metrics)
    columns = list(dict.fromkeys(m.split("/", 1)[-1] for r in records for m in r.metrics))
    legacy = any("legacy" in r.selection for r in records)
    header = ["protocol", "data", "method", *(["selection"] if legacy else []), *keys, *(["measure"] if split else [])]
    rows = []
    for r in records:
        start = [r.protocol, f"{r.data} {r.split}".strip(), r.method, *([r.selection] if legacy else [])]
        start += [str(r.extra.get(k, "")) for k in keys]
        if not split:
            rows.append(start + [_cell(r, m) for m in columns])
            continue
        for measure in dict.fromkeys(m.split("/", 1)[0] for m in r.metrics):
            rows.append([*start, measure, *(_cell(r, f"{measure}/{c}", short=True) for c in columns)])
    return header + columns, rows


def _cell(record: Record, name: str, short: bool = False) -> str:
    if name not in record.metrics:
        return ""
    value, (low, high) = record.metrics[name], record.ci95.get(name, (math.nan, math.nan))
    if not math.isfinite(value):
        return "not finite"
    digits = 1 if abs(value) < 1e4 else 0
    text = f"{value:.{digits}f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"
    if math.isnan(low):
        return text
    return f"{text} ±{(high - low) / 2:.1f}" if short else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def rich_tables(records: Sequence[Record]) -> list[Table]:
    """One terminal table per protocol."""
    from rich.table import Table

    tables = []
    for protocol in dict.fromkeys(r.protocol for r in records):
        header, rows = table_rows([r for r in records if r.protocol == protocol])
        data = {row[1] for row in rows}
        table = Table(title=f"{protocol}: {next(iter(data))}" if len(data) == 1 else protocol, title_justify="left")
        drop = {0, 1} if len(data) == 1 else {0}
        for i, name in enumerate(header):
            if i not in drop:
                words = name in ("method", "selection", "labels", "head", "measure")
                table.add_column(name.replace("+", "+\n"), justify="left" if words else "right", overflow="fold")
        for row in rows:
            table.add_row(*(cell for i, cell in enumerate(row) if i not in drop))
        tables.append(table)
    return tables


def markdown(records: Sequence[Record]) -> str:
    """The records as Markdown tables, one per protocol."""
    parts = []
    for protocol in dict.fromkeys(r.protocol for r in records):
        header, rows = table_rows([r for r in records if r.protocol == protocol])
        lines = ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows]]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def csv_text(records: Sequence[Record]) -> str:
    """The records as CSV with one line per metric: setting, metric, value, low, high."""
    import csv
    import io

    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write(
        ["protocol", "data", "split", "method", "labels", "head", "seed", "selection", "metric", "value", "low", "high"]
    )
    for r in records:
        setting = [r.protocol, r.data, r.split, r.method, r.extra.get("labels", ""), r.extra.get("head", "")]
        for name, value in r.metrics.items():
            write([*setting, r.seed, r.selection, name, value, *r.ci95.get(name, ("", ""))])
    return out.getvalue()
