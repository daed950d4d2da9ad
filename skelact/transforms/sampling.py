"""Samplers: ragged clips in, dense views `(N, M, T, V, C)` of a fixed number of frames out.

A span of each clip is resampled by one gather with one pair of weights per output frame (:func:`resample`), or frames
are picked by their indices in one gather (:func:`take`), whatever the lengths of the clips.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws


def resample(clips: RaggedClips, start: Tensor, length: Tensor, frames: int) -> tuple[Tensor, Tensor | None]:
    """Resample a span of each clip to a fixed number of frames.

    Linear interpolation with half-pixel centres and no anti-aliasing, as `torch.nn.functional.interpolate` does it with
    `align_corners=False` (UmURL and its relatives resize clips this way).

    Args:
        clips: N clips.
        start: `(N,)` int64, first frame of the span, counted from the start of the clip.
        length: `(N,)` int64, frames in the span, at least 1.
        frames: T, frames wanted.

    Returns:
        views `(N, M, T, V, C)` float32, whose memory is `(N, T, M, V, C)`, and mask `(N, M, T, V)` or None. With a mask
        only observed neighbours contribute; a joint is observed if a neighbour with a weight above zero was, and is
        zero otherwise.
    """
    m, v, c = clips.shape
    n = len(clips)
    # single precision like the original, so that the weights agree to the last bit
    scale = length.to(torch.float32) / frames
    position = (torch.arange(frames, device=clips.device, dtype=torch.float32) + 0.5) * scale[:, None] - 0.5
    position = position.clamp_min(0)
    low = torch.minimum(position.long(), length[:, None] - 1)
    weight = (position - low).clamp(0, 1)
    high = torch.minimum(low + 1, length[:, None] - 1)
    high = torch.where(weight > 0, high, low)  # a neighbour without weight must not be looked at
    first = (clips.start + start)[:, None]
    rows = torch.stack((first + low, first + high), -1).view(-1, 2)
    weights = torch.stack((1 - weight, weight), -1).view(-1, 2)
    table = clips.frames.reshape(len(clips.frames), m * v * c)

    if clips.mask is None:
        if table.dtype == torch.float32:  # gather and interpolation in one pass
            out = functional.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
        else:
            before, after = (functional.embedding(row, table).float() for row in rows.unbind(1))
            out = torch.lerp(before, after, weights[:, 1:])
        return out.view(n, frames, m, v, c).transpose(1, 2), None

    seen = clips.mask.reshape(len(clips.mask), m * v)
    seen_low, seen_high = (functional.embedding(row, seen) for row in rows.unbind(1))
    observed = seen_low | seen_high
    # where one neighbour is missing the other has all the weight
    share = torch.where(seen_low & seen_high, weights[:, 1:], seen_high.to(weights.dtype))
    before, after = (functional.embedding(row, table).float() for row in rows.unbind(1))
    out = torch.lerp(before, after, share.repeat_interleave(c, 1)).view(-1, m * v, c)
    out.masked_fill_(~observed[..., None], 0)
    return (
        out.view(n, frames, m, v, c).transpose(1, 2),
        observed.view(n, frames, m, v).transpose(1, 2),
    )


def take(clips: RaggedClips, indices: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Pick frames of each clip, as they are.

    Args:
        clips: N clips.
        indices: `(N, T)` int64, counted from the start of the clip, each below its length.
        valid: `(N, T)` bool, False where there is no such frame; None: everywhere there is.

    Returns:
        views `(N, M, T, V, C)` float32, whose memory is `(N, T, M, V, C)`, and mask `(N, M, T, V)`, or None where clips
        have no mask and all frames are valid. What was not observed is zero.
    """
    m, v, c = clips.shape
    n, frames = indices.shape
    rows = (clips.start[:, None] + indices).view(-1)
    views = clips.frames.index_select(0, rows).float()
    seen = None if clips.mask is None else clips.mask.index_select(0, rows)
    if valid is not None:
        there = valid.reshape(-1, 1, 1).expand(-1, m, v)
        seen = there.contiguous() if seen is None else seen & there
    if seen is not None:
        views = views.masked_fill(~seen[..., None], 0)
        seen = seen.view(n, frames, m, v).transpose(1, 2)
    return views.view(n, frames, m, v, c).transpose(1, 2), seen


