"""Arithmetic on 2D poses in images: coordinates, identities, Kinetics' packed skeletons.

Arrays are those of pyskl files: points `(M, T, V, 2)` in pixels (x right, y down) and scores `(M, T, V)`.
"""

from __future__ import annotations

import numpy as np

COORDINATES = ("pixel", "centered", "pyskl", "motionbert")
REPAIRS = ("none", "motionbert", "corrected")
#: Up to this score pyskl's normalisation takes a joint as not found.
PYSKL_SCORE = 0.01


def scale_points(
    points: np.ndarray, height: int, width: int, form: str, scores: np.ndarray | None = None
) -> np.ndarray:
    """Pixels in another unit, in float32 (half precision would lose about a pixel).

    With S the larger side of the image:

    * `pixel`: unchanged;
    * `centered`: 2 (v - side / 2) / S on either axis: the origin is the image's middle, the longer side spans [-1, 1];
    * `motionbert`: 2 v / S - 1 on both axes, as MotionBERT (Zhu et al., ICCV 2023) released it: the smaller axis is
      scaled but not centred;
    * `pyskl`: each axis to [-1, 1] by its own side, joints of a score up to 0.01 to 0 (pyskl's PreNormalize2D, Duan et
      al., ACM MM 2022).

    Args:
        points: `(..., 2)`.
        height: of the image.
        width: of the image.
        form: one of the above.
        scores: `(...)`, for `pyskl`.
    """
    points = points.astype(np.float32)
    if form == "pixel":
        return points
    side = np.float32(max(height, width))
    if form == "motionbert":
        return 2 * points / side - 1
    half = np.array([width, height], np.float32) / 2
    if form == "centered":
        return 2 * (points - half) / side
    points = (points - half) / half
    if scores is not None:
        points[scores <= PYSKL_SCORE] = 0
    return points


def swapped_frames(points: np.ndarray) -> np.ndarray:
    """Frames `(T,)` bool in which two people `(2, T, V, 2)` stand in each other's slot.

    MotionBERT's rule: the slots toggle whenever person 0 is farther from where it was a frame before than from where
    person 1 was.
    """
    stay = np.linalg.norm(points[0, 1:] - points[0, :-1], axis=-1).sum(-1)
    cross = np.linalg.norm(points[0, 1:] - points[1, :-1], axis=-1).sum(-1)
    return np.concatenate([[False], np.cumsum(stay > cross) % 2 == 1])


def exchange(values: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """`(2, T, ...)` with the two slots exchanged in `frames` `(T,)`."""
    where = frames.reshape(1, -1, *(1,) * (values.ndim - 2))
    return np.where(where, values[::-1], values)


def best_people(presence: np.ndarray, count: int) -> np.ndarray:
    """The `count` slots of highest mean, ascending.

    Args:
        presence: `(M, T, V)` scores, or 1 where a joint was seen.
        count: slots to keep.
    """
    mean = presence.astype(np.float32).mean(axis=(1, 2))
    return np.sort(np.argsort(-mean, kind="stable")[:count])


def unpack_skeletons(skeletons: np.ndarray, frames: np.ndarray, total: int, people: int) -> np.ndarray:
    """Kinetics' skeletons, all of a video in a row, as `(people, total, V, 3)`; zeros where there is none.

    Each frame's skeletons fill its slots in the file's order. Where some frame of the video has more skeletons than
    slots, those of every frame are ranked by summed score first, as pyskl does.

    Args:
        skeletons: `(S, V, 3)` x, y, score.
        frames: `(S,)` frame of each, counted from 0.
        total: frames of the video.
        people: slots.
    """
    out = np.zeros((people, total, *skeletons.shape[1:]), np.float32)
    crowded = len(frames) and np.bincount(frames, minlength=total).max() > people
    rank = -skeletons[..., 2].astype(np.float32).sum(-1) if crowded else np.arange(len(frames))
    order = np.lexsort((np.arange(len(frames)), rank, frames))
    frame = frames[order]
    slot = np.arange(len(frame)) - np.searchsorted(frame, frame, side="left")
    kept = slot < people
    out[slot[kept], frame[kept]] = skeletons[order[kept]]
    return out
