"""Corruptions that move joints: noise, cameras, sizes, grids, and confidences that are wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from skelact.clips import RaggedClips
from skelact.skeleton.geometry import euler_matrix, yaw_matrix
from skelact.skeleton.layouts import Layout
from skelact.transforms.bodies import rotated
from skelact.transforms.corruptions.base import Corruption, Scene


def _per_joint(value: Tensor) -> Tensor:
    """`(G,)` against `(G, M, V, D)`."""
    return value[:, None, None, None]


def _signs(scene: Scene) -> Tensor:
    """`(N,)` float32, -1 or 1 with equal chance."""
    return torch.where(scene.draws.coin("sign"), 1.0, -1.0)


class JointNoise(Corruption):
    """Gaussian noise of its own for every joint, axis and frame. Levels: standard deviation in torso lengths."""

    name = "joint_noise"
    levels = (0.02, 0.04, 0.08, 0.12, 0.2)

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Jittering joints."""
        noise = scene.by_frame.normal("noise", *scene.points.shape[1:])
        return scene.moved(scene.points + noise * _per_joint(level * scene.unit[scene.owner]))


class JointOffset(Corruption):
    """One Gaussian displacement of each joint for the whole clip. Levels: standard deviation in torso lengths."""

    name = "joint_offset"
    levels = (0.04, 0.08, 0.12, 0.18, 0.25)

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Joints that are somewhere else on the body throughout."""
        offset = scene.draws.normal("offset", *scene.points.shape[1:]) * _per_joint(level * scene.unit)
        return scene.moved(scene.points + offset[scene.owner])


class Drift(Corruption):
    """Slow waves of each joint: 1/2, 1 and 3/2 periods a clip with Gaussian amplitudes.

    Levels: root mean square of the displacement of each axis in torso lengths.
    """

    name = "drift"
    levels = (0.05, 0.1, 0.15, 0.25, 0.4)
    periods = (0.5, 1.0, 1.5)

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Joints that wander."""
        shape, points = scene.points.shape[1:], scene.points
        time = (scene.frame + 0.5) / scene.length[scene.owner]
        drift = torch.zeros_like(points)
        for number, periods in enumerate(self.periods):
            for part, wave in (("cos", torch.cos), ("sin", torch.sin)):
                size = scene.draws.normal(f"{part}{number}", *shape)[scene.owner]
                drift += size * _per_joint(wave(2 * math.pi * periods * time))
        drift *= _per_joint(level * scene.unit[scene.owner] / math.sqrt(len(self.periods)))
        return scene.moved(points + drift)


class Spikes(Corruption):
    """Few joints jump, far: by at least half a torso length, in any direction, with a Pareto tail of exponent 2.

    A jump is longer than x torso lengths with the chance (x / 0.5)**-2; it is cut at 5. Levels: share of the joints of
    all frames.
    """

    name = "spikes"
    levels = (0.01, 0.02, 0.04, 0.07, 0.1)
    shortest, longest = 0.5, 5.0

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Outliers."""
        shape = scene.points.shape[1:]
        hit = scene.by_frame.uniform("hit", *shape[:2]) < level
        length = self.shortest * (1 - scene.by_frame.uniform("length", *shape[:2])).rsqrt()
        length = length.clamp_max(self.longest) * scene.unit[scene.owner][:, None, None] * hit
        way = scene.by_frame.normal("way", *shape)
        way = way / way.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        return scene.moved(scene.points + way * length[..., None])


class CameraRotation(Corruption):
    """Another camera: all joints turned about the vertical through the clip's centre; in 2D rolled in the image.

    Levels: degrees, to a side drawn for each clip.
    """

    name = "camera_rotation"
    levels = (10.0, 20.0, 35.0, 60.0, 90.0)
    flat_levels = (3.0, 6.0, 10.0, 15.0, 25.0)

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Turned clips."""
        angle = _signs(scene) * math.radians(level)
        if scene.dims == 3:
            return _turned(scene, yaw_matrix(angle, self.layout.up.removeprefix("-")))
        x, y = (scene.points - scene.centre[scene.owner][:, None, None]).unbind(-1)
        cos, sin = (value[scene.owner][:, None, None] for value in (angle.cos(), angle.sin()))
        points = torch.stack((cos * x - sin * y, sin * x + cos * y), -1)
        return scene.moved(points + scene.centre[scene.owner][:, None, None])


