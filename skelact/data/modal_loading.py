"""From the stores of several modalities to the parts of a batch.

Every modality is read the same way wherever its data live: chosen by numbers on the host, taken by one gather for the
whole batch on the device (or by loader workers, where frames must be decoded), made ready for a network on the device.
Rows of a modality are asked for only for the clips that have it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from skelact.clips import Frames, RaggedClips
from skelact.data.loading import Change, ClipLoader, send
from skelact.data.media import MediaStore
from skelact.data.modalities import SKELETON, ModalTable
from skelact.data.store import StoreError
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws
from skelact.transforms.frames import video_index

#: Shortest part of a signal that training may take.
SHORTEST = 0.8


@dataclass(frozen=True)
class Pictures:
    """The chosen frames of n clips as they are stored.

    Args:
        groups: for each size of frames the positions `(k,)` among the n clips, and `(k, T, H, W, C)` uint8.
        mask: `(n, T)` bool, False behind the end of a short clip.
        count: how many frames the mask has.
    """

    groups: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor
    count: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Pictures:
        """The same pictures on another device."""
        moved = tuple(tuple(t.to(device, non_blocking=non_blocking) for t in group) for group in self.groups)
        return Pictures(moved, self.mask.to(device, non_blocking=non_blocking), self.count)  # type: ignore[arg-type]

    def pin_memory(self) -> Pictures:
        """The same pictures in page-locked memory."""
        groups = tuple((a.pin_memory(), b.pin_memory()) for a, b in self.groups)
        return Pictures(groups, self.mask.pin_memory(), self.count)


Part = RaggedClips | Frames | Pictures


class Source(ABC):
    """One modality, from clips of its store to the part of a batch; picklable for loader workers.

    Args:
        store: of the modality.
        random: draw in training which frames, or which part of a signal, are taken.
    """

    def __init__(self, store: MediaStore, random: bool) -> None:
        self.store, self.random = store, random
        self._held: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    @property
    def nbytes(self) -> int:
        """Bytes that :meth:`hold` takes; 0 where nothing can be held."""
        return int(self.store.card["files"]["frames.npy"]["bytes"])

    def rows(self) -> np.ndarray:
        """`(F, ...)` everything that is gathered from, memory-mapped."""
        return self.store.frames

    def hold(self, device: torch.device | None) -> None:
        """Keep all of it in memory, on a device; None: wherever it is already, or on the host."""
        if self._held is None:
            self._held = torch.from_numpy(np.array(self.rows()))
        self._held = self._held.to(device)

    def take(self, positions: Tensor) -> Tensor:
        """`(n, T, ...)` rows at `positions` `(n, T)`, by one gather where the data live."""
        if self._held is not None:
            return self._held[send(positions, self._held.device)]
        return torch.from_numpy(self.rows()[positions.numpy()])

    def spans(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """`(n,)` first row and `(n,)` length of some clips."""
        at = rows.numpy()
        return torch.from_numpy(self.store.start[at]), torch.from_numpy(self.store.length[at])

    @abstractmethod
    def read(self, rows: Tensor, draws: Draws | None) -> Part:
        """What is taken of clips, as stored.

        Args:
            rows: `(n,)` positions in the store, on the host.
            draws: of these clips, in training.
        """

    @abstractmethod
    def finish(self, part: Any, name: str, draws: Draws | None) -> Frames:
        """The part of modality `name` as a network reads it, on its device; `draws` on that device, in training."""


class ImageSource(Source):
    """T frames of each clip, chosen by :func:`skelact.transforms.frames.video_index` from those that are stored.

    Args:
        store: images.
        random: see :class:`Source`; the numbers drawn are the same for every modality of a clip.
        frames: T.
        transform: makes images of a network of stored ones, `(images, mask, draws) -> (n, T, 3, H, W)`.

    Attributes:
        features: file with a row of features for every stored frame, which then is read instead of the frames.
    """

    features: Path | None = None

    def __init__(self, store: MediaStore, random: bool, frames: int, transform: nn.Module | None) -> None:
        super().__init__(store, random)
        self.frames, self.transform = frames, transform
        self._features: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_features": None}

    @property
    def decodes(self) -> bool:
        """Whether reading means decoding image files."""
        return self.store.encoded and self.features is None

    @property
    def nbytes(self) -> int:
        """Bytes of the raw frames or of their features; image files are never held."""
        return 0 if self.decodes else self.rows().nbytes

    def use(self, features: Path) -> None:
        """Read features of frames from now on."""
        self.features, self._features, self._held = features, None, None

    def look(self) -> str:
        """A hash of what the transform makes of a picture of noise in evaluation."""
        if self.transform is None:
            return ""
        shape = self.store.read(0, [0]).shape
        noise = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        picture = self.transform.to("cpu")(noise, torch.ones(1, 1, dtype=torch.bool), None).contiguous().numpy()
        return hashlib.sha256(f"{picture.shape}".encode() + np.round(picture, 3).tobytes()).hexdigest()

    def rows(self) -> np.ndarray:
        """Raw frames `(F, H, W, C)` uint8, or features `(F, D)` float16."""
        if self.features is None:
            return self.store.frames
        if self._features is None:
            self._features = np.load(self.features, mmap_mode="c", allow_pickle=False)
        return self._features

    def read(self, rows: Tensor, draws: Draws | None) -> Part:
        """Pictures as stored, or features."""
        start, length = self.spans(rows)
        unit = draws.uniform("frames", int(length.max())) if draws is not None and self.random else None
        index, mask = video_index(length, self.frames, unit)
        positions, count = start[:, None] + index, int(mask.sum())
        if self.decodes:
            return Pictures(self._decode(positions.numpy(), rows.numpy()), mask, count)
        values = self.take(positions)
        mask = send(mask, values.device)
        if self.features is not None:
            return Frames(values, mask, count)
        return Pictures(((torch.arange(len(rows)), values),), mask, count)

    def _decode(self, positions: np.ndarray, rows: np.ndarray) -> tuple[tuple[Tensor, Tensor], ...]:
        """Only the frames chosen, each once; by size, which differs where sources crop by the person."""
        groups: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        for k, (chosen, row) in enumerate(zip(positions, rows.tolist(), strict=True)):
            unique, inverse = np.unique(chosen, return_inverse=True)
            images = [self.store.decode(position, row) for position in unique.tolist()]
            if len({image.shape for image in images}) > 1:
                raise StoreError(self.store.path, f"clip {self.store.names[row]} has frames of different sizes")
            groups.setdefault(images[0].shape, []).append((k, np.stack(images)[inverse]))
        return tuple(
            (torch.tensor([k for k, _ in group]), torch.from_numpy(np.stack([clip for _, clip in group])))
            for group in groups.values()
        )

    def finish(self, part: Pictures | Frames, name: str, draws: Draws | None) -> Frames:
        """Images through the transform, each modality with draws of its own; features as float32."""
        if isinstance(part, Frames):
            return Frames(part.values.float(), part.mask, part.count)
        if self.transform is None:
            raise SkelactError(f"data.images.{name} is missing: say how pictures of {name} become a network's input")
        transform = self.transform.to(part.mask.device)
        draws = None if draws is None else draws.scope(name)
        if len(part.groups) == 1:
            return Frames(transform(part.groups[0][1], part.mask, draws), part.mask, part.count)
        done = [
            transform(values, part.mask[rows], None if draws is None else draws.rows(rows))
            for rows, values in part.groups
        ]
        order = torch.cat([rows for rows, _ in part.groups]).argsort()
        return Frames(torch.cat(done)[order], part.mask, part.count)


class SignalSource(Source):
    """A signal resampled to T rows by linear interpolation and standardised.

    Evaluation takes the whole clip, training a random part of 80 to 100 % of it.

    Args:
        store: the signal.
        random: see :class:`Source`.
        frames: T.
        train: `(k,)` rows of the store whose mean and deviation the channels get: training clips.
    """

    def __init__(self, store: MediaStore, random: bool, frames: int, train: np.ndarray) -> None:
        super().__init__(store, random)
        self.frames = frames
        begin, end = (np.zeros(len(store.frames) + 1, np.int64) for _ in range(2))
        begin[store.start[train]] = 1
        end[store.start[train] + store.length[train]] = 1
        chosen = store.frames[(begin.cumsum() - end.cumsum())[:-1] > 0]
        self.mean = torch.from_numpy(chosen.mean(0, dtype=np.float64).astype(np.float32))
        deviation = chosen.std(0, dtype=np.float64).astype(np.float32)
        self.deviation = torch.from_numpy(np.where(deviation > 0, deviation, 1).astype(np.float32))

    def read(self, rows: Tensor, draws: Draws | None) -> Frames:
        """Interpolated rows in the unit of the store."""
        start, length = self.spans(rows)
        place = torch.linspace(0, 1, self.frames, dtype=torch.float64).expand(len(rows), -1)
        if draws is not None and self.random:
            share = draws.uniform("signal_share", 1, low=SHORTEST).double()
            place = draws.uniform("signal_begin", 1).double() * (1 - share) + share * place
        exact = place * (length[:, None] - 1)
        low = exact.long()
        weight = (exact - low).float()[..., None]
        high = torch.minimum(low + 1, length[:, None] - 1)
        ends = self.take(torch.stack((start[:, None] + low, start[:, None] + high)))
        values = torch.lerp(ends[0], ends[1], send(weight, ends.device))
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return Frames(values, mask, mask.numel())

    def finish(self, part: Frames, name: str, draws: Draws | None) -> Frames:
        """Each channel less its mean over the training clips, by its deviation there."""
        device = part.values.device
        self.mean, self.deviation = self.mean.to(device), self.deviation.to(device)
        return Frames((part.values - self.mean) / self.deviation, part.mask, part.count)


@dataclass(frozen=True)
class ModalBatch:
    """A batch on its way to the device.

    Args:
        rows: `(N,)` int64 positions in the table of clips.
        epoch: of training, to which its draws belong; None in evaluation.
        parts: what has been read of it already, by modality.
    """

    rows: Tensor
    epoch: int | None
    parts: Mapping[str, Part]

    def pin_memory(self) -> ModalBatch:
        """The same batch with its parts in page-locked memory."""
        return replace(self, parts={name: part.pin_memory() for name, part in self.parts.items()})


class ModalBatches(Dataset[ModalBatch]):
    """Batches of several modalities, read by loader workers or in the process itself.

    Args:
        table: the clips.
        rows: `(N, n_modalities)` int64: `table.rows`, less what is withheld.
        skeletons: reads the modality `skeleton`, if that is one of them.
        sources: read the others.
        names: modalities that are read here; others are resident.
        seed: of the draws.
        count: batches or more.
    """

    def __init__(
        self,
        table: ModalTable,
        rows: np.ndarray,
        skeletons: ClipLoader | None,
        sources: Mapping[str, Source],
        names: tuple[str, ...],
        seed: int,
        count: int,
    ) -> None:
        self.modalities, self.names, self.seed, self.count = table.modalities, names, seed, count
        self.at, self.label = torch.from_numpy(rows), torch.from_numpy(np.array(table.label))
        self.skeletons, self.sources = skeletons, sources

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: Tensor | tuple[int, Tensor]) -> ModalBatch:
        epoch, rows = (None, item) if isinstance(item, Tensor) else item
        return ModalBatch(rows, epoch, self.read(rows, epoch, self.names))

    def draws(self, epoch: int | None, rows: Tensor) -> Draws | None:
        """Of the clips at `rows` of the table, in training."""
        return None if epoch is None else Draws(self.seed, epoch, rows)

    def read(
        self,
        rows: Tensor,
        epoch: int | None,
        names: tuple[str, ...],
        change: Change | None = None,
        stored: bool = False,
    ) -> dict[str, Part]:
        """Parts as stored of the clips that have them; `change` and `stored` see :meth:`ClipLoader.load`."""
        parts: dict[str, Part] = {}
        for name in names:
            own = self.at[rows, self.modalities.index(name)]
            have = rows[own >= 0]
            if not len(have):
                continue
            if name == SKELETON:
                parts[name] = self._skeletons(own[own >= 0], have, change, stored)
            else:
                parts[name] = self.sources[name].read(own[own >= 0], self.draws(epoch, have))
        return parts

    def _skeletons(self, own: Tensor, rows: Tensor, change: Change | None, stored: bool) -> RaggedClips:
        assert self.skeletons is not None

        def numbered(clips: RaggedClips) -> RaggedClips:
            clips = replace(clips, index=rows, label=self.label[rows])
            return clips if change is None else change(clips)

        return self.skeletons.load(own, numbered, stored)
