"""RGB, depth and infrared of NTU RGB+D 60 and 120.

Source: A. Shahroudy et al., "NTU RGB+D", CVPR 2016; J. Liu et al., "NTU RGB+D 120", TPAMI 2020. Files as distributed
(`<name>_rgb.avi` 1920 x 1080, `<name>_ir.avi` 512 x 424, folders of 16-bit `MDepth-*.png`), or extracted to frame
folders `<name>_rgb`, `<name>_ir` as ActionMAE (AAAI 2023) reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from skelact.data.readers.base import Item
from skelact.data.readers.frames import walk
from skelact.data.readers.media import MediaReader
from skelact.errors import SkelactError

_NAME = r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})"
_ODD = r"(S\d{3}C\d{3}[^_./]*)"  # looks like a clip, is not one
_LICENCE = "request form of the ROSE Lab, NTU Singapore; academic research only; no redistribution"


class NTUMedia(MediaReader):
    """One modality of NTU RGB+D; RGB and infrared from videos or frame folders, depth from PNG folders.

    Args:
        modality: rgb, depth or ir.
        classes: 60 or 120.
        masked: depth: take the masked pictures (`MDepth-`), else the full ones (`Depth-`).
        **options: of :class:`skelact.data.readers.media.MediaReader`.
    """

    modalities: ClassVar[Mapping[str, str]] = {"rgb": "image", "depth": "image", "ir": "image"}
    about: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"fps": 30.0, "unit": unit, "licence": _LICENCE, "source": f"NTU RGB+D, Kinect v2, {name}"}
        for name, unit in (("rgb", "8 bit"), ("depth", "mm, coloured"), ("ir", "8 bit"))
    }
    colours: ClassVar[Mapping[str, str]] = {"rgb": "rgb", "depth": "jet", "ir": "grey"}

    def __init__(self, modality: str, classes: int = 60, masked: bool = True, **options: Any) -> None:
        if classes not in (60, 120):
            raise SkelactError(f"NTU RGB+D has 60 or 120 classes, not {classes}")
        self.dataset, self.classes, self.masked = f"ntu{classes}", classes, masked
        super().__init__(modality, **options)
        self.pattern = re.compile(("M" if masked else "") + r"Depth-?(\d+)\.png")

    def find(self, root: Path) -> list[Item]:
        """Videos `<name>_rgb.avi` and folders `<name>_rgb`; for depth folders `<name>` of the wanted kind.

        With 60 classes only set-ups 1 to 17, whatever else lies there.
        """
        ending = "" if self.modality == "depth" else f"_{self.modality}"
        clip = re.compile(rf"(?:{_NAME}|{_ODD}){ending}(?:\.(?:avi|mp4|mkv|mov|webm))?", re.IGNORECASE)
        found = list(walk(root, clip, files=self.modality != "depth", closed=re.compile(_NAME)))
        if self.modality == "depth":
            mentioned = {path: "masked" in str(path.relative_to(root)).lower() for _, path in found}
            if any(mentioned.values()) and not all(mentioned.values()):  # both kinds lie under this folder
                found = [(match, path) for match, path in found if mentioned[path] == self.masked]
        items = [self._item(match, path) for match, path in found]
        if self.classes == 60:
            early = [item for item in items if int(item.columns.get("setup", 1)) <= 17]
            if len(early) < len(items):
                self.notes = [*self.notes, f"{len(items) - len(early)} clips of set-ups 18 and above were left out"]
            items = early
        return sorted(items, key=lambda item: (item.name, item.path))

    def _item(self, match: re.Match[str], path: Path) -> Item:
        if match.group(1) is None:
            return Item(path.name, path, damage=("", "the name is not SsssCcccPpppRrrrAaaa"))
        setup, camera, subject, repetition, action = (int(number) for number in match.groups()[:5])
        name = f"S{setup:03d}C{camera:03d}P{subject:03d}R{repetition:03d}A{action:03d}"
        columns = {
            "setup": setup, "camera": camera, "subject": subject, "repetition": repetition, "action": action,
        }  # fmt: skip
        return Item(name, path, action - 1, columns)

    def load(self, item: Item) -> Iterator[np.ndarray]:
        """Kept frames."""
        if item.path.is_file():
            return self.from_video(item)
        return self.from_folder(item, self.pattern) if self.modality == "depth" else self.from_folder(item)
