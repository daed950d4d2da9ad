"""The "frame50" views of CrosSCLR and AimCLR: each body in its own upright frame of reference, 50 frames.

Sources: AimCLR (Guo et al., AAAI 2022) and CrosSCLR (Li et al., CVPR 2021), the preprocessing scripts of their
reference code. There the views are made once and written to disk; here they are made when a batch is sampled, so they
combine with any dataset, pipeline and augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.skeleton.layouts import Layout, get_layout
from skelact.transforms.base import check_preset
from skelact.transforms.bodies import direction, first_observed, in_clip, in_plane, turned
from skelact.transforms.draws import Draws
from skelact.transforms.normalize import Normalize, joint_index
from skelact.transforms.sampling import Sampler, resample


class Frame50(Sampler):
    """Each body centred on a joint frame by frame, resized in time, then turned to face the camera frame by frame.

    As released: the frames [0, L) are resized, L being the number of frames in which joint 0 of person 0 is not at the
    origin, so that empty frames at the start cost as many at the end. Zeros count as coordinates; a mask is not looked
    at and not returned. Each frame of a body is turned by the angle between its shoulder line and +x, whose sign is
    decided once for the clip; frames that face the other way are turned away instead.

    Corrected: the frames from the first to the last with a body are resized, unobserved joints neither count nor
    appear, and each frame is turned by the signed angle.

    Deterministic; augmentations follow it.

    Args:
        frames: T, frames of a view.
        layout: joint layout: its shoulders and vertical axis.
        center: joint that becomes the origin, by name or index. None: where the shoulders meet (joint 20 of ntu25, as
            published), else the layout's centre.
        preset: `corrected` or `as_released`.

    Raises:
        SkelactError: an unknown preset or joint, a 2D layout, or one whose x axis is vertical.
    """

    random = False

    def __init__(
        self,
        frames: int = 50,
        layout: Layout | Mapping[str, Any] | str = "ntu25",
        center: str | int | None = None,
        preset: str = "corrected",
    ) -> None:
        super().__init__(frames)
        self._layout = get_layout(layout)
        if self._layout.dims != 3 or self._layout.up.endswith("x"):
            raise SkelactError(
                f"frame50 turns bodies about the vertical towards +x, which layout {self._layout.name!r} does not "
                f"allow ({self._layout.dims}D, up={self._layout.up}); use another sampling, e.g. whole"
            )
        self._center = _chest(self._layout) if center is None else joint_index(self._layout, center)
        self.layout, self.center = self._layout.name, self._layout.joints[self._center]
        self.preset = check_preset("frame50", preset)

    def forward(self, clips: RaggedClips, draws: Draws | None = None) -> tuple[Tensor, Tensor | None]:
        """Views `(N, M, T, V, C)` float32 and mask `(N, M, T, V)` or None; `draws` are not used."""
        _, v, c = clips.shape
        if v != self._layout.num_joints or c < 3:
            raise SkelactError(f"frame50: layout {self.layout!r} does not fit clips of {v} joints with {c} channels")
        released = self.preset == "as_released"
        if clips.mask is not None:
            clips = clips.compact()
            assert clips.mask is not None
            if released:
                clips = replace(clips, frames=clips.frames.masked_fill(~clips.mask[..., None], 0), mask=None)
            else:  # before the interpolation, which a joint may enter with one neighbour and the centre with two
                clips = Normalize("body", self._layout, center=self._center)(clips)
        start, length = released_span(clips) if released else occupied_span(clips)
        views, mask = resample(clips, start, length, self.frames)
        rows = views.transpose(1, 2)  # (N, T, M, V, C), as it lies in memory
        if mask is None:
            rows[..., :3] -= rows[..., self._center : self._center + 1, :3].clone()
        left, right = self._layout.shoulders
        line = in_plane(rows[..., right, :] - rows[..., left, :], self._layout)
        if released:
            cosine = line[..., 0] / (line.norm(dim=-1) + 1e-4)
            sign = torch.where(line[..., 1].sum(1, keepdim=True) >= 0, 1.0, -1.0)
            towards = torch.stack((cosine, sign * (1 - cosine.square()).sqrt()), -1)
        else:
            if mask is not None:
                line = _carried(line, (mask[..., left] & mask[..., right]).transpose(1, 2))
            towards = direction(line)
        return turned(rows, towards, self._layout).transpose(1, 2), mask


def _chest(layout: Layout) -> int:
    left, right = (layout.parents[joint] for joint in layout.shoulders)
    return left if left == right and left not in layout.shoulders else layout.center


def _carried(values: Tensor, seen: Tensor) -> Tensor:
    """`values` `(N, T, M, D)`, where not `seen` `(N, T, M)` as they last were or else first will be."""
    frames = values.shape[1]
    place = torch.arange(frames, device=values.device)[None, :, None].expand(seen.shape)
    latest = torch.where(seen, place, -1).cummax(1).values
    earliest = torch.where(seen, place, frames - 1).amin(1, keepdim=True)
    source = torch.where(latest >= 0, latest, earliest)
    return values.gather(1, source[..., None].expand_as(values))


def released_span(clips: RaggedClips) -> tuple[Tensor, Tensor]:
    """Start 0 and, as length `(N,)`, the number of frames in which joint 0 of person 0 is not at the origin.

    Where that is none, the whole clip.
    """
    there = (clips.frames[clips.frame_rows(), 0, 0, :3] != 0).any(-1)
    count = torch.zeros_like(clips.length).index_add_(0, clips.owner(), there.long())
    return torch.zeros_like(count), torch.where(count > 0, count, clips.length)


def occupied_span(clips: RaggedClips) -> tuple[Tensor, Tensor]:
    """Start and length `(N,)` of the frames from the first to the last with a body, else of the whole clip.

    A body is there where something of it was observed; without a mask, where its joint 0 is not at the origin.
    """
    rows, owner = clips.frame_rows(), clips.owner()
    if clips.mask is None:
        there = (clips.frames[rows, :, 0, :3] != 0).flatten(1).any(1)
    else:
        there = clips.mask[rows].flatten(1).any(1)
    base = clips.length.cumsum(0) - clips.length
    first = first_observed(there, owner, base)
    place = torch.arange(len(rows), device=rows.device)
    last = torch.full_like(base, -1).scatter_reduce_(0, owner, torch.where(there, place, -1), "amax")
    found = in_clip(there, owner, len(base))
    return torch.where(found, first - base, 0), torch.where(found, last - first + 1, clips.length)


def clip_motion(clips: RaggedClips, preset: str = "corrected", padded: int = 300) -> RaggedClips:
    """Difference of each frame to the next, of whole clips before anything is resampled.

    What AimCLR and UmURL write beside the coordinates (UmURL's motion modality, AimCLR's unused `motion` array). They
    take it of arrays padded with zeros, so that the last difference of a clip is minus the pose, some fifty times
    larger than real motion: `as_released` keeps that. `corrected` has zero there, and where a joint was not observed in
    both frames. Training makes its motion stream of sampled views instead (`skelact.skeleton.streams.motion`).

    Args:
        clips: N clips `(F, M, V, C)`, all channels coordinates.
        preset: `corrected` or `as_released`.
        padded: frames of the padded array; clips of that length or more end in zero.

    Returns:
        the clips, compact; the mask, where there is one and `corrected`, says which differences are known.

    Raises:
        SkelactError: unknown preset.
    """
    check_preset("clip_motion", preset)
    clips = clips.compact()
    frames, mask = clips.frames.float(), clips.mask
    if mask is not None:
        frames = frames.masked_fill(~mask[..., None], 0)
    following = frames.roll(-1, 0)
    last = clips.start + clips.length - 1
    if preset == "as_released":
        rest = torch.where((clips.length < padded)[:, None, None, None], 0.0, frames[last])
        following[last] = rest
        return replace(clips, frames=following - frames, mask=None)
    following[last] = frames[last]
    difference = following - frames
    if mask is not None:
        after = mask.roll(-1, 0)
        after[last] = mask[last]
        mask = mask & after
        difference = difference.masked_fill_(~mask[..., None], 0)
    return replace(clips, frames=difference, mask=mask)
