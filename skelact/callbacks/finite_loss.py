"""Stop when the loss is no longer a number, and keep what is not a number off the disk."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from skelact.callbacks.run_card import LastCheckpoint
from skelact.errors import SkelactError
from skelact.objectives import all_reduce, world_size


class Seen(NamedTuple):
    """A batch that was trained on: optimiser step (as in metrics.csv), epoch, its clips `(N,)`, its loss `()`."""

    step: int
    epoch: int
    clips: Tensor
    loss: Tensor


class FiniteLoss(pl.Callback):
    """Ends a run whose loss became infinite or NaN, with the step and the names of the batch's clips.

    Reading a loss makes the host wait for the device. It is therefore read every `every_n_steps` batches, for all of
    them at once, at the end of an epoch, and before a checkpoint is written. What is not finite never reaches a
    checkpoint, of weights either: the last one on disk is from before. All ranks look at the same time and end
    together.

    The names are in the error, all of them in `not_finite.txt` of the run's folder. A gradient that overflows shows in
    the loss of the step after it: the file also names the clips of the step before.

    Args:
        every_n_steps: batches after which the losses are read.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise SkelactError(f"callbacks.finite_loss.every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self._batch: Tensor | None = None
        self._seen: list[Seen] = []
        self._before: Seen | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget another training."""
        self._seen, self._before = [], None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *args: Any) -> None:
        """Keep which clips the batch has."""
        self._batch = getattr(batch, "index", None)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Keep the loss, where it is: a copy, for a captured graph writes the next one into its place."""
        clips = torch.empty(0, dtype=torch.int64) if self._batch is None else self._batch
        loss = loss.detach().clone()
        self._seen.append(Seen(int(trainer.global_step), int(trainer.current_epoch), clips, loss))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Look now and then."""
        if len(self._seen) >= self.every_n_steps:
            self.look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look before anything else is made of the weights."""
        self.look(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the rest."""
        self.look(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        """Called on all ranks, before anything is written."""
        self.look(trainer)
        trained = {name for name, _ in pl_module.named_parameters()}
        wrong = [
            (~x.isfinite() if name in trained else x.isnan()).any()  # a buffer may mask with infinity
            for name, x in checkpoint["state_dict"].items()
            if torch.is_tensor(x) and x.is_floating_point()
        ]
        flag = torch.stack([w.to(pl_module.device) for w in wrong]).any() if wrong else torch.zeros(())
        if self._before is not None and float(all_reduce(flag.float().to(pl_module.device))):
            self.fail(trainer, self._before, "weights are not finite after")

    def look(self, trainer: pl.Trainer) -> None:
        """Read the losses since the last look.

        Raises:
            SkelactError: one of them, on any rank, is not finite.
        """
        if not self._seen:
            return
        wrong = ~torch.stack([seen.loss for seen in self._seen]).isfinite()
        found = all_reduce(wrong.float()).nonzero().flatten().tolist()
        seen, last = self._seen, self._seen[-1]
        self._seen = []
        if found:
            self._before = seen[found[0] - 1] if found[0] else self._before
            self.fail(trainer, seen[found[0]], "the loss is not finite at")
        self._before = last

    def fail(self, trainer: pl.Trainer, seen: Seen, what: str) -> None:
        """End the run.

        Raises:
            SkelactError: always.
        """
        before = None if self._before is seen else self._before
        names, others = (_joined([] if some is None else _names(trainer, some)) for some in (seen, before))
        folder = Path(trainer.default_root_dir)
        lines = [f"step {seen.step}", *names, *([f"step {seen.step} was preceded by", *others] if others else [])]
        if trainer.is_global_zero:
            with contextlib.suppress(OSError):
                (folder / "not_finite.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more (not_finite.txt)" if len(names) > 8 else "")
        kept = "there is no checkpoint from before it"
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LastCheckpoint) and callback.path(trainer).exists():
                kept = f"{callback.path(trainer)} is of step {callback.saved}, before it"
        raise SkelactError(
            f"{what} step {seen.step} (epoch {seen.epoch}); clips of its batch: {shown}; {kept}. Try a smaller "
            f"rate, trainer.gradient_clip_val=1 or trainer.precision=32-true; debug=anomaly names the operation"
        )


def _names(trainer: pl.Trainer, seen: Seen) -> list[str]:
    """Names of a batch's clips, their numbers where no datamodule knows names."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    numbers = seen.clips.tolist()
    if not hasattr(data, "clip_names"):
        return [f"clip {number}" for number in numbers]
    known = dict(zip(data.rows(data.fit).tolist(), data.clip_names(data.fit), strict=True))
    return [known.get(number, f"clip {number}") for number in numbers]


def _joined(names: list[str]) -> list[str]:
    """Names of all ranks, in their order."""
    if world_size() == 1:
        return names
    ranks: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(ranks, names)
    return [name for some in ranks for name in some]
