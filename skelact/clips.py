"""Ragged clips: the one data structure that flows through skelact.

All frames of a batch of clips lie one after another in a single tensor, so that nothing is padded and a batch
of a resident store is the store itself plus N starts and lengths. Dense views `(N, M, T, V, C)` are made from it
by the samplers in :mod:`skelact.transforms.sampling`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RaggedClips:
    """N clips of different lengths over one table of frames.

    Args:
        frames: `(F, M, V, C)` floating point: F frames, M person slots, V joints, C channels (coordinates in the
            unit of the source, metres for 3D; a score channel comes last where the source has one).
        start: `(N,)` int64, first frame of each clip.
        length: `(N,)` int64, number of frames of each clip, at least 1.
        label: `(N,)` int64, class of each clip, -1 where unknown.
        index: `(N,)` int64, stable position of each clip in its store; random draws and scores are keyed by it.
        mask: `(F, M, V)` bool, True where a joint was observed; None means that everything was.
        total: sum of the lengths, where the host knows it; otherwise whatever has a row for each frame of the clips
            (:meth:`frame_rows`) waits for the device to say it.
        people: sum of the clips' :meth:`people_in_each`, where the host knows it: views of them show no more, so that
            an encoder can leave absent people out without waiting for the device to count them.

    Raises:
        ValueError: shapes disagree. Ranges (start + length within F) are checked where clips are read, not here,
            because the check would synchronise the device.
    """

    frames: Tensor
    start: Tensor
    length: Tensor
    label: Tensor
    index: Tensor
    mask: Tensor | None = None
    total: int | None = None
    people: int | None = None

    def __post_init__(self) -> None:
        if self.frames.ndim != 4:
            raise ValueError(f"frames must be (F, M, V, C), got {tuple(self.frames.shape)}")
        n = self.start.shape
        for name in ("length", "label", "index"):
            if getattr(self, name).shape != n:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, start has {tuple(n)}")
        if self.mask is not None and self.mask.shape != self.frames.shape[:3]:
            raise ValueError(f"mask must be {tuple(self.frames.shape[:3])}, got {tuple(self.mask.shape)}")

    def __len__(self) -> int:
        return self.start.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the frames are."""
        return self.frames.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, V, C): person slots, joints, channels."""
        _, m, v, c = self.frames.shape
        return m, v, c

    @classmethod
    def pack(
        cls,
        clips: Sequence[Tensor],
        label: Sequence[int] | Tensor | None = None,
        index: Sequence[int] | Tensor | None = None,
        mask: Sequence[Tensor] | None = None,
    ) -> RaggedClips:
        """Lay clips `(T_i, M, V, C)` (and masks `(T_i, M, V)`) one after another."""
        length = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
        count = len(clips)
        return cls(
            frames=torch.cat(list(clips)),
            start=length.cumsum(0) - length,
            length=length,
            label=torch.full((count,), -1) if label is None else torch.as_tensor(label, dtype=torch.int64),
            index=torch.arange(count) if index is None else torch.as_tensor(index, dtype=torch.int64),
            mask=None if mask is None else torch.cat(list(mask)),
        ).counted()

    def select(self, rows: Tensor, total: int | None = None, people: int | None = None) -> RaggedClips:
        """The clips in `rows` (int64 positions or a bool mask over N); frames are shared, not copied."""
        parts = {name: getattr(self, name)[rows] for name in ("start", "length", "label", "index")}
        return replace(self, **parts, total=total, people=people)

    def people_in_each(self) -> Tensor | None:
        """`(N,)` int64: slots in which somebody is ever observed, 1 where nobody is; None without a mask."""
        if self.mask is None:
            return None
        present, owner = self.mask.new_zeros(len(self), self.mask.shape[1]), self.owner()
        for slot, seen in enumerate(self.mask.any(2)[self.frame_rows()].T):
            present[owner[seen], slot] = True
        return present.sum(1).clamp_min(1)

    def counted(self) -> RaggedClips:
        """The same clips on the host, with `total` and `people` filled in."""
        people = self.people_in_each()
        return replace(self, total=int(self.length.sum()), people=None if people is None else int(people.sum()))

    def clip(self, row: int) -> Tensor:
        """Frames `(T, M, V, C)` of one clip, a view."""
        return self.frames.narrow(0, int(self.start[row]), int(self.length[row]))

    def clip_mask(self, row: int) -> Tensor:
        """Observed joints `(T, M, V)` of one clip."""
        start, length = int(self.start[row]), int(self.length[row])
        if self.mask is None:
            return torch.ones((length, *self.frames.shape[1:3]), dtype=torch.bool, device=self.device)
        return self.mask.narrow(0, start, length)

    def compact(self) -> RaggedClips:
        """A copy that holds only the frames its clips use, in clip order (what a loader worker sends)."""
        rows = self.frame_rows()
        return replace(
            self,
            frames=self.frames[rows],
            mask=None if self.mask is None else self.mask[rows],
            start=self.length.cumsum(0) - self.length,
        )

    def frame_rows(self) -> Tensor:
        """`(sum of lengths,)` int64: the rows of `frames` that the clips use, clip after clip."""
        first = self.length.cumsum(0) - self.length
        offset = torch.repeat_interleave(self.start - first, self.length, output_size=self.total)
        return torch.arange(offset.shape[0], device=offset.device) + offset

    def owner(self) -> Tensor:
        """`(sum of lengths,)` int64: for each row of :meth:`frame_rows`, the position of its clip in this batch."""
        place = torch.arange(len(self), device=self.start.device)
        return torch.repeat_interleave(place, self.length, output_size=self.total)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RaggedClips:
        """The same clips on another device."""

        def move(value: Any) -> Any:
            return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value

        return RaggedClips(*(move(getattr(self, f)) for f in self.__dataclass_fields__))

    def pin_memory(self) -> RaggedClips:
        """The same clips in page-locked memory (called by the data loader)."""

        def pin(value: Any) -> Any:
            return value.pin_memory() if isinstance(value, Tensor) else value

        return RaggedClips(*(pin(getattr(self, f)) for f in self.__dataclass_fields__))


@dataclass(frozen=True)
class Frames:
    """The frames of one modality that is not a skeleton, of the n clips of a batch that have it.

    Args:
        values: `(n, T, 3, H, W)` float32, images as a network reads them; or `(n, T, D)` float32, rows of a signal or
            features of single frames.
        mask: `(n, T)` bool, False behind the end of a short clip.
        count: how many frames the mask has, where it lies on a device that would have to be waited for.
    """

    values: Tensor
    mask: Tensor
    count: int | None = None

    def __post_init__(self) -> None:
        if self.mask.device.type == "cpu":
            object.__setattr__(self, "count", int(self.mask.sum()))

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a clip: (T, 3, H, W) or (T, D)."""
        return tuple(self.values.shape[1:])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Frames:
        """The same frames on another device."""
        values, mask = (x.to(device, non_blocking=non_blocking) for x in (self.values, self.mask))
        return Frames(values, mask, self.count)

    def pin_memory(self) -> Frames:
        """The same frames in page-locked memory."""
        return Frames(self.values.pin_memory(), self.mask.pin_memory(), self.count)

    @property
    def seen(self) -> Tensor | None:
        """The mask; None where it is known that all frames are in it."""
        return None if self.count == self.mask.numel() else self.mask


