"""A loss that is not a number ends the run, names the clips, and leaves a checkpoint from before."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from skelact.callbacks.finite_loss import FiniteLoss
from skelact.callbacks.run_card import LastCheckpoint
from skelact.cli import main
from skelact.clips import RaggedClips
from skelact.data.loading import DealtBatches
from skelact.engine.run import load_run
from skelact.errors import SkelactError


@pytest.fixture(scope="module")
def store(raw_clips, tmp_path_factory):
    """The tiny dataset with one training clip so far away that squares of its coordinates overflow."""
    root = tmp_path_factory.mktemp("far")
    source = raw_clips(root / "clips")
    far = np.load(source / "clip04.npy")
    np.save(source / "clip04.npy", far * np.float32(1e30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKELACT_DATA", str(root / "data"))
        arguments = ["prepare", "data=custom", "data.name=far", f"source={source}", f"layout={source / 'stick.yaml'}"]
        assert main(arguments) == 0
    return root / "data" / "far"


def train(call, store, *options):
    return call(f"data.store={store}", "data.normalize=null", *options)


def batches(run):
    """Names of the clips of the first epoch's batches."""
    _, data, config = load_run(run)
    data.setup()
    names = dict(zip(data.rows("train").tolist(), data.clip_names("train"), strict=True))
    dealt = DealtBatches(data.rows("train"), 8, 0, 1, True, config["seed"], True)
    return [[names[row] for row in batch.tolist()] for batch in dealt]


@pytest.mark.parametrize("every", [1, 50])
def test_the_step_and_its_clips_are_named(skelact_run, store, tmp_path, capsys, every):
    """Whether the loss is read at once or at the end of the epoch; a continued run stops there again."""
    options = ["callbacks.checkpoint.every_n_train_steps=1", f"callbacks.finite_loss.every_n_steps={every}"]
    assert train(skelact_run, store, *options, "trainer.max_steps=9", "run_dir=run") == 2
    told = capsys.readouterr().err
    step = int(re.search(r"the loss is not finite at step (\d+) \(epoch 0\)", told)[1])
    clips = batches("run")
    assert "clip04" in clips[step] and f"clips of its batch: {', '.join(clips[step])};" in told
    assert f"last.ckpt is of step {step}, before it" in told
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step and all(x.isfinite().all() for x in saved["state_dict"].values())
    lines = (tmp_path / "run" / "not_finite.txt").read_text().splitlines()
    assert lines[:9] == [f"step {step}", *clips[step]]
    assert not step or lines[9:] == [f"step {step} was preceded by", *clips[step - 1]]
    assert skelact_run("resume=run", tiny=False) == 2
    assert f"at step {step} (epoch 0)" in capsys.readouterr().err


class Root(pl.LightningModule):
    """Its loss is 0 and its gradient is not a number, from a step on."""

    def __init__(self, bad):
        super().__init__()
        self.bad, self.weight = bad, torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        root = self.weight * (0 if self.global_step >= self.bad else 1)
        return root.sqrt().sum() * batch.length.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    """The loss was still a number when the checkpoint was due."""
    batches = [RaggedClips.pack([torch.zeros(1, 1, 1, 1)] * 2, index=[10 * i, 10 * i + 1]) for i in range(4)]
    guards = [LastCheckpoint(every_n_train_steps=1), FiniteLoss()]
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=guards, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    with pytest.raises(SkelactError, match=r"weights are not finite after step 2 .*clip 20, clip 21; .*of step 2, bef"):
        trainer.fit(Root(2), DataLoader(batches, batch_size=None))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 and saved["state_dict"]["weight"].isfinite()


def _look(rank, counts):
    """Rank 1 alone sees a loss that is not a number."""
    guard = FiniteLoss()
    trainer = SimpleNamespace(
        global_step=7, current_epoch=3, datamodule=None, callbacks=[], default_root_dir=".", is_global_zero=False
    )
    for step in range(3):
        trainer.global_step = 7 + step
        guard.on_train_batch_start(trainer, None, SimpleNamespace(index=torch.arange(counts[rank]) + 10 * rank))
        guard.on_before_backward(trainer, None, torch.tensor(float("nan") if rank and step == 1 else 0.0))
    try:
        guard.look(trainer)
    except SkelactError as error:
        return list(str(error).encode())


@pytest.mark.ddp
def test_all_ranks_end_together_and_name_all_clips(on_ranks):
    for told in on_ranks(_look, (2, 1)):
        assert (
            "the loss is not finite at step 8 (epoch 3); clips of its batch: clip 0, clip 1, clip 10; there is no"
            in bytes(told).decode()
        )


def test_the_loss_is_read_now_and_then(monkeypatch):
    """Between the looks nothing waits for the device."""
    guard, looks = FiniteLoss(every_n_steps=3), []
    monkeypatch.setattr(guard, "look", lambda trainer: (looks.append(len(guard._seen)), guard._seen.clear()))
    trainer = SimpleNamespace(global_step=0, current_epoch=0)
    for _ in range(7):
        guard.on_before_backward(trainer, None, torch.zeros(()))
        guard.on_train_batch_end(trainer, None)
    assert looks == [3, 3]
    with pytest.raises(SkelactError, match="every_n_steps=0"):
        FiniteLoss(0)
