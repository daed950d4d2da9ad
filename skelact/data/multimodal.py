"""The datamodule of several modalities: skeletons, images and signals of the same clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from skelact.clips import Frames, ModalClips, RaggedClips
from skelact.data.datamodules import SkeletonDataModule
from skelact.data.embedded import open_media, open_store
from skelact.data.frame_features import frame_features
from skelact.data.loading import Change, DealtBatches, require, send
from skelact.data.media import MediaStore
from skelact.data.modal_loading import ImageSource, ModalBatch, ModalBatches, SignalSource, Source
from skelact.data.modalities import SKELETON, ModalTable, media_paths
from skelact.data.store import CARD, Store
from skelact.data.table import ClipTable
from skelact.errors import SkelactError
from skelact.skeleton.layouts import Layout, get_layout

#: Enters the choice of clips that lack a modality; a change of the rule must change it, and with it every list.
WITHHOLD_RULE = "v1"


class MultiModalDataModule(SkeletonDataModule):
    """Batches of clips of several modalities as :class:`skelact.clips.ModalClips`.

    The clips are those that at least one of the modalities has. Of a clip that lacks a modality nothing is read, and
    nothing stands for it.

    Args:
        store: folder of the skeleton store; the others lie beside it, `<store>.<modality>`. Without `skeleton` among
            the modalities it need not exist.
        split: name of a split of the skeleton store's card, without skeletons of the first modality's.
        modalities: what is read, in this order: `skeleton` and names of media stores.
        images: for each image modality what makes a network's input of stored pictures, on the device, see
            :class:`skelact.transforms.images.VideoTransform`; those of other modalities are not looked at.
        frames: frames taken of a video, T.
        signal_frames: rows that a signal is resampled to.
        temporal: in training, `random` frames of a video and a random part of a signal, or the `uniform` ones of
            evaluation.
        withhold: modality -> share of the training clips (those for validation among them) that shall lack it, chosen
            by clip names. A clip always keeps one modality.
        complete: keep only clips that have all modalities.
        cache_features: extract features of all stored frames once (:meth:`attach`) and read these.
        media_store: what stands for `store` in the names of the other stores, for sets with several skeleton stores.
        options: of :class:`SkeletonDataModule`. `residence` is where everything lives that is not an image file:
            frames that must be decoded are always read by `num_workers` loader processes.
    """

    def __init__(
        self,
        store: str,
        split: str,
        modalities: Sequence[str],
        images: Mapping[str, nn.Module] | None = None,
        frames: int = 16,
        signal_frames: int = 64,
        temporal: str = "random",
        withhold: Mapping[str, float] | None = None,
        complete: bool = False,
        cache_features: bool = False,
        media_store: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(store, split, **options)
        if not modalities or len(set(modalities)) < len(modalities):
            raise SkelactError(f"data.modalities={list(modalities)}: name at least one, each once")
        if temporal not in ("random", "uniform"):
            raise SkelactError(f"data.temporal={temporal!r} is neither random nor uniform")
        for key, count in (("frames", frames), ("signal_frames", signal_frames)):
            if count < 1:
                raise SkelactError(f"data.{key}={count}: at least one")
        self.modalities, self.images = tuple(modalities), dict(images or {})
        self.frames, self.signal_frames, self.temporal = frames, signal_frames, temporal
        self.withhold, self.complete = dict(withhold or {}), complete
        self.cache_features, self.media_store = cache_features, media_store
        for modality, share in self.withhold.items():
            if modality not in self.modalities or not 0 <= share <= 1:
                raise SkelactError(
                    f"data.withhold.{modality}={share}: give a share from 0 to 1 of one of {', '.join(modalities)}"
                )
        self._sources: dict[str, Source] = {}

    def setup(self, stage: str | None = None) -> None:
        """Open the stores, pair their clips and compare them with the configuration.

        Raises:
            SkelactError: a missing or damaged store, stores that do not belong together, an unknown split, or numbers
                that are not the configuration's.
        """
        if self._table is not None:
            return
        super().setup(stage)
        table = self.table
        self._at = self._withheld(table)
        train = self._rule.parts(table.columns)["train"]
        random = self.temporal == "random"
        for column, modality in enumerate(self.modalities):
            store = table.stores[modality]
            if not isinstance(store, MediaStore):
                continue
            if store.kind == "signal":
                own = self._at[train, column]
                if not (own >= 0).any():
                    raise SkelactError(f"no training clip has {modality}; leave it out of data.modalities")
                self._sources[modality] = SignalSource(store, random, self.signal_frames, own[own >= 0])
            else:
                self._sources[modality] = ImageSource(store, random, self.frames, self.images.get(modality))

    def _open(self) -> ClipTable:
        media = {"store": self.media_store} | {name: None for name in self.modalities if name != SKELETON}
        paths = media_paths(self.store_path, media)
        stores: dict[str, Store] = {}
        for modality in self.modalities:
            if modality == SKELETON:
                stores[modality] = open_store(self.store_path, self.name, pipeline=self._pipeline)
                self._loader = self._open_skeletons(stores[modality])
            else:
                stores[modality] = open_media(paths[modality], self.name or paths[modality].stem, modality)
        skeletons = Path(self.store_path)
        known = (skeletons / CARD).is_file() and not any("splits" in store.card for store in stores.values())
        table = ModalTable(stores, self.complete, Store(skeletons).card["splits"] if known else None)
        require(table, self._expected, num_classes=len(table.class_names))
        self.name = self.name or table.name
        return table

    @property
    def table(self) -> ModalTable:
        """The clips, and the stores they come from."""
        assert isinstance(self.store, ModalTable)
        return self.store

    @property
    def layout(self) -> Layout:
        """Joint layout of the batches; of data without skeletons the one that was named."""
        if SKELETON not in self.modalities and self._layout is not None:
            return get_layout(self._layout)
        return self._ready.layout

    @property
    def reading(self) -> str:
        """What, besides the stores, decides about evaluation batches: features that are kept belong to it."""
        self.setup()
        images = [
            source.features.stem if source.features else source.look()
            for source in self._sources.values()
            if isinstance(source, ImageSource)
        ]
        statistics = (self.split, self.withhold)  # of signals: by the training clips
        return f"{self._normalize} {self.modalities} {self.frames} {self.signal_frames} {statistics} {images}"

    def batches(  # type: ignore[override]
        self,
        part: str,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
        change: Change | None = None,
        stored: bool = False,
    ) -> Iterator[ModalClips]:
        """All clips of a part once, in table order; arguments as of the base (`change` is of skeletons)."""
        if change is not None and SKELETON not in self.modalities:
            raise SkelactError(f"there are no skeletons to change among data.modalities={list(self.modalities)}")
        target = self._device() if device is None else torch.device(device)
        rows, size = self.rows(part), batch_size or self.eval_batch_size
        if change is None:
            for batch in self._dataloader(DealtBatches(rows, size), target):
                yield self._finish(batch, target)
        else:
            reader = self._reader(self.modalities)
            for some in torch.from_numpy(rows).split(size):
                parts = reader.read(some, None, reader.names, change, stored)
                yield self._finish(ModalBatch(some, None, parts), target)

    def transfer_batch_to_device(  # type: ignore[override]
        self, batch: ModalBatch, device: torch.device, dataloader_idx: int = 0
    ) -> ModalClips:
        """What is resident is picked on the device; what workers read moves there; all is made ready there."""
        return self._finish(batch, device)

    def attach(self, method: Any, device: torch.device | str | None = None) -> None:
        """With `cache_features`, read features that a method's frozen frame encoders make of pictures, from now on.

        They are extracted once, of all stored frames under the test transform, into `<store>.features/`.

        Args:
            method: has `encoders`, by modality, with `source` and `frames`
                (:class:`skelact.backbones.modality.ImageEncoder`).
            device: where they are extracted; None takes a GPU, if there is one.

        Raises:
            SkelactError: an encoder that is not frozen, or two different ones of one modality.
        """
        if not self.cache_features:
            return
        self.setup()
        for modality, source in self._sources.items():
            if isinstance(source, ImageSource):
                found = {n: e.frames for n, e in method.encoders.items() if e.source == modality}
                files = {frame_features(source, e, n, device, self.num_workers) for n, e in found.items()}
                if len(files) > 1:
                    raise SkelactError(f"data.cache_features=true, and {', '.join(found)} see {modality} differently")
                for file in files:
                    source.use(file)
        self._chosen.clear()  # features take another room than frames

    def _withheld(self, table: ModalTable) -> np.ndarray:
        """Rows of each clip in each store, less what `withhold` takes from the training side.

        Frozen rule, v1. Modalities one after another: of the clips that still have it and another one, those with the
        lowest SHA-256 of `"v1:<modality>:<name>"` lose it, as many as are the share (rounded half up) of all that
        had it.
        """
        at = table.rows.copy()
        side = self._rule.parts(table.columns)["train+val"]
        for modality, share in self.withhold.items():
            column = table.modalities.index(modality)
            having = side[at[side, column] >= 0]
            count = int(share * len(having) + 0.5)
            others = having[(at[having] >= 0).sum(1) > 1]
            names = table.names[others]
            rank = [hashlib.sha256(f"{WITHHOLD_RULE}:{modality}:{name}".encode()).digest() for name in names]
            at[[others[k] for k in sorted(range(len(others)), key=rank.__getitem__)[:count]], column] = -1
        return at

    def _nbytes(self) -> int:
        skeletons = 0 if self._loader is None else self._loader.nbytes()
        return skeletons + sum(source.nbytes for source in self._sources.values())

    def _reader(self, names: tuple[str, ...], count: int = 1) -> ModalBatches:
        return ModalBatches(self.table, self._at, self._loader, self._sources, names, self.seed, count)

    def _read_by_workers(self, device: torch.device) -> tuple[str, ...]:
        """Modalities that are not resident while `device` asks for them."""
        if self._residence_for(device) == "disk":
            return self.modalities
        return tuple(m for m, source in self._sources.items() if isinstance(source, ImageSource) and source.decodes)

    def _dataset(self, count: int, device: torch.device) -> tuple[Dataset, bool]:
        names = self._read_by_workers(device)
        return self._reader(names, count), bool(names)

    def _dataloader(self, sampler: DealtBatches, device: torch.device | None = None) -> DataLoader:
        sampler.with_epoch = sampler.shuffle
        return super()._dataloader(sampler, device)

    def _finish(self, batch: ModalBatch, device: torch.device) -> ModalClips:
        """A batch with all its parts, ready on a device: the one place where rows become clips."""
        rows, reader, parts = batch.rows, self._reader(()), dict(batch.parts)
        have = {m: reader.at[rows, column] >= 0 for column, m in enumerate(self.modalities)}
        resident = [m for m in self.modalities if m not in parts and have[m].any()]
        for m in resident:
            if m == SKELETON:
                skeletons = self._deliver(reader.at[rows[have[m]], self.modalities.index(m)], device)
                parts[m] = replace(skeletons, index=send(rows[have[m]], skeletons.device))
            else:
                self._sources[m].hold(device if self._residence_for(device) == "device" else None)
        parts |= reader.read(rows, batch.epoch, tuple(m for m in resident if m != SKELETON))
        ready: dict[str, RaggedClips | Frames] = {}
        for m in self.modalities:
            if m in parts:
                part = parts[m].to(device, non_blocking=True)
                draws = reader.draws(batch.epoch, send(rows[have[m]], device))
                ready[m] = part if isinstance(part, RaggedClips) else self._sources[m].finish(part, m, draws)
        available = torch.stack(list(have.values()), 1)
        label, index = send(reader.label[rows], device), send(rows, device)
        return ModalClips(ready, send(available, device), self.modalities, label, index)