class Sampler(nn.Module, ABC):
    """Makes dense views of ragged clips.

    Args:
        frames: T, frames of a view.

    Raises:
        SkelactError: fewer than one frame asked for.
    """

    evaluates = True
    """Whether there are views without draws, so that a method can be evaluated on them."""

    def __init__(self, frames: int = 64) -> None:
        super().__init__()
        if frames < 1:
            raise SkelactError(f"frames must be at least 1, got {frames}")
        self.frames = int(frames)

    @abstractmethod
    def forward(self, clips: RaggedClips, draws: Draws | None = None) -> tuple[Tensor, Tensor | None]:
        """Views `(N, M, T, V, C)` float32 and mask `(N, M, T, V)` or None; without draws, those for evaluation."""

    def extra_repr(self) -> str:
        """The options, for printing."""
        return ", ".join(f"{key}={value}" for key, value in vars(self).items() if key[0] != "_" and key != "training")


class SpanSampler(Sampler):
    """A span of consecutive frames of each clip, resampled to T frames by interpolation."""

    @abstractmethod
    def draw(self, length: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Start and length `(N,)` int64 of the span to take from clips of `length` `(N,)` frames."""

    def forward(self, clips: RaggedClips, draws: Draws | None = None) -> tuple[Tensor, Tensor | None]:
        """Views `(N, M, T, V, C)` float32 and mask `(N, M, T, V)` or None."""
        return resample(clips, *self.draw(clips.length, draws), self.frames)


class CropResize(SpanSampler):
    """A random span of each clip, resized (UmURL's temporal crop-resize; Sun et al., ACM MM 2023, reference code).

    Of n frames, `min(max(floor(n s), min_crop), n)` consecutive ones are taken, s uniform on `ratio`, from a uniformly
    random start.

    Args:
        frames: T, frames of a view.
        ratio: range of the share of a clip that a crop covers.
        min_crop: shortest crop; clips that are not longer are taken whole. None: `frames`, as published.

    Raises:
        SkelactError: the range is not within (0, 1], or a number is below 1.
    """

    evaluates = False

    def __init__(self, frames: int = 64, ratio: tuple[float, float] = (0.1, 1.0), min_crop: int | None = None) -> None:
        super().__init__(frames)
        low, high = (float(value) for value in ratio)
        if not 0 < low <= high <= 1:
            raise SkelactError(f"ratio must be two numbers with 0 < low <= high <= 1, got {list(ratio)}")
        self.ratio = (low, high)
        self.min_crop = self.frames if min_crop is None else int(min_crop)
        if self.min_crop < 1:
            raise SkelactError(f"min_crop must be at least 1, got {min_crop}")

    def draw(self, length: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Start and length `(N,)` int64 of the crops."""
        if draws is None:
            raise SkelactError(
                "CropResize is random and needs draws; use CenterCrop for evaluation (sampling@method.sampler=whole)"
            )
        low, high = self.ratio
        crop = self.crop_length(length, draws.uniform("crop.ratio", low=low, high=high))
        return draws.integers("crop.start", length - crop + 1), crop

    def crop_length(self, length: Tensor, share: Tensor) -> Tensor:
        """Frames `(N,)` int64 in crops of clips of `length` `(N,)` frames whose drawn shares are `share` `(N,)`."""
        return torch.minimum((length * share.double()).long().clamp_min(self.min_crop), length)


class CenterCrop(SpanSampler):
    """The middle of each clip, resized; nothing random (UmURL's evaluation crop, `ratio=1.0`: the whole clip).

    Args:
        frames: T, frames of a view.
        ratio: share of the clip that is taken.

    Raises:
        SkelactError: the ratio is not within (0, 1].
    """

    def __init__(self, frames: int = 64, ratio: float = 1.0) -> None:
        super().__init__(frames)
        if not 0 < ratio <= 1:
            raise SkelactError(f"ratio must be above 0 and at most 1, got {ratio}")
        self.ratio = float(ratio)

    def draw(self, length: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Start and length `(N,)` int64 of the middles."""
        start = ((1 - self.ratio) * length.double() / 2).long()
        start = torch.minimum(start, (length - 1) // 2)  # at least one frame stays
        return start, length - 2 * start
