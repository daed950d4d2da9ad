"""Attention along one axis of a grid of tokens: both ways to compute it."""

import pytest
import torch

from skelact.backbones import attention
from skelact.backbones.attention import Attention


@pytest.mark.parametrize("grid", [1, 3])
@pytest.mark.parametrize("hidden", [False, True])
def test_maps_in_memory_and_the_fused_kernel_are_the_same(grid, hidden, monkeypatch):
    torch.manual_seed(0)
    layer, x = Attention(8, 2).double(), torch.randn(4, 5, grid, 8, dtype=torch.float64, requires_grad=True)
    torch.nn.init.normal_(layer.qkv.bias)
    keep = torch.rand(4, 5) < 0.6 if hidden else None
    if keep is not None:
        keep[:, 0] = True
        assert not keep.all()
    weight = torch.randn(4, 5, grid, 8, dtype=torch.float64)
    found = []
    for longest in (attention.SHORT, 0):
        monkeypatch.setattr(attention, "SHORT", longest)
        out, received = layer(x, importance=keep is None, keep=keep)
        gradients = torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()])
        assert received is None or (received.shape == (4, 5, grid) and not received.requires_grad)
        found.append([out, *gradients, *([] if received is None else [received])])
    assert any((a != b).any() for a, b in zip(*found, strict=True))  # two ways indeed
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
