"""Schedules, and the batch normalisation over all ranks in one process."""

from itertools import pairwise

import pytest
import torch

from skelact.methods.layers import SyncBatchNorm1d
from skelact.methods.schedules import warmup_cosine


def test_one_process_is_plain_batch_normalisation():
    ours, plain = SyncBatchNorm1d(6), torch.nn.BatchNorm1d(6)
    assert set(ours.state_dict()) == set(plain.state_dict())
    for _ in range(2):
        x = torch.randn(5, 6)
        assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.eval()(x), plain.eval()(x))
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in plain.state_dict().items())


def test_warmup_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_cosine(optimizer, total=14, warmup=4, final=0.1)
    rates = []
    for _ in range(17):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[9] == pytest.approx((2.0 + 0.2) / 2)
    assert rates[14:] == pytest.approx([0.2] * 3)
    assert all(a >= b for a, b in pairwise(rates[4:]))
    with pytest.raises(ValueError, match="warmup=5, total=5"):
        warmup_cosine(optimizer, total=5, warmup=5)


def test_warmup_cosine_state_holds_plain_values(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    torch.save(warmup_cosine(optimizer, total=5).state_dict(), tmp_path / "s.pt")
    assert torch.load(tmp_path / "s.pt", weights_only=True)["last_epoch"] == 0
