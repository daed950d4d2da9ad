"""Normalisation of whole clips: where the origin lies and which way a body faces.

The modes, all of them maps of ragged clips to ragged clips with the same starts and lengths:

* ``none``: nothing.
* ``center``: the centre joint of person 0 is subtracted frame by frame, so the path through the room disappears.
* ``first_frame``: the centre joint of person 0 in the first frame that has it is subtracted from everything, so the
  path stays (CTR-GCN, Chen et al., ICCV 2021, and MAMP).
* ``front``: ``center``, then each clip is turned about the vertical so that the shoulder line of its first frame, left
  to right, points to +x.
* ``umurl``: the preprocessing of 2s-AGCN (Shi et al., CVPR 2019) as UmURL's reference code runs it: each person's empty
  leading frames are dropped and the empty tail is filled by repeating that person's sequence; ``center``; then the one
  rotation that makes the shoulder line of the first frame parallel to +x, about the common normal of the two.
* ``cmd``: the same as 2s-AGCN and CMD (Mao et al., ECCV 2022) have it, with one more rotation before that of the
  shoulders: it makes the line from the hips' joint to the centre parallel to +z. z points up afterwards.
* ``body``: each person's own centre joint is subtracted frame by frame; what lay between two people is lost.
* ``body_front``: ``body``, then each person is turned about the vertical, frame by frame, so that the shoulder line
  points to +x. As published with an interpolation in between: :class:`skelact.transforms.frame50.Frame50`.
* ``minmax``: ``first_frame``, then each axis scaled to [-1, 1] over all joints and frames of the clip (the NW-UCLA
  feeder of CTR-GCN). The proportions of the body then depend on the motion.

With a mask, what was not observed does not count: a frame is empty if none of its joints was, a frame without the
centre joint is centred as the last one that had it, and "first frame" is the first with both shoulders. Without a mask
zeros speak, as in the reference code: a frame is empty and a joint absent if its coordinates add up to exactly zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.objectives import without_autocast
from skelact.skeleton.geometry import align_to, yaw_matrix
from skelact.skeleton.layouts import Layout, get_layout
from skelact.transforms.bodies import (
    body_centers,
    body_facing,
    copy_absent,
    direction,
    fill_empty,
    first_observed,
    has_gaps,
    last_observed,
    of_rows,
    present,
    rotated,
    scaled_to_box,
    turned,
)

MODES = ("none", "center", "first_frame", "front", "umurl", "cmd", "body", "body_front", "minmax")
FILLS = ("none", "copy")
_TURNING = ("front", "umurl", "cmd", "body_front")


class Normalize(nn.Module):
    """Normalise ragged clips.

    Args:
        mode: one of :data:`MODES` (see the module's text).
        layout: joint layout of the clips: its centre joint, shoulders, vertical axis and number of coordinates.
        chunk: frames worked on at a time; bounds the memory beside the result. Fastest is what fits a
            processor's cache.
        center: joint taken as the centre, by name or index; None: the layout's.
        fill: what becomes of a person slot that is empty throughout a clip: `none`, it stays empty; `copy`, it gets a
            copy of person 0 (CTR-GCN and MAMP on NTU RGB+D 120).

    Raises:
        SkelactError: unknown mode, fill or centre, or a mode that turns clips asked of a 2D layout, of one whose x axis
            is vertical, or of one that lacks the joints it turns by.
    """

    def __init__(
        self,
        mode: str,
        layout: Layout | Mapping[str, Any] | str,
        chunk: int = 4096,
        center: str | int | None = None,
        fill: str = "none",
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise SkelactError(f"unknown normalisation {mode!r}; there are {', '.join(MODES)}")
        if fill not in FILLS:
            raise SkelactError(f"normalisation: fill={fill!r} is not one of {', '.join(FILLS)}")
        self.mode, self.layout, self.chunk, self.fill = mode, get_layout(layout), int(chunk), fill
        self.center = joint_index(self.layout, center)
        if mode in _TURNING and self.layout.dims != 3:
            raise SkelactError(
                f"normalisation {mode!r} needs 3D joints, layout {self.layout.name!r} has 2D ones; use center"
            )
        if mode in ("front", "body_front") and self.layout.up.endswith("x"):
            raise SkelactError(
                f"normalisation {mode!r} turns towards +x, which is vertical in layout {self.layout.name!r}"
            )
        self._hips = _hips_joint(self.layout) if mode == "cmd" else self.center
        if mode == "cmd" and self._hips == self.center:
            raise SkelactError(
                f"normalisation 'cmd' aligns the line from the hips' joint to the centre, which are one in layout "
                f"{self.layout.name!r}; say which joint is the centre, or use umurl"
            )

    def extra_repr(self) -> str:
        """The options, for printing."""
        return (
            f"mode={self.mode}, layout={self.layout.name}, center={self.layout.joints[self.center]}, fill={self.fill}"
        )

    @torch.no_grad()
    def forward(self, clips: RaggedClips) -> RaggedClips:
        """Normalised clips; frames of no clip are left as they are.

        The result has a frame table of its own, as large as the given one: of a batch that uses little of a big table,
        normalise `clips.compact()`.

        Args:
            clips: N clips `(F, M, V, C)` that share no frames.

        Returns:
            clips of the same starts, lengths and dtype, with a mask where they had one.

        Raises:
            SkelactError: the clips do not have the layout's joints.
        """
        if self.mode == self.fill == "none":
            return clips
        _, v, c = clips.shape
        if v != self.layout.num_joints or c < self.layout.dims:
            raise SkelactError(
                f"layout {self.layout.name!r} has {self.layout.num_joints} joints with {self.layout.dims} coordinates, "
                f"the clips {v} joints with {c} channels"
            )
        end = clips.length.cumsum(0)
        # clips one after another that use every frame, as loaders read them: slices instead of gathers
        packed = len(clips) > 0 and clips.device.type == "cpu"  # others would wait for the answer
        packed = packed and int(end[-1]) == len(clips.frames) and bool((clips.start == end - clips.length).all())
        frames = torch.empty_like(clips.frames) if packed else clips.frames.clone()
        mask = None if clips.mask is None else clips.mask.clone()
        for part, first, last in self._chunks(clips, end):
            rows = slice(first, last) if packed else part.frame_rows()
            with without_autocast(clips.frames):  # centimetres do not survive half precision
                points, seen = self._normalize(part, clips.frames[rows], None if mask is None else mask[rows])
            frames[rows] = points.to(frames.dtype)
            if mask is not None and seen is not None:
                mask[rows] = seen
        return replace(clips, frames=frames, mask=mask)

    def _chunks(self, clips: RaggedClips, end: Tensor) -> Iterator[tuple[RaggedClips, int, int]]:
        """The clips, some at a time, each with its range among the frames of all clips one after another.

        On an accelerator a batch whose frames were counted is done at once: it has no cache that chunks should fit.
        """
        if clips.device.type != "cpu" and clips.total is not None:
            yield clips, 0, clips.total
            return
        end, first, done = end.cpu(), 0, 0
        while first < len(clips):
            last = max(int(torch.searchsorted(end, done + self.chunk, right=True)), first + 1)
            until = int(end[last - 1])
            yield clips.select(torch.arange(first, last, device=clips.start.device)), done, until
            first, done = last, until

    def _normalize(self, clips: RaggedClips, points: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The clips' frames `(G, M, V, C)`, normalised, as float32, and their mask `(G, M, V)`."""
        owner, dims = clips.owner(), self.layout.dims
        points = points.float()
        base = clips.length.cumsum(0) - clips.length  # each clip's first row in `points`
        if self.mode in ("umurl", "cmd"):
            bodies = present(points[..., :dims], seen)
            if has_gaps(bodies, owner, len(base)):
                source = fill_empty(bodies, owner, base)
                points = of_rows(points, source)
                seen = None if seen is None else of_rows(seen, source)
        if self.mode != "none":
            moved = self._moved(points[..., :dims], seen, owner, base)
            points = moved if dims == points.shape[-1] else torch.cat((moved, points[..., dims:]), -1)
        return copy_absent(points, seen, owner, base) if self.fill == "copy" else (points, seen)

    def _moved(self, points: Tensor, seen: Tensor | None, owner: Tensor, base: Tensor) -> Tensor:
        """Coordinates `(G, M, V, D)` normalised; what is not there stays, or becomes, zero."""
        mode = self.mode
        if mode in ("body", "body_front"):
            moved = points - body_centers(points, seen, self.center, owner, base)[:, :, None]
            if seen is not None:
                moved = moved.masked_fill_(~seen[..., None], 0)
            if mode == "body":
                return moved
            return turned(moved, direction(body_facing(moved, seen, self.layout, owner, base)), self.layout)

        if mode in ("first_frame", "minmax"):
            bodies = present(points, seen)
            there = bodies[..., None].expand(points.shape[:-1]) if seen is None else seen
            first = first_observed(bodies[:, 0] if seen is None else seen[:, 0, self.center], owner, base)
            moved = points - points[first, 0, self.center][owner][:, None, None]
            if mode == "minmax":
                moved = scaled_to_box(moved, there, owner, len(base))
            return moved.masked_fill_(~there[..., None], 0)

        center = points[:, 0, self.center]
        if seen is not None:
            center = center[last_observed(seen[:, 0, self.center], owner, base)]
        # axis by axis: runs of M x V numbers instead of three, which is several times faster
        axes = points.unbind(-1)
        # a joint whose coordinates cancel out counts as absent in the reference code; kept
        absent = _total(axes) == 0 if seen is None else ~seen
        shifted: list[Tensor] = [
            (axis - at[:, None, None]).masked_fill_(absent, 0) for axis, at in zip(axes, center.unbind(-1), strict=True)
        ]
        if self.mode == "center":
            return torch.stack(shifted, -1)
        return rotated(shifted, self._facing(shifted, seen, owner, base).float()[owner])

    def _facing(self, moved: list[Tensor], seen: Tensor | None, owner: Tensor, base: Tensor) -> Tensor:
        """The rotation `(N, 3, 3)` of each clip, whose coordinates are `moved`, one `(G, M, V)` for each axis."""
        left, right = self.layout.shoulders

        def line(start: int, end: int) -> Tensor:
            first = base if seen is None else first_observed(seen[:, 0, start] & seen[:, 0, end], owner, base)
            return torch.stack([axis[first, 0, end] - axis[first, 0, start] for axis in moved], -1).double()

        shoulders = line(left, right)
        if self.mode == "front":
            x, y, z = shoulders.unbind(-1)
            vertical = self.layout.up[-1]
            # a vector without a horizontal part has the angle 0
            return yaw_matrix(torch.atan2(z, x) if vertical == "y" else torch.atan2(-y, x), up=vertical)
        across = shoulders.new_tensor((1.0, 0.0, 0.0))
        if self.mode == "umurl":
            return align_to(shoulders, across)
        upright = align_to(line(self._hips, self.center), shoulders.new_tensor((0.0, 0.0, 1.0)))
        return align_to((upright @ shoulders[..., None]).squeeze(-1), across) @ upright


def make_normalizer(option: str | Mapping[str, Any] | None, layout: Layout) -> Normalize | None:
    """What a data config asks for: nothing, a mode by name, or options of :class:`Normalize` without the layout.

    Raises:
        SkelactError: unknown mode or options that it does not take.
    """
    if option is None:
        return None
    if isinstance(option, str):
        return Normalize(option, layout)
    allowed = ("mode", "center", "fill", "chunk")
    unknown = [str(key) for key in option if key not in allowed]
    if unknown or "mode" not in option:
        wrong = f"no {', '.join(unknown)}" if unknown else "and needs mode"
        raise SkelactError(f"data.normalize takes {', '.join(allowed)}, {wrong}; got {dict(option)}")
    return Normalize(**option, layout=layout)


def joint_index(layout: Layout, joint: str | int | None) -> int:
    """Index of a joint given by name or index, the layout's centre where it is None.

    Raises:
        SkelactError: there is no such joint.
    """
    if joint is None:
        return layout.center
    if isinstance(joint, str):
        return layout.index(joint)
    if not 0 <= joint < layout.num_joints:
        raise SkelactError(f"layout {layout.name!r} has no joint {joint}; it has 0 to {layout.num_joints - 1}")
    return int(joint)


def _total(axes: tuple[Tensor, ...]) -> Tensor:
    """The sum of coordinates, in order."""
    total = axes[0]
    for axis in axes[1:]:
        total = total + axis
    return total


def _hips_joint(layout: Layout) -> int:
    """The joint both legs hang off; the centre where the layout does not say."""
    ends = {layout.parents[legs[0]] for name, legs in layout.parts.items() if name.endswith("_leg") and legs}
    return ends.pop() if len(ends) == 1 else layout.center
