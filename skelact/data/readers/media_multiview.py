"""RGB and depth of the two multi-view sets that come as frame folders: NW-UCLA and UWA3D Multiview Activity II.

Sources: J. Wang et al., "Cross-view action modeling, learning and recognition", CVPR 2014; H. Rahmani, A. Mahmood,
D. Huynh, A. Mian, "Histogram of oriented principal components for cross-view action recognition", TPAMI 2016; folder
layouts as ActionMAE (AAAI 2023) reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from skelact.data.readers import uwa3d
from skelact.data.readers.base import Item
from skelact.data.readers.frames import find_clips
from skelact.data.readers.media import MediaReader
from skelact.data.readers.nw_ucla import CLASSES, SPLITS, original_folders
from skelact.errors import SkelactError


class NWUCLAMedia(MediaReader):
    """Frames `view_V/aAA_sSS_eEE/frame_<n>_tc_<time>_{rgb.jpg, depth_vis.jpg, depth.png}`, sorted by number.

    Times differ between the modalities of a clip, and so may their numbers of frames. Clips are named
    `aAA_sSS_eEE_vVV`, as the skeletons are.

    Args:
        modality: rgb or depth.
        depth: file of the depth modality: `depth_vis` (8 bit, what ActionMAE reads) or `depth`.
        **options: of :class:`skelact.data.readers.media.MediaReader`.
    """

    dataset, classes, class_names, splits = "nw_ucla", 10, CLASSES, SPLITS
    expects = "it should hold view_1, view_2, view_3 with folders aAA_sSS_eEE of frames"
    modalities: ClassVar[Mapping[str, str]] = {"rgb": "image", "depth": "image"}
    colours: ClassVar[Mapping[str, str]] = {"rgb": "rgb", "depth": "jet"}
    about: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {
            "fps": 30.0, "unit": unit, "source": f"Northwestern-UCLA Multiview Action 3D, Kinect v1, {name}",
            "licence": "no licence text known; research use with citation; do not redistribute",
        }
        for name, unit in (("rgb", "8 bit"), ("depth", "coloured"))
    }  # fmt: skip

    def __init__(self, modality: str, depth: str = "depth_vis", **options: Any) -> None:
        super().__init__(modality, **options)
        if depth not in ("depth_vis", "depth"):
            raise SkelactError(f"{self.name}: depth is depth_vis or depth, not {depth!r}")
        self.pattern = re.compile(rf"frame_(\d+)_tc_[\d.]+_{'rgb' if modality == 'rgb' else depth}\.(?:jpg|png)")

    def find(self, root: Path) -> list[Item]:
        """Clip folders inside `view_<n>`."""
        return original_folders(root)

    def load(self, item: Item) -> Iterator[np.ndarray]:
        """Kept frames."""
        return self.from_folder(item, self.pattern)


class UWA3DMedia(MediaReader):
    """Frame folders `aAA_sSS_vVV_eEE` below a folder whose name says `rgb` (JPEG) or `depth` (PNG).

    Args:
        modality: rgb or depth. Depth is stored grey, not coloured, as ActionMAE reads it.
        **options: of :class:`skelact.data.readers.media.MediaReader`.
    """

    dataset, classes, splits = "uwa3d", 30, uwa3d.SPLITS
    expects = "looked for folders aAA_sSS_vVV_eEE of frames below one whose name says rgb or depth"
    modalities: ClassVar[Mapping[str, str]] = {"rgb": "image", "depth": "image"}
    colours: ClassVar[Mapping[str, str]] = {"rgb": "rgb", "depth": "grey"}
    about: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {
            "fps": 30.0, "unit": "8 bit", "source": f"UWA3D Multiview Activity II, Kinect v1, {name}",
            "licence": "on request from the University of Western Australia; research",
        }
        for name in ("rgb", "depth")
    }  # fmt: skip

    def find(self, root: Path) -> list[Item]:
        """Clip folders under a path that names the modality; all of them when `folder` is set."""
        clip = re.compile(r"a(\d\d)_s(\d\d)_v(\d\d)_e(\d\d)|a\d+_s\d+.*")  # or what means to be one
        items = []
        for match, path in find_clips(root, clip):
            below = path.parent.relative_to(root)
            where = root.name if below == Path() else str(below)
            if self.place is None and self.modality not in where.lower():
                continue
            if match.group(1) is None:
                items.append(Item(path.name, path, damage=("", "its name does not follow the scheme aAA_sSS_vVV_eEE")))
                continue
            action, subject, camera, repetition = (int(number) for number in match.groups())
            columns = {"action": action, "subject": subject, "camera": camera, "repetition": repetition}
            items.append(Item(match.group(), path, action - 1, columns))
        return sorted(items, key=lambda item: (item.name, item.path))

    def load(self, item: Item) -> Iterator[np.ndarray]:
        """Kept frames."""
        return self.from_folder(item)
