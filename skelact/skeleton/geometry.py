"""Rotations, batched. Matrices act on columns: x' = R x; :func:`rotate` applies them to the channel axis."""

from __future__ import annotations

import torch
from torch import Tensor

from skelact.skeleton.constants import constant
from skelact.skeleton.layouts import LayoutError

_TINY = 1e-6  # below this the reference code takes an axis or an angle for zero


def axis_vector(name: str) -> tuple[float, float, float]:
    """Unit vector of an axis given as x, y, z, -x, -y or -z.

    Raises:
        LayoutError: any other name.
    """
    letter = name.removeprefix("-")
    if letter not in ("x", "y", "z") or len(name) > 2:
        raise LayoutError(f"there is no axis {name!r}; give x, y, z or one of them with a minus sign")
    sign = -1.0 if name.startswith("-") else 1.0
    x, y, z = (sign * float(letter == axis) for axis in "xyz")
    return x, y, z


def rotation_about(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotation by `angle` about `axis` (Rodrigues' formula), counter-clockwise seen against the axis.

    Args:
        axis: `(..., 3)`, of any positive length; a zero axis gives the identity.
        angle: `(...)` radians.

    Returns:
        `(..., 3, 3)`.
    """
    axis, _ = torch.broadcast_tensors(axis, angle[..., None])
    norm = axis.norm(dim=-1, keepdim=True)
    x, y, z = torch.where(norm > 0, axis / norm.clamp_min(torch.finfo(axis.dtype).tiny), axis).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    sine, cosine = angle.sin()[..., None, None], angle.cos()[..., None, None]
    identity = torch.eye(3, dtype=axis.dtype, device=axis.device)
    return identity + sine * cross + (1 - cosine) * (cross @ cross)


def yaw_matrix(angle: Tensor, up: str = "y") -> Tensor:
    """Rotation `(..., 3, 3)` by `angle` `(...)` radians about the vertical axis."""
    return rotation_about(constant(axis_vector(up), angle.device, angle.dtype), angle)


def euler_matrix(yaw: Tensor, pitch: Tensor, roll: Tensor, up: str = "y") -> Tensor:
    """Rotation `(..., 3, 3)`: first roll, then pitch, then yaw (radians, each `(...)`).

    Yaw is about the vertical, pitch about x (about y where x is the vertical), roll about the remaining axis.
    """
    letters = [letter for letter in "xyz" if letter != up.removeprefix("-")]
    about_pitch, about_roll = (constant(axis_vector(letter), yaw.device, yaw.dtype) for letter in letters)
    return yaw_matrix(yaw, up) @ rotation_about(about_pitch, pitch) @ rotation_about(about_roll, roll)


def align_to(vector: Tensor, target: Tensor) -> Tensor:
    """The rotation that makes `vector` parallel to `target`, about their common normal.

    As in the preprocessing of 2s-AGCN and UmURL the identity is returned where the normal's 1-norm or the angle is
    below 1e-6; vectors that point exactly opposite ways therefore stay so.

    Args:
        vector: `(..., 3)`.
        target: `(..., 3)` or `(3,)`.

    Returns:
        `(..., 3, 3)`.
    """
    vector, target = torch.broadcast_tensors(vector, target)
    normal = torch.linalg.cross(vector, target)
    lengths = vector.norm(dim=-1) * target.norm(dim=-1)
    cosine = (vector * target).sum(-1) / lengths.clamp_min(torch.finfo(vector.dtype).tiny)
    angle = torch.where(lengths > 0, cosine.clamp(-1, 1).acos(), torch.zeros_like(cosine))
    keep = (normal.abs().sum(-1) < _TINY) | (angle.abs() < _TINY)
    return rotation_about(normal, torch.where(keep, torch.zeros_like(angle), angle))


def rotate(points: Tensor, matrix: Tensor) -> Tensor:
    """Apply `matrix` `(..., 3, 3)` to the first three channels of `points` `(..., C)`; later channels stay.

    The leading axes of `matrix` are broadcast against those of `points`.
    """
    turned = (matrix @ points[..., :3, None]).squeeze(-1)
    return turned if points.shape[-1] == 3 else torch.cat((turned, points[..., 3:].expand(*turned.shape[:-1], -1)), -1)
