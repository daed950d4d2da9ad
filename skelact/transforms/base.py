"""What augmentations of dense views are made of, and how several are put together.

A transform is split in two: `draw` turns random numbers into parameters, `replay` applies parameters. Transforms that
multiply each joint by a matrix (shear, joint corruption, rotation) name the matrix instead, and :class:`Compose` and
:class:`OneOf` multiply the matrices before the views are touched once.

Views are `(N, M, T, V, C)`, masks `(N, M, T, V)` bool or None. Unobserved joints stay at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skelact.errors import SkelactError
from skelact.objectives import without_autocast
from skelact.transforms.draws import Draws

Params = dict[str, Tensor]
PRESETS = ("corrected", "as_released")


def apply_matrix(views: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the coordinates of each joint by its matrix, x' = A x; channels after the coordinates stay.

    Args:
        views: `(N, M, T, V, C)`.
        matrix: `(N, V, D, D)`, or `(N, 1, D, D)` for all joints alike, D <= C.

    Returns:
        `(N, M, T, V, C)`, memory `(N, T, M, V, C)`.
    """
    n, m, t, v, c = views.shape
    d = matrix.shape[-1]
    # A matrix of 3 x 3 blocks has few diagonals. Along these, all joints of a frame are one long vector operation,
    # some five times faster on a CPU than N small matrix products.
    diagonals = matrix.new_zeros(n, 2 * d - 1, v, c)
    for row in range(d):
        for column in range(d):
            diagonals[:, column - row + d - 1, :, row] = matrix[:, :, row, column]
    diagonals[:, d - 1, :, d:] = 1
    diagonals = diagonals.view(n, 2 * d - 1, 1, v * c)
    rows, width = views.transpose(1, 2).reshape(n, t * m, v * c), v * c
    out = rows * diagonals[:, d - 1]
    for step in range(1, d):
        out[..., step:].addcmul_(rows[..., :-step], diagonals[:, d - 1 - step, :, step:])
        out[..., : width - step].addcmul_(rows[..., step:], diagonals[:, d - 1 + step, :, : width - step])
    return out.view(n, t, m, v, c).transpose(1, 2)


def present(views: Tensor, mask: Tensor | None) -> Tensor:
    """What is there to be changed.

    Args:
        views: `(N, M, T, V, C)`.
        mask: `(N, M, T, V)` bool or None.

    Returns:
        bool `(N, M, T, V, 1)`, the mask; without one `(N, M, T, 1, 1)`, False for a body whose coordinates are all zero
        in a frame, as absent bodies are stored.
    """
    if mask is not None:
        return mask[..., None]
    # the greatest magnitude and not any(), for which a CPU needs several times as long
    return (views.abs().flatten(-2).amax(-1) != 0)[..., None, None]


class Transform(nn.Module):
    """Something done to dense views: `forward(views, mask, draws)` = `replay(views, mask, **draw(draws, views))`."""

    @property
    def linear(self) -> bool:
        """Whether the transform is :meth:`matrix`, a matrix for each joint, and nothing else."""
        return False

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """Parameters by name, the first axis of each N; `views` tells shapes and device only."""
        return {}

    def matrix(self, views: Tensor, **params: Tensor) -> Tensor:
        """`(N, V, D, D)` or `(N, 1, D, D)`, x' = A x, where :attr:`linear`."""
        raise SkelactError(f"{type(self).__name__} is not linear in the joints and has no matrix")

    def cover(self, mask: Tensor | None, **params: Tensor) -> Tensor | None:
        """The mask afterwards, where :attr:`linear`."""
        return mask

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Apply with given parameters."""
        return apply_matrix(views, self.matrix(views, **params)), self.cover(mask, **params)

    def forward(self, views: Tensor, mask: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Apply with fresh draws; in single precision also where autocast is on."""
        with without_autocast(views):
            return self.replay(views, mask, **self.draw(draws, views))

    def extra_repr(self) -> str:
        """The options, for printing."""
        return ", ".join(
            f"{k}={v}"
            for k, v in vars(self).items()
            if k[0] != "_" and k != "training" and isinstance(v, int | float | str)
        )


def check_p(p: float) -> float:
    """The probability as a float.

    Raises:
        SkelactError: it is not within 0 and 1.
    """
    if not 0 <= p <= 1:
        raise SkelactError(f"a probability must be within 0 and 1, got p={p}")
    return float(p)


def check_preset(name: str, preset: str) -> str:
    """`corrected` or `as_released`, which transforms know no more than one release of (`as_released_c1`, ...).

    Raises:
        SkelactError: it is neither.
    """
    if preset.startswith("as_released_"):
        return "as_released"
    if preset not in PRESETS:
        raise SkelactError(f"{name}: preset={preset!r} is not one of {', '.join(PRESETS)}")
    return preset


