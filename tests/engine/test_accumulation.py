"""Accumulated gradients are the step of a larger batch, or are refused with the reason."""

import pytest
import torch

from skelact.cli import main
from tests.engine.recipes import RECIPES

SUPERVISED = [
    "data=custom", "data.name=tiny", "frames=8", "backbone=umurl", "backbone.width=8", "callbacks=minimal",
    "trainer.accelerator=cpu", "trainer.max_epochs=3", "protocol=supervised", "method=supervised", "augment=umurl",
    "augment.transform.transforms.0.joints=2", "protocol.baselines=false",
]  # fmt: skip
FROZEN = [*RECIPES["motionbert"], "method.mode=eval"]


def content(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("recipe", "clips", "parts", "steps"),
    [(SUPERVISED, 16, 2, 3), (FROZEN, 12, 3, 6)],  # of 24 clips; of 16 a rest is dropped
    ids=["supervised", "motionbert without batch statistics"],
)
def test_parts_are_the_whole(skelact_run, tmp_path, recipe, clips, parts, steps):
    """The same steps from the same clips; AdamW would hide a factor."""
    options = [*recipe, "method.optimizer._target_=torch.optim.SGD", "method.optimizer.lr=0.05", "data.drop_last=true"]
    assert skelact_run(*options, f"data.batch_size={clips}", "run_dir=whole", tiny=False) == 0
    smaller = [f"data.batch_size={clips // parts}", f"trainer.accumulate_grad_batches={parts}"]
    assert skelact_run(*options, *smaller, "run_dir=parts", tiny=False) == 0
    whole, many = (content(tmp_path / name) for name in ("whole", "parts"))
    assert whole["global_step"] == many["global_step"] == steps
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(many["state_dict"][name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert any(not torch.equal(value, many["state_dict"][name]) for name, value in whole["state_dict"].items())


REASONS = {
    "umurl": "variances", "skeletonclr": "keys", "crosclr": "keys", "aimclr": "keys", "caca": "second stage",
    "skeletonbyol": "data_bn normalises", "cmal": "data_bn normalises", "maskclr": "contrasts", "supcon": "contrasts",
    "motionbert": "heads.all.norm normalises", "actionmae": "means over the tokens",
}  # fmt: skip


QUICK = ("umurl", "skeletonbyol", "motionbert")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES])
def test_what_joins_the_clips_of_a_batch_is_refused(skelact_run, capsys, name):
    assert skelact_run(*RECIPES[name], "trainer.accumulate_grad_batches=2", "run_dir=run", tiny=False) == 2
    told = capsys.readouterr().err
    assert "accumulate_grad_batches=2 would not be the step of a larger batch" in told and REASONS[name] in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["data.batch_size=8", "data.drop_last=false"], "data.drop_last=true"),
        (["data.batch_size=16", "data.drop_last=true"], "an epoch has 1 batches: take a smaller"),
        (["data.batch_size=4", "data.drop_last=true", "trainer.limit_train_batches=3"], "limit_train_batches=3"),
    ],
)
def test_steps_that_would_count_differently_are_refused(skelact_run, capsys, options, words):
    assert skelact_run(*SUPERVISED, *options, "trainer.accumulate_grad_batches=2", "run_dir=run", tiny=False) == 2
    assert words in capsys.readouterr().err


def test_weights_of_a_checkpoint_are_trained_on_in_training_mode(skelact_run, home, tmp_path):
    """They come in evaluation mode, in which batch statistics would stand still."""
    options = [*RECIPES["skeletonbyol"], "trainer.max_epochs=1"]
    assert skelact_run(*options, "run_dir=first", tiny=False) == 0
    again = ["checkpoint=first", "protocol=pretrain", "callbacks=minimal", "trainer=cpu", "trainer.max_epochs=2"]
    assert main([*again, "run_dir=second"]) == 0
    counts = [
        content(tmp_path / run)["state_dict"]["backbone.data_bn.num_batches_tracked"] for run in ("first", "second")
    ]
    assert (counts[1] == 3 * counts[0]).all() and (counts[0] > 0).all()
