"""Official checkpoints in, under our names."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from skelact.backbones.released import CheckpointError, Source, read_state
from skelact.interop.actionmae import load_actionmae
from skelact.interop.contrastive import load_aimclr, load_caca, load_cmal, load_crosclr, load_skeletonclr
from skelact.interop.motionbert import load_maskclr, load_motionbert
from skelact.interop.umurl import load_umurl
from skelact.methods.base import Learner

__all__ = ["SYSTEMS", "CheckpointError", "load_official", "read_state"]

SYSTEMS: dict[str, Callable[..., Learner]] = {
    "umurl": load_umurl,
    "skeletonclr": load_skeletonclr,
    "aimclr": load_aimclr,
    "crosclr": load_crosclr,
    "cmal": load_cmal,
    "caca": load_caca,
    "motionbert": load_motionbert,
    "maskclr": load_maskclr,
    "actionmae": load_actionmae,
}
"""Importers by name of the system."""


def load_official(system: str, source: Source, **hparams: Any) -> Learner:
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
