"""Real motion, simulated cameras: each HDM05 motion as three depth cameras would report it.

Why it exists: with the whole bodies that motion capture gives, centred and turned to face front, raw-pose nearest
neighbours already answer every HDM05 cross-subject query. Seen from any side, with noise and lost joints, the same
motions ask for view invariance. No depth image is rendered: a camera is a rigid motion, joint noise and lost joints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers.base import Clip, Item
from skelact.data.readers.hdm05 import QUANTUM, HDM05Reader

#: Enters every seed; a change of the simulation must change it.
VERSION = "v1"
CAMERAS = 3
PITCH = 0.3  # radians either way
NOISE = 0.03  # metres, standard deviation of each joint coordinate in each frame
LOST = 0.05  # share of joint samples that are lost
BURST = 6.0  # frames, mean length of a loss
DISTANCE = (2.5, 4.0)  # metres from the camera to the first frame's root


def camera_generator(name: str) -> np.random.RandomState:
    """Seeded by a clip's name in hdm05_views. RandomState: its streams are frozen, those of Generator may change."""
    digest = hashlib.sha256(f"hdm05_views:{VERSION}:{name}".encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, "<u4"))


def place_camera(frames: np.ndarray, draw: np.random.RandomState, root: int = 0) -> np.ndarray:
    """One motion in the frame of a made-up camera: x right, y up, z away from the camera.

    The camera stands anywhere around the actor (any yaw), is tilted by up to +-0.3 rad, and keeps that pose through
    the clip.

    Args:
        frames: `(T, 1, V, 3)` metres, y up.
        draw: source of the camera's pose.
        root: joint that the camera looks at in the first frame.

    Returns:
        `(T, 1, V, 3)` float64 metres.
    """
    yaw, pitch = draw.uniform(-np.pi, np.pi), draw.uniform(-PITCH, PITCH)
    distance = draw.uniform(*DISTANCE)
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    values = frames.astype(np.float64) - frames[0, 0, root].astype(np.float64)
    return values @ (about_x @ about_y).T + np.array([0.0, 0.0, distance])


def simulate_camera(frames: np.ndarray, name: str, root: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One motion seen by one made-up depth camera (:func:`place_camera`).

    Joints are noisy and lost in bursts (a two-state chain with 5 % of samples lost, six frames at a time on average)
    except the root, on which a tracker hangs.

    Args:
        frames: `(T, 1, V, 3)` metres, y up.
        name: name of the result; the only source of randomness.
        root: joint that is never lost.

    Returns:
        Frames `(T, 1, V, 3)` float32, lost joints 0, and mask `(T, 1, V)` bool.
    """
    draw = camera_generator(name)
    values = place_camera(frames, draw, root)
    values += NOISE * draw.standard_normal(values.shape)
    mask = bursts(draw, values.shape[:3], LOST, BURST)
    mask[..., root] = True
    values[~mask] = 0.0
    return (np.rint(values / QUANTUM) * QUANTUM + 0.0).astype(np.float32), mask


def bursts(draw: np.random.RandomState, shape: tuple[int, ...], lost: float, length: float) -> np.ndarray:
    """`(T, M, V)` bool, False in bursts: losing starts and ends as a two-state chain started in its balance.

    Args:
        draw: source of randomness.
        shape: T, M, V.
        lost: share of samples that are False.
        length: mean length of a burst, frames.
    """
    end = 1.0 / length
    begin = end * lost / (1.0 - lost)
    seen = draw.uniform(size=shape[1:]) >= lost
    mask = np.empty(shape, bool)
    for t, chance in enumerate(draw.uniform(size=shape)):
        mask[t] = seen
        seen = np.where(seen, chance >= begin, chance < end)
    return mask


class HDM05ViewsReader(HDM05Reader):
    """The motions of :class:`HDM05Reader`, each three times: `<name>_c0` to `_c2`, column `group` = the motion."""

    name = "hdm05_views"
    masked = True

    def scan(self, source: str | Path | None) -> list[Item]:
        """Three items for each of the 288 motions; what is damaged stands once."""
        items = super().scan(source)
        seen = [
            replace(item, name=f"{item.name}_c{camera}", columns={**item.columns, "camera": camera, "group": item.name})
            for item in items
            if item.damage is None
            for camera in range(CAMERAS)
        ]
        return seen + [item for item in items if item.damage is not None]

    def read(self, item: Item) -> Clip:
        """Frames `(T, 1, 31, 3)` float32 in metres in the camera's frame, and the mask of joints not lost."""
        return Clip(*simulate_camera(super().read(item).frames, item.name))

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The dataset card's entries."""
        card = super().card(items)
        note = f"; each motion as seen by {CAMERAS} simulated depth cameras (skelact, rule {VERSION}): not camera data"
        return {**card, "source": card["source"] + note}
