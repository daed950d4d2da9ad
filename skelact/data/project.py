"""2D poses made of 3D ones: a pinhole camera and a simulated detector with confidences.

Why it exists: methods for 2D poses (x, y, confidence) and their robustness can be tried on the 3D sets at hand. Nothing
here was seen by a pose estimator. The image, its errors, its confidences and its lost joints are made up by the rule
below; every card says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers.base import Clip, Item, Reader
from skelact.data.readers.hdm05 import HDM05Reader
from skelact.data.readers.nw_ucla import NWUCLAReader
from skelact.data.readers.pyskl_poses import scale_points
from skelact.data.readers.utd_mhad import UTDMHADReader
from skelact.data.simulate import HDM05ViewsReader, bursts, camera_generator, place_camera

#: Enters every seed; a change of the rule must change it.
VERSION = "v1"
#: Kinect v1's nominal depth camera: NUI_CAMERA_DEPTH_NOMINAL_FOCAL_LENGTH_IN_PIXELS of the Kinect for Windows SDK is
#: 285.63 pixels at 320 x 240. Nominal: single devices differ.
FOCAL = 571.26  # pixels
WIDTH, HEIGHT = 640, 480  # pixels
NEAR = 0.3  # metres; what is nearer than this, or behind the camera, is in no image
LEVEL_SPREAD = 0.6  # standard deviation of the logarithm of the error level
LEVEL_FRAMES = 10.0  # frames after which the logarithm's correlation has fallen to 1/e
ERROR = 0.03  # torso lengths: standard deviation of a joint's error on either axis at level 1
DECAY = 0.2  # a joint at error level e has confidence exp(-DECAY e)
LOST = 0.03  # share of joint samples that are lost
BURST = 6.0  # frames, mean length of a loss
STEP = 0.25  # pixels; what half precision keeps of coordinates in an image of this size


def detect(
    points: np.ndarray, name: str, torso: tuple[int, int], seen: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Joints in a camera's frame as a 2D pose estimator might report them.

    Every joint has an error level e in each frame: log-normal with median 1, its logarithm a stationary first-order
    autoregression over time. Error in pixels: normal, standard deviation `ERROR` e times the torso's length at its
    distance. Confidence: exp(-`DECAY` e). Lost, with coordinates and confidence 0: joints in bursts, and what is
    outside the image.

    Args:
        points: `(T, M, V, 3)` metres: x right, y up, z away from the camera.
        name: seeds everything; of the set and the clip.
        torso: lower and upper joint of the torso.
        seen: `(T, M, V)` bool, what the source saw; None: all.

    Returns:
        Frames `(T, M, V, 3)` float32: x right and y down in halves of the image's width from its middle, confidence;
        and mask `(T, M, V)` bool of joints not lost.
    """
    digest = hashlib.sha256(f"project:{VERSION}:{name}".encode()).digest()
    draw = np.random.RandomState(np.frombuffer(digest, "<u4"))  # its streams are frozen
    points = points.astype(np.float64)
    shape = points.shape[:3]
    level = _levels(draw, shape)
    errors = draw.standard_normal((*shape, 2))
    mask = bursts(draw, shape, LOST, BURST)

    mask &= points[..., 2] >= NEAR
    if seen is not None:
        mask &= seen
    depth = np.maximum(points[..., 2:], NEAR)
    pixels = np.array([WIDTH, HEIGHT]) / 2 + FOCAL * points[..., :2] * (1, -1) / depth
    low, high = torso
    length = np.linalg.norm(points[:, :, high] - points[:, :, low], axis=-1)[..., None, None]
    pixels += errors * level[..., None] * ERROR * FOCAL * length / depth[:, :, low, None]
    mask &= ((pixels >= 0) & (pixels <= (WIDTH, HEIGHT))).all(-1)

    pixels = np.rint(pixels / STEP) * STEP
    confidence = np.exp(-DECAY * level).astype(np.float16).astype(np.float32)
    frames = np.concatenate([scale_points(pixels, HEIGHT, WIDTH, "centered"), confidence[..., None]], axis=-1)
    return np.where(mask[..., None], frames, np.float32(0)), mask


def _levels(draw: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """Error levels `(T, M, V)`, started in their balance."""
    stay = np.exp(-1.0 / LEVEL_FRAMES)
    logarithm = LEVEL_SPREAD * draw.standard_normal(shape)
    for t in range(1, len(logarithm)):
        logarithm[t] = stay * logarithm[t - 1] + np.sqrt(1 - stay**2) * logarithm[t]
    return np.exp(logarithm)


class _Projected(Reader):
    """Put before a 3D reader: its clips in a camera's frame (:meth:`look`) become 2D poses.

    Attributes:
        torso: lower and upper joint of the torso.
    """

    torso = (0, 2)  # hip_center and shoulder_center of kinect20

    def scan(self, source: str | Path | None) -> list[Item]:
        """The items of the 3D set."""
        items = super().scan(source)  # type: ignore[safe-super]
        self.masked = True
        return items

    def look(self, item: Item) -> Clip:
        """The 3D clip in the camera's frame."""
        return super().read(item)  # type: ignore[safe-super]

    def read(self, item: Item) -> Clip:
        """Frames `(T, M, V, 3)` float32, x, y, confidence, and mask: see :func:`detect`."""
        clip = self.look(item)
        return Clip(*detect(clip.frames, f"{self.name}:{item.name}", self.torso, clip.mask))

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The dataset card's entries."""
        from skelact.skeleton.layouts import get_layout  # brings torch, which reader processes do without

        card = super().card(items)  # type: ignore[safe-super]
        return {
            **card,
            "layout": get_layout(f"{card['layout']['name']}_2d").to_dict(),
            "channels": ["x", "y", "score"],
            "pipeline": "simulated",
            "unit": "half of the image's width, of a simulated projection of 3D joints; simulated confidences",
            "source": f"SIMULATED 2D poses (skelact, rule {VERSION}), not of a pose estimator: 3D joints through a "
            f"pinhole camera; errors, confidences and losses are made up; from: {card['source']}",
        }


class UTDMHAD2DReader(_Projected, UTDMHADReader):
    """Simulated 2D poses of UTD-MHAD, as from the place of its Kinect."""

    name = "utd_mhad_2d"


class NWUCLA2DReader(_Projected, NWUCLAReader):
    """Simulated 2D poses of NW-UCLA, as from the places of its three Kinects."""

    name = "nw_ucla_2d"


class HDM052DReader(_Projected, HDM05ViewsReader):
    """Simulated 2D poses of HDM05, from the places of the made-up cameras of `hdm05_views`: its names and columns."""

    name = "hdm05_2d"
    torso = (0, 13)  # root and thorax of hdm05_31

    def look(self, item: Item) -> Clip:
        """The motion in the frame of its camera, without the depth camera's noise and losses."""
        return Clip(place_camera(HDM05Reader.read(self, item).frames, camera_generator(item.name)))
