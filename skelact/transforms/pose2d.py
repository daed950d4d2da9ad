"""Augmentation and scaling of MotionBERT's action recognition (Zhu et al., ICCV 2023), which MaskCLR uses as well.

Made for 2D poses (x, y, score); 3D poses are moved in the image plane and scaled along all axes. Views are
`(N, M, T, V, C)`, masks `(N, M, T, V)` bool or None. Who is absent stays at zero. The released code moves and scales
absent people like any others, by which they become a point somewhere (`preset=as_released`, and views without a mask).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.skeleton.layouts import Layout, get_layout
from skelact.transforms.base import Params, Transform, check_preset, present
from skelact.transforms.draws import Draws
from skelact.transforms.indexing import UniformIndex

#: Fewer observed joints than this in a whole clip make no box.
FEWEST = 4


class _Pose(Transform):
    """Something done to the coordinates of a layout.

    Args:
        layout: joint layout, for the number of coordinates.
        preset: `corrected` or `as_released`.
    """

    def __init__(self, layout: Layout | Mapping[str, Any] | str, preset: str) -> None:
        super().__init__()
        self.dims = get_layout(layout).dims
        self.preset = check_preset(type(self).__name__, preset)

    def _stays(self, views: Tensor, mask: Tensor | None) -> Tensor | None:
        """`(N, M, T, V or 1, 1)` bool, True where there is nobody to be moved; None: nowhere."""
        return None if mask is None and self.preset == "as_released" else ~present(views, mask)


class RandomMove(_Pose):
    """All people of a clip turned, scaled and shifted, by amounts that change linearly over the frames (MotionBERT).

    Each amount is drawn for the first and for the last frame. Turned about the origin, in the plane of x and y:
    p' = s R(a) p + d. The third coordinate of a 3D pose is scaled. Channels after the coordinates stay.

    Args:
        layout: joint layout, for the number of coordinates.
        angle: greatest angle either way, radians.
        scale: range of the scale.
        shift: greatest shift of x and of y either way, in the unit of the views.
        preset: `corrected` or `as_released`.
    """

    def __init__(
        self,
        layout: Layout | Mapping[str, Any] | str,
        angle: float = math.pi / 18,
        scale: tuple[float, float] = (0.9, 1.1),
        shift: float = 0.1,
        preset: str = "corrected",
    ) -> None:
        super().__init__(layout, preset)
        self.angle, self.shift = float(angle), float(shift)
        self.low, self.high = (float(value) for value in scale)

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`angle` `(N, 2)` radians, `scale` `(N, 2)`, `shift` `(N, 2, 2)` of x and y; the last axis: start, end."""
        return {
            "angle": draws.uniform("move.angle", 2, low=-self.angle, high=self.angle),
            "scale": draws.uniform("move.scale", 2, low=self.low, high=self.high),
            "shift": draws.uniform("move.shift", 2, 2, low=-self.shift, high=self.shift),
        }

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Move by the given amounts."""
        ramp = torch.linspace(0, 1, views.shape[2], device=views.device, dtype=views.dtype)

        def over_time(ends: Tensor) -> Tensor:  # (N, 2) to (N, 1, T, 1)
            start, end = ends.to(views.dtype).unbind(-1)
            return torch.lerp(start[:, None], end[:, None], ramp)[:, None, :, None]

        angle, scale = over_time(params["angle"]), over_time(params["scale"])
        cos, sin = scale * angle.cos(), scale * angle.sin()
        x, y = views[..., 0], views[..., 1]
        out = views.clone()
        out[..., 0] = cos * x - sin * y + over_time(params["shift"][:, 0])
        out[..., 1] = sin * x + cos * y + over_time(params["shift"][:, 1])
        if self.dims == 3:
            out[..., 2] = scale * views[..., 2]
        away = self._stays(views, mask)
        return out if away is None else torch.where(away, views, out), mask


class CropScale(_Pose):
    """Each clip put into the middle of [-1, 1] and scaled to fill 1/r of it, r random (MotionBERT's `crop_scale`).

    The box is that of all people, frames and joints of a clip that were observed and, where the views have a score,
    have one that is not 0. Its longest side times r becomes the side of the new frame; all channels are cut to [-1, 1].
    A clip with fewer than 4 such joints, or without extent, becomes zero altogether (and unobserved), as released.

    Args:
        layout: joint layout, for the number of coordinates; a channel after them is a score.
        ratio: range of r. Published: 1 to 3 in training, 2 in evaluation.
        preset: `corrected` or `as_released`.

    Raises:
        SkelactError: the range is not above 0.
    """

    def __init__(
        self,
        layout: Layout | Mapping[str, Any] | str,
        ratio: tuple[float, float] = (1.0, 3.0),
        preset: str = "corrected",
    ) -> None:
        super().__init__(layout, preset)
        self.low, self.high = (float(value) for value in ratio)
        if not 0 < self.low <= self.high:
            raise SkelactError(f"ratio must be two numbers with 0 < low <= high, got {list(ratio)}")

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`ratio` `(N,)`."""
        return {"ratio": draws.uniform("crop_scale.ratio", low=self.low, high=self.high)}

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale by the given ratios."""
        points, away = views[..., : self.dims], self._stays(views, mask)
        seen = torch.ones_like(views[..., 0], dtype=torch.bool) if away is None else ~away[..., 0]
        if views.shape[-1] > self.dims:
            seen = seen & (views[..., self.dims] != 0)
        elsewhere = ~seen.expand(views.shape[:-1])[..., None]
        low = points.masked_fill(elsewhere, math.inf).amin((1, 2, 3), keepdim=True)
        high = points.masked_fill(elsewhere, -math.inf).amax((1, 2, 3), keepdim=True)
        side = (high - low).amax(-1, keepdim=True) * params["ratio"].to(views.dtype).view(-1, 1, 1, 1, 1)
        sound = ((~elsewhere).sum((1, 2, 3), keepdim=True) >= FEWEST) & (side > 0)
        scaled = 2 * ((points - (low + high - side) / 2) / side - 0.5)
        out = torch.cat((scaled, views[..., self.dims :]), -1).clamp(-1, 1)
        out = out.masked_fill(~sound if away is None else ~sound | away, 0)
        return out, None if mask is None else mask & sound[..., 0]


class CropScaledIndex(UniformIndex):
    """Evenly spaced frames, scaled as by :class:`CropScale` with a fixed ratio: MotionBERT's evaluation.

    Args:
        layout: joint layout, for the number of coordinates.
        frames: T, frames of a view; published with 243, for one-shot with 100.
        ratio: how many times its box a clip's frame is.
        preset: `corrected` or `as_released`.
    """

    random = False

    def __init__(
        self,
        layout: Layout | Mapping[str, Any] | str,
        frames: int = 64,
        ratio: float = 2.0,
        preset: str = "corrected",
    ) -> None:
        super().__init__(frames, jitter=False)
        self.ratio = float(ratio)
        self.crop = CropScale(layout, (ratio, ratio), preset)

    def forward(self, clips: RaggedClips, draws: Draws | None = None) -> tuple[Tensor, Tensor | None]:
        """Views `(N, M, T, V, C)` float32 and mask `(N, M, T, V)` or None."""
        views, mask = super().forward(clips, None)
        return self.crop.replay(views, mask, ratio=views.new_full((len(views),), self.ratio))
