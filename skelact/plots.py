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


class _Stage:
    """A clip `(T, M, V, C)` and the window in which its frames are drawn, with unobserved joints left out."""

    def __init__(self, frames: np.ndarray, layout: Layout, mask: np.ndarray | None, title: str) -> None:
        frames = np.asarray(frames, dtype=np.float64)
        self.layout, self.title = layout, title
        self.seen = seen = np.ones(frames.shape[:3], dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        if not seen.any():
            raise SkelactError(f"clip {title!r}: no joint was observed in any frame")
        self.across, self.up = across, up = frames[..., 0], frames[..., 1] * (1.0 if layout.dims == 3 else -1.0)
        centre = np.array([np.ptp(a[seen]) / 2 + a[seen].min() for a in (across, up)])
        reach = max(np.ptp(across[seen]), np.ptp(up[seen]), 1e-6) * 0.58
        self.window = {"xlim": (centre[0] - reach, centre[0] + reach), "ylim": (centre[1] - reach, centre[1] + reach)}
        parts = {joint: name for name, joints in layout.parts.items() for joint in joints}
        self.limbs = [_PARTS.get(parts.get(joint, ""), "#444444") for joint in range(layout.num_joints)]

    def pick(self, count: int) -> np.ndarray:
        """Numbers of at most so many frames, evenly spaced."""
        total = len(self.seen)
        return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int))

    def draw(self, axes: Any, t: int, colours: np.ndarray | None = None) -> None:
        """One frame; joints and the bones that end in them in `colours` `(T, M, V, 3)`, else bones by body part."""
        axes.clear()
        axes.set(**self.window)
        axes.set_aspect("equal")
        axes.set_axis_off()
        for m in range(self.seen.shape[1]):
            at, up, seen = self.across[t, m], self.up[t, m], self.seen[t, m]
            for child, parent in self.layout.bones:
                if seen[child] and seen[parent]:
                    colour = self.limbs[child] if colours is None else colours[t, m, child]
                    axes.plot(at[[child, parent]], up[[child, parent]], color=colour, lw=2)
            dots = {"s": 6, "color": "#222222"} if colours is None else {"s": 14, "color": colours[t, m][seen]}
            axes.scatter(at[seen], up[seen], zorder=3, **dots)


def clip_frames(
    frames: np.ndarray,
    layout: Layout,
    mask: np.ndarray | None = None,
    title: str = "",
    max_frames: int = 60,
    size: int = 320,
    importance: np.ndarray | None = None,
    released: bool = False,
) -> np.ndarray:
    """A skeleton clip as pictures.

    Args:
        frames: `(T, M, V, C)` coordinates, C of 2 or 3, the unit of the source; y points up in 3D and down in 2D.
        layout: joints and bones.
        mask: `(T, M, V)` True where observed; a bone with an unobserved end is left out.
        title: printed above.
        max_frames: longer clips are thinned out evenly.
        size: width and height of a picture in pixels.
        importance: `(T, M, V)` of joints, for colours as in :func:`attention`; None: colours of body parts.
        released: see :func:`attention`.

    Returns:
        `(T', size, size, 3)` uint8.
    """
    stage = _Stage(frames, layout, mask, title)
    colours = None if importance is None else _heat(importance, stage.seen, released)[0]
    figure = _figure(size / 100, size / 100, dpi=100)
    axes = figure.add_subplot()
    pictures = []
    for t in stage.pick(max_frames):
        stage.draw(axes, t, colours)
        axes.set_title(title, fontsize=7)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]
    return np.stack(pictures)


