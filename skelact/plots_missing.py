"""Pictures of missing streams: methods against subsets, and accuracy against the rate at which streams are missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from skelact.plots import _colours, _figure
from skelact.plots_robustness import Curve, _line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def subset_heatmap(rows: Mapping[str, Mapping[str, float]], title: str = "") -> Figure:
    """Methods and fills (rows) against subsets of streams and their means (columns): accuracy in percent.

    Args:
        rows: row -> column -> accuracy; columns in order of first appearance, blank where there is none.
        title: printed above.
    """
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    table = np.array([[values.get(name, np.nan) for name in names] for values in rows.values()])
    size = 6 if len(names) > 20 else 7
    figure = _figure(0.52 * len(names) + 3.6, 0.32 * len(rows) + 2.2)
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    figure.colorbar(image, ax=axes, label="top-1 accuracy, %", fraction=0.03)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=size)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=7)
    for i, j in zip(*np.nonzero(np.isfinite(table)), strict=True):
        dark = "w" if table[i, j] < 60 else "k"
        axes.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", fontsize=size, color=dark)
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def rate_curves(rows: Mapping[str, Curve], chance: float | None = None, title: str = "") -> Figure:
    """Accuracy against the probability with which each stream of a clip is missing; one stream always stays.

    Args:
        rows: row -> rate, 0 for all streams -> accuracy in percent with its interval.
        chance: accuracy of guessing, drawn as a broken line.
        title: printed above.
    """
    figure = _figure(8.4, max(4.4, 0.2 * len(rows) + 1))
    axes = figure.add_subplot()
    colours = _colours(max(1, len(rows)))
    handles = {row: _line(axes, curve, c, False) for (row, curve), c in zip(rows.items(), colours, strict=False)}
    if chance is not None:
        handles["chance"] = axes.axhline(chance, ls=":", color="#666666", lw=1)
    axes.set(ylim=(0, 100), ylabel="top-1 accuracy, %", xlabel="probability that a stream is missing")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")
    axes.legend(
        list(handles.values()), list(handles), fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return figure
