"""Corruptions that hide joints, and the baseline that fills them in: `hides` is true, the mask says what is gone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from skelact.clips import RaggedClips
from skelact.transforms.corruptions.base import Corruption, Scene


class PartOcclusion(Corruption):
    """Body parts hidden for a stretch of the clip; which and when is drawn for each person.

    Levels: number of the layout's parts (arms, legs, torso), share of the clip's frames.
    """

    name = "part_occlusion"
    levels = ((1, 0.3), (1, 0.6), (2, 0.6), (2, 0.9), (3, 1.0))
    hides = True

    def obstacle(self, persons: int, channels: int) -> str | None:
        """It needs parts."""
        enough = len(self.layout.parts) >= max(count for count, _ in self.levels)
        return None if enough else f"layout {self.layout.name} has no body parts"

    def apply(self, scene: Scene, level: tuple[int, float]) -> RaggedClips:
        """Occluded limbs."""
        count, share = level
        persons, joints = scene.seen.shape[1:]
        order = scene.draws.uniform("part", persons, len(self.layout.parts)).argsort(-1).argsort(-1)
        hidden = torch.zeros(len(scene.length), persons, joints, dtype=torch.bool, device=order.device)
        for number, part in enumerate(self.layout.parts.values()):
            hidden[:, :, list(part)] |= (order[:, :, number] < count)[..., None]
        during = scene.span("when", scene.share(share), persons)
        return scene.hidden(hidden[scene.owner] & during[..., None])


class JointLoss(Corruption):
    """Single joints missing in single frames. Levels: share of all joints of all frames."""

    name = "joint_loss"
    levels = (0.05, 0.1, 0.2, 0.35, 0.5)
    hides = True

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Holes everywhere."""
        return scene.hidden(scene.by_frame.uniform("lost", *scene.seen.shape[1:]) < level)


class FrameLoss(Corruption):
    """Frames in which nothing was observed; of the clip's frames the same number however they are chosen.

    Levels: share of a clip's frames, rounded; one frame always stays. The three ways follow SHARDeg (2025).
    """

    levels = (0.15, 0.3, 0.5, 0.7, 0.85)
    hides = True

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Frames that are lost."""
        count = torch.minimum(scene.share(level), scene.length - 1)
        lost = self.lost(scene, count)
        return scene.hidden(lost[:, None, None].expand(scene.seen.shape))

    def lost(self, scene: Scene, count: Tensor) -> Tensor:
        """`(G,)` bool, `count` `(N,)` frames of each clip."""
        raise NotImplementedError(f"{type(self).__name__} must say which frames are lost")


class UniformFrameLoss(FrameLoss):
    """Lost frames spread evenly: those first in the order of the fractional part of phase + frame / golden ratio."""

    name = "frame_loss_uniform"

    def lost(self, scene: Scene, count: Tensor) -> Tensor:
        """`(G,)` bool; multiples of the golden ratio stay evenly spread, however many are taken (three-gap theorem)."""
        phase = scene.draws.uniform("phase").double()[scene.owner]
        return scene.rank((phase + scene.frame * (5**0.5 - 1) / 2).frac()) < count[scene.owner]


class RandomFrameLoss(FrameLoss):
    """Lost frames anywhere."""

    name = "frame_loss_random"

    def lost(self, scene: Scene, count: Tensor) -> Tensor:
        """`(G,)` bool."""
        return scene.rank(scene.by_frame.uniform("lost")) < count[scene.owner]


class BlockFrameLoss(FrameLoss):
    """Lost frames one after another."""

    name = "frame_loss_block"

    def lost(self, scene: Scene, count: Tensor) -> Tensor:
        """`(G,)` bool."""
        return scene.span("when", count)


class SecondPersonMissing(Corruption):
    """The second person is not seen for a stretch of the clip; clips of one stay. Levels: share of the frames."""

    name = "second_person_missing"
    levels = (0.2, 0.4, 0.6, 0.8, 1.0)
    hides = True

    def obstacle(self, persons: int, channels: int) -> str | None:
        """It needs a second slot."""
        return None if persons > 1 else "the data have one person slot"

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """One alone."""
        where = torch.zeros_like(scene.seen)
        where[:, 1] = scene.span("when", scene.share(level))[:, None]
        return scene.hidden(where)


@torch.no_grad()
def interpolate(clips: RaggedClips, only: Tensor | None = None) -> RaggedClips:
    """Fill what was not observed, joint by joint, by linear interpolation over time.

    Before a joint's first and after its last observation it stays where it was seen; one that was never seen in a clip
    stays unobserved. All channels are interpolated, scores too.

    Args:
        clips: N packed clips `(F, M, V, C)`; without a mask there is nothing to fill and they are returned.
        only: `(F, M, V)` bool, joints that may be filled; None: all.
    """
    if clips.mask is None:
        return clips
    table, seen = clips.frames.flatten(1, 2), clips.mask.flatten(1)  # (G, M V, C) and (G, M V)
    owner = clips.owner()
    base = clips.length.cumsum(0) - clips.length
    row = torch.arange(len(owner), device=owner.device)[:, None]
    first, end = base[owner][:, None], (base + clips.length)[owner][:, None]
    before = torch.where(seen, row, -1).cummax(0).values
    after = torch.where(seen, row, len(owner)).flip(0).cummin(0).values.flip(0)
    none_before, none_after = before < first, after >= end
    fill = ~seen & ~(none_before & none_after)
    before, after = torch.where(none_before, after, before), torch.where(none_after, before, after)
    share = (row - before) / (after - before).clamp_min(1)
    if only is not None:
        fill &= only.flatten(1)
    at, joint = fill.nonzero(as_tuple=True)
    frames, mask = table.clone(), seen | fill
    low, high = table[before[at, joint], joint], table[after[at, joint], joint]
    frames[at, joint] = torch.lerp(low, high, share[at, joint][:, None].to(low.dtype))
    return replace(clips, frames=frames.view_as(clips.frames), mask=mask.view_as(clips.mask))
