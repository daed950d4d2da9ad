"""From store to batches: one way to read clips, and one way to deal them out to ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from skelact.clips import RaggedClips
from skelact.data.store import Store, StoreError
from skelact.data.table import ClipTable
from skelact.errors import SkelactError
from skelact.skeleton.convert import convert
from skelact.skeleton.layouts import Layout, get_layout

Normalizer = Callable[[RaggedClips], RaggedClips]
Change = Callable[[RaggedClips], RaggedClips]
Sent = TypeVar("Sent", Tensor, RaggedClips)
#: Frames that are converted and normalised at a time when a store is made resident.
CHUNK_FRAMES = 1 << 16


def given_channels(card: Mapping[str, Any], scores: str = "converted") -> list[str]:
    """Names of the channels that batches of a store have: the layout's coordinates, then `score` where it has one.

    With `scores="none"` the coordinates alone.
    """
    names = [str(name) for name in card["channels"]]
    dims = get_layout(card["layout"]).dims
    return names[:dims] + ["score"] * (scores != "none" and "score" in names[dims:])


def require(store: ClipTable, expected: Mapping[str, Any], **found: Any) -> None:
    """Compare what was found of a store with what a configuration says; None there takes anything.

    Raises:
        SkelactError: naming the key, both values and the override.
    """
    for key, value in found.items():
        if expected[key] not in (None, value):
            shown = "null" if value is None else value
            raise SkelactError(
                f"data.{key}={expected[key]}, but the store {store.path} has {shown}: "
                f"set data.{key}={shown} or choose another store"
            )


class ClipLoader:
    """Read clips of a store as a model wants them: float32, in the layout asked for, normalised.

    Every residence reads through this, so their batches are equal. Picklable for loader workers.

    Of the store's channels the coordinates of its layout are handed out, and a `score` as the last one where there is
    one; others (pixels, tracking states) stay in the store, and so does the score with `scores="none"`.
    """

    def __init__(
        self, store: Store, layout: Layout, normalize: Normalizer | None = None, scores: str = "converted"
    ) -> None:
        self.scores = "converted" if scores == "none" else scores
        self.store, self.layout, self.normalize = store, layout, normalize
        self.source = get_layout(store.card["layout"])
        self.channels = given_channels(store.card, scores)
        self.score = self.channels[-1] == "score"
        self._people: Tensor | None = None  # in each clip of the store, once it has been read whole
        names = list(store.card["channels"])
        self._kept = None if self.channels == names else [names.index(name) for name in self.channels]

    def load(self, rows: np.ndarray | Tensor, change: Change | None = None, stored: bool = False) -> RaggedClips:
        """The clips `rows` (store positions), frames packed in their order, on the CPU.

        Args:
            rows: which clips.
            change: what is done to them in the layout asked for, before they are normalised (a corruption).
            stored: do it in the layout of the store, before joints are converted.
        """
        clips = self.store.clips(np.asarray(rows), residence="ram", channels=self._kept)
        # the sum is a twentieth of the price; it can overflow without anything being wrong
        if not torch.isfinite(clips.frames.sum()) and not torch.isfinite(clips.frames).all():
            raise StoreError(self.store.path, "has coordinates that are not finite numbers; run skelact info on it")
        if change is not None and stored:
            clips = change(clips)
        if self.layout != self.source:
            frames, mask = convert(clips.frames, self.source, self.layout, clips.mask, self.score, self.scores)
            clips = RaggedClips(frames, clips.start, clips.length, clips.label, clips.index, mask)
        if change is not None and not stored:
            clips = change(clips)
        return (clips if self.normalize is None else self.normalize(clips)).counted()

    def nbytes(self) -> int:
        """Bytes of the whole store in memory."""
        frames, persons = self.store.shape[:2]
        return frames * persons * self.layout.num_joints * (4 * len(self.channels) + (self.store.mask is not None))

    def load_all(self) -> RaggedClips:
        """The whole store as one tensor, made in chunks so that little more than it is ever held."""
        length = torch.from_numpy(np.array(self.store.length))
        start = length.cumsum(0) - length
        frames: Tensor | None = None
        mask: Tensor | None = None
        for rows in self._chunks():
            chunk = self.load(rows)
            first = int(start[rows[0]])
            if frames is None:
                total = int(length.sum())
                frames = torch.empty((total, *chunk.frames.shape[1:]), dtype=torch.float32)
                mask = None if chunk.mask is None else torch.empty((total, *chunk.mask.shape[1:]), dtype=torch.bool)
            frames[first : first + len(chunk.frames)] = chunk.frames
            if mask is not None and chunk.mask is not None:
                mask[first : first + len(chunk.frames)] = chunk.mask
        assert frames is not None  # a store holds at least one clip
        label = torch.from_numpy(np.array(self.store.label))
        clips = RaggedClips(frames, start, length, label, torch.arange(len(length)), mask)
        self._people = clips.people_in_each()
        return clips

    def totals(self, rows: Tensor) -> tuple[int, int | None]:
        """Frames and people of the clips `rows`, for :meth:`RaggedClips.select`, once the whole store is loaded."""
        people = None if self._people is None else int(self._people[rows].sum())
        return int(self.store.length[rows.numpy()].sum()), people

    def _chunks(self) -> Iterator[np.ndarray]:
        end = np.cumsum(self.store.length)
        first = 0
        while first < len(end):
            begin = end[first - 1] if first else 0
            last = max(int(np.searchsorted(end, begin + CHUNK_FRAMES, side="right")), first + 1)
            yield np.arange(first, last)
            first = last


def send(value: Sent, device: torch.device) -> Sent:
    """What the host has on a device; a GPU fetches it from pinned memory, so that the host need not wait."""
    gpu = device.type == "cuda" and value.device.type == "cpu"
    return value.pin_memory().to(device, non_blocking=True) if gpu else value.to(device)


def available_memory() -> int:
    """Bytes that could be had without swapping: what caches hold counts as free, a limit of the container does not."""
    free = 8 << 30
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # after a preparation the page cache holds the store itself: the pages free would call memory full
        with open("/proc/meminfo", encoding="ascii") as stream:
            free = next(int(line.split()[1]) << 10 for line in stream if line.startswith("MemAvailable"))
    except (AttributeError, ValueError, OSError, StopIteration, IndexError):
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, min(free, limit - used + int(counts["inactive_file"])))
    except (OSError, ValueError, KeyError):  # no such limit
        return free


def choose_residence(size: int, device: torch.device) -> str:
    """The fastest place where `size` bytes fit: `device` (a GPU), `ram` or `disk`."""
    if device.type == "cuda" and size < 0.4 * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "ram" if size < 0.4 * available_memory() else "disk"


class RowBatches(Dataset[Tensor]):
    """Batches as integers: the item of rows is the rows. Resident data turn them into clips on their device."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Tensor) -> Tensor:
        return rows


