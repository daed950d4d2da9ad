"""Augmentations of dense views: corruption, shear, rotation, masked axes, noise, flip, each clip with its own draw.

Views are `(N, M, T, V, C)`, masks `(N, M, T, V)` bool or None. Unobserved joints stay at zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skelact.errors import SkelactError
from skelact.skeleton.constants import constant
from skelact.skeleton.geometry import euler_matrix, rotation_about
from skelact.skeleton.layouts import Layout, get_layout
from skelact.transforms.base import Compose, OneOf, Params, Transform, apply_matrix, check_p, check_preset, present
from skelact.transforms.draws import Draws

__all__ = [
    "AxisMask",
    "AxisRotation",
    "Compose",
    "Flip",
    "JointCorruption",
    "JointNoise",
    "OneOf",
    "RandomRotation",
    "Shear",
    "Transform",
    "apply_matrix",
    "limit_dims",
]


def limit_dims(module: nn.Module, layout: Layout) -> None:
    """Keep the augmentations inside `module` to the coordinates of a layout: a third channel of 2D poses is a score.

    Raises:
        SkelactError: one of them exists in 3D only.
    """
    for part in module.modules():
        if isinstance(part, RandomRotation) and layout.dims < 3:
            raise SkelactError(
                f"RandomRotation turns 3D coordinates, layout {layout.name!r} has {layout.dims}: take another augment="
            )
        if isinstance(part, (_Linear, JointNoise)):
            part.dims = min(part.dims, layout.dims)


class _Linear(Transform):
    """A matrix for each joint."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise SkelactError(f"dims must be 2 or 3, got {dims}")
        self.dims = dims

    @property
    def linear(self) -> bool:
        return True

    def _identity(self, views: Tensor) -> Tensor:
        return torch.eye(self.dims, device=views.device, dtype=views.dtype)


