"""Checkpoints: plain containers, written atomically, loaded without trusting them."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from skelact import __version__
from skelact.callbacks.run_card import KEY, CheckpointError
from skelact.engine.build import blank, build

if TYPE_CHECKING:
    from skelact.methods.base import Method

FORMAT = 1


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a sibling file and renames it: an interrupted run leaves the old checkpoint or the new, never half."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Called by Lightning on the first process."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f"{path.name}.*.partial"):  # by a run that was killed while it wrote
                left.unlink(missing_ok=True)
            handle, name = tempfile.mkstemp(prefix=path.name + ".", suffix=".partial", dir=path.parent)
        except OSError as error:
            raise CheckpointError(f"checkpoint {path}: cannot be written ({_first_line(error)})") from error
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
            os.replace(name, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(name)
            if isinstance(error, (OSError, RuntimeError)):  # torch turns a full disk into a RuntimeError
                kept = "the one before it is kept" if path.exists() else "there was none before it"
                raise CheckpointError(f"checkpoint {path}: cannot be written ({_first_line(error)}); {kept}") from error
            raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Never unpickles code, whatever the caller says."""
        return _read(Path(path), map_location or (lambda storage, location: storage))


def _first_line(error: BaseException) -> str:
    link: BaseException | None = error
    while link is not None:  # torch's own message about a full disk speaks of positions
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def make_card(config: Mapping[str, Any], datamodule: Any, method: Any, logger_id: str | None) -> dict[str, Any]:
    """The key `skelact` of a checkpoint. `config` is resolved and plain."""
    layout = method.layout
    return {
        "format": FORMAT,
        "version": __version__,
        "config": dict(config),
        "layout": None if layout is None else layout.to_dict(),  # a method of images alone has no joints
        "class_names": [str(name) for name in datamodule.class_names],
        "fingerprint": str(datamodule.fingerprint),
        "logger_id": logger_id,
    }


def find(path: str | Path) -> Path:
    """The checkpoint file that a run directory or a path means.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        file = path / "checkpoints" / "last.ckpt"
        if not file.is_file():
            raise CheckpointError(
                f"{path}: this run directory has no checkpoints/last.ckpt (did the run train anything?)"
            )
        return file
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; give a run directory or a .ckpt file")
    return path


def _read(file: Path, map_location: Any = "cpu") -> dict[str, Any]:
    try:
        return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {file}: refused, because it holds Python objects besides tensors and plain containers"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {file}: cannot be read ({_first_line(error)})") from error


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint with its card checked.

    Args:
        path: run directory or .ckpt.

    Raises:
        CheckpointError: missing, damaged, without card, of a newer format, or with a config that is not plain.
    """
    file = find(path)
    content = _read(file)
    card = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(card, dict) or "config" not in card or "state_dict" not in content:
        raise CheckpointError(
            f"checkpoint {file} was not written by skelact; for released weights see skelact.interop.load_official"
        )
    if card.get("format", 0) > FORMAT:
        raise CheckpointError(
            f"checkpoint {file} has format {card['format']}, this version reads up to {FORMAT}: update skelact"
        )
    _refuse_interpolation(card["config"], f"checkpoint {file}: config")
    return content


def trained_steps(file: Path) -> int | None:
    """Optimiser steps of a checkpoint's weights; None where it cannot be told."""
    try:
        return int(_read(file)["global_step"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None


def _refuse_interpolation(node: Any, where: str) -> None:
    """A resolved config has no `${...}`; one that has could read the environment of whoever loads it."""
    if isinstance(node, dict):
        for key, value in node.items():
            _refuse_interpolation(value, f"{where}.{key}")
    elif isinstance(node, list):
        for value in node:
            _refuse_interpolation(value, where)
    elif isinstance(node, str) and "${" in node:
        raise CheckpointError(f"{where} holds the unresolved value {node!r}")


def restore(content: Mapping[str, Any], name: str) -> Method:
    """Build the method a checkpoint describes and fill it with the weights, strictly."""
    method = build(blank(content[KEY]["config"]["method"]), where=f"{name}: method")
    missing, unexpected = method.load_state_dict(content["state_dict"], strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"checkpoint {name}: weights do not fit; missing {missing[:5]}, unexpected {unexpected[:5]}"
        )
    return method.eval()


def load(path: str | Path, device: str | torch.device = "cpu") -> Method:
    """The trained method, in eval mode.

    Args:
        path: run directory or .ckpt.
        device: where it shall live.

    Raises:
        CheckpointError: missing, damaged or foreign file.
        SkelactError: the config inside asks for something that may not be built.
    """
    return restore(read(path), str(path)).to(device)
