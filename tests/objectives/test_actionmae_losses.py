"""The reconstruction loss of ActionMAE: equal to the reference, with or without a drop, and over ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.objectives import reconstruction_loss, world_size

FILE = Path(__file__).parents[1] / "golden" / "actionmae" / "losses.npz"
COUNTS = [(3, 2), (5, 0)]


@pytest.fixture(scope="module")
def golden():
    return {key: torch.from_numpy(value) for key, value in np.load(FILE).items()}


@pytest.mark.parametrize("kind", ["norm", "raw"])
def test_value_and_gradients_equal_the_reference(golden, kind):
    target, output = (golden[name].clone().requires_grad_() for name in ("target", "output"))
    loss = reconstruction_loss(output, target, golden["removed_mask"].bool(), normalise=kind == "norm")
    torch.testing.assert_close(loss, golden[f"{kind}/loss"], rtol=0, atol=1e-6)
    loss.backward()
    torch.testing.assert_close(target.grad, golden[f"{kind}/grad_target"], rtol=0, atol=1e-6)
    torch.testing.assert_close(output.grad, golden[f"{kind}/grad_output"], rtol=0, atol=1e-6)
    other = reconstruction_loss(output, target, golden["removed_mask2"].bool(), normalise=kind == "norm")
    torch.testing.assert_close(other, golden[f"{kind}/loss2"], rtol=0, atol=1e-6)


def test_a_detached_target_gets_no_gradient_and_what_is_not_dropped_does_not_count(golden):
    target, output = (golden[name].clone().requires_grad_() for name in ("target", "output"))
    dropped = golden["removed_mask"].bool()
    loss = reconstruction_loss(output, target, dropped, detach=True)
    loss.backward()
    assert target.grad is None and not output.grad[~dropped].any()
    spoilt = target.detach().masked_fill(~dropped[..., None], 1e6)
    assert reconstruction_loss(output, spoilt, dropped) == loss


def test_nothing_dropped_is_zero_with_a_gradient(golden):
    target, output = (golden[name].clone().requires_grad_() for name in ("target", "output"))
    loss = reconstruction_loss(output, target, torch.zeros(5, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and not output.grad.any() and torch.isfinite(target.grad).all()


def share(rank, counts):
    values = {key: torch.from_numpy(value).double() for key, value in np.load(FILE).items()}
    target, output = (values[name].split(counts)[rank].requires_grad_() for name in ("target", "output"))
    loss = reconstruction_loss(output, target, values["removed_mask"].bool().split(counts)[rank])
    loss.backward()
    return {"loss": loss.detach(), "target": target.grad / world_size(), "output": output.grad / world_size()}


@pytest.mark.ddp
@pytest.mark.parametrize("counts", COUNTS)
def test_two_ranks_equal_one_with_the_whole_batch(on_ranks, counts):
    whole, ranks = share(0, (5,)), on_ranks(share, counts)
    for rank in ranks:
        torch.testing.assert_close(rank["loss"], whole["loss"])
    for name in ("target", "output"):
        torch.testing.assert_close(torch.cat([rank[name] for rank in ranks]), whole[name])
