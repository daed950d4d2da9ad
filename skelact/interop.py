"""Official checkpoints in, under our names."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skelact.backbones.umurl import UmURLEncoder
from skelact.errors import SkelactError
from skelact.methods.base import Method
from skelact.methods.umurl import UmURL
from skelact.skeleton.layouts import get_layout
from skelact.transforms.sampling import CenterCrop

Source = str | PathLike[str] | Mapping[str, Any]


class CheckpointError(SkelactError):
    """A checkpoint cannot be read, or is not of the system it was said to be of."""


def load_official(system: str, source: Source, **hparams: Any) -> Method:
    """A method with the weights of a checkpoint that the authors' code wrote.

    Args:
        system: which code wrote it; see :data:`SYSTEMS`.
        source: path of the checkpoint (read with `weights_only=True`), its contents, or a state dict under the
            original names, with or without the `module.` prefix of distributed training.
        **hparams: what the tensors do not tell; see the function of the system.

    Returns:
        The method in eval mode, preset `as_released`.

    Raises:
        CheckpointError: unknown system, unreadable file, or names and shapes that do not all match; the message lists
            missing, unexpected and misshaped names.
    """
    if system not in SYSTEMS:
        raise CheckpointError(f"no importer for {system!r}; this version reads checkpoints of: {', '.join(SYSTEMS)}")
    origin = str(source) if isinstance(source, str | PathLike) else "state dict"
    return SYSTEMS[system](read_state(source), origin, **hparams)


def read_state(source: Source) -> dict[str, Tensor]:
    """The tensors of a checkpoint by original name, without `module.`; accepts a path, a checkpoint, a state dict."""
    content: Any = source
    if isinstance(source, str | PathLike):
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint file")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{path}: not a checkpoint of plain tensors: {reason}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{source if isinstance(source, str | PathLike) else 'source'}: holds no state dict")
    alien = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if alien:
        raise CheckpointError(f"state dict entries that are not tensors: {', '.join(alien[:5])}")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def load_umurl(
    state: Mapping[str, Tensor],
    origin: str,
    num_heads: int = 1,
    layout: str | Mapping[str, Any] = "ntu25",
    channels: int = 3,
    frames: int | None = None,
) -> UmURL:
    """UmURL (reference code HuiGuanLab/UmURL).

    Width, depth, feed-forward and projector widths, clip length and persons are read off the tensors. A downstream
    checkpoint has a classifier `fc.*`, which is left out, and may have no projectors: those of the returned method
    are then untrained, which a warning says; features do not pass through them.

    Args:
        state: tensors by original name.
        origin: where they come from, for messages.
        num_heads: attention heads of the checkpoint.
        layout: joint layout that it was trained on.
        channels: coordinates a joint.
        frames: clip length to expect; a checkpoint of another length is refused.
    """
    state = {name: value for name, value in state.items() if name not in ("fc.weight", "fc.bias")}
    joints = get_layout(layout).num_joints
    width, temporal = _shape(state, "backbone.j_emb.t_embedding.0.weight", 2, origin)
    spatial = _shape(state, "backbone.j_emb.s_embedding.0.weight", 2, origin)[1]
    persons, rest = divmod(temporal, joints * channels)
    if rest or not persons or spatial % channels:
        raise CheckpointError(
            f"{origin}: temporal tokens of {temporal} and spatial tokens of {spatial} numbers do not fit "
            f"layout={layout} ({joints} joints) with channels={channels}"
        )
    if frames is not None and spatial != frames * channels:
        raise CheckpointError(f"{origin}: was trained on clips of {spatial // channels} frames, not {frames}")
    layers = [re.match(r"backbone\.ma_encoder\.t_tr\.layers\.(\d+)\.", name) for name in state]
    projectors = any("_projector." in name for name in state)
    method = UmURL(
        UmURLEncoder(
            layout,
            persons=persons,
            frames=spatial // channels,
            channels=channels,
            width=width,
            depth=1 + max((int(found[1]) for found in layers if found), default=0),
            num_heads=num_heads,
            hidden=_shape(state, "backbone.ma_encoder.t_tr.layers.0.linear1.weight", 2, origin)[0],
            positions=_shape(state, "backbone.ma_encoder.pe.pe", 3, origin)[1],
        ),
        layout,
        CenterCrop(frames=spatial // channels),
        projector_width=_shape(state, "j_projector.6.weight", 2, origin)[0] if projectors else 4096,
        projector_hidden=_shape(state, "j_projector.0.weight", 2, origin)[0] if projectors else None,
        preset="as_released",
    )
    if projectors:
        fill(method, state, origin)
    else:
        warnings.warn(f"{origin}: has no projectors; those of the method are untrained", stacklevel=3)
        fill(method.backbone, {name.removeprefix("backbone."): value for name, value in state.items()}, origin)
    return method.eval()


def fill(module: torch.nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict of which every name and shape must match.

    Raises:
        CheckpointError: listing missing, unexpected and misshaped names.
    """
    own = module.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "misshaped": [
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        lists = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{origin}: does not match {type(module).__name__}: {lists}")
    module.load_state_dict(state)


def _shape(state: Mapping[str, Tensor], name: str, dims: int, origin: str) -> tuple[int, ...]:
    if name not in state:
        found = ", ".join(sorted(state)[:5])
        raise CheckpointError(f"{origin}: missing: {name} (the file starts with {found})")
    shape = tuple(state[name].shape)
    if len(shape) != dims or 0 in shape:
        raise CheckpointError(f"{origin}: misshaped: {name} {shape}, expected {dims} dimensions")
    return shape


SYSTEMS: dict[str, Callable[..., Method]] = {"umurl": load_umurl}
"""Importers by name of the system."""
