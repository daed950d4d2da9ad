"""Inertial signals, depth and RGB of UTD-MHAD.

Source: C. Chen, R. Jafari, N. Kehtarnavaz, "UTD-MHAD", ICIP 2015. The inertial sensor is worn on the right wrist in
actions 1 to 21 and on the right thigh in 22 to 27: its place alone tells these groups apart.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from skelact.data.readers.base import DamagedClip, Item
from skelact.data.readers.frames import load_matlab, segment_centres
from skelact.data.readers.media import MediaReader
from skelact.data.readers.names import named_files, numbers
from skelact.data.readers.utd_mhad import CLASSES, SPLITS
from skelact.errors import SkelactError

_LICENCE = "described as freely available by its authors; no formal licence; cite, do not redistribute"
_FILES = {
    "inertial": ("Inertial", ".mat", "inertial"),
    "depth": ("Depth", ".mat", "depth"),
    "rgb": ("RGB", ".avi", "color"),
}
#: Depth of all clips in one file: `depth` (N, T, H, W) and `action`, `subject`, `trial`, (N,) each.
PACKED = "depth16_60x80.npz"


class UTDMedia(MediaReader):
    """`Inertial/*_inertial.mat` (`d_iner`, T x 6), `Depth/*_depth.mat` (`d_depth`, 240 x 320 x T), `RGB/*_color.avi`.

    Where there is no folder of depth files, `depth16_60x80.npz` (16 frames a clip) is read.

    Args:
        modality: inertial, depth or rgb.
        **options: of :class:`skelact.data.readers.media.MediaReader`.
    """

    dataset, classes, class_names, splits = "utd_mhad", 27, CLASSES, SPLITS
    expects = "it should hold Inertial/*_inertial.mat, Depth/*_depth.mat, RGB/*_color.avi"
    modalities: ClassVar[Mapping[str, str]] = {"inertial": "signal", "depth": "image", "rgb": "image"}
    colours: ClassVar[Mapping[str, str]] = {"depth": "jet", "rgb": "rgb"}
    about: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "inertial": {
            "fps": 50.0, "unit": "g, deg/s", "licence": _LICENCE, "source": "UTD-MHAD, inertial sensor",
            "channels": ["acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"],
        },
        "depth": {"fps": 30.0, "unit": "mm, coloured", "licence": _LICENCE, "source": "UTD-MHAD, Kinect v1, depth"},
        "rgb": {"fps": 30.0, "unit": "8 bit", "licence": _LICENCE, "source": "UTD-MHAD, Kinect v1, rgb"},
    }  # fmt: skip

    def find(self, root: Path) -> list[Item]:
        """Files by action, subject and trial."""
        below, suffix, kind = _FILES[self.modality]
        folder = root / below if (root / below).is_dir() else root
        files: dict[tuple[int, ...], Path] = {}
        damaged: list[Item] = []
        if folder.is_dir():
            name = re.compile(rf"a(\d{{1,4}})_s(\d{{1,4}})_t(\d{{1,4}})_{kind}")
            others = re.compile(rf"a\d+_s\d+_t\d+_(?!{kind}$)(?:skeleton|inertial|depth|color)")
            files, damaged = named_files(folder, suffix, name, f"aA_sS_tT_{kind}{suffix}", numbers, others)
        places = [(key, 0, path) for key, path in files.items()]
        packed = root if root.is_file() else root / PACKED
        if not files and self.modality == "depth" and packed.is_file():
            _, keys = _open_packed(packed, packed.stat().st_mtime_ns)
            places = [(key, row, packed) for row, key in enumerate(keys)]
            self.in_process = True  # one file with all clips, loaded once
        items = [
            Item(
                name=f"a{action}_s{subject}_t{trial}",
                path=path,
                label=action - 1,
                columns={"action": action, "subject": subject, "repetition": trial},
                key=row,
            )
            for (action, subject, trial), row, path in sorted(places)
        ]
        return items + damaged

    def load(self, item: Item) -> Iterator[np.ndarray]:
        """Rows of the sensor, or kept frames."""
        if self.modality == "inertial":
            rows = load_matlab(item, "d_iner")
            if rows.ndim != 2 or rows.shape[1] != 6 or len(rows) < 1:
                raise DamagedClip(item.path, "d_iner", f"is {rows.shape}, expected (T, 6)")
            yield from rows
        elif self.modality == "rgb":
            yield from self.from_video(item)
        elif item.path.suffix == ".npz":
            depth = _open_packed(item.path, item.path.stat().st_mtime_ns)[0][item.key]
            for k in segment_centres(len(depth), self.frames).tolist():
                yield self.finish(depth[k])
        else:
            depth = load_matlab(item, "d_depth")
            depth = depth[..., None] if depth.ndim == 2 else depth  # MATLAB drops a last axis of length 1
            if depth.ndim != 3 or min(depth.shape) < 1:
                raise DamagedClip(item.path, "d_depth", f"is {depth.shape}, expected (H, W, T)")
            for k in segment_centres(depth.shape[2], self.frames).tolist():
                frame = depth[..., k]
                if frame.dtype.kind == "f" and not np.isfinite(frame).all():
                    raise DamagedClip(item.path, f"frame {k}", "holds a depth that is not finite")
                if frame.min() < 0 or frame.max() > 65535:
                    raise DamagedClip(item.path, f"frame {k}", "holds a depth outside 0..65535")
                yield self.finish(frame.astype(np.uint16))


@lru_cache(maxsize=1)
def _open_packed(path: Path, changed: int) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Frames and (action, subject, trial) of the packed file, once a process."""
    try:
        with np.load(path, allow_pickle=False) as content:
            depth = content["depth"]
            keys = np.stack([content[key] for key in ("action", "subject", "trial")], axis=1)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise SkelactError(f"utd_mhad depth: {path} cannot be read ({error})") from None
    if depth.dtype != np.uint16 or depth.ndim != 4 or len(keys) != len(depth) or keys.dtype.kind not in "iu":
        raise SkelactError(f"utd_mhad depth: {path} is not depth (N, T, H, W) uint16 with action, subject and trial")
    return depth, [tuple(int(v) for v in key) for key in keys]
