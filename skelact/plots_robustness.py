"""Pictures of robustness: accuracy against severity or noise, and methods against corruptions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skelact.plots import _colours, _figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float, float]
"""A number with its interval: value, low, high; the latter two may be nan."""
Curve = Mapping[float, Point]


def severity_curves(
    rows: Mapping[str, Mapping[str, Curve]], dashed: Sequence[str] = (), title: str = "", columns: int = 4
) -> Figure:
    """One small panel per corruption: accuracy against severity, 0 for clean clips.

    Args:
        rows: row -> corruption -> severity -> accuracy in percent.
        dashed: rows drawn with broken lines, each in the colour of the row before it.
        title: printed above.
        columns: panels side by side.
    """
    names = list(dict.fromkeys(name for curves in rows.values() for name in curves))
    columns = min(columns, len(names))
    lines = math.ceil(len(names) / columns)
    figure = _figure(2.6 * columns + 0.4, 1.9 * lines + 1.0)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    handles = {}
    for panel, name in zip(panels, names, strict=False):
        for row, colour in zip(rows, _row_colours(rows, dashed), strict=True):
            if name in rows[row]:
                handles[row] = _line(panel, rows[row][name], colour, row in dashed)
        panel.set_title(name.replace("_", " "), fontsize=8, loc="left")
        panel.set_ylim(0, 100)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel in panels[-columns:]:
        panel.set_xlabel("severity (0: clean)", fontsize=8)
    figure.supylabel("top-1 accuracy, %", fontsize=8)
    _head(figure, {row: handles[row] for row in rows if row in handles}, title)
    return figure


def robustness_heatmap(rows: Mapping[str, Mapping[str, float]], title: str = "") -> Figure:
    """Methods (rows) against corruptions (columns): accuracy in percent; `nan` where there is none."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    names.sort(key=lambda name: name == "mean")  # last
    table = np.array([[values.get(name, np.nan) for name in names] for values in rows.values()])
    figure = _figure(0.5 * len(names) + 3.2, 0.38 * len(rows) + 2.0)
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    figure.colorbar(image, ax=axes, label="top-1 accuracy, %", fraction=0.03)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=7)
    for i, j in zip(*np.nonzero(np.isfinite(table)), strict=True):
        dark = "w" if table[i, j] < 60 else "k"
        axes.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", fontsize=7, color=dark)
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def noise_curves(rows: Mapping[str, Mapping[str, Curve]], title: str = "") -> Figure:
    """Accuracy against the noise's standard deviation in normalised image coordinates, one panel a kind of noise.

    The step from 0.01 to 0.02 and on is ten times the one before: the axis is linear up to 0.01, then logarithmic.

    Args:
        rows: row -> kind -> sigma -> accuracy in percent.
        title: printed above.
    """
    kinds = list(dict.fromkeys(kind for curves in rows.values() for kind in curves))
    figure = _figure(4.2 * len(kinds) + 0.4, 3.6)
    handles = {}
    for panel, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        for row, colour in zip(rows, _colours(len(rows)), strict=True):
            if kind in rows[row]:
                handles[row] = _line(panel, rows[row][kind], colour, False)
        panel.set_xscale("symlog", linthresh=0.01, linscale=2.0)
        highest = max(sigma for curves in rows.values() for sigma in curves.get(kind, ()))
        ticks = [tick for tick in (0, 0.002, 0.004, 0.006, 0.008, 0.01, 0.02, 0.05, 0.1) if tick <= highest]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7, rotation=45)
        panel.set_ylim(0, 100)
        panel.set_title(kind, fontsize=9, loc="left")
        panel.set_xlabel("standard deviation of the noise, longer image side = 2", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supylabel("top-1 accuracy, %", fontsize=8)
    _head(figure, {row: handles[row] for row in rows if row in handles}, title)
    return figure


def _row_colours(rows: Mapping[str, Any], dashed: Sequence[str]) -> list[Any]:
    """A colour for each row; a dashed one has that of the row before it."""
    plain = [row for row in rows if row not in dashed]
    palette = iter(_colours(max(1, len(plain))))
    colours: list[Any] = []
    for row in rows:
        colours.append(colours[-1] if row in dashed and colours else next(palette, "k"))
    return colours


def _line(panel: Any, curve: Curve, colour: Any, dashed: bool) -> Any:
    """Draw one line with its interval."""
    at = sorted(curve)
    value, low, high = (np.array([curve[x][k] for x in at], dtype=np.float64) for k in range(3))
    panel.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
    return panel.plot(at, value, "--" if dashed else "-", color=colour, lw=1.2, marker=".", ms=3)[0]


def _head(figure: Figure, handles: Mapping[str, Any], title: str) -> None:
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=7, frameon=False)
