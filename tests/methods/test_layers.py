"""Schedules, stacked layers, and the batch normalisation over all ranks in one process."""

from itertools import pairwise

import pytest
import torch

from skelact.backbones.normalisation import StackedBatchNorm
from skelact.methods.layers import StackedLinear, SyncBatchNorm1d
from skelact.methods.schedules import warmup_cosine


def test_one_process_is_plain_batch_normalisation():
    ours, plain = SyncBatchNorm1d(6), torch.nn.BatchNorm1d(6)
    assert set(ours.state_dict()) == set(plain.state_dict())
    for _ in range(2):
        x = torch.randn(5, 6)
        assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.eval()(x), plain.eval()(x))
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in plain.state_dict().items())


@pytest.mark.parametrize("streams", [None, [0, 1, 2], [2, 0, 1], [0, 2], [1]])
@pytest.mark.parametrize("training", [True, False])
def test_a_stacked_head_equals_separate_ones(streams, training):
    torch.manual_seed(0)
    first, norm, last = StackedLinear(3, 5, 6, std=0.3), StackedBatchNorm(3, 6), StackedLinear(3, 6, 4, std=0.3)
    heads = []
    for s in range(3):
        plain = torch.nn.Sequential(
            torch.nn.Linear(5, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 4)
        )
        for i, layer in {0: first, 1: norm, 3: last}.items():
            state = {name: value[s] for name, value in layer.state_dict().items()}
            state = {k: v + torch.rand(v.shape) if v.is_floating_point() else v for k, v in state.items()}
            plain[i].load_state_dict(state)
            for name, value in layer.state_dict().items():
                value[s] = state[name]
        heads.append(plain.double().train(training))
    stacked = torch.nn.ModuleList([first, norm, last]).double().train(training)
    numbers = range(3) if streams is None else streams
    x = torch.randn(len(numbers), 7, 5, dtype=torch.float64)
    found = last(norm(first(x, streams), streams).relu(), streams)
    expected = torch.stack([heads[s](rows) for s, rows in zip(numbers, x, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for i, layer in zip((0, 1, 3), stacked, strict=True):
        for s, head in enumerate(heads):
            for name, parameter in layer.named_parameters():
                grad = head[i].get_parameter(name).grad
                expected = torch.zeros_like(parameter[s]) if grad is None else grad
                torch.testing.assert_close(parameter.grad[s], expected, rtol=1e-10, atol=1e-12, msg=f"{i}.{name}")
            for name, buffer in layer.named_buffers():
                torch.testing.assert_close(buffer[s], head[i].get_buffer(name), rtol=1e-12, atol=1e-12, msg=name)


def test_stacked_linear_starts_as_asked():
    torch.manual_seed(0)
    layer = StackedLinear(2, 300, 200)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02) and not layer.bias.any()
    torch.nn.init.ones_(layer.bias)
    layer.reset_parameters()
    assert not layer.bias.any()


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
