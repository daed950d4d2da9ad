"""Features of whole parts of a dataset: extracted once, exactly, and kept."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from skelact.clips import ModalClips, RaggedClips
from skelact.errors import SkelactError
from skelact.skeleton.streams import STREAMS

if TYPE_CHECKING:
    from skelact.data.datamodules import SkeletonDataModule
    from skelact.methods.base import Method

Subset = tuple[str, ...]
SPACES = ("feature", "embedding")
_PRECISIONS = {"bf16": torch.bfloat16, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class FeatureTable:
    """One feature per clip of a part, in store order.

    Args:
        features: `(N, D)` float32.
        labels: `(N,)` int64.
        names: N clip names.
        groups: `(N,)` what clips have in common (the recording behind simulated views), for clustered intervals.
    """

    features: Tensor
    labels: Tensor
    names: list[str]
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: np.ndarray) -> FeatureTable:
        """Some rows, by position."""
        at = torch.as_tensor(rows, device=self.features.device)
        names = [self.names[i] for i in rows.tolist()]
        return FeatureTable(self.features[at], self.labels[at], names, self.groups[rows])

    @staticmethod
    def join(first: FeatureTable, second: FeatureTable) -> FeatureTable:
        """The rows of one table, then those of another."""
        return FeatureTable(
            torch.cat([first.features, second.features]),
            torch.cat([first.labels, second.labels]),
            first.names + second.names,
            np.concatenate([first.groups, second.groups]),
        )

    @staticmethod
    def beside(tables: Sequence[FeatureTable]) -> FeatureTable:
        """The features of the same clips side by side."""
        first, *others = tables
        return replace(first, features=torch.cat([table.features for table in tables], 1)) if others else first


def subsets(streams: Sequence[str]) -> list[Subset]:
    """All 2^S - 1 non-empty subsets, small ones first, streams in the order given."""
    return [s for size in range(1, len(streams) + 1) for s in itertools.combinations(streams, size)]


def subset_name(subset: Subset) -> str:
    """`bone+joint`: names sorted and joined."""
    return "+".join(sorted(subset))


def extract(
    method: Method,
    datamodule: SkeletonDataModule,
    part: str,
    streams: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    precision: str | None = None,
    cache: str | Path | None = None,
) -> FeatureTable:
    """Features of every clip of a part, once each, in evaluation mode and without augmentation.

    Args:
        method: whose :meth:`encode` is asked; its mode is restored afterwards.
        datamodule: where the clips come from.
        part: `train`, `val`, `test` or `train+val`.
        streams: which streams the encoder sees; None means all of the method's.
        device: where to compute; None means where the method is.
        precision: `bf16` or `16-mixed` for autocast; None computes in the precision of the weights.
        cache: folder in which features are kept, under a name made from weights, data, streams and sampling.
    """
    subset = tuple(method.streams if streams is None else streams)
    return extract_subsets(method, datamodule, part, [subset], device, precision, cache)[subset]


def extract_subsets(
    method: Method,
    datamodule: SkeletonDataModule,
    part: str,
    wanted: Sequence[Subset],
    device: torch.device | str | None = None,
    precision: str | None = None,
    cache: str | Path | None = None,
    space: str = "feature",
) -> dict[Subset, FeatureTable]:
    """As :func:`extract` for several subsets of streams, reading and sampling every clip once for all of them.

    In the space `embedding` it is the method's `embed_features(views, streams, mask) -> (N, D)` that is asked; in
    `zero_input` streams that are not in a subset are there, as zeros.

    Raises:
        SkelactError: the method has no such function.
    """
    asked = _asked(method, space)
    device = torch.device(device) if device is not None else next(method.parameters()).device
    table = _Columns(datamodule, part)
    folder = None if cache is None else Path(cache)
    files: dict[Subset, Path] = {}
    if folder is not None:
        key = _key(method, datamodule, part, precision, table, space)
        files = {s: folder / f"{part}-{subset_name(s)}-{_digest(key, '+'.join(s))[:16]}.npy" for s in wanted}
    found = {s: torch.from_numpy(np.load(f, allow_pickle=False)) for s, f in files.items() if f.exists()}
    missing = [s for s in wanted if s not in found]
    if missing:
        amp = autocast(device, precision)

        def encode(batch: RaggedClips) -> dict[Subset, Tensor]:
            with amp:
                return asked(batch, missing)

        was_training = method.training
        method.eval().to(device)
        try:
            fresh = _collect(encode, datamodule, part, device)
        finally:
            method.train(was_training)
        for subset, features in fresh.items():
            if subset in files:
                _save(files[subset], features)
        found.update(fresh)
    return {s: table.with_features(found[s].to(device)) for s in wanted}


def _asked(method: Method, space: str) -> Callable[[RaggedClips, Sequence[Subset]], dict[Subset, Tensor]]:
    """What gives features of a batch for several subsets; skeletons are sampled once for all of them."""
    encode = getattr(method, "embed_features" if space == "embedding" else "encode", None)
    if encode is None and space == "feature":
        return lambda batch, wanted: {s: method.features(batch, s) for s in wanted}
    if encode is None:
        raise SkelactError(
            f"protocol.space={space}: {type(method).__name__} has no embed_features, an embedding of its own for "
            f"evaluation; take protocol.space=feature"
        )

    encode = partial(encode, blank=True) if space == "zero_input" else encode

    def each(batch: RaggedClips, wanted: Sequence[Subset]) -> dict[Subset, Tensor]:
        views, mask = method.sample(batch)
        return {s: encode(views, s, mask) for s in wanted}

    return each


def trunks(method: Method) -> Subset | None:
    """The streams whose features lie side by side in the method's, zeros for one that is absent; None: there is one."""
    if not hasattr(method, "backbone"):
        return tuple(method.streams)
    return method.backbone.streams if method.backbone.stacked else None


