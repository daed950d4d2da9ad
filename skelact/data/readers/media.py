"""What readers of the other modalities share: choosing, resizing, colouring and encoding frames; signals.

A media reader is a :class:`skelact.data.readers.base.Reader` of one modality of one dataset, so that preparation is
the same as a skeleton's: damaged clips named and skipped, resumed after a kill, spread over processes. Decoding,
resizing and encoding happen here, in the reader processes.
"""

from __future__ import annotations

import io
import re
import zipfile
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from skelact.data.colour import jet_index
from skelact.data.readers.base import Clip, DamagedClip, Item, Reader
from skelact.data.readers.frames import IMAGES, numbered_files, read_image, read_video, resize, segment_centres
from skelact.errors import SkelactError

if TYPE_CHECKING:
    from skelact.data.store import Store
    from skelact.data.writer import StoreWriter

COLOURS = ("rgb", "grey", "jet")
ENCODINGS = ("raw", "jpeg", "png")


@dataclass(frozen=True)
class EncodedClip(Clip):
    """Frames as the bytes of image files, one an entry."""

    frames: list[bytes]  # type: ignore[assignment]


class MediaReader(Reader):
    """One modality of one dataset.

    Args:
        modality: which one, by the names of :attr:`modalities`.
        frames: frames kept of each clip, the centres of that many equal segments (all, where it has no more); None
            keeps every frame, which is what random temporal sampling in training needs.
        size: short side of the stored frames in pixels (smaller ones stay as they are), or `[height, width]`; None
            stores frames as large as they come.
        encoding: `raw` pixels in one memory map (all clips of one frame size), or `jpeg` / `png` images, decoded when
            read. Signals are always raw.
        colour: `rgb`; `grey` (one channel); `jet` for depth: one channel, the index into the colour table of
            :mod:`skelact.data.colour`; never jpeg, which would blur it. None takes the modality's own.
        span: for `jet`, None scales each frame to its own range, as published, `[near, far]` all frames alike.
        quality: of JPEG.
        folder: where this modality lies when it is not under the source.
        names: folder of a prepared skeleton store: keep only its clips (if it exists). None keeps every clip.

    Attributes:
        dataset, classes, class_names: of the dataset; without names the classes are numbered.
        modalities: name -> `image` or `signal`.
        colours: of the image modalities, unless given.
        splits: rules of the dataset's splits, by name: those of its skeletons.
        about: card entries of each modality besides those of the frames: fps, unit, channels, source, licence.
    """

    dataset: str = ""
    classes: int = 0
    class_names: Sequence[str] = ()
    splits: Mapping[str, Any] = MappingProxyType({})
    modalities: ClassVar[Mapping[str, str]] = {}
    colours: ClassVar[Mapping[str, str]] = {}
    about: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        modality: str,
        frames: int | None = 16,
        size: int | Sequence[int] | None = None,
        encoding: str = "raw",
        colour: str | None = None,
        span: Sequence[int] | None = None,
        quality: int = 90,
        folder: str | None = None,
        names: str | None = None,
    ) -> None:
        if modality not in self.modalities:
            raise SkelactError(f"{self.dataset} has no modality {modality!r}; it has {', '.join(self.modalities)}")
        self.modality, self.kind = modality, self.modalities[modality]
        self.name = f"{self.dataset} {modality}"
        colour = colour or self.colours.get(modality, "rgb")
        if self.kind == "image":
            if encoding not in ENCODINGS or colour not in COLOURS:
                raise SkelactError(f"{self.name}: encoding is one of {ENCODINGS}, colour one of {COLOURS}")
            if encoding == "jpeg" and colour == "jet":
                raise SkelactError(f"{self.name}: jpeg would blur the index of a colour table; use encoding=png or raw")
        if frames is not None and frames < 1:
            raise SkelactError(f"{self.name}: frames must be at least 1 or null, got {frames}")
        lengths = [size] if isinstance(size, int) else list(size or [1, 1])
        if len(lengths) > 2 or (len(lengths) == 1 and not isinstance(size, int)) or min(lengths) < 1:
            raise SkelactError(f"{self.name}: size is null, a short side or [height, width], got {size}")
        if span is not None and (len(span) != 2 or not 0 <= int(span[0]) < int(span[1]) <= 65535):
            raise SkelactError(f"{self.name}: span is null or [near, far], 0 to 65535, got {span}")
        self.frames, self.encoding, self.colour = frames, encoding, colour
        self.size = size if size is None or isinstance(size, int) else lengths
        self.span, self.quality = None if span is None else [int(v) for v in span], quality
        self.place, self.names = folder, names
        self.shape: tuple[int, ...] | None = None  # of a raw frame, from the first clip that can be read

    @abstractmethod
    def find(self, root: Path) -> list[Item]:
        """All clips of this modality under a folder, in a fixed order, without reading them; may add to `notes`."""

    def scan(self, source: str | Path | None) -> list[Item]:
        """Clips under `folder` or the source; a name met twice is damage, a clip outside `names` left out."""
        self.notes = []
        items = self.find(self.locate(self.place or source))
        seen: dict[str, Path] = {}
        kept, left_out = [], 0
        wanted = self._wanted()
        for item in items:
            if wanted is not None and item.damage is None and item.name not in wanted:
                left_out += 1
                continue
            if item.damage is None and item.name in seen:
                item = Item(item.name, item.path, damage=("", f"clip {item.name} is also {seen[item.name]}"))
            elif item.damage is None and not 0 <= item.label < self.classes:
                action = item.columns.get("action")
                item = Item(item.name, item.path, damage=("", f"action {action} is not one of {self.dataset}'s"))
            seen.setdefault(item.name, item.path)
            kept.append(item)
        if left_out:
            self.notes = [*self.notes, f"{left_out} clips are not in {self.names} and were left out"]
        return kept

    def _wanted(self) -> Collection[str] | None:
        if self.names is None:
            return None
        table = Path(self.names).expanduser() / "clips.npz"
        if not table.is_file():
            self.notes = [*self.notes, f"every clip is kept: there is no skeleton store {self.names} to go by yet"]
            return None
        try:
            with np.load(table, allow_pickle=False) as content:
                return set(content["name"].tolist())
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise SkelactError(f"{self.name}: {table} cannot be read ({error}); prepare the skeletons again") from None

    @abstractmethod
    def load(self, item: Item) -> Iterator[np.ndarray]:
        """The kept frames of one clip: `(H, W)` or `(H, W, 3)` uint8, final; or rows `(D,)` of a signal."""

    def read(self, item: Item) -> Clip:
        """Frames `(T, H, W, C)` uint8, as encoded images, or a signal `(T, D)` float32."""
        if self.kind == "signal":
            rows = np.stack(list(self.load(item)))
            if not np.isfinite(rows).all():
                bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
                raise DamagedClip(item.path, f"row {bad}", "holds a number that is not finite")
            return Clip(rows.astype(np.float32))
        if self.encoding == "raw":
            images = list(self.load(item))
            clip = np.stack([image.reshape(*image.shape[:2], -1) for image in images]) if _alike(images) else None
            if clip is None or clip.shape[1:] != (self.shape or clip.shape[1:]):
                sizes = sorted({image.shape[:2] for image in images})
                reason = f"frames of {sizes} do not fit a raw store of {self.shape}; use encoding=png or size=[H,W]"
                raise DamagedClip(item.path, "", reason)
            return Clip(clip)
        pieces, shapes = [], set()
        for image in self.load(item):
            pieces.append(self._encode(image))
            shapes.add(image.shape)
        if len(shapes) > 1:
            raise DamagedClip(item.path, "", f"has frames of different sizes: {sorted(s[:2] for s in shapes)}")
        return EncodedClip(pieces)

    def _encode(self, image: np.ndarray) -> bytes:
        from PIL import Image

        stream = io.BytesIO()
        options: dict[str, Any] = {"quality": self.quality} if self.encoding == "jpeg" else {"compress_level": 6}
        Image.fromarray(image).save(stream, self.encoding, **options)
        return stream.getvalue()

    def finish(self, frame: np.ndarray) -> np.ndarray:
        """Colour and resize one decoded frame (depth: whole numbers `(H, W)`)."""
        if self.colour == "jet":
            return resize(jet_index(frame, self.span), self.size, nearest=True)
        return resize(frame, self.size)

    def from_folder(self, item: Item, pattern: re.Pattern[str] = IMAGES) -> Iterator[np.ndarray]:
        """Kept frames of a folder of image files."""
        files = numbered_files(item, item.path, pattern)
        for k in segment_centres(len(files), self.frames).tolist():
            try:
                yield self.finish(read_image(files[k], "depth" if self.colour == "jet" else self.colour))
            except OSError as error:
                raise DamagedClip(files[k], "", error.strerror or str(error)) from None

    def from_video(self, item: Item) -> Iterator[np.ndarray]:
        """Kept frames of a video file."""
        if self.colour == "jet":
            raise DamagedClip(item.path, "", "is a video; depth comes as image files of whole numbers")
        yield from read_video(item.path, self.frames, self.size, self.colour == "grey")

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The card's entries; reads the first sound clip of a raw store to learn the size of its frames."""
        media: dict[str, Any] = {"modality": self.modality, "kind": self.kind, "encoding": self.encoding}
        if self.kind == "signal":
            media |= {"encoding": "raw", "shape": [len(self.about[self.modality]["channels"])]}
        else:
            media |= {
                "colour": self.colour, "span": self.span, "size": self.size, "kept": self.frames, "shape": None,
                "quality": self.quality if self.encoding == "jpeg" else None,
            }  # fmt: skip
            if self.encoding == "raw":
                self.shape = None
                self.shape = self._probe(items)
                media["shape"] = list(self.shape)
        names = self.class_names or [f"action {number}" for number in range(1, self.classes + 1)]
        known = {"name": self.dataset, "class_names": list(names), "splits": dict(self.splits)}
        return {**known, "media": media, **self.about[self.modality]}

    def _probe(self, items: Sequence[Item]) -> tuple[int, ...]:
        for item in items:
            if item.damage is None:
                try:
                    return tuple(self.read(item).frames.shape[1:])
                except (DamagedClip, OSError):
                    continue
        raise SkelactError(f"{self.name}: not one of {len(items)} clips can be read")

    def make_writer(self, target: Path, card: dict[str, Any], dtype: str) -> StoreWriter:
        """A writer of media stores."""
        from skelact.data.media import MediaWriter

        return MediaWriter(target, card)

    def open_store(self, target: Path) -> Store:
        """The media store that was written."""
        from skelact.data.media import MediaStore

        return MediaStore(target)


def _alike(images: Sequence[np.ndarray]) -> bool:
    return len({image.shape for image in images}) == 1
