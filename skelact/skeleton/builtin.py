"""The joint layouts that come with the library, as tables in the form of `Layout.to_dict`.

Sources: Kinect v2 joints and bone pairs as published with NTU RGB+D (Shahroudy et al., CVPR 2016) and used by ST-GCN
and its followers; Kinect v1 joints of the Microsoft SDK, and of OpenNI/NiTE; COCO keypoints (Lin et al., ECCV 2014)
with the tree common to skeleton toolboxes; Human3.6M in the 17-joint form of MotionBERT (Zhu et al., ICCV 2023);
HDM05's ASF skeletons (Müller et al., TR CG-2007-2, Univ. Bonn).
"""

from __future__ import annotations

from typing import Any

_ARM = ("shoulder", "elbow", "wrist", "hand")
_LEG = ("hip", "knee", "ankle", "foot")
_SIDES = ("left", "right")


def _limbs(names: tuple[str, ...], side: str) -> list[str]:
    return [f"{side}_{name}" for name in names]


def _chain(first_parent: str, names: list[str]) -> list[list[str]]:
    """Bones of a limb that hangs off `first_parent`."""
    return [[child, parent] for child, parent in zip(names, [first_parent, *names[:-1]], strict=True)]


def _mirror(joints: list[str]) -> list[list[str]]:
    return [[joint, "right" + joint[4:]] for joint in joints if joint.startswith("left_")]


def _kinect(
    name: str, spine: list[str], chest: str, hips: str, extra: list[str], extra_bones: list[list[str]]
) -> dict[str, Any]:
    joints = [
        *spine,
        *_limbs(_ARM, "left"),
        *_limbs(_ARM, "right"),
        *_limbs(_LEG, "left"),
        *_limbs(_LEG, "right"),
        *extra,
    ]
    bones = [bone for side in _SIDES for bone in _chain(chest, _limbs(_ARM, side))]
    bones += [bone for side in _SIDES for bone in _chain(hips, _limbs(_LEG, side))]
    hands = [joint for joint in extra if joint.endswith(("tip", "thumb"))]
    torso = [joint for joint in [*spine, *extra] if joint not in hands]
    return {
        "name": name,
        "joints": joints,
        "bones": [*bones, *extra_bones],
        "mirror": _mirror(joints),
        "parts": {
            "torso": torso,
            **{f"{side}_arm": _limbs(_ARM, side) + [j for j in hands if j.startswith(side)] for side in _SIDES},
            **{f"{side}_leg": _limbs(_LEG, side) for side in _SIDES},
        },
        "center": spine[1],
        "shoulders": ["left_shoulder", "right_shoulder"],
    }


# The hand tip hangs off the thumb: that is how the published bone pairs have it.
NTU25 = _kinect(
    "ntu25",
    ["spine_base", "spine_mid", "neck", "head"],
    "spine_shoulder",
    "spine_base",
    ["spine_shoulder", "left_hand_tip", "left_thumb", "right_hand_tip", "right_thumb"],
    [
        ["spine_base", "spine_mid"],
        ["spine_mid", "spine_shoulder"],
        ["neck", "spine_shoulder"],
        ["head", "neck"],
        *[bone for side in _SIDES for bone in _chain(f"{side}_hand", [f"{side}_thumb", f"{side}_hand_tip"])],
    ],
)

KINECT20 = _kinect(
    "kinect20",
    ["hip_center", "spine", "shoulder_center", "head"],
    "shoulder_center",
    "hip_center",
    [],
    [["hip_center", "spine"], ["spine", "shoulder_center"], ["head", "shoulder_center"]],
)

_NITE_ARM, _NITE_LEG = ("shoulder", "elbow", "hand"), ("hip", "knee", "foot")
_NITE = [
    *("head", "neck", "torso"),
    *_limbs(_NITE_ARM, "left"),
    *_limbs(_NITE_ARM, "right"),
    *_limbs(_NITE_LEG, "left"),
    *_limbs(_NITE_LEG, "right"),
]

NITE15: dict[str, Any] = {
    "name": "nite15",
    "joints": _NITE,
    "bones": [
        ["neck", "torso"],
        ["head", "neck"],
        *[bone for side in _SIDES for bone in _chain("neck", _limbs(_NITE_ARM, side))],
        *[bone for side in _SIDES for bone in _chain("torso", _limbs(_NITE_LEG, side))],
    ],
    "mirror": _mirror(_NITE),
    "parts": {
        "torso": ["head", "neck", "torso"],
        **{f"{side}_arm": _limbs(_NITE_ARM, side) for side in _SIDES},
        **{f"{side}_leg": _limbs(_NITE_LEG, side) for side in _SIDES},
    },
    "center": "torso",
    "shoulders": ["left_shoulder", "right_shoulder"],
}

