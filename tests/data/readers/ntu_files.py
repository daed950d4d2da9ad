"""Format-true `.skeleton` files for the tests: the stored ones, and ones made up on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[2] / "golden" / "ntu"
FILES = GOLDEN / "files"
NAMES = sorted(path.stem for path in FILES.glob("*.skeleton"))
FIRST_ID = 72057594037900001


def content(name: str) -> bytes:
    return (FILES / f"{name}.skeleton").read_bytes()


def write(frames, newline="\r\n", number="{:.7g}".format) -> bytes:
    """A file from frames of (ID, joints (25, 12)) pairs."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for body, joints in bodies:
            lines += [f"{body} 0 1 1 1 1 0 {number(0.1788628)} {number(-0.0436)} 2", "25"]
            lines += [" ".join([*map(number, joint[:11]), str(int(joint[11]))]) for joint in joints]
    return (newline.join(lines) + newline).encode()


def person(draw: np.random.Generator, place=(0.0, 0.0, 3.0), sway=0.02) -> np.ndarray:
    """Joints (25, 12) of something taller than wide."""
    joints = np.zeros((25, 12))
    joints[:, :3] = draw.normal(0, (0.1, 0.5, 0.1), (25, 3)) + place + draw.normal(0, sway, 3)
    joints[:, 3:7] = draw.uniform(0, 400, (25, 4))
    joints[:, 7:11] = draw.normal(0, 1, (25, 4))
    joints[:, 11] = 2
    return joints


def walk(length: int, seed=0, body=FIRST_ID, **options) -> list:
    """Frames with one body."""
    draw = np.random.default_rng(seed)
    return [[(body, person(draw, **options))] for _ in range(length)]
