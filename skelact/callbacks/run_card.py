"""What a checkpoint says about itself, and when it is written."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from skelact.errors import SkelactError

KEY = "skelact"


class CheckpointError(SkelactError):
    """A checkpoint that is missing, damaged, foreign, or does not fit; or one that cannot be written."""


def save(trainer: pl.Trainer, path: Path) -> str | None:
    """Write a checkpoint; where the disk is full the training had better go on, and the old file is still there.

    Returns:
        What went wrong, on all ranks; None: it is written. The first rank warns.
    """
    failure: str | None = None
    try:
        trainer.save_checkpoint(path)
    except CheckpointError as error:
        failure = str(error)
        trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks wait
    failure = trainer.strategy.broadcast(failure)
    if failure and trainer.is_global_zero:
        warnings.warn(f"{failure}; the training goes on at step {trainer.global_step}", stacklevel=2)
    return failure


class RunCard(pl.Callback):
    """Adds the key `skelact` to every checkpoint: plain containers only, so that it loads with `weights_only=True`.

    Besides the card itself the state of torch's generators is kept, because layers such as dropout draw from them;
    everything of ours draws by (seed, epoch, clip) and needs no state.

    Args:
        card: format, version, resolved config, layout, class names, fingerprint, logger id.
    """

    def __init__(self, card: Mapping[str, Any]) -> None:
        self.card = copy.deepcopy(dict(card))

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        """Called by Lightning on every rank."""
        card = dict(self.card)
        card["progress"] = {"epoch": int(trainer.current_epoch), "step": int(trainer.global_step)}
        card["random"] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            card["random"]["cuda"] = torch.cuda.get_rng_state(trainer.strategy.root_device)
        checkpoint[KEY] = card

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        """Puts the generators back; on further ranks they are set apart by the rank."""
        state = checkpoint.get(KEY, {}).get("random", {})
        if trainer.global_rank > 0 or "cpu" not in state:
            return
        torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu(), trainer.strategy.root_device)


class LastCheckpoint(pl.Callback):
    """Keeps `checkpoints/last.ckpt` of the run: from the first moment, now and then, and always at the end.

    Lightning's own callback saves a run that stops at `max_steps` in the middle of an epoch as if that epoch were
    finished; a longer run continued from it would then not be the run that was never stopped. This one saves where
    the last optimiser step was taken.

    One that cannot be written (a full disk) is warned of, and tried again when the next is due: the one before it is
    kept. Only the first and the last must be written.

    Args:
        every_n_train_steps: save after so many optimiser steps; None: not by steps.
        every_n_epochs: save after so many epochs; None: not by epochs.
        dirpath: folder; None: `checkpoints` in the run's folder.
    """

    def __init__(
        self, every_n_train_steps: int | None = None, every_n_epochs: int | None = None, dirpath: str | None = None
    ) -> None:
        self.every_n_train_steps, self.every_n_epochs, self.dirpath = every_n_train_steps, every_n_epochs, dirpath
        self.saved = -1
        """Step of what is on disk."""

    def path(self, trainer: pl.Trainer) -> Path:
        """Where the checkpoint goes."""
        return Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints") / "last.ckpt"

    def _save(self, trainer: pl.Trainer) -> str | None:
        if self.saved == trainer.global_step:
            return None
        failure = save(trainer, self.path(trainer))
        if failure is None:
            self.saved = trainer.global_step
        return failure

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What was resumed from is on disk already; of a run that begins the fresh weights are written.

        Raises:
            CheckpointError: they cannot be: the run would lose everything.
        """
        self.saved = trainer.global_step if trainer.ckpt_path else -1
        if failure := self._save(trainer):
            raise CheckpointError(failure)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """By steps, and at the last step."""
        step = trainer.global_step
        due = self.every_n_train_steps and step % self.every_n_train_steps == 0
        if step and (due or step == trainer.max_steps):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """By epochs, and at the last epoch."""
        epoch = trainer.current_epoch + 1
        stopping = trainer.should_stop or (trainer.max_epochs not in (None, -1) and epoch >= trainer.max_epochs)
        if stopping or (self.every_n_epochs and epoch % self.every_n_epochs == 0):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Whatever ended the training (a time limit, a callback).

        Raises:
            CheckpointError: the last state cannot be written.
        """
        if not self.path(trainer).exists():
            self.saved = -1
        if failure := self._save(trainer):
            raise CheckpointError(
                f"{failure} (step {max(self.saved, 0)} of {trainer.global_step}): make room, then resume"
            )
