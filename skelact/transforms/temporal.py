"""Augmentations along time: crop, blur and reversal of dense views, each clip with its own draw.

Sources: SkeletonCLR and CrosSCLR (Li et al., CVPR 2021), AimCLR (Guo et al., AAAI 2022), their reference code.

Views are `(N, M, T, V, C)`, masks `(N, M, T, V)` bool or None. Masks follow the frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skelact.errors import SkelactError
from skelact.transforms.base import Params, Transform, check_p, check_preset, present
from skelact.transforms.draws import Draws


def take_frames(views: Tensor, mask: Tensor | None, place: Tensor) -> tuple[Tensor, Tensor | None]:
    """Frames of dense views by their numbers `place` `(N, T')` int64, each clip its own."""
    n, m, t, v, c = views.shape
    shape = (n, place.shape[1], m, v)
    rows = (place + torch.arange(n, device=place.device)[:, None] * t).view(-1)
    # as it lies in memory, so that a frame is one row
    out = views.transpose(1, 2).reshape(n * t, m * v * c).index_select(0, rows).view(*shape, c).transpose(1, 2)
    if mask is not None:
        mask = mask.transpose(1, 2).reshape(n * t, m * v).index_select(0, rows).view(shape).transpose(1, 2)
    return out, mask


class TemporalCrop(Transform):
    """Each clip is padded at both ends with its own frames in reverse and cut to its old length from a random start.

    With p = floor(T / ratio) frames of padding at each end, the start is uniform on {0, ..., 2p}; p leaves the clip as
    it is. The frame at an end is repeated.

    Args:
        ratio: T by the padding at one end; 6, as published, pads 50 frames by 8.

    Raises:
        SkelactError: the ratio is below 1.
    """

    def __init__(self, ratio: float = 6) -> None:
        super().__init__()
        if ratio < 1:
            raise SkelactError(f"ratio must be at least 1, got {ratio}")
        self.ratio = ratio

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`start` `(N,)` int64."""
        return {"start": draws.integers("temporal_crop.start", 2 * self._padding(views) + 1)}

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Frames `start` to `start + T` of the padded views."""
        t = views.shape[2]
        place = torch.arange(t, device=views.device) + params["start"][:, None] - self._padding(views)
        place = torch.where(place < 0, -1 - place, place)
        return take_frames(views, mask, torch.where(place >= t, 2 * t - 1 - place, place))

    def _padding(self, views: Tensor) -> int:
        return int(views.shape[2] / self.ratio)


class TimeFlip(Transform):
    """The frames of a clip in reverse.

    Args:
        p: probability of reversing a clip.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_p(p)

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`reverse` `(N,)` bool."""
        return {"reverse": draws.coin("time_flip", self.p)}

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Reverse the clips where `reverse` is True."""
        frame = torch.arange(views.shape[2], device=views.device)
        return take_frames(views, mask, torch.where(params["reverse"][:, None], frame.flip(0), frame))


class TemporalBlur(Transform):
    """Gaussian blur along time, with the weights exp(-k^2 / 2 sigma^2), |k| <= taps / 2, sigma drawn for each clip.

    As released the weights are not normalised, so that they also magnify a clip up to fivefold (2.7 times on average),
    and what lies before and after the clip counts as zero, as do absent bodies.

    Corrected: each joint becomes the weighted mean of its observed positions in the frames around; an unobserved one
    stays so. Without a mask, a body whose coordinates are all zero in a frame is not there.

    Channels after the coordinates pass.

    Args:
        taps: odd number of weights.
        sigma: range of the standard deviation in frames.
        p: probability of blurring a clip.
        preset: `corrected` or `as_released`.
        dims: number of coordinate channels.

    Raises:
        SkelactError: an option is out of range.
    """

    def __init__(
        self,
        taps: int = 15,
        sigma: tuple[float, float] = (0.1, 2.0),
        p: float = 0.5,
        preset: str = "corrected",
        dims: int = 3,
    ) -> None:
        super().__init__()
        if taps < 1 or taps % 2 == 0:
            raise SkelactError(f"taps must be odd, got {taps}")
        low, high = (float(value) for value in sigma)
        if not 0 < low <= high:
            raise SkelactError(f"sigma must be two numbers with 0 < low <= high, got {list(sigma)}")
        self.taps, self.sigma, self.p, self.dims = int(taps), (low, high), check_p(p), dims
        self.preset = check_preset("TemporalBlur", preset)

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`blur` `(N,)` bool and `sigma` `(N,)`."""
        low, high = self.sigma
        return {"blur": draws.coin("blur.p", self.p), "sigma": draws.uniform("blur.sigma", low=low, high=high)}

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Blur the clips where `blur` is True."""
        n, m, t, v, c = views.shape
        half = self.taps // 2
        sigma = params["sigma"].to(views.dtype)
        step = torch.arange(half + 2, device=views.device, dtype=views.dtype)
        taps = torch.exp(-step.square() / (2 * sigma.square()[:, None]))
        taps[:, half + 1] = 0
        frame = torch.arange(t, device=views.device)
        distance = (frame[:, None] - frame).abs().clamp_max(half + 1)
        weights = taps.index_select(1, distance.view(-1)).view(n, t, t)
        rows = views.transpose(1, 2).contiguous()  # (N, T, M, V, C), as it lies in memory already
        # one product of (T, T) matrices with all joints of a frame: T is short, so this beats a sum of shifted copies
        blurred = (weights @ rows.view(n, t, -1)).view(n, t, m, v, c)
        if mask is not None or self.preset == "corrected":
            seen = present(views, mask).transpose(1, 2).to(views.dtype).contiguous()  # (N, T, M, V or 1, 1)
            if self.preset == "corrected":
                total = (weights @ seen.view(n, t, -1)).view(seen.shape)
                seen = seen / total.clamp_min(1e-6)  # what is observed has a weight of 1 at least
            blurred *= seen
        if c > self.dims:
            blurred[..., self.dims :] = rows[..., self.dims :]
        # exact at 0 and 1, and on a CPU several times as fast as where()
        chosen = params["blur"].to(views.dtype)[:, None]
        torch.lerp(rows.view(n, -1), blurred.view(n, -1), chosen, out=blurred.view(n, -1))
        return blurred.transpose(1, 2), mask
