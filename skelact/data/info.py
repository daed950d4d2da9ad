"""What a store holds, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from skelact.data.modalities import SKELETON, ModalTable
from skelact.data.published import compare
from skelact.data.splits import PARTS, SplitRule
from skelact.data.store import Store
from skelact.data.table import ClipTable
from skelact.data.writer import statistics

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

#: Columns of the clips table that are counted, where the dataset has them.
COUNTED = ("subject", "setup", "camera")
#: Values of a column that are listed one by one.
LISTED = 120


def describe(store: ClipTable, more: Iterable[RenderableType] = ()) -> Group:
    """Tables of a store's card, published counts, splits, classes, subjects and the like, ready for `rich.print`.

    Args:
        store: the store, or several of one dataset; of these the clips of all are counted.
        more: further tables (of other modalities, say), shown last.
    """
    from rich.console import Group

    parts = {name: SplitRule.from_dict(rule).parts(store.columns) for name, rule in store.card["splits"].items()}
    skeletons = store.stores.get(SKELETON) if isinstance(store, ModalTable) else store
    tables: list[RenderableType] = [_facts(skeletons)] if isinstance(skeletons, Store) else []
    if store.card.get("published"):
        tables.append(_published(store))
    tables += [_splits(store, parts), _classes(store, parts)]
    tables += [_column(store, column) for column in COUNTED if column in store.columns]
    return Group(*tables, *more)


def _table(title: str, *columns: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if number == 0 else "right")
    return table


def _add(table: Table, *cells: object) -> None:
    """A row of plain text: names come from other people's files and are no markup."""
    from rich.markup import escape

    table.add_row(*(escape(str(cell)) for cell in cells))


def _facts(store: Store) -> Table:
    card, (frames, persons, joints, channels) = store.card, store.shape
    size = sum(entry["bytes"] for entry in card["files"].values())
    length = store.length
    tenth, half, ninetieth = np.percentile(length, [10, 50, 90]).round().astype(int)
    facts = {
        "fingerprint": store.fingerprint,
        "clips": str(len(store)),
        "lengths": f"{length.min()} / {tenth} / {half} / {ninetieth} / {length.max()} frames "
        f"(shortest / 10 % / median / 90 % / longest), mean {length.mean():.1f}",
        "frames": f"{frames} x {persons} person(s) x {joints} joints x {channels} ({' '.join(card['channels'])})",
        "layout": card["layout"]["name"],
        "unit, rate": f"{card['unit']}, {card['fps']:g} frames/s",
        "size": f"{size / 1e6:.1f} MB, {store.frames.dtype}; padded to {length.max()} frames it would be "
        f"{store.frames[:1].nbytes * len(store) * int(length.max()) / 1e6:.1f} MB",
    }
    if card.get("pipeline"):
        facts["pipeline"] = f"{card['pipeline']} (how bodies were chosen)"
    numbers = card.get("statistics") or {}
    if "absent_persons" not in numbers:  # prepared by an earlier version
        numbers = statistics(store.frames, store.mask)
    for channel, mean, deviation in zip(card["channels"], numbers["mean"], numbers["std"], strict=False):
        facts[f"{channel}: mean, deviation"] = f"{mean:.4f}, {deviation:.4f}"
    facts["absent"] = f"{100 * numbers['absent_persons']:.2f} % of person slots"
    if "absent_joints" in numbers:
        facts["absent"] += f", {100 * numbers['absent_joints']:.2f} % of joints of those present"
    if skipped := card.get("skipped"):
        named = ", ".join(str(entry[0]) for entry in skipped[:5])
        facts["skipped"] = f"{len(skipped)} damaged clips: {named}{', ...' if len(skipped) > 5 else ''}"
    facts |= {key: card[key] for key in ("source", "licence", "citation") if card.get(key)}
    table = _table(f"{store.name}  {store.path}", "", "")
    table.show_header = False
    table.columns[1].justify = "left"
    for key, value in facts.items():
        _add(table, key, value)
    return table


def _published(store: ClipTable) -> Table:
    source = store.card["published"].get("source")
    table = _table(f"published counts{f' ({source})' if source else ''}", "", "stored", "published", "")
    for count in compare(store.card, store.columns):
        _add(table, count.what, count.stored, count.published, count.verdict)
    return table


def _splits(store: ClipTable, parts: Mapping[str, Mapping[str, np.ndarray]]) -> Table:
    names = list(dict.fromkeys([*PARTS, *(part for found in parts.values() for part in found)]))
    table = _table("splits", "split", *names, "factor")
    for name, rule in store.card["splits"].items():
        sizes = [len(parts[name][part]) if part in parts[name] else "" for part in names]
        _add(table, name, *sizes, rule["factor"])
    return table


def _classes(store: ClipTable, parts: Mapping[str, Mapping[str, np.ndarray]]) -> Table:
    table = _table("classes", "class", "clips", *(f"{name} train / val / test" for name in parts))
    classes = len(store.class_names)

    def counts(label: np.ndarray) -> np.ndarray:
        return np.bincount(label[label >= 0], minlength=classes)

    whole = counts(store.label)
    sizes: list[list[Any]] = [[counts(store.label[found[part]]) for part in PARTS[:3]] for found in parts.values()]
    for label, title in enumerate(store.class_names):
        cells = [" / ".join(str(part[label]) for part in split) for split in sizes]
        _add(table, f"{label} {title}", whole[label], *cells)
    if unknown := int((store.label < 0).sum()):
        _add(table, "unknown", unknown, *("" for _ in sizes))
    return table


def _column(store: ClipTable, column: str) -> Table:
    values, place = np.unique(store.columns[column], return_inverse=True)
    counts = [np.bincount(place)]
    if isinstance(store, Store):
        counts.append(np.bincount(place, weights=store.length).astype(int))
    table = _table(f"{column}s", column, *("clips", "frames")[: len(counts)])
    for row, value in enumerate(values[:LISTED].tolist()):
        _add(table, value, *(count[row] for count in counts))
    if len(values) > LISTED:
        _add(table, f"{len(values) - LISTED} more", *(count[LISTED:].sum() for count in counts))
    return table
