"""UTD-MHAD skeletons as one MATLAB file a clip.

Source: C. Chen, R. Jafari, N. Kehtarnavaz, "UTD-MHAD: A multimodal dataset for human action recognition utilizing a
depth camera and a wearable inertial sensor", ICIP 2015. Protocol: subjects 1 3 5 7 train, 2 4 6 8 test.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers.base import Clip, DamagedClip, Item, Reader, refuse_non_finite
from skelact.data.readers.names import named_files, numbers

_NAME = re.compile(r"a(\d{1,4})_s(\d{1,4})_t(\d{1,4})_skeleton")
_OTHERS = re.compile(r"a\d+_s\d+_t\d+_(inertial|depth|color)")
#: Position in the file of each joint of kinect20: the files begin head, shoulder centre, spine, hip centre.
ORDER = (3, 2, 1, 0, *range(4, 20))
CLASSES = (
    "swipe left", "swipe right", "wave", "front clap", "throw", "cross arms", "basketball shoot", "draw x",
    "draw circle clockwise", "draw circle counter-clockwise", "draw triangle", "bowling", "boxing", "baseball swing",
    "tennis forehand swing", "arm curl", "tennis serve", "push", "knock on door", "catch", "pick up and throw", "jog",
    "walk", "sit to stand", "stand to sit", "forward lunge", "squat",
)  # fmt: skip
SPLITS = {
    "xsub": {
        "factor": "subject",
        "train": [1, 3, 5, 7],
        "test": [2, 4, 6, 8],
        "val": {"factor": "subject", "values": [7]},
    }
}


class UTDMHADReader(Reader):
    """Read `aA_sS_tT_skeleton.mat` files (`d_skel`, 20 x 3 x T) from a folder or its `Skeleton`."""

    name = "utd_mhad"

    def scan(self, source: str | Path | None) -> list[Item]:
        """One item for each skeleton file, by action, subject and trial; a name outside the scheme is damage."""
        folder = self.folder(source, "Skeleton")
        files, damaged = named_files(folder, ".mat", _NAME, "aA_sS_tT_skeleton.mat", numbers, _OTHERS)
        items = [
            Item(
                name=f"a{action}_s{subject}_t{trial}",
                path=path,
                label=action - 1 if 1 <= action <= len(CLASSES) else -1,
                columns={"action": action, "subject": subject, "repetition": trial},
            )
            for (action, subject, trial), path in files.items()
        ]
        return items + damaged

    def read(self, item: Item) -> Clip:
        """Frames `(T, 1, 20, 3)` float32 in the order of kinect20, metres, camera frame."""
        from scipy.io import loadmat

        if item.label < 0:
            raise DamagedClip(item.path, "", f"action {item.columns['action']} is not one of 1..{len(CLASSES)}")
        data = BytesIO(item.path.read_bytes())  # the parser would set aside what a damaged file claims to hold
        try:
            content = loadmat(data, variable_names=["d_skel"])
        except Exception as error:  # scipy hands through whatever its parsers meet: zlib.error, TypeError, ...
            reason = " ".join(str(error).split())[:200]
            raise DamagedClip(item.path, "", f"is not a whole MATLAB file ({reason})") from None
        skeleton = content.get("d_skel")
        if skeleton is None:
            raise DamagedClip(item.path, "", "has no variable d_skel")
        if not isinstance(skeleton, np.ndarray):
            raise DamagedClip(item.path, "d_skel", f"is {type(skeleton).__name__}, expected numbers (20, 3, T)")
        if skeleton.ndim == 2:  # MATLAB drops a last axis of length 1
            skeleton = skeleton[..., None]
        numeric = skeleton.dtype.kind in "fiu" and skeleton.ndim == 3
        if not numeric or skeleton.shape[:2] != (20, 3) or skeleton.shape[2] < 1:
            raise DamagedClip(item.path, "d_skel", f"is {skeleton.dtype} {skeleton.shape}, expected numbers (20, 3, T)")
        frames = np.asarray(skeleton, np.float64).transpose(2, 0, 1)[:, None, list(ORDER)]
        refuse_non_finite(frames, item, "kinect20")
        return Clip(frames.astype(np.float32))

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The dataset card's entries."""
        from skelact.skeleton.layouts import get_layout  # brings torch, which reader processes do without

        return {
            "name": self.name,
            "layout": get_layout("kinect20").to_dict(),
            "channels": ["x", "y", "z"],
            "unit": "m",
            "fps": 30.0,
            "persons": 1,
            "class_names": list(CLASSES),
            "splits": SPLITS,
            "source": "UTD-MHAD, skeletons of the MATLAB files; Kinect v1, 8 subjects, 4 trials",
            "licence": "described as freely available by its authors; no formal licence; cite, do not redistribute",
            "citation": (
                'C. Chen, R. Jafari, N. Kehtarnavaz, "UTD-MHAD: A multimodal dataset for human action recognition '
                'utilizing a depth camera and a wearable inertial sensor", ICIP 2015.'
            ),
        }