def modality_encoders(method: Any) -> dict[str, nn.Module]:
    """The encoders of a method of several modalities, by name."""
    return dict(method.encoders.items())


def pose_streams(method: Method) -> dict[str, str]:
    """What of a method's streams is of a skeleton: name -> stream of the skeleton; joints where it is one whole."""
    if hasattr(method, "backbone"):
        return {name: name for name in method.streams}
    posed = [name for name, encoder in modality_encoders(method).items() if hasattr(encoder, "sampler")]
    return {name: name if name in STREAMS else "joint" for name in posed}


def autocast(device: torch.device, precision: str | None) -> AbstractContextManager[Any]:
    """The precision in which an encoder computes; None: that of its weights."""
    if precision in (None, "32", "32-true"):
        return nullcontext()
    if precision not in _PRECISIONS:
        raise ValueError(f"precision={precision} is not known; choose from {', '.join(_PRECISIONS)}")
    return torch.autocast(device.type, _PRECISIONS[precision])


def raw_pose_subsets(
    method: Method,
    datamodule: SkeletonDataModule,
    part: str,
    wanted: Sequence[Subset],
    device: torch.device | str | None = None,
) -> dict[Subset, FeatureTable]:
    """The baseline without any network: :func:`raw_pose` of every clip of a part, stream after stream.

    A clip without a skeleton is zeros.
    """
    device = torch.device(device) if device is not None else next(method.parameters()).device
    single = sorted({(stream,) for subset in wanted for stream in subset})
    table = _Columns(datamodule, part)

    def encode(batch: RaggedClips) -> dict[Subset, Tensor] | None:
        if isinstance(batch, ModalClips) and not any(isinstance(p, RaggedClips) for p in batch.parts.values()):
            return None
        views, mask = method.sample(batch)
        return {subset: raw_pose(method, views, mask, subset) for subset in single}

    found = _collect(encode, datamodule, part, device)
    return {s: table.with_features(torch.cat([found[(x,)] for x in s], 1).to(device)) for s in wanted}


def raw_pose(method: Method, views: Tensor, mask: Tensor | None, streams: Subset) -> Tensor:
    """The method's evaluation views themselves, flattened stream after stream `(N, D)`: coordinates, without scores.

    In a cosine, confidences of 2D poses, all positive and of size 1, would outweigh the coordinates.
    """
    derived = method.derive(views, streams, mask)
    return torch.cat([derived[stream][..., : method.layout.dims].flatten(1) for stream in streams], 1)


@torch.inference_mode()
def _collect(
    encode: Callable[[RaggedClips], dict[Subset, Tensor] | None],
    datamodule: SkeletonDataModule,
    part: str,
    device: torch.device,
) -> dict[Subset, Tensor]:
    """All features of a part; a batch of which nothing can be said (None) is zeros."""
    found = [(len(batch), encode(batch)) for batch in datamodule.batches(part, device=device)]
    some = next((rows for _, rows in found if rows is not None), None)
    if some is None:
        raise SkelactError(f"no clip of the {part} part has what the features are made of")
    with torch.inference_mode(False):
        return {
            s: torch.cat([like.new_zeros(n, like.shape[1]) if rows is None else rows[s] for n, rows in found]).float()
            for s, like in some.items()
        }


class _Columns:
    """Labels, names and groups of a part."""

    def __init__(self, datamodule: SkeletonDataModule, part: str) -> None:
        self.labels = torch.from_numpy(np.asarray(datamodule.labels(part), dtype=np.int64).copy())
        self.names, self.groups = list(datamodule.clip_names(part)), np.asarray(datamodule.groups(part))

    def with_features(self, features: Tensor) -> FeatureTable:
        if len(features) != len(self.names):
            raise RuntimeError(f"{len(features)} features for {len(self.names)} clips: a batch was dropped or repeated")
        return FeatureTable(features, self.labels.to(features.device), self.names, self.groups)