def _scopes(transforms: Sequence[Transform]) -> list[str]:
    """A name for each transform that does not change when one of another kind is added."""
    kinds = [type(transform).__name__ for transform in transforms]
    return [f"{kind}{kinds[:place].count(kind)}" for place, kind in enumerate(kinds)]


class _Several(Transform):
    """Transforms with draws and parameters of their own."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)
        self._scopes = _scopes(transforms)

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """Parameters of all parts, as `part/name`; a part is its class name and a count (`Shear0/shear`)."""
        return {
            f"{scope}/{name}": value
            for scope, transform in zip(self._scopes, self.transforms, strict=True)
            for name, value in transform.draw(draws.scope(scope), views).items()  # type: ignore[operator]
        }

    def _parts(self, params: Params) -> list[tuple[Any, Params]]:
        """Each transform with its own parameters."""
        return [
            (transform, {k.removeprefix(f"{scope}/"): v for k, v in params.items() if k.startswith(f"{scope}/")})
            for scope, transform in zip(self._scopes, self.transforms, strict=True)
        ]

    @property
    def linear(self) -> bool:
        """Whether all parts are."""
        return all(transform.linear for transform in self.transforms)


class Compose(_Several):
    """Transforms one after another; neighbours that are linear are applied at once.

    Args:
        transforms: in order of application; none leaves the views as they are.
    """

    def matrix(self, views: Tensor, **params: Tensor) -> Tensor:
        """The product of the parts' matrices."""
        out: Tensor | None = None
        for transform, own in self._parts(params):
            matrix = transform.matrix(views, **own)
            out = matrix if out is None else matrix @ out
        if out is None:
            return torch.eye(views.shape[-1], device=views.device, dtype=views.dtype).expand(len(views), 1, -1, -1)
        return out

    def cover(self, mask: Tensor | None, **params: Tensor) -> Tensor | None:
        """The mask after all parts."""
        for transform, own in self._parts(params):
            mask = transform.cover(mask, **own)
        return mask

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Apply all parts with given parameters."""
        pending: Tensor | None = None
        for transform, own in self._parts(params):
            if transform.linear:
                matrix = transform.matrix(views, **own)
                mask = transform.cover(mask, **own)
                pending = matrix if pending is None else matrix @ pending
                continue
            if pending is not None:
                views, pending = apply_matrix(views, pending), None
            views, mask = transform.replay(views, mask, **own)
        return (views if pending is None else apply_matrix(views, pending)), mask


class OneOf(_Several):
    """One of several transforms, each clip its own choice.

    Args:
        transforms: at least one.
        p: their probabilities, adding up to 1; None: all alike.

    Raises:
        SkelactError: nothing to choose from, or probabilities that do not fit.
    """

    def __init__(self, transforms: Sequence[Transform], p: Sequence[float] | None = None) -> None:
        super().__init__(transforms)
        count = len(self.transforms)
        shares = [1 / count] * count if p is None and count else [check_p(share) for share in p or ()]
        if not count or len(shares) != count or abs(sum(shares) - 1) > 1e-6:
            raise SkelactError(f"OneOf needs one probability per transform, adding up to 1; got {shares} for {count}")
        self._edges = [sum(shares[: place + 1]) for place in range(count - 1)]

    def draw(self, draws: Draws, views: Tensor) -> Params:
        """`choice` `(N,)` int64 and the parameters of all parts."""
        unit = draws.uniform("oneof.choice")
        choice = torch.zeros(unit.shape, dtype=torch.int64, device=unit.device)
        for edge in self._edges:
            choice = choice + (unit >= edge)
        return {"choice": choice, **super().draw(draws, views)}

    def matrix(self, views: Tensor, **params: Tensor) -> Tensor:
        """Each clip the matrix of its choice."""
        choice = params["choice"].view(-1, 1, 1, 1)
        out: Tensor | None = None
        for place, (transform, own) in enumerate(self._parts(params)):
            matrix = transform.matrix(views, **own)
            out = matrix if out is None else torch.where(choice == place, matrix, out)
        assert out is not None  # there is at least one
        return out

    def cover(self, mask: Tensor | None, **params: Tensor) -> Tensor | None:
        """Each clip the mask of its choice."""
        if mask is None:
            return None
        choice, out = params["choice"].view(-1, 1, 1, 1), mask
        for place, (transform, own) in enumerate(self._parts(params)):
            out = torch.where(choice == place, transform.cover(mask, **own), out)
        return out

    def replay(self, views: Tensor, mask: Tensor | None = None, **params: Tensor) -> tuple[Tensor, Tensor | None]:
        """Apply to each clip its choice, with given parameters."""
        if self.linear:
            return super().replay(views, mask, **params)
        choice = params["choice"].view(-1, 1, 1, 1)
        out, seen = views, mask
        for place, (transform, own) in enumerate(self._parts(params)):
            changed, covered = transform.replay(views, mask, **own)
            out = torch.where((choice == place)[..., None], changed, out)
            if seen is not None and covered is not None:
                seen = torch.where(choice == place, covered, seen)
        return out, seen
