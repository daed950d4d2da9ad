"""Which frames of a clip to take: rules from lengths to indices, for skeletons, images and any other frames alike.

A rule gets the lengths `(N,)` of N clips, at least 1 each, and how many frames T are wanted, and gives indices `(N, T)`
int64 within each clip, `0 <= index < length`. Where it is random it also gets numbers uniform on [0, 1), of which those
of one clip decide about that clip alone: pass :meth:`skelact.transforms.draws.Draws.uniform`, or recorded numbers to
replay a published run. Without them it gives the rule for evaluation. Nothing here reads a frame, so the same indices
serve every modality of a clip.
"""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_index(length: Tensor, frames: int, unit: Tensor | None = None) -> Tensor:
    """Evenly spaced frames (MotionBERT, Zhu et al., ICCV 2023, and MaskCLR; their reference code).

    Frame i is `floor(e_i)` with `e_i = i n / T` for a clip of n frames. Random: of a clip with fewer than T frames each
    `e_i` is rounded down or up by a fair coin, then sorted; else `floor(e_i + u_i n / T)`.

    Args:
        length: `(N,)` int64.
        frames: T.
        unit: `(N, T)` uniform on [0, 1); of a short clip 0.5 and more rounds down. None: evaluation.

    Returns:
        `(N, T)` int64, ascending.
    """
    step = length.double()[:, None] / frames
    exact = torch.arange(frames, device=length.device, dtype=torch.float64) * step
    if unit is None:
        return exact.long()
    down = exact.floor()
    rounded = torch.where(unit >= 0.5, down, exact.ceil())
    moved = torch.where(length[:, None] < frames, rounded, exact + unit.double() * step)
    return torch.minimum(moved.long(), length[:, None] - 1).sort(1).values


def linspace_index(length: Tensor, frames: int, unit: Tensor | None = None) -> Tensor:
    """Evenly spaced frames from the first to the last (the NW-UCLA feeder of CTR-GCN, Chen et al., ICCV 2021).

    Frame i is `floor(i (n - 1) / (T - 1))`. Random: T frames drawn independently, in order of time, so that some come
    several times. (The reference code draws without replacement from 100 copies of each frame, nearly the same.)

    Args:
        length: `(N,)` int64.
        frames: T.
        unit: `(N, T)` uniform on [0, 1). None: evaluation.

    Returns:
        `(N, T)` int64, ascending.
    """
    if unit is not None:
        return (unit.double() * length[:, None]).long().sort(1).values
    last = length[:, None] - 1
    spaced = torch.arange(frames, device=length.device, dtype=torch.float64) * (last.double() / max(frames - 1, 1))
    spaced = spaced.long()
    if frames > 1:
        spaced[:, -1:] = last  # whatever rounding made of it
    return spaced


def segment_index(length: Tensor, frames: int, unit: Tensor | None = None) -> Tensor:
    """One frame of each of T equal segments (UniformSample of PySkl; Duan et al., CVPR 2022).

    Random: a clip of at least 2 T frames is cut into T segments, and each gives one frame. Between T and 2 T frames all
    but T of the clip's frames, at random, are skipped, at most one in a place. A shorter clip is repeated from a random
    frame on. Evaluation takes the middle of each segment, of a short clip the repetition from its first frame.

    Args:
        length: `(N,)` int64.
        frames: T.
        unit: `(N, T + 1)` uniform on [0, 1). None: evaluation.

    Returns:
        `(N, T)` int64, ascending where the clip has at least T frames.
    """
    n = length[:, None]
    place = torch.arange(frames, device=length.device)
    if unit is None:
        return torch.where(n < frames, place % n, (2 * place + 1) * n // (2 * frames))
    unit = unit.double()
    repeated = ((unit[:, :1] * n).long() + place) % n
    rank = unit.argsort(dim=1, stable=True).argsort(1)
    skipped = (rank < n - frames).long().cumsum(1)[:, :frames]
    begin = place * n // frames
    segment = (place + 1) * n // frames - begin
    drawn = begin + (unit[:, :frames] * segment).long()
    return torch.where(n < frames, repeated, torch.where(n < 2 * frames, place + skipped, drawn))


def video_index(length: Tensor, frames: int, unit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Frames of a video clip (ActionMAE; Woo et al., AAAI 2023, reference code).

    A clip with fewer than T frames gives all of them. Of others evaluation takes `round(i n / T)`, halves to even;
    random: T different frames, in order of time.

    Args:
        length: `(N,)` int64.
        frames: T.
        unit: `(N, at least the longest clip)` uniform on [0, 1), a number for each frame of a clip. None: evaluation.

    Returns:
        `(N, T)` int64, ascending, and `(N, T)` bool: False behind the end of a short clip, where the index is the last
        frame's.
    """
    n, place = length[:, None], torch.arange(frames, device=length.device)
    if unit is None:
        picked = (place.double() * n / frames).round().long()
    else:
        beyond = torch.arange(unit.shape[1], device=length.device) >= n
        order = unit.double().masked_fill(beyond, 2.0).argsort(dim=1, stable=True)[:, :frames]
        picked = place.expand(len(length), -1).clone()
        picked[:, : order.shape[1]] = order  # fewer where all clips are short
        picked = picked.sort(1).values
    return torch.where(n < frames, torch.minimum(place, n - 1), picked), place < n
