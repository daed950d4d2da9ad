"""A full disk: the checkpoint before it is kept, the training goes on, and at the end the run says that it failed.

A limit on the size of files is a disk that is too small for a checkpoint and large enough for all other files.
"""

import contextlib
import resource

import pytest
import torch

from skelact.callbacks.run_card import LastCheckpoint
from skelact.engine.checkpoint import read

MORE = ["callbacks.checkpoint.every_n_train_steps=2", "trainer.max_steps=5"]


@contextlib.contextmanager
def files_of_at_most(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def sizes(trained):
    """Bytes of a checkpoint at the start, and of later ones, with the optimiser's moments."""
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    whole = (trained / "checkpoints" / "last.ckpt").stat().st_size
    moments = sum(x.nbytes for values in content["optimizer_states"][0]["state"].values() for x in values.values())
    return whole - moments, whole


def content(run):
    found = read(run)
    return found["global_step"], {**found["state_dict"], **found["optimizer_states"][0]["state"]}


def same(run, trained):
    (step, one), (_, other) = content(run), content(trained)
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    return step == 5


def test_the_last_checkpoint_that_could_be_written_is_kept(skelact_run, trained, tmp_path, sizes, capsys):
    with files_of_at_most(sum(sizes) // 2), pytest.warns(UserWarning, match="the training goes on at step 4"):
        assert skelact_run(*MORE, "run_dir=run") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "last.ckpt: cannot be written (File too large); the one before it is kept (step 0 of 5)" in told
    assert [file.name for file in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert content("run")[0] == 0
    assert skelact_run("resume=run", tiny=False) == 0
    assert same("run", trained)


def test_room_that_is_made_in_time(skelact_run, trained, monkeypatch, sizes):
    """Of several checkpoints one fails: a warning, and nothing else."""
    limits = contextlib.ExitStack()

    def at(self, trainer, *_):
        limits.close() if trainer.global_step != 1 else limits.enter_context(files_of_at_most(sizes[0] // 2))

    monkeypatch.setattr(LastCheckpoint, "on_train_batch_start", at)
    with limits, pytest.warns(UserWarning, match="cannot be written.*the training goes on at step 2"):
        assert skelact_run(*MORE, "run_dir=run") == 0
    assert same("run", trained)


def test_a_disk_that_is_full_from_the_start(skelact_run, tmp_path, sizes, capsys):
    """Better to say so than to train for nothing."""
    with files_of_at_most(sizes[0] // 2), pytest.warns(UserWarning, match="step 0"):
        assert skelact_run(*MORE, "run_dir=run") == 2
    assert "there was none before it" in capsys.readouterr().err
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.ddp
@pytest.mark.slow
def test_several_processes_go_on_together(skelact_run, trained, sizes, capfd):
    """Only the first process writes; the others must neither wait for it nor leave it behind."""
    ranks = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    with files_of_at_most(sum(sizes) // 2):
        assert skelact_run(*MORE, *ranks, "run_dir=run") == 2
    told = capfd.readouterr().err
    assert told.count("the training goes on at step 2") == 1 and "(step 0 of 5): make room" in told
    assert content("run")[0] == 0
