"""How fast training runs and how long it waits for data."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl


class Throughput(pl.Callback):
    """Logs `throughput/clips_per_s` and `throughput/data_wait` (share of the time spent waiting for a batch).

    The first `warmup` steps are left out: they compile kernels and fill caches. The clock is read without
    synchronising the device, which is right on average over many steps and costs nothing.

    Args:
        every_n_steps: how often the numbers are logged.
        warmup: steps before counting starts.
    """

    def __init__(self, every_n_steps: int = 50, warmup: int = 5) -> None:
        self.every_n_steps, self.warmup = every_n_steps, warmup
        self.clips_per_s = self.data_wait = float("nan")
        self.total_clips, self.total_s = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks."""
        self._seen = self._clips = 0
        self._wait = 0.0
        self._end = self._begin = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *args: Any) -> None:
        """What passed since the last step ended was waiting for this batch."""
        self._wait += time.perf_counter() - self._end

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Count the batch, and log now and then."""
        self._end = time.perf_counter()
        self._seen += 1
        if self._seen == self.warmup:
            self._begin, self._wait, self._clips = self._end, 0.0, 0
            return
        count = len(batch) * trainer.world_size
        self._clips += count
        elapsed = self._end - self._begin
        if self._seen > self.warmup and (self._seen - self.warmup) % self.every_n_steps == 0 and elapsed > 0:
            self.clips_per_s, self.data_wait = self._clips / elapsed, self._wait / elapsed
            pl_module.log_dict(
                {"throughput/clips_per_s": self.clips_per_s, "throughput/data_wait": self.data_wait},
                batch_size=len(batch),
                rank_zero_only=True,
            )
            self.total_clips += self._clips
            self.total_s += elapsed
            self._begin, self._wait, self._clips = self._end, 0.0, 0