class JointCorruption(_Linear):
    """Some joints of a clip are put to the origin, or all multiplied by one random matrix: a fair coin per clip.

    UmURL's joint corruption (Sun et al., ACM MM 2023, reference code): the same joints in all frames and of all
    persons, drawn without replacement; the matrix has entries uniform on [-1, 1).

    Args:
        joints: how many joints, a number (15) or a share of the layout's (0.6; 15 of 25 joints).
        p_linear: probability of the random matrix instead of the origin.
        hide: also call the joints put to the origin unobserved, where there is a mask. Published networks know no mask.
        dims: number of coordinate channels.

    Raises:
        SkelactError: an option is out of range.
    """

    def __init__(self, joints: float = 0.6, p_linear: float = 0.5, hide: bool = False, dims: int = 3) -> None:
        super().__init__(dims)
        if joints < 0 or (joints > 1 and joints != int(joints)):
            raise SkelactError(f"joints must be a count or a share between 0 and 1, got {joints}")
        self.joints = int(joints) if isinstance(joints, int) or joints > 1 else float(joints)
        self.p_linear, self.hide = check_p(p_linear), hide

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`linear` `(N,)` bool, `joints` `(N, k)` int64, `matrix` `(N, D, D)` (row vectors: x' = x C)."""
        v = views.shape[-2]
        count = self.joints if isinstance(self.joints, int) else round(self.joints * v)
        if count > v:
            raise SkelactError(f"JointCorruption takes {count} joints, the views have {v}")
        return {
            "linear": draws.coin("corruption.branch", self.p_linear),
            "joints": draws.subset("corruption.joints", count, v),
            "matrix": draws.uniform("corruption.matrix", self.dims, self.dims, low=-1.0, high=1.0),
        }

    def matrix(self, views: Tensor, **params: Tensor) -> Tensor:
        """`(N, V, D, D)`: the identity for joints that were not drawn."""
        chosen = self._chosen(params["joints"], views.shape[-2])[..., None, None]
        changed = params["matrix"].transpose(1, 2) * params["linear"][:, None, None]
        return torch.where(chosen, changed.to(views.dtype)[:, None], self._identity(views))

    def cover(self, mask: Tensor | None, **params: Tensor) -> Tensor | None:
        """With `hide`, joints put to the origin are unobserved."""
        if mask is None or not self.hide:
            return mask
        hidden = self._chosen(params["joints"], mask.shape[-1]) & ~params["linear"][:, None]
        return mask & ~hidden[:, None, None]

    @staticmethod
    def _chosen(joints: Tensor, v: int) -> Tensor:
        return torch.zeros(len(joints), v, dtype=torch.bool, device=joints.device).scatter_(1, joints, True)


class Shear(_Linear):
    """Every joint multiplied by one matrix with unit diagonal and random other entries, x' = S x (UmURL's pose shear).

    Args:
        amplitude: the other entries are uniform on [-amplitude, amplitude).
        dims: number of coordinate channels.
    """

    def __init__(self, amplitude: float = 1.0, dims: int = 3) -> None:
        super().__init__(dims)
        self.amplitude = float(amplitude)

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`shear` `(N, D, D)`: S."""
        entries = draws.uniform("shear", self.dims, self.dims, low=-self.amplitude, high=self.amplitude)
        diagonal = torch.eye(self.dims, dtype=torch.bool, device=entries.device)
        return {"shear": entries.masked_fill(diagonal, 1.0)}

    def matrix(self, views: Tensor, **params: Tensor) -> Tensor:
        """`(N, 1, D, D)`."""
        return params["shear"].to(views.dtype)[:, None]


class RandomRotation(_Linear):
    """The whole clip turned by random angles about the origin; with the default any yaw, which hides the camera's side.

    Args:
        yaw: greatest angle about the vertical, radians; angles are uniform on [-angle, angle).
        pitch: greatest angle about the horizontal x axis.
        roll: greatest angle about the remaining axis.
        p: probability of turning a clip at all.
        up: vertical axis (x, y, z, or with a minus sign).

    Raises:
        SkelactError: an option is out of range.
    """

    def __init__(
        self, yaw: float = math.pi, pitch: float = 0.0, roll: float = 0.0, p: float = 1.0, up: str = "y"
    ) -> None:
        super().__init__(dims=3)
        self.yaw, self.pitch, self.roll, self.p, self.up = float(yaw), float(pitch), float(roll), check_p(p), up

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`angles` `(N, 3)`: yaw, pitch and roll in radians."""
        limit = constant((self.yaw, self.pitch, self.roll), draws.index.device)
        angles = draws.uniform("rotation.angles", 3, low=-1.0, high=1.0) * limit
        return {"angles": angles if self.p >= 1 else angles * draws.coin("rotation.p", self.p)[:, None]}

    def matrix(self, views: Tensor, **params: Tensor) -> Tensor:
        """`(N, 1, 3, 3)`."""
        if views.shape[-1] < 3:
            raise SkelactError(f"RandomRotation turns 3D coordinates, the views have {views.shape[-1]} channels")
        yaw, pitch, roll = params["angles"].unbind(-1)
        return euler_matrix(yaw, pitch, roll, up=self.up).to(views.dtype)[:, None]


class AxisRotation(_Linear):
    """The whole clip turned by a larger angle about one axis and by small ones about the others (AimCLR's rotation).

    The main axis is uniform on x, y and z. Angles are never negative; x is turned first, z last, each clockwise seen
    against its axis.

    Args:
        main: greatest angle about the main axis, radians; uniform on [0, main).
        others: greatest angle about the other two.
    """

    def __init__(self, main: float = math.pi / 6, others: float = math.pi / 180) -> None:
        super().__init__(dims=3)
        self.main, self.others = float(main), float(others)

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`angles` `(N, 3)` about x, y and z, radians."""
        axis = draws.integers("axis_rotation.axis", 3)[:, None]
        chosen = torch.arange(3, device=axis.device) == axis
        return {"angles": draws.uniform("axis_rotation.angles", 3) * torch.where(chosen, self.main, self.others)}

    def matrix(self, views: Tensor, **params: Tensor) -> Tensor:
        """`(N, 1, 3, 3)`."""
        if views.shape[-1] < 3:
            raise SkelactError(f"AxisRotation turns 3D coordinates, the views have {views.shape[-1]} channels")
        angles = -params["angles"].to(views.dtype)
        x, y, z = rotation_about(torch.eye(3, dtype=angles.dtype, device=angles.device), angles).unbind(1)
        return (z @ y @ x)[:, None]


class AxisMask(Transform):
    """One of the coordinates of a clip, uniform on all of them, is put to zero (AimCLR).

    Args:
        p: probability of doing so.
        dims: number of coordinate channels.
    """

    def __init__(self, p: float = 0.5, dims: int = 3) -> None:
        super().__init__()
        self.p, self.dims = check_p(p), dims

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`axis` `(N,)` int64: 0, 1, ..., or -1 for none."""
        axis = draws.integers("axis_mask.axis", min(self.dims, views.shape[-1]))
        return {"axis": torch.where(draws.coin("axis_mask.p", self.p), axis, -1)}

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Zero the given axis."""
        chosen = torch.arange(views.shape[-1], device=views.device) == params["axis"][:, None]
        return views * (~chosen).to(views.dtype)[:, None, None, None], mask


class JointNoise(Transform):
    """Independent normal noise on the coordinates of joints in every frame.

    Without a mask, bodies whose coordinates are all zero in a frame are taken for absent and get no noise; as released
    (AimCLR) they get it as well. With a mask, observed joints get noise.

    Args:
        std: standard deviation in the unit of the views (metres for 3D).
        p: probability that a clip gets noise.
        dims: number of coordinate channels.
        preset: `corrected` or `as_released`.

    Raises:
        SkelactError: an option is out of range.
    """

    def __init__(self, std: float = 0.01, p: float = 1.0, dims: int = 3, preset: str = "corrected") -> None:
        super().__init__()
        if std < 0:
            raise SkelactError(f"std must not be negative, got {std}")
        self.std, self.p, self.dims = float(std), check_p(p), dims
        self.preset = check_preset("JointNoise", preset)

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`noise` `(N, M, T, V, D)`."""
        n, m, t, v, c = views.shape
        shape = (t, m, v, min(self.dims, c))
        if self.p >= 1:
            return {"noise": draws.normal("noise", *shape).mul_(self.std).transpose(1, 2)}
        noisy = draws.coin("noise.p", self.p)
        if noisy.device.type == "cpu":  # the numbers are most of the work; elsewhere to count the clips is worse
            rows = noisy.nonzero()[:, 0]
            noise = torch.zeros(n, *shape)
            noise[rows] = draws.rows(rows).normal("noise", *shape).mul_(self.std)
        else:
            noise = draws.normal("noise", *shape).mul_(self.std) * noisy.view(n, 1, 1, 1, 1)
        return {"noise": noise.transpose(1, 2)}

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Views plus the given noise."""
        noise = params["noise"].to(views.dtype)
        if mask is not None or self.preset == "corrected":
            noise = noise * present(views, mask)
        if noise.shape[-1] < views.shape[-1]:
            noise = nn.functional.pad(noise, (0, views.shape[-1] - noise.shape[-1]))
        return views + noise, mask


class Flip(Transform):
    """Left and right swapped: paired joints change places and one axis changes its sign.

    Args:
        layout: joint layout, for its mirror pairs.
        p: probability of flipping a clip.
        axis: coordinate that points sideways; None only swaps the joints (as CrosSCLR and AimCLR do).

    Raises:
        SkelactError: an option is out of range.
    """

    def __init__(self, layout: Layout | Mapping[str, Any] | str, p: float = 0.5, axis: int | None = 0) -> None:
        super().__init__()
        self.p, self.axis = check_p(p), axis
        self._mirror = get_layout(layout).mirror

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`flip` `(N,)` bool."""
        return {"flip": draws.coin("flip", self.p)}

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Flip the clips where `flip` is True."""
        if views.shape[-2] != len(self._mirror):
            raise SkelactError(f"Flip has a layout of {len(self._mirror)} joints, the views have {views.shape[-2]}")
        n, m, t, v, c = views.shape
        flip = params["flip"][:, None]
        joint = torch.where(flip, constant(tuple(self._mirror), views.device), torch.arange(v, device=views.device))
        value = (joint[..., None] * c + torch.arange(c, device=views.device)).view(n, 1, v * c)
        rows = views.transpose(1, 2).reshape(n, t * m, v * c)  # as it lies in memory
        out = rows.gather(2, value.expand(-1, t * m, -1)).view(n, t, m, v, c)
        if self.axis is not None:
            sign = torch.ones(n, c, dtype=views.dtype, device=views.device)
            sign[:, self.axis] -= 2 * params["flip"].to(views.dtype)
            out *= sign[:, None, None, None]
        if mask is not None:
            seen = mask.transpose(1, 2).reshape(n, t * m, v).gather(2, joint[:, None].expand(-1, t * m, -1))
            mask = seen.view(n, t, m, v).transpose(1, 2)
        return out.transpose(1, 2), mask