@dataclass(frozen=True)
class ModalClips:
    """N clips of several modalities, each clip with those that it has.

    Nothing stands for what is absent: a part holds the clips that have its modality and no others, in the order of the
    batch, and a modality that no clip of the batch has is not in `parts`.

    Args:
        parts: by modality; a skeleton as :class:`RaggedClips`, anything else as :class:`Frames`.
        available: `(N, n_modalities)` bool, which clip has which; columns as in `modalities`.
        modalities: names of the columns, in order.
        label: `(N,)` int64, class of each clip, -1 where unknown.
        index: `(N,)` int64, stable position of each clip in its data; random draws and scores are keyed by it.
    """

    parts: Mapping[str, RaggedClips | Frames]
    available: Tensor
    modalities: tuple[str, ...]
    label: Tensor
    index: Tensor

    def __len__(self) -> int:
        return self.label.shape[0]

    @classmethod
    def of(cls, clips: RaggedClips | ModalClips) -> ModalClips:
        """Clips of skeletons alone as clips that have this one modality, others as they are."""
        if isinstance(clips, cls):
            return clips
        assert isinstance(clips, RaggedClips)
        everywhere = torch.ones(len(clips), 1, dtype=torch.bool, device=clips.label.device)
        return cls({"skeleton": clips}, everywhere, ("skeleton",), clips.label, clips.index)

    @property
    def device(self) -> torch.device:
        """Where the clips are."""
        return self.label.device

    def has(self, modality: str) -> Tensor:
        """`(N,)` bool: which clips have a modality, all False for one that the data do not know."""
        if modality not in self.modalities:
            return torch.zeros_like(self.label, dtype=torch.bool)
        return self.available[:, self.modalities.index(modality)]

    def rows(self, modality: str) -> Tensor:
        """`(n,)` int64: positions in the batch of the clips of a part."""
        count = len(self.parts[modality]) if modality in self.parts else 0
        return self.has(modality).logical_not().to(torch.uint8).argsort(stable=True)[:count]  # nonzero() would wait

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ModalClips:
        """The same clips on another device."""
        return ModalClips(
            {name: part.to(device, non_blocking) for name, part in self.parts.items()},
            self.available.to(device, non_blocking=non_blocking),
            self.modalities,
            self.label.to(device, non_blocking=non_blocking),
            self.index.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> ModalClips:
        """The same clips in page-locked memory (called by the data loader)."""
        return ModalClips(
            {name: part.pin_memory() for name, part in self.parts.items()},
            self.available.pin_memory(),
            self.modalities,
            self.label.pin_memory(),
            self.index.pin_memory(),
        )


def zero_clips(count: int, shape: Sequence[int], like: Tensor) -> RaggedClips | Frames:
    """So many clips of zeros, none too.

    Args:
        count: of clips.
        shape: as :attr:`RaggedClips.shape` or :attr:`Frames.shape` tells it, which have different numbers of axes.
        like: of the type and on the device that their values shall have.
    """
    values = like.new_zeros(count, *shape)
    if len(shape) != 3:
        mask = torch.ones(count, shape[0], dtype=torch.bool, device=like.device)
        return Frames(values, mask, mask.numel())
    row = torch.arange(count, device=like.device)
    return RaggedClips(values, row, torch.ones_like(row), torch.full_like(row, -1), row, total=count)


def spread(x: Tensor, rows: Tensor, count: int) -> Tensor:
    """`(n, ...)` at n of `count` rows, zeros at the others."""
    return x.new_zeros(count, *x.shape[1:]).index_copy(0, rows, x)
