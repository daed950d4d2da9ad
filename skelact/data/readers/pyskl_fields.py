"""Fields of annotations that strangers wrote: read where they are of the right kind, described briefly where not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: Longest name of a clip; the store's table is as wide as the longest.
MAX_NAME = 500


def as_dict(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def name_of(note: Any) -> str | None:
    """A clip's name; None where there is none that can be printed."""
    name = as_dict(note).get("frame_dir", as_dict(note).get("filename"))
    return str(name) if isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable() else None


def brief(value: Any) -> str:
    """A value from the file in a message; a container only by its kind, for its text may be endless."""
    return repr(value[:20] if isinstance(value, str) else value)[:40] if _simple(value) else type(value).__name__


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, np.number))


def as_numbers(value: Any) -> np.ndarray | None:
    """As float32 array; None where it is no array of numbers."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.ndim == 0:
        return None
    with np.errstate(over="ignore"):  # becomes infinite, which is reported
        return value.astype(np.float32)


def image_sides(note: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the image; None where they are not told."""
    shape = note.get("img_shape", note.get("original_shape"))
    shape = list(shape[:2]) if isinstance(shape, np.ndarray) and shape.ndim == 1 else shape
    if not isinstance(shape, (tuple, list)) or len(shape) < 2:
        return None
    sides = shape[:2]
    if not all(isinstance(side, (int, np.integer)) and 0 < side < 1 << 20 for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def people_in(note: Any) -> int:
    """How many people an annotation has at most in a frame."""
    points, frames = as_dict(note).get("keypoint"), as_dict(note).get("frame_inds")
    if isinstance(points, np.ndarray) and points.ndim == 4:
        return points.shape[0]
    if isinstance(frames, np.ndarray) and frames.dtype.kind in "iu" and frames.ndim == 1 and len(frames):
        return int(np.unique(frames, return_counts=True)[1].max())
    return 1


def stamp_of(path: Path) -> tuple[int, ...]:
    """Size and time of a file; nothing where it is missing, which is reported when it is read."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
