"""Datasets that travel with the package: they prepare themselves at first use."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from skelact.data.media import MediaStore
from skelact.data.prepare import prepare_dataset
from skelact.data.project import HDM052DReader
from skelact.data.readers.base import Reader
from skelact.data.readers.hdm05 import HDM05Reader
from skelact.data.readers.media import MediaReader
from skelact.data.render import RenderedMedia
from skelact.data.simulate import HDM05ViewsReader
from skelact.data.store import CARD, Store, StoreError

EMBEDDED: dict[str, type[Reader]] = {
    "hdm05": HDM05Reader,
    "hdm05_views": HDM05ViewsReader,
    "hdm05_2d": HDM052DReader,
    "hdm05_rendered": HDM05ViewsReader,  # pictures of its clips
}
EMBEDDED_MEDIA: dict[str, type[MediaReader]] = {"hdm05_rendered": RenderedMedia}


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
        command = f"skelact prepare {_choice(name or path.name, pipeline)} source=FOLDER"
        raise StoreError(path, f"there is no store yet; make it from the original files with: {command}")
    return Store(path)


def open_media(path: str | Path, name: str, modality: str) -> MediaStore:
    """Open the store of a modality that is no skeleton, first making it if it is an embedded dataset's.

    Several processes may call this at once: one prepares, the others wait.

    Args:
        path: the store's folder.
        name: name of the dataset.
        modality: which one.

    Raises:
        StoreError: no store there, with the command that makes it; or the store is damaged.
    """
    path = Path(path)
    reader = EMBEDDED_MEDIA.get(name)
    if not (path / CARD).is_file() and reader is not None and modality in reader.modalities:
        prepare_dataset(reader(modality), None, path, only_if_missing=True)
    if not path.exists():
        command = f"skelact prepare data={name} source=FOLDER modalities=[{modality}]"
        raise StoreError(path, f"there is no store of {modality} yet; make it from the original files with: {command}")
    return MediaStore(path)


def _choice(name: str, pipeline: str | None) -> str:
    """The overrides that choose a dataset: a name that no config has is somebody's own data."""
    if name == "custom" or not (files("skelact.conf") / "data" / f"{name}.yaml").is_file():
        return f"data=custom{'' if name == 'custom' else f' data.name={name}'} layout=NAME_OR_FILE"
    return f"data={name}" + ("" if pipeline is None else f" data.pipeline={pipeline}")
