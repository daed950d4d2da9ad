"""One progress bar for a whole training run."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress(pl.Callback):
    """A bar over all optimiser steps, with the newest logged numbers behind it.

    Without a terminal (log files, CI) it prints one line ten times a run instead of a bar.

    Args:
        refresh_every_n_steps: how often the numbers are read; reading them waits for the device.
        show: names of logged metrics to show; None: the loss and whatever contains `knn`.
    """

    def __init__(self, refresh_every_n_steps: int = 10, show: list[str] | None = None) -> None:
        self.refresh, self.show = refresh_every_n_steps, show
        self._bar: RichProgress | None = None

    def _total(self, trainer: pl.Trainer) -> int | None:
        steps = math.inf if trainer.max_steps in (-1, None) else trainer.max_steps
        epochs = trainer.max_epochs
        if epochs not in (-1, None) and math.isfinite(trainer.num_training_batches):
            per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            steps = min(steps, epochs * per_epoch)
        return int(steps) if math.isfinite(steps) else None

    def _numbers(self, trainer: pl.Trainer) -> str:
        metrics = trainer.callback_metrics
        names = self.show or [n for n in metrics if n.endswith("loss") or "knn" in n]
        return "  ".join(f"{n} {float(metrics[n]):.4g}" for n in names if n in metrics)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar on the first process."""
        if not trainer.is_global_zero:
            return
        self.console = Console(stderr=True)
        self.total = self._total(trainer)
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = RichProgress(*columns, TextColumn("{task.fields[numbers]}"), console=self.console)
            self._task = self._bar.add_task("training", total=self.total, completed=trainer.global_step, numbers="")
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Move the bar."""
        step = trainer.global_step
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            if step % self.refresh == 0:
                self._bar.update(self._task, completed=step, numbers=self._numbers(trainer))
        elif step and step % max(1, math.ceil((self.total or 1000) / 10)) == 0:
            self.console.print(f"step {step}/{self.total or '?'}  {self._numbers(trainer)}", highlight=False)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, numbers=self._numbers(trainer))
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()
