"""The colours of depth: an 8-bit index into the 256 colours of matplotlib's *jet*, applied when frames are used.

Source: the recipe of ActionMAE (Woo et al., AAAI 2023), applied there offline: each frame scaled to its own range,
coloured with jet, channels times 255 and truncated. The index loses nothing of that recipe and needs a third of the
room.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

#: Corners (position, value) of jet's red, green and blue, as matplotlib defines them.
_JET = (
    ((0.0, 0.0), (0.35, 0.0), (0.66, 1.0), (0.89, 1.0), (1.0, 0.5)),
    ((0.0, 0.0), (0.125, 0.0), (0.375, 1.0), (0.64, 1.0), (0.91, 0.0), (1.0, 0.0)),
    ((0.0, 0.5), (0.11, 1.0), (0.34, 1.0), (0.65, 0.0), (1.0, 0.0)),
)


@cache
def jet_table() -> np.ndarray:
    """`(256, 3)` uint8: red, green and blue of each index, read only."""
    position = np.linspace(0, 1, 256)
    channels = []
    for corners in _JET:
        places, values = zip(*corners, strict=True)
        channels.append(np.interp(position, places, values))
    table = (np.stack(channels, axis=1) * 255).astype(np.uint8)
    table.flags.writeable = False
    return table


def jet_index(depth: np.ndarray, span: Sequence[int] | None = None) -> np.ndarray:
    """Index of each pixel of one frame.

    Args:
        depth: `(H, W)` whole numbers, 0 to 65535.
        span: None scales the frame to its own smallest and largest value, as published (a frame of one value is index
            0 everywhere); `(near, far)` is the same scale for every frame: near and below become 0, far and above 255.

    Returns:
        `(H, W)` uint8.
    """
    low, high = (int(depth.min()), int(depth.max())) if span is None else (int(span[0]), int(span[1]))
    if high <= low:
        return np.zeros(depth.shape, np.uint8)
    # In whole numbers: the same as matplotlib's float64 division, times 256 and truncated, as the quotients of numbers
    # below 2^16 lie far apart. One division a value, not a pixel.
    steps = np.minimum(np.arange(high - low + 1, dtype=np.uint32) * 256 // (high - low), 255).astype(np.uint8)
    return steps[np.clip(depth.astype(np.uint16, copy=False), low, high) - np.uint16(low)]


def colour_depth(index: np.ndarray) -> np.ndarray:
    """Colours of indices `(...)` uint8 as `(..., 3)` uint8."""
    return jet_table()[index]