def _key(
    method: Method, datamodule: SkeletonDataModule, part: str, precision: str | None, table: _Columns, space: str
) -> str:
    """Everything that features depend on, as one hash; an embedding depends on the projectors too."""
    network: Any = method if space == "embedding" else getattr(method, "backbone", None) or method.encoders
    weights = hashlib.sha256()
    for name, value in network.state_dict().items():
        weights.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    facts = [
        space, weights.hexdigest(), repr(network), repr(getattr(method, "sampler", None)), method.layout,
        getattr(method, "use_mask", ""),
        datamodule.fingerprint, datamodule.layout, _reading(datamodule), part, precision,
        _digest(*table.names),
    ]  # fmt: skip
    return _digest(*map(str, facts))


def _reading(datamodule: SkeletonDataModule) -> object:
    """What the clips' features depend on besides the store."""
    return getattr(datamodule, "reading", None) or getattr(datamodule, "_normalize", None)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _save(path: Path, features: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    try:
        np.save(partial, features.cpu().numpy(), allow_pickle=False)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass
class Subject:
    """What a protocol judges: an encoder or the raw pose, with its features at hand.

    Args:
        name: row of the table.
        encoder: `pretrained`, `untrained` or `raw_pose`.
        method: the encoder; for raw pose the one whose sampling and streams are used.
        datamodule: the data.
        device: where to compute.
        precision: autocast of the encoder.
        cache: folder of kept features.
        streams: which of the method's streams are asked; None means all.
        space: `feature` or `embedding`, see :func:`extract_subsets`; the raw pose has but one.
    """

    name: str
    encoder: str
    method: Method
    datamodule: SkeletonDataModule
    device: torch.device | str | None = None
    precision: str | None = None
    cache: Path | None = None
    streams: Subset | None = None
    space: str = "feature"
    clips: int = 0
    seconds: float = 0.0

    def tables(self, part: str, wanted: Sequence[Subset] | None = None) -> dict[Subset, FeatureTable]:
        """Features of a part by subset; by default of one subset, all streams (raw pose: the joint stream alone).

        Bones and motions are linear maps of the joints, so a linear classifier gains nothing from them and the
        nearest-neighbour baseline is, as everywhere, the one on joints.
        """
        wanted = [self.full] if wanted is None else wanted
        start = time.perf_counter()
        if self.encoder == "raw_pose":
            found = raw_pose_subsets(self.method, self.datamodule, part, wanted, self.device)
        else:
            found = extract_subsets(
                self.method, self.datamodule, part, wanted, self.device, self.precision, self.cache, self.space
            )
        self.seconds += time.perf_counter() - start
        self.clips += len(next(iter(found.values())))
        return found

    def own(self, part: str, wanted: Sequence[Subset] | None = None) -> dict[Subset, FeatureTable]:
        """As :meth:`tables`, without the columns of trunks that are not in a subset: there they are zeros.

        Stacked trunks are run once, whatever the number of subsets.
        """
        wanted = [self.full] if wanted is None else wanted
        if self.encoder == "raw_pose" or self.space != "feature" or trunks(self.method) is None:
            return self.tables(part, wanted)
        union = tuple(s for s in self.method.streams if any(s in subset for subset in wanted))
        table = self.tables(part, [union])[union]
        return {s: replace(table, features=self._columns(table.features, s)) for s in wanted}

    def _columns(self, features: Tensor, subset: Subset) -> Tensor:
        """Of features `(N, D)` of stacked trunks the columns of some of them."""
        streams = trunks(self.method) or ()
        blocks = dict(zip(streams, features.chunk(len(streams), 1), strict=True))
        return torch.cat([blocks[stream] for stream in subset], 1)

    def features(self, batch: RaggedClips) -> Tensor:
        """`(n, D)` float32 of some clips, as :meth:`own` gives those of a part for all streams that are asked."""
        if self.encoder == "raw_pose":
            views, mask = self.method.sample(batch)
            return raw_pose(self.method, views, mask, self.full).float()
        with autocast(batch.device, self.precision):
            features = self.method.features(batch, self.full)
        return (features if trunks(self.method) is None else self._columns(features, self.full)).float()

    @property
    def chosen(self) -> Subset:
        """The streams that are asked, in the method's order."""
        return tuple(self.method.streams if self.streams is None else self.streams)

    @property
    def full(self) -> Subset:
        """All streams that are asked; of the raw pose those of a skeleton, or the joints, if they are among them."""
        if self.encoder != "raw_pose":
            return self.chosen
        posed = tuple(dict.fromkeys(pose for name, pose in pose_streams(self.method).items() if name in self.chosen))
        return ("joint",) if "joint" in posed else posed

    def official_training(self) -> FeatureTable:
        """Train and validation together, all streams that are asked: the training side of the published split."""
        train = self.own("train")[self.full]
        return FeatureTable.join(train, self.own("val")[self.full]) if self.datamodule.size("val") else train
