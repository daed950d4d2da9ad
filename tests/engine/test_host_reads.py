"""Between the steps that are logged, trainer and callbacks read nothing from the device."""

from functools import partial

import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from skelact.callbacks.finite_loss import FiniteLoss
from skelact.callbacks.metrics_csv import MetricsCSV
from skelact.callbacks.progress import Progress
from skelact.callbacks.run_card import LastCheckpoint, RunCard
from skelact.callbacks.throughput import Throughput
from tests.methods.every import make


class Reads(TorchDispatchMode):
    """Counts the values that are read on the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.__name__.startswith(("_local_scalar_dense", "nonzero"))
        return func(*args, **(kwargs or {}))


class Spy(pl.Callback):
    """Reads of each batch, from the start of one to that of the next."""

    def __init__(self, reads, steps):
        self.reads, self.steps, self.seen = reads, steps, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(self.reads.count)
        trainer.should_stop = batch_idx >= self.steps


def test_nothing_is_read_between_logging_steps(tmp_path):
    method, batch = make("umurl")
    method.optimizer = partial(torch.optim.SGD, lr=1e-3)  # Adam reads its own counter, which is the host's
    with Reads() as reads:
        spy = Spy(reads, 12)
        own = [FiniteLoss(), LastCheckpoint(200), Progress(), Throughput(), RunCard({})]
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=200, logger=MetricsCSV(tmp_path / "metrics.csv"), log_every_n_steps=10,
            callbacks=[*own, spy], default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(method, DataLoader([batch] * 20, batch_size=None))
    read = [later - earlier for earlier, later in zip(spy.seen, spy.seen[1:], strict=False)]
    assert len(read) == 12 and {step for step, count in enumerate(read) if count} == {9}
