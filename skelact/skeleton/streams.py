"""Streams derived from joint coordinates: bone, motion and bone motion, and where each of them was observed.

All functions take `(..., T, V, C)`, dense views `(N, M, T, V, C)` in particular. Channels after the layout's
coordinates (a score) are not subtracted: the derived point gets the lesser of the two scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from skelact.errors import SkelactError
from skelact.skeleton.constants import constant
from skelact.skeleton.layouts import Layout

STREAMS = ("joint", "bone", "motion", "bone_motion")


def _minus(a: Tensor, b: Tensor, dims: int | None) -> Tensor:
    if dims is None or a.shape[-1] <= dims:
        return a - b
    return torch.cat((a[..., :dims] - b[..., :dims], torch.minimum(a[..., dims:], b[..., dims:])), -1)


def bone(views: Tensor, layout: Layout) -> Tensor:
    """Child minus parent for every joint; the root's bone is zero. `(..., V, C)` to the same shape."""
    parents = constant(tuple(layout.parents), views.device)
    return _minus(views, views.index_select(-2, parents), layout.dims)


def motion(views: Tensor, dims: int | None = None) -> Tensor:
    """Next frame minus this one, zero in the last frame (UmURL's motion modality). `(..., T, V, C)` to the same shape.

    Args:
        views: `(..., T, V, C)`.
        dims: number of coordinates; later channels are scores. None: all channels are coordinates.
    """
    following = views.clone()  # a clone keeps the samplers' memory order, which a concatenation would lose
    following[..., :-1, :, :] = views[..., 1:, :, :]
    return _minus(following, views, dims)


def bone_motion(views: Tensor, layout: Layout) -> Tensor:
    """Motion of the bones. `(..., T, V, C)` to the same shape."""
    return motion(bone(views, layout), layout.dims)


def _check(streams: Sequence[str]) -> None:
    unknown = [stream for stream in streams if stream not in STREAMS]
    if unknown:
        raise SkelactError(f"unknown stream {', '.join(map(repr, unknown))}; there are {', '.join(STREAMS)}")


def derive_masks(mask: Tensor, streams: Sequence[str], layout: Layout) -> dict[str, Tensor]:
    """Where each stream was observed.

    Args:
        mask: `(..., T, V)` bool, observed joints.
        streams: names out of :data:`STREAMS`.
        layout: joint layout.

    Returns:
        stream -> `(..., T, V)` bool. A bone needs both its joints, a motion both its frames; in the last frame, where
        motion is zero by definition, the frame alone.

    Raises:
        SkelactError: unknown stream.
    """
    _check(streams)
    parents = constant(tuple(layout.parents), mask.device)

    def moved(seen: Tensor) -> Tensor:
        return seen & torch.cat((seen[..., 1:, :], seen[..., -1:, :]), -2)

    out: dict[str, Tensor] = {}
    for stream in streams:
        seen = mask & mask.index_select(-1, parents) if stream.startswith("bone") else mask
        out[stream] = moved(seen) if stream.endswith("motion") else seen
    return out


def derive(views: Tensor, streams: Sequence[str], layout: Layout, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Several streams of the same views, each computed once.

    Args:
        views: joint views `(..., T, V, C)`.
        streams: names out of :data:`STREAMS`.
        layout: joint layout of `views`.
        mask: `(..., T, V)` bool, observed joints; derived values that rest on an unobserved joint become zero.

    Returns:
        stream -> `(..., T, V, C)`.

    Raises:
        SkelactError: unknown stream, or V is not the layout's number of joints.
    """
    _check(streams)
    if views.shape[-2] != layout.num_joints:
        raise SkelactError(
            f"layout {layout.name!r} has {layout.num_joints} joints, the views {tuple(views.shape)} have "
            f"{views.shape[-2]}"
        )
    made: dict[str, Tensor] = {"joint": views}
    if "bone" in streams or "bone_motion" in streams:
        made["bone"] = bone(views, layout)
    if "motion" in streams:
        made["motion"] = motion(views, layout.dims)
    if "bone_motion" in streams:
        made["bone_motion"] = motion(made["bone"], layout.dims)
    out = {stream: made[stream] for stream in streams}
    if mask is not None:
        for stream, seen in derive_masks(mask, [name for name in streams if name != "joint"], layout).items():
            out[stream] = out[stream].masked_fill(~seen[..., None], 0)
    return out
