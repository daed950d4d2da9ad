"""Corruptions of skeleton clips at five severities, in units of the body: what a worse sensor or tracker delivers.

A corruption maps whole ragged clips to ragged clips before normalisation and sampling. Distances are fractions of the
clip's torso length (:attr:`~skelact.transforms.corruptions.base.Scene.unit`). Random numbers belong to clip names, so
that a clip is corrupted in the same way in any batch, split, order and process, by the same numbers at all severities.
Nothing is written to the clips given. What is hidden is unobserved by the mask (made where there is none) and zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from skelact.clips import RaggedClips
from skelact.transforms.corruptions import hiding, spatial, temporal
from skelact.transforms.corruptions.base import Corruption, Scene
from skelact.transforms.corruptions.hiding import interpolate
from skelact.transforms.corruptions.spatial import NormalisedNoise
from skelact.transforms.draws import Draws

SEVERITIES = (1, 2, 3, 4, 5)

CORRUPTIONS: dict[str, type[Corruption]] = {
    kind.name: kind
    for kind in (
        spatial.JointNoise,
        spatial.JointOffset,
        spatial.Drift,
        spatial.Spikes,
        hiding.PartOcclusion,
        hiding.JointLoss,
        hiding.UniformFrameLoss,
        hiding.RandomFrameLoss,
        hiding.BlockFrameLoss,
        temporal.LowFrameRate,
        temporal.Speed,
        temporal.LeftRightSwap,
        temporal.PersonSwap,
        hiding.SecondPersonMissing,
        temporal.GhostPerson,
        spatial.CameraRotation,
        spatial.CameraHeight,
        spatial.BodyScale,
        spatial.Quantisation,
        spatial.Confidence,
    )
}
"""By name, in the order of the tables."""

FILLS = ("none", "interpolate")


def name_keys(names: Iterable[str]) -> Tensor:
    """`(N,)` int64, a hash of each clip name (BLAKE2b, 64 bits): the same wherever a clip of that name is met."""
    digests = (hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in names)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)


@dataclass(frozen=True)
class Corrupted:
    """One corruption at one severity, as a map of a store's clips.

    Args:
        corruption: which.
        severity: 0 to 5.
        keys: `(number of clips in the store,)` int64, see :func:`name_keys`.
        seed: of all corruptions.
        fill: `none`, or `interpolate`: what the corruption hid is interpolated over time, see
            :func:`~skelact.transforms.corruptions.hiding.interpolate`; gaps that the clips had before stay.
    """

    corruption: Corruption
    severity: int
    keys: Tensor
    seed: int = 0
    fill: str = "none"

    def __call__(self, clips: RaggedClips) -> RaggedClips:
        """Corrupted clips; `index` is their position in the store."""
        draws = Draws(self.seed, 0, self.keys.to(clips.device)[clips.index])
        found = self.corruption(clips, self.severity, draws)
        if self.fill == "none" or not self.corruption.hides or self.severity == 0:
            return found
        return interpolate(found, only=Scene(clips, self.corruption.layout, draws).seen)


__all__ = [
    "CORRUPTIONS",
    "FILLS",
    "SEVERITIES",
    "Corrupted",
    "Corruption",
    "NormalisedNoise",
    "Scene",
    "interpolate",
    "name_keys",
]
