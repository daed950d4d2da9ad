"""Tables of what is recognised from subsets of streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from skelact.results import Record
from skelact.tables import _cell, _new_table, _who, differences

if TYPE_CHECKING:
    from rich.table import Table

_HEADS = (
    "±: half of the 95 % interval over seeds or label lists and test clips. fixed: one classifier trained on all "
    "streams, streams then go missing; own: a classifier (kNN: a gallery) for each subset. More in results.json."
)

_MEANS = ("mean", "incomplete", "worst")


def brief(record: Record) -> Record:
    """Of a record its accuracies by subset, linear or by nearest neighbour, then their means."""
    names = [m for m in record.metrics if m.startswith(("top1/", "knn1/")) and "/rate" not in m and "/present" not in m]
    last = {name: i for i, name in enumerate(_MEANS, 1)}
    names.sort(key=lambda m: (m.startswith("knn1"), last.get(m.split("/")[1], 0)))
    metrics = {m: record.metrics[m] for m in names}
    return replace(record, metrics=metrics, ci95={m: record.ci95[m] for m in names if m in record.ci95})


def rate_rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the accuracy at each missing rate; rows: as in the table of subsets."""
    found = [r for r in records if any("/rate" in m for m in r.metrics)]
    keys = [k for k in ("labels", "head", "fill") if any(k in r.extra for r in found)]
    rates = list(dict.fromkeys(m for r in found for m in r.metrics if m.startswith("top1/rate")))
    header = ["method", *keys, *(f"missing {100 * float(m.removeprefix('top1/rate')):g} %" for m in rates)]
    rows = [[_who(r), *(str(r.extra.get(k, "")) for k in keys), *(_cell(r, m, True) for m in rates)] for r in found]
    return header, rows


def missing_tables(title: str, records: Sequence[Record]) -> list[Table]:
    """Of encoders one table; of classifiers one of subsets and one of missing rates."""
    probed = [r for r in records if "head" in r.extra]
    judged = [r for r in records if "head" not in r.extra]
    return ([_subset_table(title, probed)] if probed else []) + (_classifier_tables(title, judged) if judged else [])


def _columns(records: Sequence[Record]) -> tuple[list[str], str]:
    """Subsets that there is room for, and the whole set."""
    named = list(dict.fromkeys(m.split("/", 1)[1] for r in records for m in brief(r).metrics))
    subsets = [name for name in named if name not in _MEANS]
    whole = max(subsets, key=lambda name: name.count("+"), default="")
    if len(subsets) > 7:  # of four streams there are fifteen: the single ones and all together have room
        subsets = [name for name in subsets if "+" not in name or name == whole]
    return subsets, whole


def _classifier_tables(title: str, records: Sequence[Record]) -> list[Table]:
    """Rows: methods and fills."""
    subsets, whole = _columns(records)
    notes = ["±: half of the 95 % interval over test clips; more in results.json, skelact plot kind=subsets"]
    notes += [f"chance {chance:.1f}" for chance in dict.fromkeys(r.extra.get("chance") for r in records) if chance]
    nothing: dict[str, int] = next((r.extra["unanswered"] for r in records if "unanswered" in r.extra), {})
    if nothing:
        counts = ", ".join(f"{count} by {name}" for name, count in nothing.items())
        notes.append(f"clips of which nothing is left count as wrong: {counts}")
    notes += [f"left out: {what}, {why}" for what, why in records[0].extra.get("skipped", {}).items()]
    lines = differences(records)
    notes += ["paired over clips:", *(f"  {line}" for line in lines)] if lines else []
    rates, rows = rate_rows(records)
    first = _new_table(title, [] if rows else notes)
    columns = [(name, "all" if name == whole and "+" in name else name.replace("+", "+\n")) for name in subsets]
    columns += [(name, name) for name in _MEANS]
    for name in ("method", "fill"):
        first.add_column(name, no_wrap=True)
    for _, short in columns:
        first.add_column(short, justify="right", no_wrap=True)
    first.add_column("worst is", no_wrap=True)
    for r in records:
        cells = [_cell(r, f"top1/{name}", short=True) for name, _ in columns]
        first.add_row(_who(r), str(r.extra.get("fill", "")), *cells, str(r.extra.get("worst", "")))
    if not rows:
        return [first]
    second = _new_table("each stream is missing with a probability of", notes)
    for name in rates:
        short = name.removeprefix("missing ")
        second.add_column(short, justify="right" if short != name else "left", no_wrap=True)
    for row in rows:
        second.add_row(*row)
    return [first, second]


def _subset_table(title: str, records: Sequence[Record]) -> Table:
    """Rows: label settings, then heads, then methods; columns: stream subsets, their mean and the worst."""
    subsets, whole = _columns(records)
    columns = subsets + [name for name in ("mean", "worst") if any(f"top1/{name}" in r.metrics for r in records)]
    table = _new_table(title, [_HEADS])
    table.add_column("labels/head", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for name in columns:
        short = "all" if name == whole and "+" in name else name.replace("+", "+\n")
        table.add_column(short, justify="right", no_wrap=True)
    kinds = [("fixed", "top1", "fixed, linear"), ("own", "top1", "own, linear"), ("own", "knn1", "own, kNN")]
    for labels in dict.fromkeys(str(r.extra.get("labels", "")) for r in records):
        same = [r for r in records if str(r.extra.get("labels", "")) == labels]
        table.add_row(labels, style="bold")
        for head, measure, words in kinds:
            found = [r for r in same if r.extra.get("head") == head and any(m.startswith(measure) for m in r.metrics)]
            several = len({r.extra.get("fill") for r in found if r.extra.get("encoder") != "raw_pose"}) > 1
            for i, r in enumerate(found):
                name = f"{_who(r)}, {r.extra['fill']}" if several else _who(r)
                cells = [_cell(r, f"{measure}/{name}", short=True) for name in columns]
                table.add_row(words if i == 0 else "", name, *cells, end_section=i + 1 == len(found))
    return table
