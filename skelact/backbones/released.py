"""Checkpoints that a network begins with: read without trusting them, and matched name by name."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skelact.errors import SkelactError

Source = str | PathLike[str] | Mapping[str, Any]


NUMPY_SCALARS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
]
"""What losses and accuracies beside the tensors may be made of."""


class CheckpointError(SkelactError):
    """A checkpoint cannot be read, or is not of the system it was said to be of."""


def read_state(source: Source) -> dict[str, Tensor]:
    """The tensors of a checkpoint by original name, without `module.`; accepts a path, a checkpoint, a state dict."""
    content: Any = source
    if isinstance(source, str | PathLike):
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint file")
        try:
            with torch.serialization.safe_globals(NUMPY_SCALARS):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{path}: not a checkpoint of plain tensors: {reason}") from error
    for key in ("state_dict", "model", "model_pos"):  # the last two: MotionBERT's
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{source if isinstance(source, str | PathLike) else 'source'}: holds no state dict")
    alien = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if alien:
        raise CheckpointError(f"state dict entries that are not tensors: {', '.join(alien[:5])}")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network of MotionBERT's or MaskCLR's code without the names of what was wrapped around it."""
    return {re.sub(r"^(?:(?:module|model)\.)+", "", name): value for name, value in state.items()}


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of such a network. A 1x1 convolution that embeds joints becomes the linear layer it is."""
    plain = unwrapped(state)
    inner = {name.removeprefix("backbone."): value for name, value in plain.items() if name.startswith("backbone.")}
    inner = inner or plain
    for leaf in ("weight", "bias"):
        if (convolution := inner.pop(f"joints_embed.proj.{leaf}", None)) is not None:
            inner[f"joints_embed.{leaf}"] = convolution.flatten(1) if leaf == "weight" else convolution
    return inner


def layers(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered layers a state dict has under a prefix."""
    return len({name.removeprefix(f"{prefix}.").split(".")[0] for name in state if name.startswith(f"{prefix}.")})


def refuse(origin: str, model: str, problems: Mapping[str, list[str]]) -> None:
    """Raise with the lists of missing, unexpected and misshaped names, unless all are empty."""
    if any(problems.values()):
        lists = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{origin}: does not match {model}: {lists}")


def fill(module: torch.nn.Module, state: Mapping[str, Tensor], origin: str, optional: Collection[str] = ()) -> None:
    """Load a state dict of which every name and shape must match.

    Args:
        module: what is filled.
        state: tensors by the module's names.
        origin: where they come from, for messages.
        optional: names that may be missing; these tensors stay as they are.

    Raises:
        CheckpointError: listing missing, unexpected and misshaped names.
    """
    own = module.state_dict()
    problems = {
        "missing": [name for name in own if name not in state and name not in optional],
        "unexpected": [name for name in state if name not in own],
        "misshaped": [
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    refuse(origin, type(module).__name__, problems)
    module.load_state_dict({**own, **state})


def begin_with(encoders: torch.nn.ModuleDict, source: str) -> None:
    """Fill encoders with those of the same names in a run of a method of several modalities.

    Args:
        encoders: by modality.
        source: the run's directory or its checkpoint.

    Raises:
        CheckpointError: it has no encoder of one of the names, or one of another shape.
    """
    path = Path(source).expanduser()
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"method.pretrained={source}: there is no such run or checkpoint; train that run first, give another, or "
            f"set method.pretrained=null"
        )
    state = read_state(file)
    for name, encoder in encoders.items():
        prefix = f"encoders.{name}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not own:
            there = ", ".join(sorted({key.split(".")[1] for key in state if key.startswith("encoders.")})) or "none"
            raise CheckpointError(f"method.pretrained={source}: has no encoder of {name} (there are {there})")
        fill(encoder, own, f"method.pretrained={source}, {name}")


def shape_of(state: Mapping[str, Tensor], name: str, dims: int, origin: str) -> tuple[int, ...]:
    """Shape of a tensor that must be there and have so many dimensions."""
    if name not in state:
        found = ", ".join(sorted(state)[:5])
        raise CheckpointError(f"{origin}: missing: {name} (the file starts with {found})")
    shape = tuple(state[name].shape)
    if len(shape) != dims or 0 in shape:
        raise CheckpointError(f"{origin}: misshaped: {name} {shape}, expected {dims} dimensions")
    return shape
