"""What a store holds, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from skelact.data.splits import PARTS, resolve
from skelact.data.store import MASK, Store

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


def describe(store: Store) -> Group:
    """Tables of a store's card, splits, classes, subjects and frame statistics, ready for `rich.print`."""
    from rich.console import Group

    tables = [_facts(store), _splits(store), _classes(store)]
    if "subject" in store.columns:
        tables.append(_subjects(store))
    return Group(*tables)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _facts(store: Store) -> Table:
    from rich.markup import escape

    card, (frames, persons, joints, channels) = store.card, store.shape
    size = sum(entry["bytes"] for entry in card["files"].values())
    length = store.length
    spread = f"{length.min()} / {int(np.median(length))} / {length.max()} frames (shortest / median / longest)"
    facts = {
        "fingerprint": store.fingerprint,
        "clips": f"{len(store)}, {spread}",
        "frames": f"{frames} x {persons} person(s) x {joints} joints x {channels} ({' '.join(card['channels'])})",
        "layout": card["layout"]["name"],
        "unit, rate": f"{card['unit']}, {card['fps']:g} frames/s",
        "size": f"{size / 1e6:.1f} MB, {store.frames.dtype}",
    }
    for channel, mean, deviation in zip(
        card["channels"],
        card.get("statistics", {}).get("mean", []),
        card.get("statistics", {}).get("std", []),
        strict=False,
    ):
        facts[f"{channel}: mean, deviation"] = f"{mean:.4f}, {deviation:.4f}"
    if MASK in card["files"] and store.mask is not None:
        facts["observed"] = f"{100 * float(np.mean(store.mask)):.2f} % of joints"
    if card.get("skipped"):
        facts["skipped"] = f"{len(card['skipped'])} damaged clips: " + ", ".join(
            entry[0] for entry in card["skipped"][:5]
        )
    facts |= {key: card[key] for key in ("source", "licence", "citation") if card.get(key)}
    table = _table(f"{store.name}  {store.path}", "", "")
    table.show_header = False
    table.columns[1].justify = "left"
    for key, value in facts.items():
        table.add_row(key, escape(str(value)))
    return table


def _splits(store: Store) -> Table:
    table = _table("splits", "split", *PARTS, "factor")
    for name, rule in store.card["splits"].items():
        parts = resolve(store, name)
        table.add_row(name, *(str(len(parts[part])) for part in PARTS), str(rule["factor"]))
    return table


def _classes(store: Store) -> Table:
    names = list(store.card["splits"])
    table = _table("classes", "class", "clips", *(f"{name} train / val / test" for name in names))
    counts = [
        {part: np.bincount(store.label[rows][store.label[rows] >= 0], minlength=len(store.class_names))
         for part, rows in resolve(store, name).items()}
        for name in names
    ]  # fmt: skip
    for label, title in enumerate(store.class_names):
        cells = [" / ".join(str(count[part][label]) for part in PARTS[:3]) for count in counts]
        table.add_row(f"{label} {title}", str(int((store.label == label).sum())), *cells)
    return table


def _subjects(store: Store) -> Table:
    table = _table("subjects", "subject", "clips", "frames")
    for subject in np.unique(store.columns["subject"]).tolist():
        rows = store.columns["subject"] == subject
        table.add_row(str(subject), str(int(rows.sum())), str(int(store.length[rows].sum())))
    return table
