"""NW-UCLA (Northwestern-UCLA Multiview Action 3D) skeletons as one JSON file a clip, or in their original folders.

Source: J. Wang, X. Nie, Y. Xia, Y. Wu, S.-C. Zhu, "Cross-view action modeling, learning and recognition", CVPR 2014;
the JSON form is the one in use since CTR-GCN (ICCV 2021). Protocol: train on views 1 and 2, test on view 3. The set's
original folders, with one text file a frame, are read as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers.base import Clip, DamagedClip, Item, Reader, refuse_non_finite
from skelact.data.readers.frames import find_clips, numbered_files
from skelact.data.readers.names import named_files, numbers

_NAME = re.compile(r"a(\d\d)_s(\d\d)_e(\d\d)_v(\d\d)")
_FOLDER = re.compile(r"a(\d\d)_s(\d\d)_e(\d\d)|a\d+_s\d+.*")  # or what means to be one
_FRAME = re.compile(r"frame_(\d+)_tc_[\d.]+_skeletons\.txt")
#: The set's action numbers in the order of their labels; 7 and 10 do not exist.
ACTIONS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)
CLASSES = (
    "pick up with one hand", "pick up with two hands", "drop trash", "walk around", "sit down",
    "stand up", "donning", "doffing", "throw", "carry",
)  # fmt: skip
SPLITS = {
    "xview": {"factor": "camera", "train": [1, 2], "test": [3], "val": {"factor": "subject", "values": [9, 10]}},
    # not a published protocol: odd subjects against even ones
    "xsub": {
        "factor": "subject",
        "train": [1, 3, 5, 7, 9],
        "test": [2, 4, 6, 8, 10],
        "val": {"factor": "subject", "values": [9]},
    },
}


class NWUCLAReader(Reader):
    """Read `aAA_sSS_eEE_vVV.json` files from a folder or its `all_sqe`: 20 joints in Kinect order, metres.

    A folder without such files, but with the original `view_V/aAA_sSS_eEE/frame_<n>_tc_<time>_skeletons.txt` is read
    too (a heading, then 20 rows `x,y,z,confidence`; several people one after another, of whom the first counts). There
    a frame without a person is masked.
    """

    name = "nw_ucla"

    def scan(self, source: str | Path | None) -> list[Item]:
        """One item for each JSON file, else for each original folder; by name. A name outside the scheme is damage."""
        folder = self.folder(source, "all_sqe")
        self.masked = False
        files, damaged = named_files(folder, ".json", _NAME, "aAA_sSS_eEE_vVV.json", numbers)
        items = []
        for (action, subject, repetition, camera), path in files.items():
            columns = {"action": action, "subject": subject, "repetition": repetition, "camera": camera}
            label = ACTIONS.index(action) if action in ACTIONS else -1
            items.append(Item(path.stem, path, label, columns))
        if not items and not damaged:
            items = original_folders(folder)
            self.masked = bool(items)
        return items + damaged

    def read(self, item: Item) -> Clip:
        """Frames `(T, 1, 20, 3)` float32, metres, camera frame (x right, y up, z away)."""
        if item.label < 0:
            raise DamagedClip(item.path, "", f"action {item.columns['action']} is not one of NW-UCLA's {ACTIONS}")
        if item.path.is_dir():
            return _read_folder(item)
        try:
            content = json.loads(item.path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DamagedClip(item.path, f"line {error.lineno} column {error.colno}", error.msg) from None
        except UnicodeDecodeError as error:
            raise DamagedClip(item.path, f"byte {error.start}", "is not text") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
            raise DamagedClip(item.path, "", f"is not a clip's JSON ({error})") from None
        if not isinstance(content, dict) or not {"file_name", "label", "skeletons"} <= set(content):
            raise DamagedClip(item.path, "", "lacks file_name, label or skeletons")
        if content["file_name"] != item.name or content["label"] != item.label + 1:
            found = f"{content['file_name']!r}, label {content['label']!r}"
            raise DamagedClip(item.path, "file_name and label", f"do not agree with the file's name: {found}")
        return Clip(_frames(content["skeletons"], item))

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
            "source": "Northwestern-UCLA Multiview Action 3D, skeletons as JSON; Kinect v1, 10 subjects, 3 views",
            "licence": "no licence text known; research use with citation; do not redistribute",
            "citation": (
                'J. Wang, X. Nie, Y. Xia, Y. Wu, S.-C. Zhu, "Cross-view action modeling, learning and recognition", '
                "CVPR 2014."
            ),
        }


def original_folders(root: Path) -> list[Item]:
    """One item for each folder `view_V/aAA_sSS_eEE` below a folder, named `aAA_sSS_eEE_vVV`, by name."""
    items = []
    for match, path in find_clips(root, _FOLDER):
        if view := re.fullmatch(r"view_(\d+)", path.parent.name):
            if match.group(1) is None:
                items.append(Item(path.name, path, damage=("", "its name does not follow the scheme aAA_sSS_eEE")))
                continue
            action, subject, repetition = (int(number) for number in match.groups())
            camera = int(view.group(1))
            columns = {"action": action, "subject": subject, "repetition": repetition, "camera": camera}
            label = ACTIONS.index(action) if action in ACTIONS else -1
            items.append(Item(f"{match.group()}_v{camera:02d}", path, label, columns))
    return sorted(items, key=lambda item: (item.name, item.path))


def _read_folder(item: Item) -> Clip:
    """`(T, 1, 20, 3)` and mask from one text file a frame."""
    files = numbered_files(item, item.path, _FRAME)
    frames = np.zeros((len(files), 1, 20, 3), np.float32)
    seen = np.zeros((len(files), 1, 20), bool)
    for number, path in enumerate(files):
        try:
            rows = [line for line in path.read_text(encoding="ascii").splitlines()[1:] if line.strip()]
            body = np.array([[float(value) for value in row.rstrip(", ").split(",")] for row in rows[:20]])
        except ValueError:
            raise DamagedClip(path, "", "holds something that is not a number") from None
        if rows and (len(rows) % 20 or body.shape != (20, 4)):
            raise DamagedClip(path, "", f"is not 20 rows of 4 numbers for each person ({len(rows)} rows)")
        if rows and body[:, :3].any():  # a body of zeros is a tracker that sees nobody
            frames[number, 0], seen[number] = body[:, :3], True
    if not seen.any():
        raise DamagedClip(item.path, "", "nobody is seen in any frame")
    refuse_non_finite(frames, item, "kinect20")
    return Clip(frames, seen)


def _frames(skeletons: Any, item: Item) -> np.ndarray:
    """`(T, 1, 20, 3)` from nested lists; on trouble names the first bad frame."""
    if not isinstance(skeletons, list) or not skeletons:
        raise DamagedClip(item.path, "skeletons", "holds no frame")
    try:
        frames = np.array(skeletons, np.float64)
        if frames.shape[1:] != (20, 3):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        for number, frame in enumerate(skeletons):
            try:
                if np.array(frame, np.float64).shape == (20, 3):
                    continue
            except (ValueError, TypeError, OverflowError):
                pass
            raise DamagedClip(item.path, f"frame {number}", "is not 20 joints of 3 numbers") from None
        raise DamagedClip(item.path, "skeletons", "is not frames x 20 joints x 3 numbers") from None
    refuse_non_finite(frames[:, None], item, "kinect20")
    return frames.astype(np.float32)[:, None]
