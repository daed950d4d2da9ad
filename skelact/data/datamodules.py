"""The datamodule: a store, one of its splits, and where its frames live while a model trains."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from skelact.clips import RaggedClips
from skelact.data.embedded import open_store
from skelact.data.label_lists import labelled
from skelact.data.loading import (
    Change,
    ClassBatches,
    ClipLoader,
    DealtBatches,
    DiskBatches,
    Normalizer,
    RowBatches,
    choose_residence,
    given_channels,
    require,
    send,
)
from skelact.data.splits import part_rows, split_rule
from skelact.data.store import Store
from skelact.data.table import ClipTable
from skelact.errors import SkelactError
from skelact.skeleton.convert import SCORES
from skelact.skeleton.layouts import Layout, get_layout
from skelact.transforms.normalize import make_normalizer

RESIDENCES = ("auto", "disk", "ram", "device")
VARIABLE = (
    "batch_size", "per_class", "fit", "validation", "drop_last", "seed",
    "label_fraction", "labels_per_class", "label_draw", "label_rule",
)  # fmt: skip


class SkeletonDataModule(pl.LightningDataModule):
    """Batches of skeleton clips as :class:`skelact.clips.RaggedClips`.

    Args:
        store: folder of the prepared store. Embedded datasets (`hdm05`, `hdm05_views`) are prepared there at first use.
        split: name of a split of the store's card.
        name: name of the dataset; None takes the card's.
        layout: joint layout that comes out; None keeps the store's, another one is converted to.
        persons: person slots expected of the store; None takes any.
        channels: channels expected of the batches (coordinates, and a score where there is one); None takes any.
        num_classes: classes expected of the store; None takes any.
        pipeline: way of choosing bodies expected of the store; None takes any.
        normalize: a module from clips to clips, the name of a mode of
            :class:`skelact.transforms.normalize.Normalize`, a mapping of its options (`mode`, `center`, `fill`), or
            None for the coordinates as stored.
        residence: `disk` reads each batch from the memory map, `ram` holds all frames in memory, `device` on the
            training device (a batch is then a handful of integers), `auto` the fastest that fits.
        batch_size: training clips of a global batch, over all processes.
        eval_batch_size: clips of an evaluation batch.
        num_workers: loader processes, for `disk` only.
        labels_per_class: keep this many training clips of each class.
        label_fraction: keep this share of the training clips of each class, at least one.
        label_draw: which of the label lists.
        label_rule: how they are drawn, `names` or `aimclr` (:func:`skelact.data.label_lists.labelled`).
        seed: of the training order.
        drop_last: leave out the last, smaller training batch of an epoch.
        validation: offer the validation part to the trainer.
        fit: part that is trained on, `train` or `train+val`.
        scores: where joints are converted to another layout, confidences move along (`converted`) or keep their order
            (`as_released`, see :func:`skelact.skeleton.convert`); `none`: batches have coordinates alone.
    """

    def __init__(
        self,
        store: str,
        split: str,
        name: str | None = None,
        layout: str | Mapping[str, Any] | Layout | None = None,
        persons: int | None = None,
        channels: int | None = None,
        num_classes: int | None = None,
        pipeline: str | None = None,
        normalize: nn.Module | Mapping[str, Any] | str | None = None,
        residence: str = "auto",
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        labels_per_class: int | None = None,
        label_fraction: float | None = None,
        label_draw: int = 0,
        seed: int = 0,
        drop_last: bool = True,
        validation: bool = True,
        fit: str = "train",
        scores: str = "converted",
        label_rule: str = "names",
        novel: int | Sequence[int | str] | None = None,
        per_class: int | None = None,
    ) -> None:
        super().__init__()
        if residence not in RESIDENCES:
            raise SkelactError(f"data.residence={residence!r} is not one of {', '.join(RESIDENCES)}")
        if scores not in (*SCORES, "none"):
            raise SkelactError(f"data.scores={scores!r} is not one of {', '.join(SCORES)}, none")
        if fit not in ("train", "train+val"):
            raise SkelactError(f"data.fit={fit!r} is not one of train, train+val")
        self.store_path, self.split, self.name = str(store), str(split), name  # `data.split=1` is a number
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.seed, self.drop_last, self.validation, self.fit = seed, drop_last, validation, fit
        self.scores, self.novel, self.per_class = scores, novel, per_class
        self._layout, self._normalize, self._wanted_residence = layout, normalize, residence
        self._expected = {"persons": persons, "channels": channels, "num_classes": num_classes, "pipeline": pipeline}
        self._pipeline = pipeline
        self.label_fraction, self.labels_per_class = label_fraction, labels_per_class
        self.label_draw, self.label_rule = label_draw, label_rule
        self._table: ClipTable | None = None
        self._loader: ClipLoader | None = None
        self._frames: dict[str, RaggedClips] = {}  # all clips, once they are resident; variants share them
        self._chosen: dict[str, str] = {}  # device type -> residence, under auto

    def setup(self, stage: str | None = None) -> None:
        """Open the store and compare it with the configuration; every attribute does this at first use.

        Raises:
            SkelactError: no store, a damaged one, an unknown split, a layout that has no conversion, or numbers that
                are not the configuration's.
        """
        if self._table is not None:
            return
        table = self._open()
        self._rule = split_rule(table, self.split, self.novel)
        self._parts = self._divide(table)
        self._table = table

    def _open(self) -> ClipTable:
        """The clips; what reads them is made on the way."""
        store = open_store(self.store_path, self.name, pipeline=self._pipeline)
        self.name = self.name or store.name
        self._loader = self._open_skeletons(store)
        return store

    def _open_skeletons(self, store: Store) -> ClipLoader:
        """What reads the skeletons of a store, compared with the configuration."""
        require(
            store,
            self._expected,
            persons=store.card["persons"],
            channels=len(given_channels(store.card, self.scores)),
            num_classes=len(store.class_names),
            pipeline=store.card.get("pipeline"),
        )
        stored = get_layout(store.card["layout"])
        layout: Layout | None = None
        try:
            layout = stored if self._layout is None else get_layout(self._layout)
            loader = ClipLoader(store, layout, self._make_normalizer(layout), self.scores)
            loader.load(np.arange(1))  # one clip: conversion and normalisation exist and fit
        except SkelactError as error:
            if layout == stored:  # nothing to convert
                raise SkelactError(f"data.normalize does not suit the store {store.path}: {error}") from error
            wanted = getattr(self._layout, "name", self._layout)
            raise SkelactError(
                f"data.layout={wanted} does not suit the store {store.path} of layout {stored.name!r}: {error} "
                f"(set data.layout={stored.name})"
            ) from error
        return loader

    def variant(self, **changes: Any) -> SkeletonDataModule:
        """The same clips, frames shared, with other options.

        Args:
            changes: any of `batch_size`, `per_class`, `fit`, `validation`, `drop_last`, `seed`, `label_fraction`,
                `labels_per_class`, `label_draw` and `label_rule`.
        """
        store = self.store
        other = copy.copy(self)
        other.__dict__.pop("train_dataloader", None)  # a continued run's own
        other.trainer = None
        for key, value in changes.items():
            if key not in VARIABLE:
                raise SkelactError(f"data.{key} cannot be changed in a variant; only {', '.join(VARIABLE)}")
            setattr(other, key, value)
        other._parts = other._divide(store)
        return other

    @property
    def store(self) -> ClipTable:
        """The open store, or what stands for several."""
        self.setup()
        assert self._table is not None
        return self._table

    @property
    def layout(self) -> Layout:
        """Joint layout of the batches."""
        return self._ready.layout

    @property
    def num_persons(self) -> int:
        """Person slots of the batches, M."""
        return int(self._ready.store.card["persons"])

    @property
    def num_channels(self) -> int:
        """Channels of the batches, C."""
        return len(self._ready.channels)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by label."""
        return self.store.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """Hash of the store's content."""
        return self.store.fingerprint

    @property
    def card(self) -> dict[str, Any]:
        """The dataset card, plain containers."""
        return self.store.card

    @property
    def residence(self) -> str:
        """Where the frames live while the trainer's device asks for them: disk, ram or device."""
        return self._residence_for(self._device())

    def rows(self, part: str) -> np.ndarray:
        """Store rows of a part (train, val, test, train+val), ascending.

        Raises:
            SplitError: unknown or empty part.
        """
        name = self.store.name
        return part_rows(self._parts, part, self.split, name)

    def clip_names(self, part: str) -> list[str]:
        """Names of a part's clips in store order."""
        return [str(name) for name in self.store.names[self.rows(part)]]

    def labels(self, part: str) -> np.ndarray:
        """`(n,)` int64 labels of a part's clips in store order."""
        return np.array(self.store.label[self.rows(part)])

    def groups(self, part: str) -> np.ndarray:
        """`(n,)` what a part's clips share: the motion behind simulated views, else each clip's own name.

        Resampling for intervals should draw these, not clips.
        """
        column = self.store.columns.get("group", self.store.names)
        return np.array(column[self.rows(part)])

    def size(self, part: str) -> int:
        """Number of clips of a part; 0 for an empty one."""
        return len(self._parts.get(part, ())) if self.store else 0

    def batches(
        self,
        part: str,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
        change: Change | None = None,
        stored: bool = False,
    ) -> Iterator[RaggedClips]:
        """All clips of a part once, in store order.

        Args:
            part: train, val, test or train+val.
            batch_size: clips a batch; None takes `eval_batch_size`.
            device: where the batches shall be; None leaves them where the data live.
            change: done to clips read from disk, before they are normalised, see :meth:`ClipLoader.load`.
            stored: do it before joints are converted.
        """
        rows = torch.from_numpy(self.rows(part))
        for some in rows.split(batch_size or self.eval_batch_size):
            if change is None:
                yield self._deliver(some, device)
            else:
                yield self._ready.load(some, change, stored).to(device or "cpu")

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the fitted part."""
        rows, ranks = self.rows(self.fit), self._ranks()
        if self.per_class is not None:
            labels = self.labels(self.fit)
            return self._dataloader(ClassBatches(rows, labels, self.batch_size, self.per_class, *ranks, self.seed))
        return self._dataloader(DealtBatches(rows, self.batch_size, *ranks, True, self.seed, self.drop_last))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The validation part in store order; none when switched off or when the split has none."""
        self.setup()
        return self._evaluation("val") if self.validation and self._rule.val is not None else []

    def test_dataloader(self) -> DataLoader:
        """The test part in store order."""
        return self._evaluation("test")

    def transfer_batch_to_device(
        self, batch: torch.Tensor | RaggedClips, device: torch.device, dataloader_idx: int = 0
    ) -> RaggedClips:
        """Rows become clips on the device; clips read by workers move there."""
        if isinstance(batch, RaggedClips):
            return batch.to(device, non_blocking=True)
        return self._deliver(batch, device)

    @property
    def _ready(self) -> ClipLoader:
        self.setup()
        if self._loader is None:
            raise SkelactError("the data have no skeletons; data.modalities=[skeleton,...] adds them")
        return self._loader

    def _make_normalizer(self, layout: Layout) -> Normalizer | None:
        given = self._normalize
        return given if isinstance(given, nn.Module) else make_normalizer(given, layout)

    def _divide(self, store: ClipTable) -> dict[str, np.ndarray]:
        """Rows of the parts; of the training side those that keep their label."""
        parts = self._rule.parts(store.columns)
        for part in ("train", "train+val"):
            names, labels = store.names[parts[part]], store.label[parts[part]]
            few = self.label_fraction, self.labels_per_class, self.label_draw
            parts[part] = parts[part][labelled(names, labels, self.label_rule, *few)]
        return parts

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def _residence_for(self, device: torch.device) -> str:
        if self._wanted_residence != "auto":
            return self._wanted_residence
        if device.type not in self._chosen:
            self._chosen[device.type] = choose_residence(self._nbytes(), device)
        return self._chosen[device.type]

    def _nbytes(self) -> int:
        """Bytes of what can be resident."""
        return self._ready.nbytes()

    def _deliver(self, rows: torch.Tensor, device: torch.device | str | None) -> RaggedClips:
        """Clips of `rows` on `device`: the one place where rows become clips."""
        target = None if device is None else torch.device(device)
        residence = self._residence_for(target or self._device())
        if residence == "disk":
            clips = self._ready.load(rows)
            return clips if target is None else clips.to(target)
        if not self._frames:
            self._frames["all"] = self._ready.load_all()
        if residence == "device":
            target = target or self._device()
            if target.type != "cpu" and self._frames["all"].device != target:
                self._frames["all"] = self._frames["all"].to(target)
                target = self._frames["all"].device  # with its number
        resident = self._frames["all"]
        picked = resident.select(send(rows, resident.device), *self._ready.totals(rows))
        return picked if target is None or target == picked.device else send(picked.compact(), target)

    def _evaluation(self, part: str) -> DataLoader:
        return self._dataloader(DealtBatches(self.rows(part), self.eval_batch_size, *self._ranks()))

    def _dataset(self, count: int, device: torch.device) -> tuple[Dataset, bool]:
        """What makes batches of rows, and whether it reads from disk."""
        disk = self._residence_for(device) == "disk"
        return (DiskBatches(self._ready, count) if disk else RowBatches(count)), disk

    def _dataloader(self, sampler: DealtBatches, device: torch.device | None = None) -> DataLoader:
        device = device or self._device()
        dataset, reads = self._dataset(len(sampler.rows), device)
        workers = self.num_workers if reads else 0
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            collate_fn=_as_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # an iterator draws a seed; from torch's own that would move dropout's masks
            pin_memory=reads and device.type == "cuda",
        )


def _as_is(batch: Any) -> Any:
    return batch
