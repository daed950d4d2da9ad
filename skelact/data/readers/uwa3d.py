"""UWA3D Multiview Activity II skeletons: 15 joints of OpenNI/NiTE, one file a clip.

Source: H. Rahmani, A. Mahmood, D. Huynh, A. Mian, "Histogram of oriented principal components for cross-view action
recognition", TPAMI 2016. The published code that reads the set's `ActionsSkeleton/aAA_sSS_eEE_vVV.mat` opens MATLAB 7.3
files with a variable `A` of frames x (15 x 3); it groups the joints in NiTE's order. No original file was at hand when
this reader was written: everything is checked, and what does not fit is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers.base import Clip, DamagedClip, Item, Reader, refuse_non_finite
from skelact.data.readers.frames import find_clips, load_matlab
from skelact.errors import SkelactError

_NAME = re.compile(
    r"(?:a(\d\d)_s(\d\d)_(?:v(?P<v1>\d\d)_e(?P<e1>\d\d)|e(?P<e2>\d\d)_v(?P<v2>\d\d))|a\d+_s\d+.*)"
    r"\.(?:mat|txt|csv)",
    re.IGNORECASE,
)
_FRAMES = re.compile(r"a\d\d_s\d\d_v\d\d_e\d\d")
_HDF5 = b"\x89HDF\r\n\x1a\n"
JOINTS = 15
CLASSES = tuple(f"action {number}" for number in range(1, 31))
_VAL = {"factor": "subject", "values": [9, 10]}
#: All pairs of training views, tested on each other view; and the split of ActionMAE (AAAI 2023).
SPLITS: dict[str, dict[str, Any]] = {
    f"xview_{first}{second}_{test}": {"factor": "camera", "train": [first, second], "test": [test], "val": _VAL}
    for first in range(1, 5)
    for second in range(first + 1, 5)
    for test in range(1, 5)
    if test not in (first, second)
} | {"actionmae": {"factor": "camera", "train": [3, 4], "test": [1, 2], "val": _VAL}}


class UWA3DReader(Reader):
    """Read `aAA_sSS_eEE_vVV` or `aAA_sSS_vVV_eEE` files (`.mat`, `.txt`, `.csv`) below a folder.

    MATLAB: a numeric variable `A`, `(T, 45)`, `(T, 15, 3)` or either turned round as MATLAB 7.3 keeps it (such files
    need h5py). Text: numbers separated by commas or blanks, under an optional heading; either one line a frame of 15
    joints x 3 or 4 numbers (with or without a frame number before them) or 15 lines a frame of 3 or 4 numbers (with or
    without a line with the frame number before them). A fourth number is a confidence and is left out. A frame of
    zeros is one in which nobody is tracked; it is masked.

    Args:
        unit: of the files, `mm` (what NiTE reports) or `m`. A body that is not between 0.2 and 4 m large is refused.
    """

    name = "uwa3d"
    masked = True

    def __init__(self, unit: str = "mm") -> None:
        if unit not in ("mm", "m"):
            raise SkelactError(f"uwa3d: unit is mm or m, not {unit!r}")
        self.scale = 0.001 if unit == "mm" else 1.0

    def scan(self, source: str | Path | None) -> list[Item]:
        """One item for each file whose name follows the scheme, named `aAA_sSS_vVV_eEE`, by name."""
        items: list[Item] = []
        seen: dict[str, Path] = {}
        for match, path in find_clips(self.locate(source), _NAME, files=True, closed=_FRAMES):
            if match.group(1) is None:
                items.append(Item(path.name, path, damage=("", "its name does not follow the scheme aAA_sSS_eEE_vVV")))
                continue
            action, subject = int(match.group(1)), int(match.group(2))
            camera = int(match.group("v1") or match.group("v2"))
            repetition = int(match.group("e1") or match.group("e2"))
            name = f"a{action:02d}_s{subject:02d}_v{camera:02d}_e{repetition:02d}"
            columns = {"action": action, "subject": subject, "camera": camera, "repetition": repetition}
            damage = ("", f"clip {name} is also {seen[name]}") if name in seen else None
            if not 1 <= action <= len(CLASSES):
                damage = ("", f"action {action} is not one of 1..{len(CLASSES)}")
            seen.setdefault(name, path)
            items.append(Item(name, path, action - 1, columns, damage=damage))
        items.sort(key=lambda item: (item.name, item.path))
        if any(item.path.suffix.lower() == ".mat" and _is_hdf5(item.path) for item in items[:1]):
            _hdf5()
        return items

    def read(self, item: Item) -> Clip:
        """Frames `(T, 1, 15, 3)` float32 in the order of nite15, metres, and the mask."""
        values = _from_matlab(item) if item.path.suffix.lower() == ".mat" else _from_text(item)
        frames = (values * self.scale)[:, None]
        refuse_non_finite(frames, item, "nite15")
        tracked = np.count_nonzero(frames, axis=(1, 2, 3)) > 0
        seen = np.repeat(tracked, JOINTS).reshape(frames.shape[:3])
        if not seen.any():
            raise DamagedClip(item.path, "", "nobody is tracked in any frame")
        tall = float(np.median(np.ptp(frames[tracked], axis=2).max(axis=(1, 2))))
        if not 0.2 <= tall <= 4:
            raise DamagedClip(item.path, "", f"its body is {tall:.3g} m large: data.reader.unit must be mm or m")
        return Clip(frames.astype(np.float32), seen)

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The dataset card's entries."""
        from skelact.skeleton.layouts import get_layout  # brings torch, which reader processes do without

        return {
            "name": self.name,
            "layout": get_layout("nite15").to_dict(),
            "channels": ["x", "y", "z"],
            "unit": "m",
            "fps": 30.0,
            "persons": 1,
            "class_names": list(CLASSES),
            "splits": SPLITS,
            "source": "UWA3D Multiview Activity II; Kinect v1, 10 subjects, 4 views",
            "licence": "on request from the University of Western Australia; research; do not redistribute",
            "citation": (
                'H. Rahmani, A. Mahmood, D. Huynh, A. Mian, "Histogram of oriented principal components for '
                'cross-view action recognition", TPAMI 2016.'
            ),
        }


