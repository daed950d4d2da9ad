"""Corruptions of time and of identity: fewer frames, other speeds, left for right, one person for another."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from skelact.clips import RaggedClips
from skelact.transforms.corruptions.base import Corruption, Scene


class LowFrameRate(Corruption):
    """Every n-th frame of a clip, which becomes shorter. Levels: n."""

    name = "low_frame_rate"
    levels = (2, 3, 4, 6, 8)

    def apply(self, scene: Scene, level: int) -> RaggedClips:
        """Shorter clips, from a first frame that is drawn."""
        first = (scene.draws.uniform("first").double() * scene.length.clamp_max(level)).long()
        phase = scene.frame - first[scene.owner]
        kept = (phase >= 0) & (phase % level == 0)
        clips = scene.clips
        length = (scene.length - first - 1) // level + 1
        return replace(
            clips,
            frames=clips.frames[kept],
            mask=None if clips.mask is None else clips.mask[kept],
            start=length.cumsum(0) - length,
            length=length,
        )


class Speed(Corruption):
    """Half of a clip, from a frame that is drawn, plays faster or slower; the clip becomes shorter or longer.

    Levels: the factor, or by a draw its inverse. Frames in between are interpolated linearly.
    """

    name = "speed"
    levels = (1.25, 1.5, 2.0, 3.0, 4.0)

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """A change of pace."""
        factor = torch.where(scene.draws.coin("sign"), level, 1 / level).double()
        old = (scene.length + 1) // 2
        new = (old / factor + 0.5).long().clamp_min(1)
        start = (scene.draws.uniform("start").double() * (scene.length - old + 1)).long()
        length = scene.length - old + new
        owner = torch.repeat_interleave(torch.arange(len(length), device=length.device), length)
        frame = torch.arange(len(owner), device=owner.device) - (length.cumsum(0) - length)[owner]
        old, new, start = old[owner], new[owner], start[owner]
        inside = (frame - start + 0.5) * old / new - 0.5  # centres of frames, as samplers resample
        inside = start + torch.minimum(inside.clamp_min(0), old - 1)
        place = torch.where(frame < start, frame.double(), torch.where(frame < start + new, inside, frame - new + old))
        return _at(scene, owner, place, length)


def _at(scene: Scene, owner: Tensor, place: Tensor, length: Tensor) -> RaggedClips:
    """Clips of other lengths, read between frames.

    Args:
        scene: the clips.
        owner: `(G',)` clip of each new frame.
        place: `(G',)` float64, where in its clip it is read.
        length: `(N,)` new lengths.
    """
    low = place.floor().long()
    weight = (place - low).to(scene.clips.frames.dtype)[:, None, None]
    rows = scene.base[owner] + low
    after = torch.where(weight[:, 0, 0] > 0, rows + 1, rows)  # a neighbour without weight must not be looked at
    seen, seen_after = scene.seen[rows], scene.seen[after]
    # where one neighbour was not observed the other has all the weight
    weight = torch.where(seen & seen_after, weight, (seen_after & ~seen).to(weight.dtype))
    frames = torch.lerp(scene.clips.frames[rows], scene.clips.frames[after], weight[..., None])
    mask = None if scene.clips.mask is None else seen | seen_after
    return replace(scene.clips, frames=frames, mask=mask, start=length.cumsum(0) - length, length=length, total=None)


class LeftRightSwap(Corruption):
    """Left and right joints of a person are exchanged for bursts of up to 8 frames. Levels: share of such bursts."""

    name = "left_right_swap"
    levels = (0.05, 0.1, 0.2, 0.35, 0.5)
    burst = 8

    def obstacle(self, persons: int, channels: int) -> str | None:
        """It needs pairs of joints."""
        paired = any(joint != other for joint, other in enumerate(self.layout.mirror))
        return None if paired else f"layout {self.layout.name} has no left and right"

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Mirrored identities of the joints, not mirrored poses."""
        phase = scene.draws.integers("phase", self.burst)[scene.owner]
        bursts = scene.draws.frames(scene.owner, (scene.frame + phase) // self.burst)
        swap = bursts.uniform("swap", scene.seen.shape[1])[..., None] < level  # (G, M, 1)
        other = torch.tensor(self.layout.mirror, device=swap.device)
        clips = scene.clips
        frames = torch.where(swap[..., None], clips.frames[:, :, other], clips.frames)
        mask = None if clips.mask is None else torch.where(swap, clips.mask[:, :, other], clips.mask)
        return replace(clips, frames=frames, mask=mask)


class PersonSwap(Corruption):
    """The two persons of a clip change slots at moments that are drawn, and stay so until the next.

    Clips in which one of them is never seen stay as they are. Levels: number of such moments.
    """

    name = "person_swap"
    levels = (1, 2, 3, 5, 8)

    def obstacle(self, persons: int, channels: int) -> str | None:
        """It needs a second slot."""
        return None if persons > 1 else "the data have one person slot"

    def apply(self, scene: Scene, level: int) -> RaggedClips:
        """Exchanged identities."""
        moments = scene.draws.uniform("moment", max(self.levels))[:, :level].double() * scene.length[:, None]
        passed = (moments[scene.owner] <= scene.frame[:, None]).sum(1)
        swap = (passed % 2 == 1) & scene.people[:, :2].all(1)[scene.owner]
        slots = [1, 0, *range(2, scene.seen.shape[1])]
        clips = scene.clips
        frames = torch.where(swap[:, None, None, None], clips.frames[:, slots], clips.frames)
        mask = None if clips.mask is None else torch.where(swap[:, None, None], clips.mask[:, slots], clips.mask)
        return replace(clips, frames=frames, mask=mask)


class GhostPerson(Corruption):
    """A second person who is not there: the first one's pose of one frame, frozen, two torso lengths to the side.

    Only in clips whose second slot is empty. Levels: share of the clip's frames, one after another.
    """

    name = "ghost_person"
    levels = (0.2, 0.4, 0.6, 0.8, 1.0)

    def obstacle(self, persons: int, channels: int) -> str | None:
        """It needs a second slot."""
        return None if persons > 1 else "the data have one person slot"

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """A coat on a stand."""
        clips, side = scene.clips, 1 if scene.layout.up.endswith("x") else 0
        model = (scene.base + (scene.draws.uniform("model").double() * scene.length).long())[scene.owner]
        there = scene.span("when", scene.share(level)) & ~scene.people[scene.owner, 1]
        there = there[:, None] & scene.seen[model, 0]  # (G, V)
        ghost = clips.frames[model, 0].clone()
        away = torch.where(scene.draws.coin("sign"), 2.0, -2.0) * scene.unit
        ghost[..., side] += away[scene.owner][:, None].to(ghost.dtype)
        frames = clips.frames.clone()
        frames[:, 1] = torch.where(there[..., None], ghost, frames[:, 1])
        mask = clips.mask
        if mask is not None:
            mask = mask.clone()
            mask[:, 1] |= there
        return replace(clips, frames=frames, mask=mask)
