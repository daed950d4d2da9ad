"""RGB, depth and infrared of NTU RGB+D 60 and 120.

Source: A. Shahroudy et al., "NTU RGB+D", CVPR 2016; J. Liu et al., "NTU RGB+D 120", TPAMI 2020. Files as distributed
(`<name>_rgb.avi` 1920 x 1080, `<name>_ir.avi` 512 x 424, folders of 16-bit `MDepth-*.png`), or extracted to frame
folders `<name>_rgb`, `<name>_ir` as ActionMAE (AAAI 2023) reads them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from skelact.data.readers import ntu_protocols as protocols
from skelact.data.readers.base import Item
from skelact.data.readers.frames import find_clips
from skelact.data.readers.media import MediaReader
from skelact.errors import SkelactError

_NAME = r"(S\d{3}C\d{3}[^_./]*)"  # or what means to be one
_LICENCE = "request form of the ROSE Lab, NTU Singapore; academic research only; no redistribution"


class NTUMedia(MediaReader):
    """One modality of NTU RGB+D; RGB and infrared from videos or frame folders, depth from PNG folders.

    Args:
        modality: rgb, depth or ir.
        classes: 60 or 120.
        missing: `official` leaves out the clips on the makers' list of missing skeletons; `keep` takes them, for
            experiments without skeletons.
        masked: depth: take the masked pictures (`MDepth-`), else the full ones (`Depth-`).
        **options: of :class:`skelact.data.readers.media.MediaReader`.
    """

    expects = (
        "looked in all its folders for SsssCcccPpppRrrrAaaa_rgb.avi (_ir.avi), or folders of frames of such names "
        "(depth: without an ending); archives of videos must be unpacked"
    )
    modalities: ClassVar[Mapping[str, str]] = {"rgb": "image", "depth": "image", "ir": "image"}
    about: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"fps": 30.0, "unit": unit, "licence": _LICENCE, "source": f"NTU RGB+D, Kinect v2, {name}"}
        for name, unit in (("rgb", "8 bit"), ("depth", "mm, coloured"), ("ir", "8 bit"))
    }
    colours: ClassVar[Mapping[str, str]] = {"rgb": "rgb", "depth": "jet", "ir": "grey"}

    def __init__(
        self, modality: str, classes: int = 60, masked: bool = True, missing: str = "official", **options: Any
    ) -> None:
        if classes not in (60, 120):
            raise SkelactError(f"NTU RGB+D has 60 or 120 classes, not {classes}")
        if missing not in ("official", "keep"):
            raise SkelactError(f"NTU RGB+D: missing is official or keep, not {missing!r}")
        self.missing, self.class_names = missing, protocols.CLASSES[:classes]
        self.splits = protocols.SPLITS[classes]
        self.dataset, self.classes, self.depth_masked = f"ntu{classes}", classes, masked
        super().__init__(modality, **options)
        self.pattern = re.compile(("M" if masked else "") + r"Depth-?(\d+)\.png")

    def find(self, root: Path) -> list[Item]:
        """Videos `<name>_rgb.avi` and folders `<name>_rgb`; for depth folders `<name>` of the wanted kind.

        With 60 classes only set-ups 1 to 17, whatever else lies there; without the official list.
        """
        ending = "" if self.modality == "depth" else f"_{self.modality}"
        clip = re.compile(rf"{_NAME}{ending}(?:\.(?:avi|mp4|mkv|mov|webm))?", re.IGNORECASE)
        found = list(find_clips(root, clip, files=self.modality != "depth", closed=re.compile(_NAME)))
        if self.modality == "depth":
            mentioned = {path: "masked" in str(path.relative_to(root)).lower() for _, path in found}
            if any(mentioned.values()) and not all(mentioned.values()):  # both kinds lie under this folder
                found = [(match, path) for match, path in found if mentioned[path] == self.depth_masked]
        left: Counter[str] = Counter()
        items = [item for match, path in found if (item := self._item(match, path, left)) is not None]
        self.notes = [*self.notes, *(f"{count} clips {reason}, left out" for reason, count in left.items())]
        return sorted(items, key=lambda item: (item.name, item.path))

    def _item(self, match: re.Match[str], path: Path, left: Counter[str]) -> Item | None:
        """The clip, with its damage where the name is wrong; None if it is not part of the set."""
        name = match.group(1).upper()
        factors = protocols.parse_name(name)
        if factors is None:
            return Item(path.name, path, damage=("", "the name is not SsssCcccPpppRrrrAaaa"))
        if self.classes == 60 and 18 <= factors["setup"] <= 32:
            left["of set-ups 18..32 are not part of NTU RGB+D 60"] += 1
            return None
        if reason := protocols.impossible(factors, self.classes):
            return Item(path.name, path, damage=("", reason))
        if self.missing == "official" and name in protocols.missing_skeletons():
            left["are on the official list of missing skeletons"] += 1
            return None
        return Item(name, path, factors["action"] - 1, factors)

    def load(self, item: Item) -> Iterator[np.ndarray]:
        """Kept frames."""
        if item.path.is_file():
            return self.from_video(item)
        return self.from_folder(item, self.pattern) if self.modality == "depth" else self.from_folder(item)