def _shaped(values: np.ndarray, item: Item, turned: bool) -> np.ndarray:
    """`(T, 15, 3)` from the shapes a file may have; `turned`: the axes came in MATLAB's order, frames last."""
    if turned:
        values = values.T
    if values.shape in ((JOINTS, 3), (3, JOINTS)):  # one frame: MATLAB drops its axis
        values = values[None]
    if values.ndim == 2 and values.shape[1] == JOINTS * 3:
        values = values.reshape(-1, JOINTS, 3)
    elif values.ndim == 3 and values.shape[1:] == (3, JOINTS):
        values = values.transpose(0, 2, 1)
    if values.ndim != 3 or values.shape[1:] != (JOINTS, 3) or len(values) < 1:
        raise DamagedClip(item.path, "A", f"is {values.shape}, expected frames x 15 joints x 3")
    return values.astype(np.float64)


def _from_matlab(item: Item) -> np.ndarray:
    if not _is_hdf5(item.path):
        values = load_matlab(item, "A")
        return _shaped(values, item, turned=values.ndim == 3 or values.shape[1] != JOINTS * 3)
    try:
        with _hdf5().File(item.path, "r") as content:
            values = np.asarray(content["A"][()])  # h5py already shows MATLAB's axes turned round
    except SkelactError:
        raise
    except Exception as error:  # h5py hands through whatever the HDF5 library says
        raise DamagedClip(item.path, "", f"is not a whole MATLAB 7.3 file with a variable A ({error})") from None
    if values.dtype.kind not in "fiu":
        raise DamagedClip(item.path, "A", f"holds {values.dtype}, not numbers")
    return _shaped(values, item, turned=False)


def _is_hdf5(path: Path) -> bool:
    try:
        with open(path, "rb") as stream:
            start = stream.read(520)
    except OSError:
        return False  # reading it will say why
    return _HDF5 in (start[:8], start[512:])


def _hdf5() -> Any:
    try:
        import h5py
    except ImportError:
        raise SkelactError(
            "uwa3d: the skeletons are MATLAB 7.3 files, which need h5py: pip install 'skelact[hdf5]'"
        ) from None
    return h5py


def _from_text(item: Item) -> np.ndarray:
    """`(T, 15, 3)` from lines of numbers."""
    try:
        lines = item.path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise DamagedClip(item.path, f"byte {error.start}", "is not text") from None
    rows: list[tuple[int, list[float]]] = []
    for number, line in enumerate(lines, 1):
        words = re.split(r"[,;\s]+", line.strip(" \t,;"))
        if words == [""]:
            continue
        try:
            rows.append((number, [float(word) for word in words]))
        except ValueError:
            if number > 1:
                raise DamagedClip(item.path, f"line {number}", "holds something that is not a number") from None
    if not rows:
        raise DamagedClip(item.path, "", "holds no numbers")
    wide = len(rows[0][1]) >= JOINTS * 3
    joints = _wide(rows, item) if wide else _narrow(rows, item)
    return joints.reshape(-1, JOINTS, joints.shape[-1])[..., :3]


def _wide(rows: list[tuple[int, list[float]]], item: Item) -> np.ndarray:
    """One line a frame."""
    width = len(rows[0][1])
    if width not in (45, 46, 60, 61):
        raise DamagedClip(item.path, f"line {rows[0][0]}", f"has {width} numbers, not 15 joints of 3 or 4")
    for number, row in rows:
        if len(row) != width:
            raise DamagedClip(item.path, f"line {number}", f"has {len(row)} numbers, the first {width}")
    return np.array([row[width % 15 :] for _, row in rows]).reshape(len(rows) * JOINTS, -1)


def _narrow(rows: list[tuple[int, list[float]]], item: Item) -> np.ndarray:
    """One line a joint, with or without lines of one number before each frame."""
    numbered = len(rows[0][1]) == 1
    joints: list[list[float]] = []
    for position, (number, row) in enumerate(rows):
        if numbered and position % (JOINTS + 1) == 0:
            if len(row) != 1:
                raise DamagedClip(item.path, f"line {number}", "should be the number of a frame")
            continue
        width = len(joints[0]) if joints else len(row)
        if len(row) not in (3, 4) or len(row) != width:
            raise DamagedClip(item.path, f"line {number}", f"has {len(row)} numbers, expected {width} (3 or 4)")
        joints.append(row)
    if not joints or len(joints) % JOINTS:
        raise DamagedClip(
            item.path, f"line {rows[-1][0]}", f"the last frame is not whole: {len(joints)} rows of joints"
        )
    return np.array(joints)
