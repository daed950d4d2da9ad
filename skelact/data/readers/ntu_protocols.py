"""What is fixed about NTU RGB+D 60 and 120: names, classes, protocols, published counts, samples without skeleton.

Sources: A. Shahroudy, J. Liu, T.-T. Ng, G. Wang, "NTU RGB+D: A large scale dataset for 3D human activity analysis",
CVPR 2016; J. Liu, A. Shahroudy, M. Perez, G. Wang, L.-Y. Duan, A. C. Kot, "NTU RGB+D 120: A large-scale benchmark for
3D human activity understanding", TPAMI 42 (2020); the list of missing skeletons in their repository.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

_NAME = re.compile(r"S([0-9]{3})C([0-9]{3})P([0-9]{3})R([0-9]{3})A([0-9]{3})")
FACTORS = ("setup", "camera", "subject", "repetition", "action")
#: Largest number of each factor.
RANGES = {
    60: {"setup": 17, "camera": 3, "subject": 40, "repetition": 2, "action": 60},
    120: {"setup": 32, "camera": 3, "subject": 106, "repetition": 2, "action": 120},
}
CLASSES = (
    "drink water", "eat meal/snack", "brushing teeth", "brushing hair", "drop", "pickup", "throw", "sitting down",
    "standing up (from sitting position)", "clapping", "reading", "writing", "tear up paper", "wear jacket",
    "take off jacket", "wear a shoe", "take off a shoe", "wear on glasses", "take off glasses", "put on a hat/cap",
    "take off a hat/cap", "cheer up", "hand waving", "kicking something", "reach into pocket",
    "hopping (one foot jumping)", "jump up", "make a phone call/answer phone", "playing with phone/tablet",
    "typing on a keyboard", "pointing to something with finger", "taking a selfie", "check time (from watch)",
    "rub two hands together", "nod head/bow", "shake head", "wipe face", "salute", "put the palms together",
    "cross hands in front (say stop)", "sneeze/cough", "staggering", "falling", "touch head (headache)",
    "touch chest (stomachache/heart pain)", "touch back (backache)", "touch neck (neckache)",
    "nausea or vomiting condition", "use a fan (with hand or paper)/feeling warm", "punching/slapping other person",
    "kicking other person", "pushing other person", "pat on back of other person", "point finger at the other person",
    "hugging other person", "giving something to other person", "touch other person's pocket", "handshaking",
    "walking towards each other", "walking apart from each other", "put on headphone", "take off headphone",
    "shoot at the basket", "bounce ball", "tennis bat swing", "juggling table tennis balls", "hush", "flick hair",
    "thumb up", "thumb down", "make ok sign", "make victory sign", "staple book", "counting money", "cutting nails",
    "cutting paper (using scissors)", "snapping fingers", "open bottle", "sniff (smell)", "squat down", "toss a coin",
    "fold paper", "ball up paper", "play magic cube", "apply cream on face", "apply cream on hand back", "put on bag",
    "take off bag", "put something into a bag", "take something out of a bag", "open a box", "move heavy objects",
    "shake fist", "throw up cap/hat", "hands up (both hands)", "cross arms", "arm circles", "arm swings",
    "running on the spot", "butt kicks (kick backward)", "cross toe touch", "side kick", "yawn", "stretch oneself",
    "blow nose", "hit other person with something", "wield knife towards other person",
    "knock over other person (hit with body)", "grab other person's stuff", "shoot at other person with a gun",
    "step on foot", "high-five", "cheers and drink", "carry something with other person",
    "take a photo of other person", "follow other person", "whisper in other person's ear",
    "exchange things with other person", "support somebody with hand", "finger-guessing game (rock-paper-scissors)",
)  # fmt: skip
#: Performers of the training side of xsub; on the first 40 the rule of 120 says the same as that of 60.
TRAIN_SUBJECTS_60 = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
TRAIN_SUBJECTS_120 = (
    *TRAIN_SUBJECTS_60, 45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89,
    91, 92, 93, 94, 95, 97, 98, 100, 103,
)  # fmt: skip
NOVEL = tuple(range(1, 116, 6))
EXEMPLARS = tuple(f"S{1 if action <= 60 else 18:03}C003P008R001A{action:03}" for action in NOVEL)
#: Validation is ours (the set has none): about a tenth of the training side, by performers, set-ups or classes.
SPLITS: dict[int, dict[str, dict[str, Any]]] = {
    60: {
        "xsub": {
            "factor": "subject",
            "train": list(TRAIN_SUBJECTS_60),
            "val": {"factor": "subject", "values": [17, 35]},
        },
        "xview": {
            "factor": "camera",
            "train": [2, 3],
            "test": [1],
            "val": {"factor": "subject", "values": [10, 17, 26, 35]},
        },
    },
    120: {
        "xsub": {
            "factor": "subject",
            "train": list(TRAIN_SUBJECTS_120),
            "val": {"factor": "subject", "values": [17, 35, 55, 80, 97]},
        },
        "xset": {
            "factor": "setup",
            "train": list(range(2, 33, 2)),
            "test": list(range(1, 33, 2)),
            "val": {"factor": "setup", "values": [14, 30]},
        },
        "oneshot": {
            "factor": "action",
            "train": [action for action in range(1, 121) if action not in NOVEL],
            "test": list(NOVEL),
            "val": {"factor": "action", "values": list(range(2, 111, 12))},
            "exemplars": {"factor": "name", "values": list(EXEMPLARS)},
        },
    },
}
_PUBLISHED = {
    60: (56_578, {"xsub": (40_091, 16_487), "xview": (37_646, 18_932)}),
    120: (113_945, {"xsub": (63_026, 50_919), "xset": (54_468, 59_477), "oneshot": (95_001, 18_924)}),
}
_CAPTURED = {
    60: (56_880, {"xsub": (40_320, 16_560), "xview": (37_920, 18_960)}),
    120: (114_480, {"xsub": (63_360, 51_120), "xset": (54_720, 59_760), "oneshot": (95_400, 19_060)}),
}
_MISSING = Path(__file__).parents[1] / "embedded" / "ntu" / "missing_skeletons.txt"


def published(sets: int, whole: bool = False) -> dict[str, Any]:
    """Counts for the card.

    Args:
        sets: 60 or 120.
        whole: of all captured samples; else without those of :func:`missing_skeletons`.
    """
    clips, splits = (_CAPTURED if whole else _PUBLISHED)[sets]
    sides: dict[str, dict[str, int]] = {}
    for name, (train, test) in splits.items():
        sides[name] = {"train+val": train, "test": test}
        if name == "oneshot":
            sides[name]["exemplars"] = len(EXEMPLARS)
    source = "CVPR 2016 and TPAMI 2020" + ("" if whole else ", less the official list of missing skeletons")
    return {"clips": clips, "splits": sides, "source": source}


@cache
def missing_skeletons() -> frozenset[str]:
    """The 535 names of the official list for NTU RGB+D 120; those of set-ups 1..17 are the 302 for NTU RGB+D 60."""
    names = []
    for line in _MISSING.read_text(encoding="ascii").splitlines():
        if line.startswith("#"):
            continue
        sample, *ranges = line.split()
        for text in ranges:
            first, _, last = text.partition("-")
            names += [f"{sample}A{action:03}" for action in range(int(first), int(last or first) + 1)]
    return frozenset(names)


def parse_name(name: str) -> dict[str, int] | None:
    """Set-up, camera, performer, repetition and action of a sample's name `SsssCcccPpppRrrrAaaa`, or None."""
    match = _NAME.fullmatch(name)
    return dict(zip(FACTORS, map(int, match.groups()), strict=True)) if match else None


def impossible(factors: dict[str, int], sets: int) -> str:
    """What is wrong with a sample's numbers; empty if it may exist."""
    for factor, most in RANGES[sets].items():
        if not 1 <= factors[factor] <= most:
            return f"{factor} {factors[factor]} is not one of 1..{most}"
    if (factors["action"] > 60) != (factors["setup"] > 17):
        half = "1..60 belong to set-ups 1..17" if factors["action"] <= 60 else "61..120 belong to set-ups 18..32"
        return f"action {factors['action']} cannot come from set-up {factors['setup']}: actions {half}"
    return ""
