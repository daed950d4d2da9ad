"""HDM05, the 11-class cross-subject subset: motion capture of five actors, embedded in the package.

Source: M. Müller, T. Röder, M. Clausen, B. Eberhardt, B. Krüger, A. Weber, "Documentation Mocap Database HDM05",
technical report CG-2007-2, Universität Bonn, 2007. Licence CC BY-SA 3.0. The data used in this project was obtained
from HDM05.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers.base import Clip, Item, Reader, refuse_non_finite
from skelact.errors import SkelactError

EMBEDDED = Path(__file__).parents[1] / "embedded" / "hdm05" / "hdm05_11.npz"
ORIGINAL = "hdm05_11_joints.npz"
INCH = 0.0254
#: Coordinates are whole multiples of this, metres: far below the accuracy of the capture, and exact in int16.
QUANTUM = 0.00025
FPS = 30

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
    """Read the embedded copy (no source needed) or the original table `hdm05_11_joints.npz`.

    Both give the same store: metres, y up, every fourth frame of 120 per second, rounded to a quarter millimetre.
    """

    name = "hdm05"

    def __init__(self) -> None:
        self._table: tuple[Path, dict[str, np.ndarray]] | None = None

    def locate(self, source: str | Path | None) -> Path:
        """The `.npz`: the embedded one without a source, else the file or the one in the folder."""
        if source is None:
            return EMBEDDED
        path = super().locate(source)
        return path / ORIGINAL if path.is_dir() else path

    def scan(self, source: str | Path | None) -> list[Item]:
        """One item for each of the 288 motions."""
        path = self.locate(source)
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
        table = self._load(item.path)
        first, last = int(table["offsets"][item.key]), int(table["offsets"][item.key + 1])
        data = table["data"][first:last]
        if data.dtype == np.int16:
            steps = data.astype(np.float64)
        else:
            refuse_non_finite(data[:, None], item, [str(joint) for joint in table["joint_names"]])
            steps = np.rint(data[:: int(table["fps"]) // FPS].astype(np.float64) * (INCH / QUANTUM))
        return Clip((steps * QUANTUM + 0.0).astype(np.float32)[:, None])  # + 0.0: no negative zeros

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The dataset card's entries."""
        from skelact.skeleton.layouts import get_layout  # brings torch, which reader processes do without

        classes = [str(name) for name in self._load(items[0].path)["class_names"]]
        return {
            "name": self.name,
            "layout": get_layout("hdm05_31").to_dict(),
            "channels": ["x", "y", "z"],
            "unit": "m",
            "fps": float(FPS),
            "persons": 1,
            "class_names": classes,
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
        return {**self.__dict__, "_table": None}


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
