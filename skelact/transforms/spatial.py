"""Augmentations of dense views: joint corruption, shear, rotation, noise and flip, each clip with its own draw.

Views are `(N, M, T, V, C)`, masks `(N, M, T, V)` bool or None. Unobserved joints stay at zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skelact.errors import SkelactError
from skelact.skeleton.geometry import euler_matrix
from skelact.skeleton.layouts import Layout, get_layout
from skelact.transforms.base import Compose, OneOf, Params, Transform, apply_matrix, check_p
from skelact.transforms.draws import Draws

__all__ = [
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
        limit = torch.tensor((self.yaw, self.pitch, self.roll), device=draws.index.device)
        angles = draws.uniform("rotation.angles", 3, low=-1.0, high=1.0) * limit
        return {"angles": angles if self.p >= 1 else angles * draws.coin("rotation.p", self.p)[:, None]}

    def matrix(self, views: Tensor, **params: Tensor) -> Tensor:
        """`(N, 1, 3, 3)`."""
        if views.shape[-1] < 3:
            raise SkelactError(f"RandomRotation turns 3D coordinates, the views have {views.shape[-1]} channels")
        yaw, pitch, roll = params["angles"].unbind(-1)
        return euler_matrix(yaw, pitch, roll, up=self.up).to(views.dtype)[:, None]


class JointNoise(Transform):
    """Independent normal noise on the coordinates of every observed joint of every frame.

    Args:
        std: standard deviation in the unit of the views (metres for 3D).
        p: probability that a clip gets noise.
        dims: number of coordinate channels.

    Raises:
        SkelactError: an option is out of range.
    """

    def __init__(self, std: float = 0.01, p: float = 1.0, dims: int = 3) -> None:
        super().__init__()
        if std < 0:
            raise SkelactError(f"std must not be negative, got {std}")
        self.std, self.p, self.dims = float(std), check_p(p), dims

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`noise` `(N, M, T, V, D)`."""
        n, m, t, v, c = views.shape
        noise = draws.normal("noise", t, m, v, min(self.dims, c)) * self.std
        if self.p < 1:
            noise = noise * draws.coin("noise.p", self.p).view(n, 1, 1, 1, 1)
        return {"noise": noise.transpose(1, 2)}

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Views plus the given noise where joints were observed."""
        noise = params["noise"].to(views.dtype)
        if mask is not None:
            noise = noise * mask[..., None]
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
        flip = params["flip"].view(-1, 1, 1, 1)
        mirror = torch.tensor(self._mirror, device=views.device)
        sign = torch.ones(views.shape[-1], dtype=views.dtype, device=views.device)
        if self.axis is not None:
            sign[self.axis] = -1
        views = torch.where(flip[..., None], views.index_select(-2, mirror) * sign, views)
        return views, None if mask is None else torch.where(flip, mask.index_select(-1, mirror), mask)
