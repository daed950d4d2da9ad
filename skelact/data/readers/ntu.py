"""NTU RGB+D 60 and 120: Kinect v2 skeletons, one `.skeleton` text a clip, unpacked or in the zips of the ROSE Lab."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.archives import list_members, read_member
from skelact.data.readers import ntu_protocols as protocols
from skelact.data.readers.base import Clip, DamagedClip, Item, Reader
from skelact.data.readers.ntu_bodies import PIPELINES
from skelact.data.readers.ntu_parse import Bodies, parse_skeleton
from skelact.errors import SkelactError

SUFFIX = ".skeleton"
#: The longest file of the set has some 2 MB.
LIMIT = 64 << 20
EXTRAS = ("depth_x", "depth_y", "color_x", "color_y", "tracking")
#: Pixels; positions beyond it, or not finite, were not found by the sensor and are stored as 0.
_FAR = 1e4


class NTUReader(Reader):
    """Read `SsssCcccPpppRrrrAaaa.skeleton` files.

    The source is a folder (searched with all its subfolders), a zip file, or a folder of zip files; archives are read
    in place. Where a clip lies both unpacked and in an archive, the unpacked file counts.

    Args:
        sets: 60 (set-ups 1..17, the others are left out) or 120.
        pipeline: how two persons are chosen among the listed bodies, see :mod:`skelact.data.readers.ntu_bodies`.
        extras: also keep position in the depth and colour images (pixels) and tracking state (0, 1, 2).
        missing: `official` leaves out the samples on the makers' list of missing skeletons; `keep` reads them.
    """

    def __init__(
        self, sets: int = 60, pipeline: str = "tracks", extras: bool = False, missing: str = "official"
    ) -> None:
        if sets not in (60, 120):
            raise SkelactError(f"data.reader.sets is 60 or 120, not {sets!r}")
        if pipeline not in PIPELINES:
            raise SkelactError(f"data.pipeline is one of {', '.join(PIPELINES)}, not {pipeline!r}")
        if missing not in ("official", "keep"):
            raise SkelactError(f"data.reader.missing is official or keep, not {missing!r}")
        self.sets, self.pipeline, self.extras, self.missing = sets, pipeline, extras, missing
        self.name = f"ntu{sets}"
        self.masked = pipeline == "tracks"

    def scan(self, source: str | Path | None) -> list[Item]:
        """One item a sample, by name; then what cannot be used. Sets :attr:`notes`."""
        root = self.locate(source)
        items: dict[str, Item] = {}
        bad: list[Item] = []
        left: Counter[str] = Counter()
        for found in _found(root):
            item = self._judge(found, left) if found.damage is None else found
            if item is None:
                continue
            if item.damage is None and item.name in items:
                known = items[item.name]
                if item.member and not known.member:
                    left["also in an archive; the unpacked files are read"] += 1
                    continue
                where = known.member or known.path
                item = replace(item, damage=("", f"is a second {item.name}; the one read is {where}"))
            if item.damage is None:
                items[item.name] = item
            else:
                place = item.path.relative_to(root) if item.path != root else Path(item.path.name)
                bad.append(replace(item, name="/".join(filter(None, (place.as_posix(), item.member)))))
        self.notes = tuple(f"{count} sample{'s' * (count > 1)} {reason}" for reason, count in left.items())
        return [items[name] for name in sorted(items)] + sorted(bad, key=lambda item: item.name)

    def _judge(self, item: Item, left: Counter[str]) -> Item | None:
        """The item with its columns or its damage; None if it is not part of the set."""
        factors = protocols.parse_name(item.name)
        if factors is None:
            return replace(item, damage=("", f"the name {item.name!r} is not of the form SsssCcccPpppRrrrAaaa"))
        if self.sets == 60 and 18 <= factors["setup"] <= 32:
            left["of set-ups 18..32, not part of NTU RGB+D 60: left out"] += 1
            return None
        if reason := protocols.impossible(factors, self.sets):
            return replace(item, damage=("", reason))
        if self.missing == "official" and item.name in protocols.missing_skeletons():
            left["on the official list of missing skeletons: left out"] += 1
            return None
        return replace(item, label=factors["action"] - 1, columns=factors)

    def read(self, item: Item) -> Clip:
        """Frames `(T, 2, 25, 3)` float32, metres, camera frame (x right, y up, z away); with `extras` 8 channels."""
        if item.damage is not None:
            raise DamagedClip(item.path, *item.damage)
        if item.member:
            data, path = read_member(item.path, item.member, LIMIT), f"{item.path}/{item.member}"
        else:
            data, path = _read_file(item.path), str(item.path)
        bodies = parse_skeleton(data, path)
        if not len(bodies.ids):
            raise DamagedClip(path, "", f"no body in any of {len(bodies.nbody)} frames")
        options = {"double": self.sets == 120} if self.pipeline == "denoise" else {}
        chosen = PIPELINES[self.pipeline](bodies, **options)
        if not len(chosen.rows):
            raise DamagedClip(path, "", "no frame is left: all coordinates are zero")
        frames = chosen.gather(_values(bodies, self.extras))
        mask = np.repeat(chosen.rows[..., None] >= 0, frames.shape[2], axis=2) if self.masked else None
        return Clip(frames, mask)

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The dataset card's entries."""
        from skelact.skeleton.layouts import get_layout  # brings torch, which reader processes do without

        citations = [
            'A. Shahroudy, J. Liu, T.-T. Ng, G. Wang, "NTU RGB+D: A large scale dataset for 3D human activity '
            'analysis", CVPR 2016.',
            'J. Liu, A. Shahroudy, M. Perez, G. Wang, L.-Y. Duan, A. C. Kot, "NTU RGB+D 120: A large-scale benchmark '
            'for 3D human activity understanding", IEEE TPAMI 42(10), 2020.',
        ]
        return {
            "name": self.name,
            "layout": get_layout("ntu25").to_dict(),
            "channels": ["x", "y", "z", *(EXTRAS if self.extras else ())],
            "unit": "m",
            "fps": 30.0,
            "persons": 2,
            "pipeline": self.pipeline,
            "class_names": list(protocols.CLASSES[: self.sets]),
            "splits": protocols.SPLITS[self.sets],
            "published": protocols.published(self.sets, whole=self.missing == "keep"),
            "source": f"NTU RGB+D {self.sets}, skeletons of the Kinect v2; ROSE Lab, NTU Singapore",
            "licence": "ROSE Lab's terms: academic research only, on request; no redistribution, not even of parts",
            "citation": " ".join(citations[: 1 if self.sets == 60 else 2]),
        }


