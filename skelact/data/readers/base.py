"""What every reader offers: list a source's clips, read one, say what the dataset is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skelact.errors import SkelactError

if TYPE_CHECKING:
    from skelact.data.store import Store
    from skelact.data.writer import StoreWriter


class DamagedClip(SkelactError):
    """One clip that cannot be used: file, place in it, reason. Preparation names it, skips it and counts it."""

    def __init__(self, path: str | Path, where: str, reason: str) -> None:
        super().__init__(f"{path}{f', {where}' if where else ''}: {reason}")
        self.path, self.where, self.reason = str(path), where, reason

    def __reduce__(self) -> tuple[Any, ...]:  # travels from worker processes
        return DamagedClip, (self.path, self.where, self.reason)


@dataclass(frozen=True)
class Item:
    """A clip that a source promises.

    Args:
        name: unique name.
        path: file that holds it.
        label: class, -1 where unknown.
        columns: subject, camera, ... for the clips table.
        key: position inside a file that holds several clips.
        member: name inside the archive `path`.
        version: what tells one version of an archive's member from another (size, checksum); a plain file has its
            size and time.
        damage: (where, reason) found while listing; such a clip is skipped and counted, never read.
    """

    name: str
    path: Path
    label: int = -1
    columns: Mapping[str, int | str] = field(default_factory=dict)
    key: int = 0
    member: str = ""
    version: tuple[int, ...] | None = None
    damage: tuple[str, str] | None = None

    @property
    def unit(self) -> tuple[str, str]:
        """What is opened once for all clips in it: a file, or a member of an archive."""
        return str(self.path), self.member

    def stamp(self) -> list[int]:
        """What a resumed preparation compares, to read a changed file again."""
        if self.version is not None:
            return list(self.version)
        status = self.path.stat()
        return [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class Clip:
    """Frames `(T, M, V, C)` float and, where the source knows it, the observed joints `(T, M, V)` bool."""

    frames: np.ndarray
    mask: np.ndarray | None = None


class Reader(ABC):
    """One dataset in its original form.

    Attributes:
        name: name of the dataset.
        masked: whether its clips carry masks.
        in_process: whether it must read in the preparing process (one file with all clips, loaded once).
        notes: what :meth:`scan` noticed besides damage (clips left out by an official list, ...), for the report.
    """

    name: str = ""
    masked: bool = False
    in_process: bool = False
    notes: Sequence[str] = ()

    def locate(self, source: str | Path | None) -> Path:
        """The source folder or file, checked.

        Raises:
            SkelactError: none given, or it does not exist.
        """
        if source is None:
            raise SkelactError(f"{self.name}: say where the original files are: source=FOLDER")
        path = Path(source).expanduser()
        if not path.exists():
            raise SkelactError(f"{self.name}: source {path} does not exist")
        return path

    def folder(self, source: str | Path | None, usual: str) -> Path:
        """The source folder, or the one called `usual` in it where there is one.

        Raises:
            SkelactError: no source given, or it is not a folder.
        """
        path = self.locate(source)
        if not path.is_dir():
            raise SkelactError(f"{self.name}: source {path} is not a folder")
        return path / usual if (path / usual).is_dir() else path

    @abstractmethod
    def scan(self, source: str | Path | None) -> list[Item]:
        """All clips of the source in a fixed order, without reading them."""

    @abstractmethod
    def read(self, item: Item) -> Clip:
        """One clip.

        Raises:
            DamagedClip: with the file, the place and the reason.
        """

    def read_unit(self, items: Sequence[Item]) -> Iterator[Clip | DamagedClip]:
        """The clips of one unit (:attr:`Item.unit`) in the order given; a reader of files with many clips opens once.

        Only damage is reported this way; any other exception is a defect of the reader.
        """
        for item in items:
            yield read_or_damage(self, item)

    @abstractmethod
    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """What the dataset is: the card entries that :class:`skelact.data.writer.StoreWriter` wants."""

    def make_writer(self, target: Path, card: dict[str, Any], dtype: str) -> StoreWriter:
        """What writes this reader's clips."""
        from skelact.data.writer import StoreWriter  # brings torch, which reader processes do without

        return StoreWriter(target, card, dtype, self.masked)

    def open_store(self, target: Path) -> Store:
        """The store that was written, checked."""
        from skelact.data.store import Store

        return Store(target)


def refuse_non_finite(frames: np.ndarray, item: Item, joints: Sequence[str] | str, offset: int = 0) -> None:
    """Raise :class:`DamagedClip` naming frame and joint of the first coordinate `(T, M, V, C)` not finite in float32.

    Args:
        frames: coordinates.
        item: the clip.
        joints: names of the joints, or the name of a layout.
        offset: number of the first frame.
    """
    bad = ~(np.abs(frames) <= np.finfo(np.float32).max).all(axis=-1)
    if bad.any():
        frame, person, joint = (int(k) for k in np.argwhere(bad)[0])
        if isinstance(joints, str):
            from skelact.skeleton.layouts import get_layout

            joints = get_layout(joints).joints
        person_text = f" of person {person}" if frames.shape[1] > 1 else ""
        raise DamagedClip(
            item.path,
            f"frame {frame + offset}, joint {joints[joint]}{person_text}",
            "a coordinate is not a finite number",
        )


def read_or_damage(reader: Reader, item: Item) -> Clip | DamagedClip:
    """A clip, or what is wrong with it. Lives here so that worker processes need not import torch."""
    if item.damage is not None:
        return DamagedClip(item.path, *item.damage)
    try:
        return reader.read(item)
    except DamagedClip as error:
        return error
    except OSError as error:
        return DamagedClip(item.path, "", error.strerror or str(error))