class DiskBatches(Dataset[RaggedClips]):
    """Batches read from the memory map, by loader workers or in the process itself."""

    def __init__(self, loader: ClipLoader, count: int) -> None:
        self.loader, self.count = loader, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Tensor) -> RaggedClips:
        return self.loader.load(rows)


class DealtBatches(DistributedSampler):
    """Batches of store rows for one rank.

    Training: one permutation by (seed, epoch) for all ranks; global batch b is rows b*B..(b+1)*B of it, and each rank
    takes its share of every global batch. So the global batches are the same for any number of ranks. Evaluation:
    store order, batches dealt out in turn; nothing is padded, dropped or repeated. Ranks get equally many batches, for
    a rank without one would leave the others waiting; of fewer clips than ranks some are empty.

    A subclass of torch's sampler so that Lightning leaves it in place.

    Attributes:
        with_epoch: yield `(epoch, rows)`, where loader workers draw something that belongs to an epoch.

    Args:
        rows: `(n,)` store rows of the part.
        batch_size: clips of a global batch in training, of one rank's batch in evaluation.
        rank, world: this process and how many there are.
        shuffle: training or evaluation.
        drop_last: leave out the last, smaller batch of an epoch (training).
    """

    with_epoch = False

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(RowBatches(len(rows)), num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)
        if batch_size < 1:
            raise SkelactError(f"a batch holds at least one clip; data.batch_size={batch_size}")
        if shuffle and batch_size % world:
            raise SkelactError(
                f"data.batch_size={batch_size} is the batch of all {world} processes together; "
                f"make it a multiple of {world}"
            )
        if shuffle and len(rows) < world:
            raise SkelactError(f"{len(rows)} training clips cannot be shared by {world} processes")
        self.rows = torch.from_numpy(np.array(rows, np.int64))
        self.batch_size, self.drop_rest = batch_size, drop_last

    def _batches(self) -> list[Tensor]:
        if not self.shuffle:
            if self.num_replicas == 1:
                return list(self.rows.split(self.batch_size))
            count = -(-len(self.rows) // (self.batch_size * self.num_replicas)) * self.num_replicas
            return list(self.rows.tensor_split(count))[self.rank :: self.num_replicas]
        batches = self._global_batches(torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch))
        # ranks take equal shares: up to world - 1 clips of a last, smaller batch wait for another epoch
        shares = [len(batch) // self.num_replicas for batch in batches]
        return [
            batch[self.rank * share : (self.rank + 1) * share]
            for batch, share in zip(batches, shares, strict=True)
            if share
        ]

    def _global_batches(self, generator: torch.Generator) -> list[Tensor]:
        """Training batches of all ranks together in this epoch."""
        order = self.rows[torch.randperm(len(self.rows), generator=generator)]
        batches = list(order.split(self.batch_size))
        if self.drop_rest and len(batches) > 1 and len(batches[-1]) < self.batch_size:
            batches.pop()
        return batches

    def __iter__(self) -> Iterator[Any]:
        batches = self._batches()
        return iter([(self.epoch, rows) for rows in batches] if self.with_epoch else batches)

    def __len__(self) -> int:
        return len(self._batches())


class ClassBatches(DealtBatches):
    """Training batches of m clips of each of P classes, dealt to ranks as :class:`DealtBatches` are.

    Each global batch draws P of the classes, and m clips of each: different ones, but for a class with fewer than m
    clips, of which it draws with replacement. An epoch has as many batches as the clips would fill. Classes, not clips,
    are equally likely: in an epoch some clips of a large class are not seen, those of a small one often. All this is as
    with the usual m-per-class sampler. Clips without a class are left out.

    Args:
        rows: `(n,)` store rows of the part.
        labels: `(n,)` their classes.
        batch_size: clips of a global batch, P * m.
        per_class: m.
        rank, world: this process and how many there are.

    Raises:
        SkelactError: the batch is not a multiple of m, or there are fewer than P classes.
    """

    def __init__(
        self,
        rows: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        per_class: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ) -> None:
        order = np.argsort(labels, kind="stable")[(labels < 0).sum() :]
        super().__init__(np.asarray(rows)[order], batch_size, rank, world, shuffle=True, seed=seed)
        _, counts = np.unique(labels[order], return_counts=True)
        if per_class < 1 or batch_size % per_class:
            raise SkelactError(f"data.batch_size={batch_size} is not a multiple of data.per_class={per_class}")
        if len(counts) * per_class < batch_size:
            raise SkelactError(
                f"data.batch_size={batch_size} with data.per_class={per_class} takes {batch_size // per_class} "
                f"classes, and there are {len(counts)} to train on: at most data.batch_size={len(counts) * per_class}"
            )
        self.per_class = per_class
        self.count = torch.from_numpy(counts)
        self.first = self.count.cumsum(0) - self.count  # rows are sorted by class

    def _global_batches(self, generator: torch.Generator) -> list[Tensor]:
        number = max(len(self.rows) // self.batch_size, 1)
        chance = torch.rand(number, len(self.count), generator=generator, dtype=torch.float64)
        classes = chance.argsort(1)[:, : self.batch_size // self.per_class]
        count = self.count[classes]
        chance = torch.rand(*classes.shape, self.per_class, generator=generator, dtype=torch.float64)
        chosen = torch.empty(chance.shape, dtype=torch.int64)
        for i in range(self.per_class):  # Floyd's sampling of m different numbers below `count`, for all at once
            last = count - self.per_class + i
            some = (chance[..., i] * (last + 1)).long()
            taken = (chosen[..., :i] == some[..., None]).any(-1)
            chosen[..., i] = torch.where(taken, last, some)
        few = count[..., None] < self.per_class
        chosen = torch.where(few, (chance * count[..., None]).long(), chosen)
        return list(self.rows[(self.first[classes][..., None] + chosen).flatten(1)])
