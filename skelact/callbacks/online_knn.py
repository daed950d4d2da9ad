"""Watch the features while they are learnt: nearest neighbours, spread and rank, without any label in the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

if TYPE_CHECKING:
    from skelact.methods.base import Method


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al., ICML 2023): exponential of the entropy of the normalised singular values of `(N, D)`."""
    values = torch.linalg.svdvals(features.float())
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return float((-(share * share.log()).sum()).exp())


def feature_std(features: Tensor) -> float:
    """Mean standard deviation of the dimensions of unit features, times sqrt(D): 1 when spread evenly, 0 collapsed."""
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    return float(unit.std(0).mean() * unit.shape[1] ** 0.5)


@contextmanager
def whole_weights(model: Any) -> Iterator[None]:
    """Within it a model that is kept in shards (FSDP) has all its weights, on all processes."""
    if type(model).__name__ != "FullyShardedDataParallel":  # whose import takes its time
        yield
        return
    with type(model).summon_full_params(model, writeback=False):
        yield


class OnlineKNN(pl.Callback):
    """Every n epochs: 1-nearest-neighbour accuracy of the validation part with the training part as gallery.

    Logs `val/knn1`, `val/feature_std` and `val/effective_rank`. The weights, the mode and all random states of the
    training stay as they are. The test part is never looked at. Without a validation part, or where that has classes of
    its own (split `oneshot`), only the last two are logged, from training clips. Under several processes each computes
    the same; rank 0 logs.

    Args:
        every_n_epochs: how often.
        max_gallery: at most so many training clips, a fixed subset; None takes all.
        max_queries: at most so many validation clips.
    """

    def __init__(
        self, every_n_epochs: int = 10, max_gallery: int | None = 4096, max_queries: int | None = 2048
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs} must be at least 1")
        self.every_n_epochs, self.max_gallery, self.max_queries = every_n_epochs, max_gallery, max_queries

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Extract, search, log."""
        if trainer.sanity_checking or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            return
        state = torch.random.get_rng_state()
        try:
            with whole_weights(trainer.strategy.model):
                values = self.measure(pl_module, data)  # type: ignore[arg-type]
        finally:
            torch.random.set_rng_state(state)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
        for name, value in values.items():
            trainer.callback_metrics[name] = torch.tensor(value)

    @torch.no_grad()
    def measure(self, method: Method, data: Any) -> dict[str, float]:
        """The numbers for a method as it stands."""
        from skelact.protocols.neighbours import search

        was_training = method.training
        method.eval()
        try:
            gallery, labels = self._features(method, data, "train", self.max_gallery)
            values = {"val/feature_std": feature_std(gallery), "val/effective_rank": effective_rank(gallery[:2048])}
            if data.size("val"):
                queries, truth = self._features(method, data, "val", self.max_queries)
                nearest = search(queries, gallery, 1).index[:, 0]
                if torch.isin(truth, labels).any():
                    values["val/knn1"] = 100.0 * float((labels[nearest] == truth).double().mean())
        finally:
            method.train(was_training)
        return values

    @staticmethod
    def _features(method: Method, data: Any, part: str, most: int | None) -> tuple[Tensor, Tensor]:
        """Features and labels of a part, or of a fixed evenly drawn subset of it."""
        count, device = data.size(part), next(method.parameters()).device
        keep = np.ones(count, dtype=bool)
        if most is not None and count > most:
            keep[:] = False
            keep[np.random.default_rng(0).choice(count, most, replace=False)] = True
        rows, labels, seen = [], [], 0
        for batch in data.batches(part, device=device):
            here = torch.from_numpy(np.flatnonzero(keep[seen : seen + len(batch)])).to(device)
            seen += len(batch)
            if len(here):
                batch = batch.select(here)
                rows.append(method.features(batch).float())
                labels.append(batch.label)
        return torch.cat(rows), torch.cat(labels).to(device)
