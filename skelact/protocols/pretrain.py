"""Pretraining: the protocol that trains a method instead of judging it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skelact.protocols.base import forward_gflops
from skelact.results import Record, read_records

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from skelact.data.datamodules import SkeletonDataModule
    from skelact.methods.base import Method


class Pretrain:
    """Run the trainer on a method; the record says how long, how fast and to which loss.

    Args:
        name: protocol name in the record.
    """

    trains = True

    def __init__(self, name: str = "pretrain") -> None:
        self.name = name

    def run(
        self,
        method: Method,
        datamodule: SkeletonDataModule,
        *,
        trainer: pl.Trainer,
        seed: int = 0,
        run_dir: str | Path | None = None,
        ckpt_path: str | None = None,
        checkpoint: str | None = None,
    ) -> list[Record]:
        """Fit.

        Args:
            method: what to train.
            datamodule: the data.
            trainer: Lightning trainer with its callbacks and loggers.
            seed: of the run, for the record.
            run_dir: where `checkpoints/last.ckpt` lies afterwards, for the record.
            ckpt_path: checkpoint to continue from.
            checkpoint: weights that the method started with, for the record.

        Returns:
            One record: `loss` (last logged), `steps`, `epochs`, `samples_per_s` over this process's fit. Where
            nothing was left to train, the one that is in `run_dir` already.
        """
        # Read now: the run writes its last checkpoint over the one it continues from.
        before = _resumed_step(ckpt_path) if ckpt_path else trainer.global_step
        start = time.perf_counter()
        trainer.fit(method, datamodule=datamodule, ckpt_path=ckpt_path)
        wall = time.perf_counter() - start
        done = trainer.global_step - before
        if not done and ckpt_path and run_dir is not None and (earlier := self._earlier(run_dir)):
            return earlier
        batch = int(getattr(datamodule, "batch_size", 0))
        speed = done * batch / wall if wall > 0 else math.nan
        metrics = {"steps": float(trainer.global_step), "epochs": float(trainer.current_epoch), "samples_per_s": speed}
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None:
            metrics = {"loss": float(loss), **metrics}
        last = None if run_dir is None else Path(run_dir) / "checkpoints" / "last.ckpt"
        extra: dict[str, Any] = {
            "encoder": "pretrained",
            "streams": "+".join(method.streams),
            "started_from": checkpoint,
        }
        return [
            Record(
                protocol=self.name,
                method=type(method).__name__.lower(),
                data=str(datamodule.name),
                split=str(datamodule.split),
                seed=seed,
                metrics=metrics,
                selection="none, last step",
                checkpoint=str(last) if last is not None and last.exists() else None,
                fingerprint=str(datamodule.fingerprint),
                parameters=sum(p.numel() for p in method.parameters() if p.requires_grad),
                wall_s=wall,
                samples_per_s=speed,
                gflops=forward_gflops(method, datamodule, "train"),
                device=str(trainer.strategy.root_device),
                extra=extra | {"steps": int(trainer.global_step), "batch_size": batch, "devices": trainer.world_size},
            )
        ]

    def _earlier(self, run_dir: str | Path) -> list[Record]:
        path = Path(run_dir) / "results.json"
        return [record for record in read_records(path) if record.protocol == self.name] if path.exists() else []


def _resumed_step(path: str) -> int:
    import torch

    return int(torch.load(path, map_location="cpu", weights_only=True).get("global_step", 0))
