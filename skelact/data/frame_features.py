"""Features of every stored frame by a frozen encoder, extracted once and kept beside the store.

A row of `(F, D)` float16 for each stored frame: half the room of float32, and its error, 5e-4 of a value, lies far
below what frames of one clip differ by. The file's name is a hash of everything that the rows depend on.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from skelact.data.media import MediaStore
from skelact.data.modal_loading import ImageSource
from skelact.data.prepare import locked
from skelact.errors import SkelactError

#: Frames that are decoded, transformed and encoded at a time.
CHUNK = 128


def frame_features(
    source: ImageSource, encoder: nn.Module, name: str, device: torch.device | str | None = None, workers: int = 0
) -> Path:
    """The file of features; made if it is not there. Several processes may call this: one makes it, the others wait.

    Args:
        source: the frames and their transform, of which the test form is taken.
        encoder: images `(B, 3, H, W)` to features `(B, D)`; its parameters must be frozen.
        name: of the method's modality, for messages.
        device: where to compute; None takes a GPU, if there is one.
        workers: processes that decode.

    Raises:
        SkelactError: an encoder that is not frozen, no transform, or features that float16 cannot hold.
    """
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        raise SkelactError(
            f"data.cache_features=true keeps what a frame encoder makes of pictures, and that of {name} is trained: "
            f"freeze it with method.encoders.{name}.frozen=true, or set data.cache_features=false"
        )
    store = source.store
    if source.transform is None:
        raise SkelactError(f"data.images.{store.modality} is missing: say how its pictures become a network's input")
    file = store.path.with_name(f"{store.path.name}.features") / f"{_digest(source, encoder)}.npy"
    if not file.is_file():
        with locked(file):
            if not file.is_file():
                _extract(store, encoder, source.transform, file, _device(device), workers)
    return file


def _device(device: torch.device | str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _digest(source: ImageSource, encoder: nn.Module) -> str:
    """Of the store, the encoder's form and weights, and what the transform does."""
    found = hashlib.sha256(f"v1 {source.store.fingerprint} {source.look()} {encoder!r}".encode())
    for key, value in encoder.state_dict().items():
        found.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


class _Chunks(Dataset[list[tuple[Tensor, Tensor]]]):
    """Stored frames in runs: for each size of frames in a run, their numbers and their pixels."""

    def __init__(self, store: MediaStore) -> None:
        self.store, self.total = store, int(store.shape[0])
        self.owner = np.repeat(np.arange(len(store)), store.length) if store.encoded else None

    def __len__(self) -> int:
        return -(-self.total // CHUNK)

    def __getitem__(self, number: int) -> list[tuple[Tensor, Tensor]]:
        positions = range(number * CHUNK, min((number + 1) * CHUNK, self.total))
        if self.owner is None:
            return [(torch.tensor(positions), torch.from_numpy(self.store.frames[positions.start : positions.stop]))]
        groups: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        for position in positions:
            image = self.store.decode(position, int(self.owner[position]))
            groups.setdefault(image.shape, []).append((position, image))
        return [
            (torch.tensor([p for p, _ in group]), torch.from_numpy(np.stack([image for _, image in group])))
            for group in groups.values()
        ]


@torch.inference_mode()
def _extract(
    store: MediaStore, encoder: nn.Module, transform: nn.Module, file: Path, device: torch.device, workers: int
) -> None:
    encoder, transform = copy.deepcopy(encoder).eval().to(device), copy.deepcopy(transform).to(device)
    partial = file.with_name(f".{file.stem}.{os.getpid()}.npy")
    rows: np.ndarray | None = None
    try:
        for positions, images in _progress(store, workers):
            mask = torch.ones(len(images), 1, dtype=torch.bool, device=device)
            values = encoder(transform(images[:, None].to(device), mask, None)[:, 0]).half().cpu().numpy()
            if not np.isfinite(values).all():
                raise SkelactError(f"{store.path}: the encoder's features are not finite in float16")
            if rows is None:
                shape = (int(store.shape[0]), values.shape[1])
                rows = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
            rows[positions.numpy()] = values
        assert rows is not None  # a store holds at least one frame
        rows.flush()  # type: ignore[attr-defined]
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _progress(store: MediaStore, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    from rich.console import Console
    from rich.progress import track

    chunks = _Chunks(store)
    loader = DataLoader(chunks, batch_size=None, num_workers=workers, generator=torch.Generator())
    title = f"features of {store.name} {store.modality}, {CHUNK} frames a step"
    for groups in track(loader, title, total=len(chunks), console=Console(stderr=True)):
        yield from groups
