"""`resume=RUN_DIR`: the run goes on as if it had never stopped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf

from skelact.engine.checkpoint import KEY, find, read
from skelact.engine.settings import ConfigError, keys_of, read_yaml

MAY_CHANGE = ("trainer.max_epochs", "trainer.max_steps")


def thaw(cfg: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """The frozen config of the run to continue.

    Args:
        cfg: what Hydra composed for this command; only `resume` and the two keys that may change are read.
        overrides: the command line.

    Raises:
        ConfigError: not a run that can be continued, or overrides that would make it another run.
    """
    run_dir = Path(str(cfg.resume)).expanduser()
    frozen = read_yaml(run_dir / "config.yaml")
    for key in keys_of(overrides):
        if key in MAY_CHANGE:
            frozen["trainer"][key.partition(".")[2]] = OmegaConf.select(cfg, key)
        elif key not in ("resume", "run_dir", "debug") and not key.startswith("hydra."):
            raise ConfigError(
                f"{key}=... cannot be changed on resume: the run continues with its own config.yaml; "
                f"only {' and '.join(MAY_CHANGE)} may be given (start a new run for anything else)"
            )
    return continued(frozen, run_dir)


def continued(frozen: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """A frozen config that goes on from the last checkpoint of its run.

    Raises:
        ConfigError: the checkpoint is another run's.
    """
    card = read(find(run_dir))[KEY]
    if card["config"]["method"] != frozen["method"]:
        raise ConfigError(f"{run_dir}: config.yaml and checkpoints/last.ckpt describe different methods")
    place = {"run_dir": str(run_dir), "resume": str(run_dir), "logger_id": card.get("logger_id")}
    return {**frozen, **place}


class Position:
    """Where a restored trainer stands: how many batches of which epoch are done."""

    def __init__(self, trainer: Any) -> None:
        loop = trainer.fit_loop
        self.epoch = int(loop.epoch_progress.current.processed)
        self.batches = int(loop.epoch_loop.batch_progress.current.processed)


class ContinuingLoader:
    """A loader whose first epoch begins in the middle.

    The order of batches is a function of seed and epoch, so running past the batches that are done gives exactly
    the ones that an uninterrupted run would have seen. Lightning restores its counters but leaves this to the loader.

    Args:
        loader: any loader with a length.
        position: where to begin.
    """

    def __init__(self, loader: Any, position: Position) -> None:
        self.loader = loader
        self._done = position.batches % max(1, len(loader))

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that the loader's order is drawn at the first batch: Lightning makes the iterator before it
        # tells the sampler which epoch it is.
        done, self._done = self._done, 0
        yield from itertools.islice(iter(self.loader), done, None)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep: the position follows from the trainer's counters. Tells Lightning that this is resumable."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""


class NextEpoch(pl.Callback):
    """A run that stopped at an epoch's last batch begins the next epoch.

    Lightning (2.6) counts the old epoch as done, but takes the next for its rest: hooks of its start are not called,
    and the counter of begun epochs stays one behind, so that the run could not be continued a second time.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called after the counters have been restored."""
        epochs: Any = trainer.fit_loop.epoch_progress.total
        if trainer.fit_loop.restarted_mid_epoch and epochs.processed == epochs.started:
            trainer.fit_loop.reset_restart_stage()


def continue_loaders(trainer: Any, datamodule: Any) -> None:
    """Make the datamodule's training loader begin where the restored trainer stands."""
    trainer.callbacks.append(NextEpoch())
    original = datamodule.train_dataloader

    def train_dataloader() -> Any:
        loader = original()
        position = Position(trainer)
        return ContinuingLoader(loader, position) if position.epoch or position.batches else loader

    datamodule.train_dataloader = train_dataloader