class CameraHeight(Corruption):
    """A camera that looks down or up: clips pitched about their centres; in 2D heights shrink by the cosine.

    Levels: degrees; in 3D up or down by a draw for each clip.
    """

    name = "camera_height"
    levels = (5.0, 10.0, 20.0, 30.0, 45.0)
    flat_levels = (15.0, 25.0, 35.0, 45.0, 60.0)

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Pitched clips."""
        if scene.dims == 3:
            angle = _signs(scene) * math.radians(level)
            still = torch.zeros_like(angle)
            return _turned(scene, euler_matrix(still, angle, still, self.layout.up.removeprefix("-")))
        up = "xyz".index(self.layout.up[-1])
        points, middle = scene.points.clone(), scene.centre[scene.owner][:, None, None, up]
        points[..., up] = middle + (points[..., up] - middle) * math.cos(math.radians(level))
        return scene.moved(points)


class BodyScale(Corruption):
    """Bodies of another size: clips scaled about their centres. Levels: the factor, or by a draw its inverse."""

    name = "body_scale"
    levels = (1.1, 1.25, 1.5, 1.75, 2.0)

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Larger or smaller people."""
        factor = torch.where(scene.draws.coin("sign"), level, 1 / level)[scene.owner]
        middle = scene.centre[scene.owner][:, None, None]
        return scene.moved(middle + (scene.points - middle) * _per_joint(factor))


class Quantisation(Corruption):
    """Coordinates rounded to a grid. Levels: its step in torso lengths."""

    name = "quantisation"
    levels = (0.05, 0.1, 0.2, 0.35, 0.5)

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Joints on a grid."""
        step = _per_joint(level * scene.unit[scene.owner])
        return scene.moved(torch.where(step > 0, (scene.points / step).round() * step, scene.points))


class Confidence(Corruption):
    """Scores that say little: mixed with that of another joint of the same body and frame, and bent.

    A score becomes ((1 - w) own + w other) ** (2**w or 2**-w, by a draw for each clip: too modest or too sure).
    Levels: w. At w = 1 a score is that of another joint.
    """

    name = "confidence"
    levels = (0.2, 0.4, 0.6, 0.8, 1.0)

    def obstacle(self, persons: int, channels: int) -> str | None:
        """It needs scores."""
        return None if channels > self.layout.dims else "the data have no confidences"

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Coordinates stay."""
        frames, seen = scene.clips.frames, scene.seen
        joints = frames.shape[2]
        other = (scene.by_frame.uniform("other", *frames.shape[1:3]) * joints).long().clamp_max(joints - 1)
        own = frames[..., -1]
        score = torch.where(seen.gather(2, other), own.gather(2, other), own).lerp(own, 1 - level).clamp_min(0)
        score = score ** (2.0 ** (level * _signs(scene)))[scene.owner][:, None, None]
        score = torch.where(seen, score, own)
        return replace(scene.clips, frames=torch.cat((frames[..., :-1], score[..., None]), -1))


def _turned(scene: Scene, matrix: Tensor) -> RaggedClips:
    """The clips turned by `matrix` `(N, 3, 3)` about their centres."""
    middle = scene.centre[scene.owner][:, None, None]
    axes = list((scene.points - middle).unbind(-1))
    return scene.moved(rotated(axes, matrix[scene.owner]) + middle)


class NormalisedNoise(Corruption):
    """MaskCLR's noise sweep: Gaussian noise in normalised image coordinates, which are then cut to [-1, 1].

    Project page and code of MaskCLR (Abdelfattah et al., CVPR 2024). Both persons of a frame get the same noise. Of the
    two curves the one called spatial is taken to be constant over the frames of a clip. The released code adds noise
    before it repairs exchanged identities; a store holds repaired tracks, so here it comes after.

    Args:
        layout: joint layout of the clips, 2D.
        sigmas: standard deviations, where the longer image side is 2 long: the levels.
        kind: `spatial`, one draw per joint, or `spatiotemporal`, one per joint and frame.
    """

    def __init__(self, layout: Layout, sigmas: Sequence[float], kind: str) -> None:
        super().__init__(layout)
        self.name, self.levels = kind, tuple(float(sigma) for sigma in sigmas)

    def apply(self, scene: Scene, level: float) -> RaggedClips:
        """Jittering or displaced joints."""
        shape = (1, *scene.points.shape[2:])
        each = scene.draws.normal("noise", *shape)[scene.owner] if self.name == "spatial" else None
        noise = scene.by_frame.normal("noise", *shape) if each is None else each
        return scene.moved((scene.points + level * noise).clamp(-1, 1))
