"""A `.skeleton` file read the plain way: one line after another, one number after another.

What the benchmark of preparation compares :func:`skelact.data.readers.ntu_parse.parse_skeleton` with. It checks
nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

_JOINT = ("x", "y", "z", "depth_x", "depth_y", "color_x", "color_y", "qw", "qx", "qy", "qz", "tracking")


def read_line_by_line(path: str | Path) -> np.ndarray:
    """`(T, B, 25, 3)` float32 coordinates of the listed bodies; all other fields are read and dropped.

    Args:
        path: a whole, undamaged file.
    """
    frames = []
    with open(path) as stream:
        for _ in range(int(stream.readline())):
            bodies = []
            for _ in range(int(stream.readline())):
                fields = stream.readline().split()
                info = [int(fields[0]), *map(float, fields[1:])]
                joints = []
                for _ in range(int(stream.readline())):
                    joint = {}
                    for name, field in zip(_JOINT, stream.readline().split(), strict=True):
                        joint[name] = float(field)
                    joints.append(joint)
                bodies.append((info, joints))
            frames.append(bodies)
    result = np.zeros((len(frames), max(map(len, frames), default=0), 25, 3), np.float32)
    for t, bodies in enumerate(frames):
        for m, (_, joints) in enumerate(bodies):
            for v, joint in enumerate(joints):
                result[t, m, v] = joint["x"], joint["y"], joint["z"]
    return result
