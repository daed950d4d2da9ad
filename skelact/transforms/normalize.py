"""Normalisation of whole clips: where the origin lies and which way a body faces.

The modes, all of them maps of ragged clips to ragged clips with the same starts and lengths:

* ``none``: nothing.
* ``center``: the centre joint of person 0 is subtracted frame by frame, so the path through the room disappears.
* ``front``: ``center``, then each clip is turned about the vertical so that the shoulder line of its first frame, left
  to right, points to +x.
* ``umurl``: the preprocessing of 2s-AGCN (Shi et al., CVPR 2019) as UmURL's reference code runs it: each person's empty
  leading frames are dropped and the empty tail is filled by repeating that person's sequence; ``center``; then the one
  rotation that makes the shoulder line of the first frame parallel to +x, about the common normal of the two.

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
from skelact.skeleton.geometry import align_to, yaw_matrix
from skelact.skeleton.layouts import Layout, get_layout

MODES = ("none", "center", "front", "umurl")


class Normalize(nn.Module):
    """Normalise ragged clips.

    Args:
        mode: ``none``, ``center``, ``front`` or ``umurl`` (see the module's text).
        layout: joint layout of the clips: its centre joint, shoulders, vertical axis and number of coordinates.
        chunk: frames worked on at a time; bounds the memory beside the result.

    Raises:
        SkelactError: unknown mode, or one that turns clips asked of a 2D layout or of one whose x axis is vertical.
    """

    def __init__(self, mode: str, layout: Layout | Mapping[str, Any] | str, chunk: int = 65_536) -> None:
        super().__init__()
        if mode not in MODES:
            raise SkelactError(f"unknown normalisation {mode!r}; there are {', '.join(MODES)}")
        self.mode, self.layout, self.chunk = mode, get_layout(layout), int(chunk)
        if mode in ("front", "umurl") and self.layout.dims != 3:
            raise SkelactError(
                f"normalisation {mode!r} needs 3D joints, layout {self.layout.name!r} has 2D ones; use center"
            )
        if mode == "front" and self.layout.up.endswith("x"):
            raise SkelactError(
                f"normalisation 'front' turns towards +x, which is vertical in layout {self.layout.name!r}"
            )

    def extra_repr(self) -> str:
        """The options, for printing."""
        return f"mode={self.mode}, layout={self.layout.name}"

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
        if self.mode == "none":
            return clips
        _, v, c = clips.shape
        if v != self.layout.num_joints or c < self.layout.dims:
            raise SkelactError(
                f"layout {self.layout.name!r} has {self.layout.num_joints} joints with {self.layout.dims} coordinates, "
                f"the clips {v} joints with {c} channels"
            )
        frames = clips.frames.clone()
        mask = None if clips.mask is None else clips.mask.clone()
        for part in self._chunks(clips):
            rows = part.frame_rows()
            with torch.autocast(clips.device.type, enabled=False):  # centimetres do not survive half precision
                points, seen = self._normalize(part, rows)
            frames[rows] = points.to(frames.dtype)
            if mask is not None and seen is not None:
                mask[rows] = seen
        return replace(clips, frames=frames, mask=mask)

    def _chunks(self, clips: RaggedClips) -> Iterator[RaggedClips]:
        """The clips, some at a time."""
        end = clips.length.cumsum(0).cpu()
        first = done = 0
        while first < len(clips):
            last = max(int(torch.searchsorted(end, done + self.chunk, right=True)), first + 1)
            yield clips.select(torch.arange(first, last, device=clips.start.device))
            first, done = last, int(end[last - 1])

    def _normalize(self, clips: RaggedClips, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Frames `(G, M, V, C)` float32 of `rows` `(G,)`, normalised, and their mask `(G, M, V)`."""
        layout, owner = self.layout, clips.owner()
        points = clips.frames[rows].float()
        seen = None if clips.mask is None else clips.mask[rows]
        base = clips.length.cumsum(0) - clips.length  # each clip's first row in `points`
        dims = layout.dims
        if self.mode == "umurl":
            present = points[..., :dims].sum((-2, -1)) != 0 if seen is None else seen.any(-1)
            source = _fill_empty(present, owner, base)
            points = points.gather(0, source[..., None, None].expand_as(points))
            seen = None if seen is None else seen.gather(0, source[..., None].expand_as(seen))

        # a joint whose coordinates cancel out counts as absent in the reference code; kept
        there = points[..., :dims].sum(-1) != 0 if seen is None else seen
        center = points[:, 0, layout.center, :dims]
        if seen is not None:
            center = center[_last_observed(seen[:, 0, layout.center], owner, base)]
        moved = (points[..., :dims] - center[:, None, None]).masked_fill_(~there[..., None], 0)
        if self.mode in ("front", "umurl"):
            left, right = layout.shoulders
            first = base
            if seen is not None:
                first = _first_observed(seen[:, 0, left] & seen[:, 0, right], owner, base)
            matrix = self._facing((moved[first, 0, right] - moved[first, 0, left]).double()).float()
            g, m, v, _ = moved.shape
            moved = torch.bmm(moved.view(g, m * v, 3), matrix[owner].transpose(1, 2)).view(g, m, v, 3)
        points[..., :dims] = moved
        return points, seen

    def _facing(self, shoulders: Tensor) -> Tensor:
        """`(N, 3, 3)` from the vectors left to right shoulder `(N, 3)`."""
        if self.mode == "umurl":
            return align_to(shoulders, shoulders.new_tensor((1.0, 0.0, 0.0)))
        x, y, z = shoulders.unbind(-1)
        vertical = self.layout.up[-1]
        # a vector without a horizontal part has the angle 0
        return yaw_matrix(torch.atan2(z, x) if vertical == "y" else torch.atan2(-y, x), up=vertical)


def _fill_empty(present: Tensor, owner: Tensor, base: Tensor) -> Tensor:
    """For each frame and person the row to take instead: leading empty frames dropped, the empty tail filled.

    Args:
        present: `(G, M)` bool, frames that are not empty.
        owner: `(G,)` clip of each frame.
        base: `(N,)` first row of each clip.

    Returns:
        `(G, M)` int64 rows.
    """
    g, m = present.shape
    n = len(base)
    row = torch.arange(g, device=present.device)[:, None].expand(g, m)
    first = base[owner][:, None]
    by_clip = owner[:, None].expand(g, m)
    count = torch.zeros(n, m, dtype=torch.int64, device=present.device).index_add_(0, owner, present.long())
    last = torch.full_like(count, -1).scatter_reduce_(0, by_clip, torch.where(present, row, -1), "amax")
    late = ~present[base]  # the person is not there in the clip's first frame
    # frames of the sequence that is repeated; one where there is none, to divide by
    period = torch.where(late, count, last - base[:, None] + 1).clamp_min(1)[owner]
    wanted = (row - first) % period
    # rows of present frames, in order and without gaps
    running = present.long().cumsum(0)
    rank = running - 1 - (running[base] - present[base].long())[owner]
    packed = row.clone()
    person = torch.arange(m, device=present.device).expand(g, m)
    packed[(first + rank)[present], person[present]] = row[present]
    taken = torch.where(late[owner], packed.gather(0, first + wanted), first + wanted)
    return torch.where(count[owner] > 0, taken, row)


def _last_observed(seen: Tensor, owner: Tensor, base: Tensor) -> Tensor:
    """For each frame `(G,)` the latest row of its clip that was seen, else the first that will be, else itself."""
    row = torch.arange(len(seen), device=seen.device)
    latest = torch.where(seen, row, -1).cummax(0).values
    return torch.where(latest >= base[owner], latest, _first_observed(seen, owner, base)[owner])


def _first_observed(seen: Tensor, owner: Tensor, base: Tensor) -> Tensor:
    """For each clip `(N,)` the first row that was seen, else its first row."""
    row = torch.arange(len(seen), device=seen.device)
    first = torch.full_like(base, len(seen)).scatter_reduce_(0, owner, torch.where(seen, row, len(seen)), "amin")
    return torch.where(first < len(seen), first, base)
