"""Conversions between joint layouts: coordinates, scores and masks move together.

Each target joint is one source joint or the mean of several. Nothing is guessed: a pair of layouts without a table is
refused. COCO to Human3.6M follows MotionBERT (Zhu et al., ICCV 2023), except that scores move with their joints; in the
released code, which its weights were trained with, they stay in COCO order (`scores="as_released"`).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from skelact.skeleton.layouts import LAYOUTS, Layout, LayoutError, get_layout

Array = TypeVar("Array", Tensor, np.ndarray)

SCORES = ("converted", "as_released")
_SIDES = ("left", "right")


def _sided(table: dict[str, str]) -> dict[str, str | tuple[str, ...]]:
    return {f"{side}_{target}": f"{side}_{source}" for side in _SIDES for target, source in table.items()}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_KINECT_LIMBS = _sided(_same("shoulder", "elbow", "wrist", "hand", "hip", "knee", "ankle", "foot"))

# (source, target) -> target joint -> source joint, or the source joints whose mean it is
_TABLES: dict[tuple[str, str], dict[str, str | tuple[str, ...]]] = {
    # Kinect v1 sees no neck and no fingers: the neck is put half way to the head, tip and thumb onto the hand
    ("kinect20", "ntu25"): {
        "spine_base": "hip_center",
        "spine_mid": "spine",
        "spine_shoulder": "shoulder_center",
        "neck": ("shoulder_center", "head"),
        "head": "head",
        **_KINECT_LIMBS,
        **_sided({"hand_tip": "hand", "thumb": "hand"}),
    },
    ("ntu25", "kinect20"): {
        "hip_center": "spine_base",
        "spine": "spine_mid",
        "shoulder_center": "spine_shoulder",
        "head": "head",
        **_KINECT_LIMBS,
    },
    # Kinect's head is the middle of the head, its spine joint lies half way up the back
    ("hdm05_31", "ntu25"): {
        "spine_base": "root",
        "spine_mid": ("lower_back", "upper_back"),
        "spine_shoulder": "thorax",
        "neck": "lower_neck",
        "head": ("upper_neck", "head_top"),
        **_KINECT_LIMBS,
        **_sided({"hand_tip": "fingers", "thumb": "thumb"}),
    },
    ("hdm05_31", "kinect20"): {
        "hip_center": "root",
        "spine": ("lower_back", "upper_back"),
        "shoulder_center": "thorax",
        "head": ("upper_neck", "head_top"),
        **_KINECT_LIMBS,
    },
    ("coco17", "h36m17"): {
        "root": ("left_hip", "right_hip"),
        "belly": ("left_hip", "right_hip", "left_shoulder", "right_shoulder"),
        "neck": ("left_shoulder", "right_shoulder"),
        "nose": "nose",
        "head": ("left_eye", "right_eye"),
        **_sided(_same("hip", "knee", "ankle", "shoulder", "elbow", "wrist")),
    },
}


def _indices(source: Layout, target: Layout) -> list[tuple[int, ...]]:
    table = _TABLES[source.name, target.name]
    return [
        tuple(source.index(name) for name in ((found,) if isinstance(found, str) else found))
        for found in (table[joint] for joint in target.joints)
    ]


_INDICES = {pair: _indices(LAYOUTS[pair[0]], LAYOUTS[pair[1]]) for pair in _TABLES}


def list_conversions() -> list[tuple[str, str]]:
    """(source, target) names of the conversions there are."""
    return list(_TABLES)


def convert(
    frames: Array,
    source: Layout | str,
    target: Layout | str,
    mask: Array | None = None,
    score_channel: bool = False,
    scores: str = "converted",
) -> tuple[Array, Array | None]:
    """Express frames of one joint layout in another.

    Args:
        frames: `(..., V, C)` array or tensor in the source layout.
        source: layout of `frames`.
        target: layout wanted; the same as `source` returns the input unchanged.
        mask: `(..., V)` bool, True where a joint was observed.
        score_channel: the last channel is a confidence. A joint made from several gets the least of theirs.
        scores: `converted`, or `as_released`: the confidences keep the source's order, so that most belong to another
            joint.

    Returns:
        frames `(..., V', C)` and mask `(..., V')` (None stays None), of the input's kind and dtype. A joint made from
        several is observed where all of them are; unobserved joints have zero coordinates.

    Raises:
        LayoutError: the pair has no conversion, V is not the source's number of joints, or scores cannot keep their
            order because the layouts have different numbers of joints.
    """
    if scores not in SCORES:
        raise LayoutError(f"scores={scores!r} is not one of {', '.join(SCORES)}")
    source, target = get_layout(source), get_layout(target)
    if frames.shape[-2] != source.num_joints:
        raise LayoutError(
            f"layout {source.name!r} has {source.num_joints} joints, the frames {tuple(frames.shape)} have "
            f"{frames.shape[-2]}"
        )
    if mask is not None and mask.shape != frames.shape[:-1]:
        raise LayoutError(f"mask {tuple(mask.shape)} does not fit frames {tuple(frames.shape)}")
    if source == target:
        return frames, mask
    pair = (source.name, target.name)
    if pair not in _INDICES or LAYOUTS[pair[0]] != source or LAYOUTS[pair[1]] != target:
        known = ", ".join(f"{a} -> {b}" for a, b in _TABLES)
        raise LayoutError(f"no conversion from layout {source.name!r} to {target.name!r}; there are {known}")
    kept = score_channel and scores == "as_released"
    if kept and source.num_joints != target.num_joints:
        raise LayoutError(f"scores=as_released: {source.name!r} and {target.name!r} have different numbers of joints")
    if isinstance(frames, np.ndarray):
        out, seen = _convert(
            torch.from_numpy(np.array(frames)),
            _INDICES[pair],
            None if mask is None else torch.from_numpy(np.array(mask)),
            score_channel,
            kept,
        )
        return out.numpy(), None if seen is None else seen.numpy()
    return _convert(frames, _INDICES[pair], mask, score_channel, kept)


def _convert(
    frames: Tensor, indices: list[tuple[int, ...]], mask: Tensor | None, score_channel: bool, scores_kept: bool
) -> tuple[Tensor, Tensor | None]:
    first = torch.tensor([sources[0] for sources in indices], device=frames.device)
    out = frames.index_select(-2, first)
    seen = None if mask is None else mask.index_select(-1, first)
    for joint, sources in enumerate(indices):
        if len(sources) == 1:
            continue
        several = torch.tensor(sources, device=frames.device)
        taken = frames.index_select(-2, several)
        # half precision is averaged in single
        out[..., joint, :] = taken.float().mean(-2).to(out.dtype) if taken.itemsize < 4 else taken.mean(-2)
        if score_channel:
            out[..., joint, -1] = taken[..., -1].amin(-1)
        if mask is not None and seen is not None:
            seen[..., joint] = mask.index_select(-1, several).all(-1)
    if scores_kept:
        out[..., -1] = frames[..., -1]
    if seen is not None:
        coordinates = out[..., :-1] if score_channel else out
        coordinates.masked_fill_(~seen[..., None], 0)
    return out, seen