_FACE = ["nose", "left_eye", "right_eye", "left_ear", "right_ear"]
_COCO_BODY = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_COCO = [*_FACE, *[f"{side}_{name}" for name in _COCO_BODY for side in _SIDES]]

COCO17: dict[str, Any] = {
    "name": "coco17",
    "joints": _COCO,
    "bones": [
        bone
        for side in _SIDES
        for bone in (
            *_chain("nose", _limbs(("eye", "ear"), side)),
            *_chain("nose", _limbs(("shoulder", "elbow", "wrist"), side)),
            *_chain(f"{side}_shoulder", _limbs(("hip", "knee", "ankle"), side)),
        )
    ],
    "mirror": _mirror(_COCO),
    "parts": {
        "torso": _FACE,
        **{f"{side}_arm": _limbs(("shoulder", "elbow", "wrist"), side) for side in _SIDES},
        **{f"{side}_leg": _limbs(("hip", "knee", "ankle"), side) for side in _SIDES},
    },
    "center": "nose",
    "shoulders": ["left_shoulder", "right_shoulder"],
    "up": "-y",  # image coordinates grow downwards
    "dims": 2,
}

_H36M = [
    "root",
    *_limbs(("hip", "knee", "ankle"), "right"),
    *_limbs(("hip", "knee", "ankle"), "left"),
    *("belly", "neck", "nose", "head"),
    *_limbs(("shoulder", "elbow", "wrist"), "left"),
    *_limbs(("shoulder", "elbow", "wrist"), "right"),
]

H36M17: dict[str, Any] = {
    "name": "h36m17",
    "joints": _H36M,
    "bones": [
        *_chain("root", ["belly", "neck", "nose", "head"]),
        *[bone for side in _SIDES for bone in _chain("root", _limbs(("hip", "knee", "ankle"), side))],
        *[bone for side in _SIDES for bone in _chain("neck", _limbs(("shoulder", "elbow", "wrist"), side))],
    ],
    "mirror": _mirror(_H36M),
    "parts": {
        "torso": ["root", "belly", "neck", "nose", "head"],
        **{f"{side}_arm": _limbs(("shoulder", "elbow", "wrist"), side) for side in _SIDES},
        **{f"{side}_leg": _limbs(("hip", "knee", "ankle"), side) for side in _SIDES},
    },
    "center": "root",
    "shoulders": ["left_shoulder", "right_shoulder"],
    "up": "-y",
    "dims": 2,  # as the networks of MotionBERT and MaskCLR are fed: image coordinates and a score
}

# Joints of HDM05 are named here by where the source's bone ends: the end of the clavicle is the shoulder, that of the
# humerus the elbow; radius and wrist bone together make the forearm, so the wrist is the end of the wrist bone.
_HDM_LEG = ("hip", "knee", "ankle", "foot", "toes")
_HDM_ARM = ("shoulder", "elbow", "forearm", "wrist", "hand", "fingers")
_HDM = [
    "root",
    *_limbs(_HDM_LEG, "left"),
    *_limbs(_HDM_LEG, "right"),
    *("lower_back", "upper_back", "thorax", "lower_neck", "upper_neck", "head_top"),
    *_limbs((*_HDM_ARM, "thumb"), "left"),
    *_limbs((*_HDM_ARM, "thumb"), "right"),
]

HDM05_31: dict[str, Any] = {
    "name": "hdm05_31",
    "joints": _HDM,
    "bones": [
        *_chain("root", ["lower_back", "upper_back", "thorax", "lower_neck", "upper_neck", "head_top"]),
        *[bone for side in _SIDES for bone in _chain("root", _limbs(_HDM_LEG, side))],
        *[bone for side in _SIDES for bone in _chain("thorax", _limbs(_HDM_ARM, side))],
        *[[f"{side}_thumb", f"{side}_wrist"] for side in _SIDES],
    ],
    "mirror": _mirror(_HDM),
    "parts": {
        "torso": ["root", "lower_back", "upper_back", "thorax", "lower_neck", "upper_neck", "head_top"],
        **{f"{side}_arm": _limbs((*_HDM_ARM, "thumb"), side) for side in _SIDES},
        **{f"{side}_leg": _limbs(_HDM_LEG, side) for side in _SIDES},
    },
    "center": "root",
    "shoulders": ["left_shoulder", "right_shoulder"],
}


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    """The same joints as seen in an image: `NAME_2d`."""
    return {**table, "name": f"{table['name']}_2d", "up": "-y", "dims": 2}


TABLES: tuple[dict[str, Any], ...] = (
    *(NTU25, KINECT20, NITE15, COCO17, H36M17, HDM05_31),
    *(_flat(KINECT20), _flat(HDM05_31)),
)
