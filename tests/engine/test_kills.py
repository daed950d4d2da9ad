"""kill -9 anywhere in a training: what is continued from the disk ends where the uninterrupted run does."""

import os
import random
import signal
import traceback

import pytest
import torch
from omegaconf import OmegaConf

from skelact.callbacks.run_card import LastCheckpoint
from skelact.engine import checkpoint
from skelact.engine.run import execute, run
from skelact.engine.settings import read_yaml, write_yaml
from tests.engine.recipes import RECIPES

PLACES = ("before", "backward", "after", "writing", "renaming")


def forked(function):
    """Call in a process of its own, which may die; its exit code. Torch is imported already."""
    if process := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        torch.set_num_threads(1)  # a forked process must not use the thread pool of its parent
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(step, place):
    """Have this process killed in the given step: before it, in it, after it, or in the checkpoint that follows it."""

    def at(self, trainer, *_):
        if trainer.global_step == step:
            die()

    def saving(self, trainer, *_):
        if trainer.global_step >= step and place == "writing":
            save = torch.save
            checkpoint.torch.save = lambda content, file: (save(content, file), file.flush(), die())
        elif trainer.global_step >= step:
            checkpoint.os.replace = die

    hook = {"before": "on_train_batch_start", "backward": "on_after_backward", "after": "on_before_zero_grad"}
    setattr(LastCheckpoint, hook.get(place, "on_train_batch_start"), at if place in hook else saving)


def state(run):
    """All that a checkpoint has of weights, queue, statistics and optimiser."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    moments = {
        f"{name}{i}": value
        for i, values in content["optimizer_states"][0]["state"].items()
        for name, value in values.items()
    }
    return {**content["state_dict"], **moments}


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    """Directory of an uninterrupted run of a method: `whole(name)`."""
    from skelact.cli import main

    root, done = tmp_path_factory.mktemp("whole"), set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKELACT_DATA", str(home / "data"))
        # imports for all that are forked off
        assert main([*RECIPES["umurl"], "trainer.max_steps=1", f"run_dir={root / 'first'}"]) == 0

        def run(name):
            if name not in done:
                assert forked(lambda: main([*RECIPES[name], f"run_dir={root / name}"])) == 0
                done.add(name)
            return root / name

        yield run


def kill_and_resume(expected, step, place, folder):
    """Everything but the command line of a run that is killed and of one that continues it."""
    config = read_yaml(expected / "config.yaml")
    config["callbacks"]["checkpoint"]["every_n_train_steps"] = 2
    config["run_dir"] = str(folder)
    write_yaml(folder / "config.yaml", config)
    assert forked(lambda: (die_at(step, place), execute(config))) == -signal.SIGKILL, (step, place)
    left = {file.name for file in (folder / "checkpoints").iterdir()}
    assert "last.ckpt" in left and len(left) == (2 if place in ("writing", "renaming") else 1)
    again = OmegaConf.create({"resume": str(folder)})
    assert forked(lambda: len(run(again, [f"resume={folder}"], {}, folder)) - 1) == 0
    assert [file.name for file in (folder / "checkpoints").iterdir()] == ["last.ckpt"]  # what was half written is gone
    one, other = state(expected), state(folder)
    assert one.keys() == other.keys() and len(one) > 20
    assert [key for key in one if not torch.equal(one[key], other[key])] == [], (step, place)


QUICK = ("umurl", "crosclr", "caca", "maskclr", "supcon")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES])
def test_a_killed_run_ends_as_the_uninterrupted_one(tmp_path, whole, name):
    draw = random.Random(name)
    kill_and_resume(whole(name), draw.randrange(1, 5), draw.choice(PLACES), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_at_whatever_step_it_is_killed(tmp_path, whole, name):
    """From before the first step on."""
    for step in range(6):
        place = PLACES[step % 2] if step == 0 else random.Random(f"{name}{step}").choice(PLACES)
        kill_and_resume(whole(name), step, place, tmp_path / str(step))
