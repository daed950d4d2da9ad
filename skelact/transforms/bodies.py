"""What normalisations are made of: where bodies are, where they stand and which way they face, many clips at once.

Frames of several clips lie one after another, `(G, M, V, C)`; `owner` `(G,)` is the clip of each frame and `base`
`(N,)` the first frame of each clip. All steps are whole-table operations without a loop over clips.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skelact.skeleton.constants import constant
from skelact.skeleton.layouts import Layout


def fill_empty(present: Tensor, owner: Tensor, base: Tensor) -> Tensor:
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


def has_gaps(present: Tensor, owner: Tensor, count: int) -> bool:
    """Whether a person is there in some frames of one of `count` clips but not in all, so that there is what to fill.

    Args:
        present: `(G, M)` bool, frames that are not empty.
        owner: `(G,)` clip of each frame.
        count: N, number of clips.
    """
    return bool((in_clip(present, owner, count) & in_clip(~present, owner, count)).any())


def of_rows(table: Tensor, rows: Tensor) -> Tensor:
    """For each frame and person of `table` `(G, M, ...)` what stands in row `rows` `(G, M)` for that person."""
    m = table.shape[1]
    flat = (rows * m + torch.arange(m, device=rows.device)).view(-1)
    return table.flatten(0, 1).index_select(0, flat).view(table.shape)


def rotated(axes: list[Tensor], matrix: Tensor) -> Tensor:
    """Points `(G, M, V, 3)` from their three coordinates `(G, M, V)`, turned by the matrix `(G, 3, 3)` of their frame.

    Products and sums are rounded one by one in a fixed order, so a clip comes out the same to the last bit whatever it
    is batched with.
    """
    out = torch.empty(*axes[0].shape, 3, dtype=axes[0].dtype, device=axes[0].device)
    parts = matrix[..., None, None].unbind(1)
    first, term = torch.empty_like(axes[0]), torch.empty_like(axes[0])
    for j, part in enumerate(parts):
        torch.mul(axes[0], part[:, 0], out=first)
        first += torch.mul(axes[1], part[:, 1], out=term)
        torch.add(first, torch.mul(axes[2], part[:, 2], out=term), out=out[..., j])
    return out


def last_observed(seen: Tensor, owner: Tensor, base: Tensor) -> Tensor:
    """For each frame `(G,)` the latest row of its clip that was seen, else the first that will be, else itself."""
    row = torch.arange(len(seen), device=seen.device)
    latest = torch.where(seen, row, -1).cummax(0).values
    return torch.where(latest >= base[owner], latest, first_observed(seen, owner, base)[owner])


def first_observed(seen: Tensor, owner: Tensor, base: Tensor) -> Tensor:
    """For each clip `(N,)` the first row that was seen, else its first row."""
    row = torch.arange(len(seen), device=seen.device)
    first = torch.full_like(base, len(seen)).scatter_reduce_(0, owner, torch.where(seen, row, len(seen)), "amin")
    return torch.where(first < len(seen), first, base)


def present(points: Tensor, seen: Tensor | None) -> Tensor:
    """Where a body is there at all, `(G, M)` bool: something of it was observed.

    Without a mask zeros speak: a body is absent where its coordinates add up to exactly zero, as in the published code.

    Args:
        points: `(G, M, V, D)` coordinates.
        seen: `(G, M, V)` bool or None.
    """
    return points.sum((-2, -1)) != 0 if seen is None else seen.any(-1)


def in_clip(there: Tensor, owner: Tensor, count: int) -> Tensor:
    """Whether something of `there` `(G, ...)` bool is in each of `count` clips, `(count, ...)` bool."""
    found = torch.zeros(count, *there.shape[1:], dtype=torch.int32, device=there.device)
    return found.index_add_(0, owner, there.int()) > 0


def copy_absent(points: Tensor, seen: Tensor | None, owner: Tensor, base: Tensor) -> tuple[Tensor, Tensor | None]:
    """Bodies that are absent throughout a clip become copies of its first body (CTR-GCN on NTU RGB+D 120).

    Args:
        points: `(G, M, V, C)`.
        seen: `(G, M, V)` bool or None.
        owner: `(G,)` clip of each frame.
        base: `(N,)` first row of each clip.
    """
    there = (points != 0).any(-1).any(-1) if seen is None else seen.any(-1)
    absent = ~in_clip(there, owner, len(base))[owner]
    points = torch.where(absent[..., None, None], points[:, :1], points)
    return points, None if seen is None else torch.where(absent[..., None], seen[:, :1], seen)


def body_centers(points: Tensor, seen: Tensor | None, joint: int, owner: Tensor, base: Tensor) -> Tensor:
    """The joint of each body and frame, `(G, M, D)`; where it was not observed, as it last was or else first will be.

    Args:
        points: `(G, M, V, D)` coordinates.
        seen: `(G, M, V)` bool or None.
        joint: index of the joint.
        owner: `(G,)` clip of each frame.
        base: `(N,)` first row of each clip.
    """
    centers = points[:, :, joint]
    if seen is None:
        return centers
    rows = torch.stack([last_observed(one, owner, base) for one in seen[:, :, joint].unbind(1)], 1)
    return centers.gather(0, rows[..., None].expand_as(centers))


def body_facing(points: Tensor, seen: Tensor | None, layout: Layout, owner: Tensor, base: Tensor) -> Tensor:
    """Horizontal part of the line from left to right shoulder of each body and frame, `(G, M, 2)`.

    Where a shoulder was not observed, the line as it last was or else first will be.

    Args:
        points: `(G, M, V, 3)` coordinates.
        seen: `(G, M, V)` bool or None.
        layout: tells shoulders and vertical.
        owner: `(G,)` clip of each frame.
        base: `(N,)` first row of each clip.
    """
    left, right = layout.shoulders
    line = in_plane(points[:, :, right] - points[:, :, left], layout)
    if seen is None:
        return line
    both = seen[:, :, left] & seen[:, :, right]
    rows = torch.stack([last_observed(one, owner, base) for one in both.unbind(1)], 1)
    return line.gather(0, rows[..., None].expand_as(line))


def horizontal(layout: Layout) -> list[int]:
    """The two horizontal axes of a layout, x first; x itself must not be vertical."""
    return [0, 2] if layout.up[-1] == "y" else [0, 1]


def in_plane(points: Tensor, layout: Layout) -> Tensor:
    """The two horizontal coordinates of `(..., C)`: `(..., 2)`."""
    return torch.stack([points[..., axis] for axis in horizontal(layout)], -1)


def direction(line: Tensor) -> Tensor:
    """Unit vectors along `line` `(..., 2)`; (1, 0), which turns nothing, where it is zero."""
    norm = line.norm(dim=-1, keepdim=True)
    return torch.where(
        norm > 0, line / norm.clamp_min(torch.finfo(line.dtype).tiny), constant((1.0, 0.0), line.device, line.dtype)
    )


def turned(points: Tensor, towards: Tensor, layout: Layout) -> Tensor:
    """Points turned about the vertical by the angle that takes the direction `towards` to +x.

    Args:
        points: `(..., V, C)`; channels after the third stay.
        towards: `(..., 2)`, cosine and sine: unit vectors in the plane of :func:`horizontal`.
        layout: tells the vertical.
    """
    a, b = horizontal(layout)
    cosine, sine = towards[..., None, 0], towards[..., None, 1]
    out = points.clone()
    out[..., a] = cosine * points[..., a] + sine * points[..., b]
    out[..., b] = cosine * points[..., b] - sine * points[..., a]
    return out


def scaled_to_box(points: Tensor, there: Tensor, owner: Tensor, count: int) -> Tensor:
    """Each axis of each clip scaled to [-1, 1] over all its joints and frames; 0 where it does not vary.

    Args:
        points: `(G, M, V, D)` coordinates.
        there: `(G, M, V)` bool, joints that count.
        owner: `(G,)` clip of each frame.
        count: N, number of clips.
    """
    g, m, v, d = points.shape
    by_clip = owner[:, None].expand(g, d)
    ends = []
    for worst, reduce in ((torch.inf, "amin"), (-torch.inf, "amax")):
        of_frame = getattr(points.masked_fill(~there[..., None], worst).view(g, m * v, d), reduce)(1)
        ends.append(points.new_full((count, d), worst).scatter_reduce_(0, by_clip, of_frame, reduce))
    low, size = ends[0], ends[1] - ends[0]
    flat = ~(size > 0)  # also clips without anything
    scale = torch.where(flat, 0, 2 / size)[owner][:, None, None]
    return (points - torch.where(flat, 0, low)[owner][:, None, None]) * scale - (~flat).to(points.dtype)[owner][
        :, None, None
    ]
