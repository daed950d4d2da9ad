"""Pictures of clips, features and results, for files, notebooks and loggers.

Every function returns a matplotlib `Figure` (or frames as an array) and writes nothing; `save_gif` and
`Figure.savefig` do. matplotlib is imported on use and drawn without a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skelact.errors import SkelactError
from skelact.skeleton.layouts import Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe and Ito); left and right limbs of one hue family differ in it.
_PARTS = {
    "torso": "#000000",
    "left_arm": "#0072B2",
    "right_arm": "#D55E00",
    "left_leg": "#56B4E9",
    "right_leg": "#E69F00",
}


def _figure(width: float, height: float, dpi: int = 120) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _colours(count: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["tab20" if count > 10 else "tab10"](np.arange(count) % 20)


def clip_frames(
    frames: np.ndarray,
    layout: Layout,
    mask: np.ndarray | None = None,
    title: str = "",
    max_frames: int = 60,
    size: int = 320,
) -> np.ndarray:
    """A skeleton clip as pictures.

    Args:
        frames: `(T, M, V, C)` coordinates, C of 2 or 3, the unit of the source; y points up in 3D and down in 2D.
        layout: joints and bones.
        mask: `(T, M, V)` True where observed; a bone with an unobserved end is left out.
        title: printed above.
        max_frames: longer clips are thinned out evenly.
        size: width and height of a picture in pixels.

    Returns:
        `(T', size, size, 3)` uint8.
    """
    frames = np.asarray(frames, dtype=np.float64)
    seen = np.ones(frames.shape[:3], dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if not seen.any():
        raise SkelactError(f"clip {title!r}: no joint was observed in any frame")
    pick = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), max_frames)).round().astype(int))
    across, up = frames[..., 0], frames[..., 1] * (1.0 if layout.dims == 3 else -1.0)
    centre = np.array([np.ptp(a[seen]) / 2 + a[seen].min() for a in (across, up)])
    reach = max(np.ptp(across[seen]), np.ptp(up[seen]), 1e-6) * 0.58
    part = {joint: name for name, joints in layout.parts.items() for joint in joints}
    figure = _figure(size / 100, size / 100, dpi=100)
    axes = figure.add_subplot()
    pictures = []
    for t in pick:
        axes.clear()
        axes.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach))
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_title(title, fontsize=7)
        for m in range(frames.shape[1]):
            for child, parent in layout.bones:
                if seen[t, m, child] and seen[t, m, parent]:
                    ends = [child, parent]
                    axes.plot(
                        across[t, m, ends], up[t, m, ends], color=_PARTS.get(part.get(child, ""), "#444444"), lw=2
                    )
            axes.scatter(across[t, m][seen[t, m]], up[t, m][seen[t, m]], s=6, color="#222222", zorder=3)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]
    return np.stack(pictures)


def save_gif(path: str | Path, pictures: np.ndarray, fps: float = 15.0) -> Path:
    """Write pictures `(T, H, W, 3)` uint8 as an endless GIF."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(picture).quantize(64) for picture in pictures]
    partial = path.with_name(f".{path.name}.partial")
    options = {"save_all": True, "append_images": images[1:], "duration": round(1000 / fps), "loop": 0}
    images[0].save(partial, format="GIF", **options)
    partial.replace(path)
    return path


def embedding(
    features: np.ndarray, labels: np.ndarray, class_names: Sequence[str], title: str = "", seed: int = 0
) -> Figure:
    """t-SNE of features `(N, D)` (cosine, perplexity 30 or fewer), coloured by class."""
    from sklearn.manifold import TSNE

    if len(features) < 4:
        raise SkelactError(f"t-SNE needs at least 4 clips, got {len(features)}")
    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
    return scatter(tsne.fit_transform(np.asarray(features, dtype=np.float32)), labels, class_names, title)


def scatter(points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], title: str = "") -> Figure:
    """Points `(N, 2)` coloured by class, with a legend of the classes that occur."""
    figure = _figure(7.5, 5.5)
    axes = figure.add_subplot()
    present = np.unique(labels)
    for colour, label in zip(_colours(len(present)), present, strict=True):
        rows = labels == label
        name = class_names[label] if label >= 0 else "unknown"
        axes.scatter(points[rows, 0], points[rows, 1], s=12, color=colour, label=name)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", "datalim")
    axes.set_title(title, fontsize=10, loc="left")
    if len(present) <= 30:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def confusion(labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str], title: str = "") -> Figure:
    """Confusion matrix, rows are true classes and add up to 100 %."""
    count = len(class_names)
    matrix = np.zeros((count, count))
    np.add.at(matrix, (labels, predicted), 1.0)
    total = matrix.sum(1, keepdims=True)
    share = 100 * np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
    side = max(4.5, min(14.0, 0.35 * count + 2))
    figure = _figure(side + 1, side)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    if count <= 60:
        axes.set_xticks(range(count), class_names, rotation=90, fontsize=7)
        axes.set_yticks(range(count), class_names, fontsize=7)
    if count <= 20:
        for i, j in zip(*np.nonzero(share >= 0.5), strict=True):
            axes.text(
                j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=6, color="w" if share[i, j] > 55 else "k"
            )
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def subset_bars(rows: Mapping[str, Mapping[str, tuple[float, float, float]]], title: str = "") -> Figure:
    """Accuracy of every stream subset: row name -> subset -> (value, low, high) in percent."""
    subsets = list(dict.fromkeys(subset for values in rows.values() for subset in values))
    figure = _figure(max(6.0, 1.1 * len(subsets) + 1), 4.0)
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(rows))
    for i, ((name, values), colour) in enumerate(zip(rows.items(), _colours(len(rows)), strict=True)):
        at = [subsets.index(subset) + (i - (len(rows) - 1) / 2) * width for subset in values]
        middle = np.array([value for value, _, _ in values.values()])
        low, high = (np.array([v[k] for v in values.values()]) for k in (1, 2))
        errors = np.nan_to_num(np.clip(np.stack([middle - low, high - middle]), 0, None))
        axes.bar(at, middle, width, yerr=errors, label=name, color=colour, error_kw={"lw": 0.8})
    axes.set_xticks(range(len(subsets)), subsets, rotation=20, ha="right", fontsize=8)
    axes.set(ylabel="top-1 accuracy, %", ylim=(0, 100))
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=len(rows), loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure
