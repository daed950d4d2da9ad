"""Records of runs as tables: gathered over seeds, for the terminal, for Markdown, for spreadsheets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skelact.results import Record, ResultsError, read_records, t_interval

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def gather_results(directories: Sequence[str | Path]) -> list[Record]:
    """Collect runs, and average those that differ in nothing but the seed.

    Args:
        directories: run directories or folders of them; every `results.json` below is read.

    Returns:
        One record per setting: metrics are means over seeds, `ci95` t-intervals over seeds where there are at least
        two, in quadrature with the clip intervals (else the run's own), `extra["seeds"]` the seeds.

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


_SETTING = (
    "labels", "head", "fill", "suite", "reference", "encoder",
    "steps", "recipe", "streams", "fusion", "fuse", "space", "temperature", "weights",
    "novel", "part",
)  # fmt: skip


def _setting(record: Record) -> tuple[Any, ...]:
    fitted = "val:weights" in record.selection  # then weights are a finding, and differ between seeds
    extra = tuple(str(record.extra.get(k)) for k in _SETTING if not (fitted and k == "weights"))
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
    first.extra["ci95_seeds"] = {k: t_interval([r.metrics[k] for r in latest]) for k in names}
    clips = [r.extra.get("ci95_clips", {}) for r in latest]
    first.ci95 = {
        k: _widened(
            first.metrics[k],
            first.extra["ci95_seeds"][k],
            [c[k] for c in clips if k in c],
            -100.0 * k.startswith("drop/"),
        )
        for k in names
    }
    others = [r.extra.get("differences", {}) for r in latest]
    shared = [name for name in others[0] if all(name in o for o in others)]
    first.extra["differences"] = {name: _average_difference([o[name] for o in others]) for name in shared}
    own = [key for key in ("weights", "run", "runs") if any(r.extra.get(key) != runs[0].extra.get(key) for r in latest)]
    for key in ("ci95_clips", "std", "repetitions", "lr", *own, *(() if shared else ("differences",))):
        first.extra.pop(key, None)  # of one run
    first.seed, first.checkpoint, first.extra["seeds"] = None, None, [r.seed for r in latest]
    return first


def _widened(
    middle: float, seeds: tuple[float, float], clips: Sequence[Sequence[float]], least: float = 0.0
) -> tuple[float, float]:
    """The interval over seeds and, in quadrature, the runs' mean clip interval: all were tested on the same clips."""
    if not clips:
        return seeds
    below, above = (np.mean([abs(c[k] - sum(c) / 2) for c in clips]) for k in (0, 1))
    spread = seeds[1] - middle
    return max(least, middle - math.hypot(spread, below)), min(100.0, middle + math.hypot(spread, above))


def _average_difference(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = [f["difference"] for f in found]
    middle, half = float(np.mean(values)), float(np.mean([(f["ci95"][1] - f["ci95"][0]) / 2 for f in found]))
    reach = math.hypot(t_interval(values)[1] - middle, half)
    return {"metric": found[0]["metric"], "difference": middle, "ci95": [middle - reach, middle + reach]}


def _by_labels(records: Sequence[Record]) -> list[Record]:
    """Records with the same labels together, in order of first appearance: methods stand under each other."""
    settings = list(dict.fromkeys(str(r.extra.get("labels", "")) for r in records))
    return sorted(records, key=lambda r: settings.index(str(r.extra.get("labels", ""))))


def table_rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table.

    One row per record, label settings together, a metric's cell is `mean [low, high]`. Metrics named `measure/what`
    (stream subsets) make one row per measure, with a column for each `what` and the shorter cell `mean ±half width`.
    """
    records = [_brief(r) for r in _by_labels(records)]
    keys = [k for k in ("labels", "head", "fill") if any(k in r.extra for r in records)]
    told = _telling(records)
    split = any("/" in m for r in records for m in r.metrics)
    columns = list(dict.fromkeys(m.split("/", 1)[-1] for r in records for m in r.metrics))
    legacy = any("legacy" in r.selection for r in records)
    header = [
        "protocol",
        "data",
        *keys,
        "method",
        *told,
        *(["selection"] if legacy else []),
        *(["measure"] if split else []),
    ]
    rows = []
    for r in records:
        start = [r.protocol, f"{r.data} {r.split}".strip(), *(str(r.extra.get(k, "")) for k in keys), r.method]
        start += [tell(r) for tell in told.values()]
        start += [r.selection] if legacy else []
        if not split:
            rows.append(start + [_cell(r, m) for m in columns])
            continue
        for measure in dict.fromkeys(m.split("/", 1)[0] for m in r.metrics):
            rows.append([*start, measure, *(_cell(r, f"{measure}/{c}", short=True) for c in columns)])
    return header + columns, rows


def _telling(records: Sequence[Record]) -> dict[str, Callable[[Record], str]]:
    """Columns that only some tables need: `streams` where encoders were asked different ones, `fusion` where some fuse.

    The raw pose does not count: beside an encoder of three streams it is that of the joints.
    """
    asked = {r.extra.get("streams") for r in records if r.extra.get("encoder") != "raw_pose"}
    columns: dict[str, Callable[[Record], str]] = {}
    if len(asked) > 1:
        columns["streams"] = lambda r: str(r.extra.get("streams", ""))
    if any(_fusion(r) for r in records):
        columns["fusion"] = _fusion
    if any("worst" in r.extra and "head" not in r.extra for r in records):
        columns["worst is"] = lambda r: str(r.extra.get("worst", ""))
    return columns


_MAIN = ("clean", "mean", "worst", "mce", "relative_mce")


def _brief(record: Record, corruptions: bool | None = None) -> Record:
    """Of a record of robustness or missing streams the numbers that a table has room for; any other as it is.

    Args:
        record: any.
        corruptions: only the corruptions' means, or only the other numbers; None: both.
    """
    if record.protocol == "missing":
        from skelact.tables_missing import brief

        return brief(record)
    if record.protocol != "robustness":
        return record
    named = {m.removeprefix("top1/"): m for m in record.metrics if m.count("/") < 2}
    order = [name for name in _MAIN if name in named] * (corruptions is not True)
    order += [name for name in named if name not in _MAIN] * (corruptions is not False)
    return replace(
        record,
        metrics={name: record.metrics[named[name]] for name in order},
        ci95={name: record.ci95[named[name]] for name in order if named[name] in record.ci95},
    )


def _fusion(record: Record) -> str:
    """`late 0.6/0.6/0.4`: how streams or runs were joined, weights in the order of the single rows."""
    kind, weights = str(record.extra.get("fusion", "")), record.extra.get("weights")
    if kind in ("", "single", "joint"):
        return ""
    numbers = "/".join(f"{weight:.2g}" for weight in weights.values()) if weights else ""
    return " ".join(part for part in (kind, numbers, "(val)" if "val:weights" in record.selection else "") if part)


def differences(records: Sequence[Record]) -> list[str]:
    """Lines `labels all, top1: umurl - raw pose: +6.2 [2.1, 10.6]`, paired over clips, of records that have them.

    Not of the single rows beside a fused one: theirs are in results.json.
    """
    lines = []
    streams = "streams" in _telling(records)
    for r in _by_labels(records):
        for other, d in r.extra.get("differences", {}).items() if r.extra.get("fusion") != "single" else ():
            low, high = d["ci95"]
            which = ", ".join(f"{key} {r.extra[key]}" for key in ("labels", "head", "fill") if key in r.extra)
            what = f"{which}, {d['metric']}"
            who = f"{r.method} {r.extra.get('streams', '')}" if streams else r.method
            lines.append(f"{what}: {who} - {other}: {d['difference']:+.1f} [{low:.1f}, {high:.1f}]")
    return lines


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


_INTERVALS = {
    "linear": "[95 % interval over seeds or label lists and test clips together]",
    "ensemble": "[95 % interval over test clips]",
    "oneshot": "[95 % interval over queries, of random exemplars over lists and queries together]",
    "robustness": "[95 % interval over heads and test clips]",
    "retrieval": "[95 % interval over test clips, with few labels over label lists and test clips together]",
    **dict.fromkeys(
        ("supervised", "finetune", "semi", "transfer"),
        "[95 % interval over test clips, of several trainings over these and test clips together]",
    ),
}


def _corruption_rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of each corruption's mean over severities; columns: methods and fills."""
    each = [_brief(r, corruptions=True) for r in records]
    names = dict.fromkeys(name for r in each for name in r.metrics)
    header = ["corruption", *(f"{r.method}, {r.extra.get('fill', '')}" for r in each)]
    return header, [[name, *(_cell(r, name, short=True) for r in each)] for name in names]


def rich_tables(records: Sequence[Record]) -> list[Table]:
    """One terminal table per protocol and dataset; no cell is wrapped."""
    tables = []
    for protocol, data in dict.fromkeys((r.protocol, f"{r.data} {r.split}".strip()) for r in records):
        own = [r for r in records if (r.protocol, f"{r.data} {r.split}".strip()) == (protocol, data)]
        if protocol == "robustness":
            tables += _robustness_tables(f"{protocol}: {data}", own)
            continue
        if protocol == "missing":
            from skelact.tables_missing import missing_tables

            tables += missing_tables(f"{protocol}: {data}", own)
            continue
        tables.append(_plain_table(f"{protocol}: {data}", own))
    return tables


def _robustness_tables(title: str, records: Sequence[Record]) -> list[Table]:
    """Two tables: clean, mean, worst and errors against the reference; then each corruption's mean over severities."""
    main = _plain_table(title, [_brief(r, corruptions=False) for r in records])
    notes = ["mean over severities ±half of the 95 % interval; severities: results.json, skelact plot kind=robustness"]
    for reason in dict.fromkeys(reason for r in records for reason in r.extra.get("skipped", {}).values()):
        skipped = dict.fromkeys(n for r in records for n, why in r.extra.get("skipped", {}).items() if why == reason)
        notes.append(f"left out, {reason}: {', '.join(skipped)}")
    table = _new_table("", notes)
    header, rows = _corruption_rows(records)
    for name in header:
        table.add_column(name.replace(", ", "\n"), justify="left" if name == "corruption" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return [main, table]


def _plain_table(title: str, records: Sequence[Record]) -> Table:
    header, rows = table_rows(records)
    drop = {0, 1}
    lines = differences(records)
    notes = [_INTERVALS[records[0].protocol]] if records[0].protocol in _INTERVALS and rows else []
    references = dict.fromkeys(r.extra["reference"] for r in records if "mce" in r.metrics)
    notes += [f"mce, relative_mce: errors in percent of those of {', '.join(references)}"] if references else []
    notes += ["paired over clips and repetitions:", *(f"  {line}" for line in lines)] if lines else []
    table = _new_table(title, notes)
    for i, name in enumerate(header):
        if i not in drop:
            words = name in ("method", "streams", "fusion", "selection", "labels", "head", "fill", "worst is")
            table.add_column(name, justify="left" if words else "right", no_wrap=True)
    at = header.index("labels") if "labels" in header else None
    for number, row in enumerate(rows):
        last = number + 1 < len(rows) and at is not None and rows[number + 1][at] != row[at]
        table.add_row(*(cell for i, cell in enumerate(row) if i not in drop), end_section=last)
    return table


def _new_table(title: str, notes: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    return Table(
        title=title,
        title_justify="left",
        caption=Text("\n".join(notes)) if notes else None,
        caption_justify="left",
        caption_style="",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )


def print_tables(records: Sequence[Record], console: Console) -> None:
    """Print one table per protocol, at least 140 columns wide.

    A narrow terminal breaks the lines itself; cells cut to fit would lose numbers.
    """
    from rich.measure import Measurement

    tables = rich_tables(records)
    room = console.options.update(max_width=1000)
    console.width = max(console.width, 140, *(Measurement.get(console, room, table).maximum for table in tables))
    for table in tables:
        console.print(table)


def markdown(records: Sequence[Record]) -> str:
    """The records as Markdown tables, one per protocol, with the paired differences below."""
    parts = []
    for protocol in dict.fromkeys(r.protocol for r in records):
        own = [r for r in records if r.protocol == protocol]
        tables = [table_rows([_brief(r, corruptions=False) for r in own])]
        tables += [_corruption_rows(own)] if protocol == "robustness" else []
        if protocol == "missing":
            from skelact.tables_missing import rate_rows

            tables += [found for found in [rate_rows(own)] if found[1]]
        for header, rows in tables:
            lines = ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows]]
            parts.append("\n".join(lines))
        if paired := differences(own):
            parts.append("Paired over clips and repetitions:\n\n" + "\n".join(f"- {line}" for line in paired))
    return "\n\n".join(parts) + "\n"


def csv_text(records: Sequence[Record]) -> str:
    """The records as CSV with one line per metric: setting, metric, value, low, high."""
    import csv
    import io

    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    extra = ("labels", "head", "fill", "streams")
    numbers = ("metric", "value", "low", "high")
    write(["protocol", "data", "split", "method", *extra, "fusion", "seed", "selection", *numbers])
    for r in records:
        setting = [r.protocol, r.data, r.split, r.method, *(r.extra.get(key, "") for key in extra), _fusion(r)]
        for name, value in r.metrics.items():
            write([*setting, r.seed, r.selection, name, value, *r.ci95.get(name, ("", ""))])
    return out.getvalue()
