"""Datasets that travel with the package: they prepare themselves at first use."""

from __future__ import annotations

from pathlib import Path

from skelact.data.prepare import prepare_dataset
from skelact.data.readers.base import Reader
from skelact.data.readers.hdm05 import HDM05Reader
from skelact.data.simulate import HDM05ViewsReader
from skelact.data.store import CARD, Store, StoreError

EMBEDDED: dict[str, type[Reader]] = {"hdm05": HDM05Reader, "hdm05_views": HDM05ViewsReader}


def open_store(path: str | Path, name: str | None = None, progress: bool = False, pipeline: str | None = None) -> Store:
    """Open a store, first making it if it is an embedded dataset's and not there yet.

    Several processes may call this at once: one prepares, the others wait.

    Args:
        path: the store's folder.
        name: name of the dataset.
        progress: show a bar while preparing.
        pipeline: way of choosing bodies, for the command in the message where the store is missing.

    Raises:
        StoreError: no store there, with the command that makes it; or the store is damaged.
    """
    path = Path(path)
    if not (path / CARD).is_file() and name in EMBEDDED:
        prepare_dataset(EMBEDDED[name](), None, path, progress=progress, only_if_missing=True)
    if not path.exists():
        choice = "" if pipeline is None else f" data.pipeline={pipeline}"
        command = f"skelact prepare data={name or path.name}{choice} source=FOLDER"
        raise StoreError(path, f"there is no store yet; make it from the original files with: {command}")
    return Store(path)