def _heat(importance: np.ndarray, seen: np.ndarray, released: bool) -> tuple[np.ndarray, Any]:
    """Colours `(T, M, V, 3)` between blue and red, and the scale that explains them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    values = np.where(seen, np.asarray(importance, dtype=np.float64), 0.0)
    ends = [(0.0, "#0000ff"), (1 / 3, "#ff0000"), (1.0, "#ff0000")] if released else ["#0000ff", "#ff0000"]
    blend = LinearSegmentedColormap.from_list("blend", ends)
    low, high = (0.0, values.max()) if released else (values[seen].min(), values[seen].max())
    scale = ScalarMappable(Normalize(low, max(high, low + 1e-9), clip=True), blend)
    return np.asarray(blend(scale.norm(values)))[..., :3], scale


def attention(
    frames: np.ndarray,
    importance: np.ndarray,
    layout: Layout,
    mask: np.ndarray | None = None,
    title: str = "",
    count: int = 6,
    released: bool = False,
) -> Figure:
    """Frames of a clip side by side, joints from blue to red by their importance.

    Args:
        frames: `(T, M, V, C)`, as for :func:`clip_frames`.
        importance: `(T, M, V)`.
        layout: joints and bones.
        mask: `(T, M, V)` True where observed; other joints are left out.
        title: printed above.
        count: frames shown, evenly spaced.
        released: red from a third of the clip's largest importance on and blue at 0, as MaskCLR's code draws it, which
            shows no difference where attention is nearly even; otherwise from the clip's smallest to its largest.
    """
    stage = _Stage(frames, layout, mask, title)
    colours, scale = _heat(importance, stage.seen, released)
    pick = stage.pick(count)
    figure = _figure(1.7 * len(pick) + 1, 2.6)
    panels = figure.subplots(1, len(pick), squeeze=False)[0]
    for axes, t in zip(panels, pick, strict=True):
        stage.draw(axes, t, colours)
        axes.set_title(f"frame {t}", fontsize=8)
    figure.colorbar(scale, ax=list(panels), label="attention received (1: even)", shrink=0.9)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure


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
    return scatter(_tsne(features, seed), labels, class_names, title)


def _tsne(features: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    if len(features) < 4:
        raise SkelactError(f"t-SNE needs at least 4 clips, got {len(features)}")
    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
    return np.asarray(tsne.fit_transform(np.asarray(features, dtype=np.float32)))


def scatter(points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], title: str = "") -> Figure:
    """Points `(N, 2)` coloured by class, with a legend of the classes that occur."""
    figure = _figure(7.5, 5.5)
    axes = figure.add_subplot()
    _points(axes, points, labels, class_names)
    axes.set_title(title, fontsize=10, loc="left")
    _class_legend(axes)
    return figure


def pathways(
    features: Mapping[str, np.ndarray], labels: np.ndarray, class_names: Sequence[str], title: str = "", seed: int = 0
) -> Figure:
    """One t-SNE of what several pathways make of the same clips, a panel each, all on one scale.

    Args:
        features: name of the pathway -> `(N, D)`.
        labels: `(N,)`.
        class_names: names of the classes.
        title: printed above.
        seed: of t-SNE.
    """
    together = _tsne(np.concatenate(list(features.values())), seed)
    figure = _figure(4.4 * len(features) + 1.8, 4.8)
    panels = figure.subplots(1, len(features), squeeze=False)[0]
    middle, reach = (together.max(0) + together.min(0)) / 2, 0.53 * np.ptp(together, axis=0).max()
    for axes, name, points in zip(panels, features, np.split(together, len(features)), strict=True):
        _points(axes, points, labels, class_names)
        axes.set_aspect("equal", "box")
        axes.set(xlim=middle[0] + reach * np.array([-1, 1]), ylim=middle[1] + reach * np.array([-1, 1]))
        axes.set_title(f"{name} pathway", fontsize=9)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    _class_legend(panels[-1])
    return figure


def _points(axes: Any, points: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    present = np.unique(labels)
    for i, (colour, label) in enumerate(zip(_colours(len(present)), present, strict=True)):
        rows = labels == label
        name = class_names[label] if label >= 0 else "unknown"
        marker = "o^sDv"[i // 20 % 5]  # there are twenty colours
        axes.scatter(points[rows, 0], points[rows, 1], s=12, color=colour, marker=marker, label=name)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", "datalim")


def _class_legend(axes: Any) -> None:
    if len(axes.get_legend_handles_labels()[1]) <= 30:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


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
    many = len(rows) > 4  # names that would not stand side by side
    figure = _figure(max(6.0, 1.1 * len(subsets) + 1) + 2.5 * many, 4.0)
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
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if many else {"ncols": len(rows), "loc": "lower right"}
    axes.legend(fontsize=8, frameon=False, **({"bbox_to_anchor": (1.0, 1.0)} | place))
    return figure
