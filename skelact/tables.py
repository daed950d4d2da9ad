"""Records of runs as tables: for the terminal, for Markdown, for spreadsheets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from skelact.results import Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


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
    if any("setting" in r.extra for r in records):
        columns["setting"] = setting_words
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


def setting_words(record: Record) -> str:
    """`method.optimizer.lr=0.001`: what tells a record of a sweep from the others."""
    values = record.extra.get("setting", {})
    return " ".join(f"{key}={'null' if value is None else value}" for key, value in values.items())


def _who(record: Record) -> str:
    return f"{record.method} {setting_words(record)}".rstrip()


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
            who = f"{_who(r)} {r.extra.get('streams', '')}" if streams else _who(r)
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
    header = ["corruption", *(f"{_who(r)}, {r.extra.get('fill', '')}" for r in each)]
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
            words = name in (
                "method",
                "setting",
                "streams",
                "fusion",
                "selection",
                "labels",
                "head",
                "fill",
                "worst is",
            )
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
    """Print one table per protocol."""
    print_wide(rich_tables(records), console)


def print_wide(tables: Sequence[Table], console: Console) -> None:
    """Print tables at least 140 columns wide.

    A narrow terminal breaks the lines itself; cells cut to fit would lose numbers.
    """
    from rich.measure import Measurement

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
            parts.append(markdown_table(header, rows))
        if paired := differences(own):
            parts.append("Paired over clips and repetitions:\n\n" + "\n".join(f"- {line}" for line in paired))
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, ["---"] * len(header), *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paired_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Paired tests of two runs for the terminal; no cell is wrapped."""
    note = (
        "top1 of each row's scores (of several heads: of their mean) in percent; difference: first - second, with the "
        "95 % interval of a bootstrap of whole recordings; p: exact McNemar test of single clips, not corrected for "
        "the number of rows, and too small where recordings have several clips: there the interval decides"
    )
    return cells_table(title, header, rows, "scores", note)


def cells_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: str, *notes: str) -> Table:
    """Cells for the terminal, none wrapped; all columns but `left` are numbers."""
    table = _new_table(title, notes)
    for name in header:
        table.add_column(name, justify="left" if name == left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def csv_text(records: Sequence[Record]) -> str:
    """The records as CSV with one line per metric: setting, seeds, metric, value, low, high."""
    import csv
    import io

    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    extra = ("labels", "head", "fill", "streams")
    numbers = ("metric", "value", "low", "high")
    write(["protocol", "data", "split", "method", *extra, "fusion", "setting", "seed", "selection", *numbers])
    for r in records:
        seeds = " ".join(map(str, r.extra.get("seeds", [r.seed])))
        setting = [r.protocol, r.data, r.split, r.method, *(r.extra.get(key, "") for key in extra), _fusion(r)]
        for name, value in r.metrics.items():
            write([*setting, setting_words(r), seeds, r.selection, name, value, *r.ci95.get(name, ("", ""))])
    return out.getvalue()