def _found(root: Path) -> Iterator[Item]:
    """Everything with the suffix in a folder, in its archives, or in one archive; unpacked files first."""
    if root.is_file():
        if root.suffix.lower() != ".zip":
            raise SkelactError(f"the source {root} is neither a folder nor a zip file")
        yield from _packed(root)
        return
    files, archives = [], []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        for name in names:
            if name.lower().endswith(SUFFIX) and not name.startswith("._"):
                files.append(os.path.join(folder, name))
            elif name.lower().endswith(".zip"):
                archives.append(os.path.join(folder, name))
    for file in sorted(files):
        path = Path(file)
        yield Item(path.name[: -len(SUFFIX)], path)
    for file in sorted(archives):
        try:
            yield from _packed(Path(file))
        except SkelactError as error:
            yield Item(Path(file).name, Path(file), damage=("", str(error)))


def _packed(path: Path) -> Iterator[Item]:
    for member in list_members(path, SUFFIX, LIMIT):
        damage = (member.name, member.damage) if member.damage else None
        yield Item(member.stem, path, member=member.name, version=(member.size, member.crc), damage=damage)


def _read_file(path: Path) -> bytes:
    with open(path, "rb") as stream:
        data = stream.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise DamagedClip(path, "", f"is larger than {LIMIT >> 20} MiB")
    return data


def _values(bodies: Bodies, extras: bool) -> np.ndarray:
    """`(n, 25, 3 or 8)` float32 of every listed body."""
    xyz = bodies.joints[..., :3]
    if not extras:
        return xyz.astype(np.float32)
    pixels = bodies.joints[..., 3:7]
    pixels = np.where(np.abs(pixels) <= _FAR, pixels, 0)
    return np.concatenate([xyz, pixels, bodies.joints[..., 11:]], axis=-1).astype(np.float32)
