"""HDM05, the 11-class cross-subject subset: motion capture of five actors, embedded in the package.

Source: M. Müller, T. Röder, M. Clausen, B. Eberhardt, B. Krüger, A. Weber, "Documentation Mocap Database HDM05",
technical report CG-2007-2, Universität Bonn, 2007. Licence CC BY-SA 3.0. The data used in this project was obtained
from HDM05.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers.acclaim import Acclaim, read_amc, read_asf
from skelact.data.readers.base import Clip, DamagedClip, Item, Reader, refuse_non_finite
from skelact.data.readers.names import named_files, walk
from skelact.errors import SkelactError

EMBEDDED = Path(__file__).parents[1] / "embedded" / "hdm05" / "hdm05_11.npz"
ORIGINAL = "hdm05_11_joints.npz"
INCH = 0.0254
#: Coordinates are whole multiples of this, metres: far below the accuracy of the capture, and exact in int16.
QUANTUM = 0.00025
FPS = 30
CLASSES = (
    "depositFloorR", "elbowToKnee1RepsLelbowStart", "grabHighR", "hopBothLegs1hops", "jogLeftCircle4StepsRstart",
    "kickLFront1Reps", "lieDownFloor", "rotateArmsBothBackward1Reps", "sneak2StepsLStart", "squat1Reps",
    "throwBasketball",
)  # fmt: skip
#: Bones of the skeleton texts in the order of the joints of hdm05_31: each joint is the far end of the bone.
BONES = (
    "root", "lhipjoint", "lfemur", "ltibia", "lfoot", "ltoes", "rhipjoint", "rfemur", "rtibia", "rfoot", "rtoes",
    "lowerback", "upperback", "thorax", "lowerneck", "upperneck", "head", "lclavicle", "lhumerus", "lradius", "lwrist",
    "lhand", "lfingers", "lthumb", "rclavicle", "rhumerus", "rradius", "rwrist", "rhand", "rfingers", "rthumb",
)  # fmt: skip
_MOTION = re.compile(r"HDM_([a-z]+)_([A-Za-z0-9]+)_(\d{1,6})_(\d{1,4})")

SOURCE = {
    "source": "HDM05 motion capture database, 11-class cross-subject subset; optical motion capture, 5 actors",
    "licence": "CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/)",
    "citation": (
        'M. Müller, T. Röder, M. Clausen, B. Eberhardt, B. Krüger, A. Weber, "Documentation Mocap Database HDM05", '
        "TR CG-2007-2, Universität Bonn, 2007. The data used in this project was obtained from HDM05."
    ),
}
#: Training actors bd, bk, dg; dg, held out of them, validates. Test actors mm, tr.
SPLITS = {
    "xsub": {
        "factor": "subject",
        "train": ["bd", "bk", "dg"],
        "test": ["mm", "tr"],
        "val": {"factor": "subject", "values": ["dg"]},
    }
}


class HDM05Reader(Reader):
    """Read the embedded copy (no source needed), the original texts, or the table `hdm05_11_joints.npz` made of them.

    The originals are `HDM_<actor>_<class>_<take>_<fps>.amc` and the actors' `HDM_<actor>.asf`, anywhere in a folder;
    motions of other classes than the eleven are left out. All three give one store: metres, y up, every fourth frame of
    120 per second, rounded to a quarter millimetre (the table is float32, so that a rounding may differ by one step).
    """

    name = "hdm05"

    def __init__(self) -> None:
        self._table: tuple[Path, dict[str, np.ndarray]] | None = None
        self._actors: dict[str, list[Path]] = {}
        self._skeletons: dict[Path, Acclaim] = {}

    def locate(self, source: str | Path | None) -> Path:
        """The embedded `.npz` without a source, the one that is given or in the folder, else the folder itself."""
        if source is None:
            return EMBEDDED
        path = super().locate(source)
        return path / ORIGINAL if path.is_dir() and (path / ORIGINAL).is_file() else path

    def scan(self, source: str | Path | None) -> list[Item]:
        """One item for each motion, by name."""
        path = self.locate(source)
        if path.is_dir():
            return self._scan_texts(path)
        table = self._load(path)
        return [
            Item(
                name=str(name),
                path=path,
                label=int(table["label"][k]),
                columns={"subject": str(table["subject_names"][table["subject"][k]]), "take": int(table["take"][k])},
                key=k,
            )
            for k, name in enumerate(table["name"])
        ]

    def read(self, item: Item) -> Clip:
        """Frames `(T, 1, 31, 3)` float32 in metres at 30 per second."""
        if item.path.suffix.lower() == ".amc":
            return self._read_text(item)
        table = self._load(item.path)
        first, last = int(table["offsets"][item.key]), int(table["offsets"][item.key + 1])
        data = table["data"][first:last]
        if data.dtype == np.int16:
            return _whole_steps(data.astype(np.float64))
        refuse_non_finite(data[:, None], item, [str(joint) for joint in table["joint_names"]])
        return _whole_steps(data[:: int(table["fps"]) // FPS].astype(np.float64) * (INCH / QUANTUM))

    def _scan_texts(self, folder: Path) -> list[Item]:
        folders = [place for place, _ in walk(folder)]
        scheme = "HDM_<actor>_<class>_<take>_<fps>.amc"
        files, damaged = named_files(folders, ".amc", _MOTION, scheme, lambda match: match.groups())
        if not files and not damaged:
            raise SkelactError(f"hdm05: {folder} holds neither {ORIGINAL} nor motion texts {scheme}")
        self._actors = {}
        for place in folders:
            for path in sorted(place.glob("HDM_*.[aA][sS][fF]")):
                self._actors.setdefault(path.stem.split("_", 1)[1], []).append(path)
        items, others = [], set()
        for (actor, motion, take, fps), path in files.items():
            if motion not in CLASSES:
                others.add(motion)
                continue
            damage = None
            if actor not in self._actors:
                damage = ("", f"there is no skeleton text HDM_{actor}.asf in {folder}")
            elif int(fps) < FPS or int(fps) % FPS:
                damage = ("", f"{fps} frames per second are no multiple of {FPS}")
            columns = {"subject": actor, "take": int(take)}
            items.append(Item(path.stem, path, CLASSES.index(motion), columns, key=int(fps), damage=damage))
        left = sum(1 for _, motion, _, _ in files if motion in others)
        self.notes = [f"{left} motions of {len(others)} other classes left out"] if others else []
        return [*items, *damaged]

    def _read_text(self, item: Item) -> Clip:
        """Joints of a motion text, by the skeleton text of its actor that lies nearest."""
        near = max(
            self._actors[str(item.columns["subject"])], key=lambda path: len(os.path.commonpath([path, item.path]))
        )
        if near not in self._skeletons:
            skeleton = read_asf(near)
            if sorted(skeleton.names) != sorted(BONES):
                raise DamagedClip(near, "", f"has not the {len(BONES)} bones of HDM05")
            self._skeletons[near] = skeleton
        skeleton = self._skeletons[near]
        with np.errstate(over="ignore", invalid="ignore"):  # numbers beyond all measure are refused below
            joints = skeleton.positions(read_amc(item.path, skeleton)[:: item.key // FPS])
        joints = joints[:, [skeleton.names.index(bone) for bone in BONES]]
        refuse_non_finite(joints[:, None], item, BONES)
        return _whole_steps(joints * (INCH / QUANTUM))

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The dataset card's entries."""
        from skelact.skeleton.layouts import get_layout  # brings torch, which reader processes do without

        texts = items[0].path.suffix.lower() == ".amc"
        classes = CLASSES if texts else [str(name) for name in self._load(items[0].path)["class_names"]]
        return {
            "name": self.name,
            "layout": get_layout("hdm05_31").to_dict(),
            "channels": ["x", "y", "z"],
            "unit": "m",
            "fps": float(FPS),
            "persons": 1,
            "class_names": list(classes),
            "splits": SPLITS,
            **SOURCE,
        }

    def _load(self, path: Path) -> dict[str, np.ndarray]:
        if self._table is None or self._table[0] != path:
            try:
                with np.load(path, allow_pickle=False) as archive:
                    table = {key: archive[key] for key in archive.files}
                offsets, data = table["offsets"], table["data"]
                whole = offsets[0] == 0 and offsets[-1] == len(data) and (np.diff(offsets) > 0).all()
                if data.ndim != 3 or data.shape[1:] != (31, 3) or not whole or len(offsets) != len(table["name"]) + 1:
                    raise SkelactError("offsets and data do not fit together")
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise SkelactError(f"hdm05: {path} is not a whole copy of the data ({error})") from error
            self._table = (path, table)
        return self._table[1]

    def __getstate__(self) -> dict[str, Any]:  # workers read the table themselves
        return {**self.__dict__, "_table": None, "_skeletons": {}}


def _whole_steps(steps: np.ndarray) -> Clip:
    """A clip from joints `(T, 31, 3)` in steps of :data:`QUANTUM`."""
    return Clip((np.rint(steps) * QUANTUM + 0.0).astype(np.float32)[:, None])  # + 0.0: no negative zeros


def compact(source: str | Path, target: str | Path) -> None:
    """Make the embedded copy from the original table (how it was made; needed once).

    Args:
        source: folder or file of `hdm05_11_joints.npz`.
        target: the `.npz` to write: int16 quarter millimetres at 30 frames per second.
    """
    reader = HDM05Reader()
    items = reader.scan(source)
    table = reader._load(items[0].path)
    clips = [np.rint(reader.read(item).frames[:, 0].astype(np.float64) / QUANTUM).astype(np.int16) for item in items]
    offsets = np.concatenate([[0], np.cumsum([len(clip) for clip in clips])]).astype(np.int64)
    kept = ("label", "subject", "take", "name", "class_names", "subject_names", "joint_names")
    columns: dict[str, Any] = {key: table[key] for key in kept}
    np.savez_compressed(target, data=np.concatenate(clips), offsets=offsets, fps=np.int64(FPS), **columns)
