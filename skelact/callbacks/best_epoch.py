"""Keep the weights of the epoch that is best on the validation part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from skelact.callbacks.run_card import CheckpointError, save


class BestEpoch(pl.Callback):
    """Writes `checkpoints/best.ckpt` whenever an accuracy has grown, or is equal at a smaller `val/loss`.

    `checkpoints/last.ckpt` stays what it is: the state from which a run is continued. Where the best cannot be written
    (a full disk) the training goes on; unless a better one is written later, it ends with an error.

    Args:
        monitor: the accuracy; None: the method's, which is `val/top1`, or `val/mean_top1` over subsets of modalities.
    """

    def __init__(self, monitor: str | None = None) -> None:
        self.monitor = monitor
        self.epoch: int | None = None
        self.top1, self.loss = -1.0, float("inf")
        self._failure: str | None = None

    def path(self, trainer: pl.Trainer) -> Path:
        """Where the checkpoint goes."""
        return Path(trainer.default_root_dir) / "checkpoints" / "best.ckpt"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run stopped at an epoch's end wrote its last checkpoint before that epoch was judged: the best tells."""
        path = self.path(trainer)
        if trainer.global_step and path.exists():
            best = torch.load(path, map_location="cpu", weights_only=True)
            if best["global_step"] <= trainer.global_step:
                self.load_state_dict(best["callbacks"][self.state_key])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, and save."""
        monitor = self.monitor or getattr(pl_module, "monitor", "val/top1")
        if trainer.sanity_checking or monitor not in trainer.callback_metrics:
            return
        top1, loss = (float(trainer.callback_metrics[name]) for name in (monitor, "val/loss"))
        if (top1, -loss) > (self.top1, -self.loss):
            self.epoch, self.top1, self.loss = int(trainer.current_epoch), top1, loss
            self._failure = save(trainer, self.path(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The best epoch must be what is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._failure:
            raise CheckpointError(
                f"{self._failure}: epoch {self.epoch}, the best, is lost; make room, then train again"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a continued run must know."""
        return {"epoch": self.epoch, "top1": self.top1, "loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self.epoch, self.top1, self.loss = state_dict["epoch"], state_dict["top1"], state_dict["loss"]
