"""What corruptions are made of: whole clips, who is in them, how large the bodies are, and random numbers that nest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.skeleton.layouts import Layout
from skelact.transforms.bodies import in_clip
from skelact.transforms.draws import Draws


class Scene:
    """N whole clips, G frames in all, as a corruption sees them. Nothing in it is written to.

    Args:
        clips: the clips; frames that none of them uses are left out.
        layout: their joint layout; channels after its coordinates are carried along, the last one is the score.
        draws: random numbers of the clips.
    """

    def __init__(self, clips: RaggedClips, layout: Layout, draws: Draws) -> None:
        base = clips.length.cumsum(0) - clips.length
        packed = len(clips.frames) == int(clips.length.sum()) and bool((clips.start == base).all())
        self.clips = clips if packed else clips.compact()
        self.layout, self.draws, self.dims, self.base = layout, draws, layout.dims, base
        self.owner = clips.owner()

    @cached_property
    def frame(self) -> Tensor:
        """`(G,)` int64, number of each frame in its clip."""
        return torch.arange(len(self.owner), device=self.owner.device) - self.base[self.owner]

    @property
    def length(self) -> Tensor:
        """`(N,)` frames of each clip."""
        return self.clips.length

    @property
    def points(self) -> Tensor:
        """`(G, M, V, D)` coordinates."""
        return self.clips.frames[..., : self.dims]

    @cached_property
    def seen(self) -> Tensor:
        """`(G, M, V)` bool, joints that were observed; without a mask those of bodies that are there.

        A body is there in a frame if one of its coordinates, and where there are scores one of these, is not zero.
        """
        if self.clips.mask is not None:
            return self.clips.mask
        frames = self.clips.frames
        there = (self.points != 0).flatten(2).any(2)
        if frames.shape[-1] > self.dims:
            there = there & (frames[..., -1] != 0).any(2)
        return there[..., None].expand(frames.shape[:3])

    @cached_property
    def people(self) -> Tensor:
        """`(N, M)` bool, persons that are there in some frame of a clip."""
        return in_clip(self.seen.any(2), self.owner, len(self.length))

    @cached_property
    def by_frame(self) -> Draws:
        """Random numbers of the frames, `(G, ...)`."""
        return self.draws.frames(self.owner, self.frame)

    @cached_property
    def unit(self) -> Tensor:
        """`(N,)` torso length of each clip, float32, in the clip's own unit; 0 where all joints lie in one point.

        The median over frames of the distance from the middle of the shoulders to the middle of the hips (the first
        joint of either leg; the layout's centre where it has no two legs), of the first person there. Clips in which
        that is never seen or zero take the median root mean square distance of the joints from their mean, which is
        about as long.
        """
        row, slot = torch.arange(len(self.owner), device=self.owner.device), self.people.int().argmax(1)[self.owner]
        body, seen = self.points[row, slot].float(), self.seen[row, slot]
        upper, lower = list(self.layout.shoulders), hips(self.layout)
        torso = (body[:, upper].mean(1) - body[:, lower].mean(1)).norm(dim=1)
        length = self.median(torso, seen[:, upper + lower].all(1) & (torso > 0))
        if bool((length > 0).all()):
            return length
        count = seen.sum(1).clamp_min(1)
        shifted = body - (body * seen[..., None]).sum(1, keepdim=True) / count[:, None, None]
        spread = ((shifted.square().sum(2) * seen).sum(1) / count).sqrt()
        return torch.where(length > 0, length, self.median(spread, seen.any(1)))

    @cached_property
    def centre(self) -> Tensor:
        """`(N, D)` mean of all observed joints of a clip, float32."""
        total = self.points.new_zeros(len(self.length), self.dims, dtype=torch.float64)
        total.index_add_(0, self.owner, (self.points * self.seen[..., None]).flatten(1, 2).double().sum(1))
        count = total.new_zeros(len(total)).index_add_(0, self.owner, self.seen.flatten(1).double().sum(1))
        return (total / count.clamp_min(1)[:, None]).float()

    def rank(self, value: Tensor) -> Tensor:
        """`(G,)` int64, place of each frame among those of its clip in order of `value` `(G,)`; ties as they come."""
        order = value.argsort(stable=True)
        order = order[self.owner[order].argsort(stable=True)]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return place - self.base[self.owner]

    def median(self, value: Tensor, valid: Tensor) -> Tensor:
        """`(N,)` lower median over each clip's valid frames of `value` `(G,)`; 0 where there are none."""
        count = torch.zeros_like(self.base).index_add_(0, self.owner, valid.long())
        half = (count - 1).div(2, rounding_mode="floor")
        middle = self.rank(torch.where(valid, value, torch.inf)) == half[self.owner]
        return value.new_zeros(len(self.base)).index_add_(0, self.owner[middle], value[middle])

    def share(self, part: float) -> Tensor:
        """`(N,)` int64, frames that make up a part of each clip, rounded."""
        return (part * self.length.double() + 0.5).long()

    def span(self, name: str, count: Tensor, *shape: int) -> Tensor:
        """`(G, *shape)` bool: `count` `(N,)` consecutive frames of each clip, longer spans around shorter ones."""
        room = (self.length - count + 1).view(-1, *(1 for _ in shape))
        start = (self.draws.uniform(name, *shape).double() * room).long()[self.owner]
        frame = self.frame.view(-1, *(1 for _ in shape))
        return (frame >= start) & (frame < start + count[self.owner].view_as(frame))

    def moved(self, points: Tensor) -> RaggedClips:
        """The clips with other coordinates `(G, M, V, D)`; what was not observed stays as it is."""
        points = torch.where(self.seen[..., None], points.to(self.clips.frames.dtype), self.points)
        rest = self.clips.frames[..., self.dims :]
        return replace(self.clips, frames=torch.cat((points, rest), -1) if rest.shape[-1] else points)

    def hidden(self, where: Tensor) -> RaggedClips:
        """The clips without the joints in `where` `(G, M, V)` bool: unobserved, coordinates and score zero."""
        mask = self.seen & ~where
        return replace(self.clips, frames=self.clips.frames.masked_fill(~mask[..., None], 0), mask=mask)


class Corruption(ABC):
    """A map of whole clips to whole clips, before they are normalised and sampled.

    Args:
        layout: joint layout of the clips.
    """

    name: str
    levels: tuple[Any, ...]
    """What severities 1 to 5 are."""
    flat_levels: ClassVar[tuple[Any, ...] | None] = None
    """The same for 2D layouts, where it differs."""
    hides: ClassVar[bool] = False
    """Whether joints become unobserved, so that there is something to fill in."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def obstacle(self, persons: int, channels: int) -> str | None:
        """Why it cannot be done to clips of so many person slots and channels; None where it can."""
        return None

    def level(self, severity: int) -> Any:
        """What a severity of 1 to 5 means.

        Raises:
            SkelactError: another severity.
        """
        levels = self.flat_levels if self.flat_levels is not None and self.layout.dims == 2 else self.levels
        if not 1 <= severity <= len(levels):
            raise SkelactError(f"severity={severity} of {self.name}: give 0 (none) to {len(levels)}")
        return levels[severity - 1]

    @torch.no_grad()
    def __call__(self, clips: RaggedClips, severity: int, draws: Draws) -> RaggedClips:
        """Corrupted clips, in frames of their own; at severity 0 the clips as they are.

        All severities take the same random numbers: a higher one does more of the same.

        Args:
            clips: N clips `(F, M, V, C)`.
            severity: 0 to 5.
            draws: random numbers, keyed by clip names (see :func:`name_keys`).
        """
        if severity == 0:
            return clips
        return self.apply(Scene(clips, self.layout, draws.scope(self.name)), self.level(severity))

    @abstractmethod
    def apply(self, scene: Scene, level: Any) -> RaggedClips:
        """The corrupted clips."""


def hips(layout: Layout) -> list[int]:
    """First joints of the two legs; the centre where the layout has no two legs."""
    legs = [joints[0] for name, joints in layout.parts.items() if name.endswith("_leg") and joints]
    return legs if len(legs) == 2 else [layout.center]
