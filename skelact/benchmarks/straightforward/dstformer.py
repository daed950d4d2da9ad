"""DSTformer written down as in the paper, to measure the library's own form against.

Every person slot is encoded, whoever is there; attention matrices exist; all rows are computed at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skelact.backbones.attention import Attention, Mlp
from skelact.backbones.dstformer import DSTformer


class StraightforwardDSTformer(nn.Module):
    """The same network as a :class:`DSTformer`, with its weights (shared, not copied).

    Args:
        encoder: whose weights are taken; with adaptive fusion, and without people who count while they are absent.
    """

    def __init__(self, encoder: DSTformer) -> None:
        super().__init__()
        self.net = encoder

    def forward(self, streams: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """The stream `(N, M, T, V, C)` and its mask `(N, M, T, V)` to `(N, V * R)`."""
        x = streams[self.net.streams[0]]
        n, m, frames = x.shape[:3]
        h = self.net.joints_embed(x.flatten(0, 1)) + self.net.pos_embed
        h = h + self.net.temp_embed[:, :frames]
        for st, ts, fusion in zip(self.net.blocks_st, self.net.blocks_ts, self.net.ts_attn, strict=True):
            a, b = self.block(st, h, "st"), self.block(ts, h, "ts")
            share = fusion(torch.cat([a, b], -1)).softmax(-1)
            h = a * share[..., :1] + b * share[..., 1:]
        tokens = torch.tanh(self.net.pre_logits["fc"](self.net.norm(h)))
        people = tokens.mean(1).view(n, m, -1)
        present = mask.flatten(2).any(2).to(people)[..., None]
        return (people * present).sum(1) / present.sum(1)

    def block(self, block: nn.Module, x: Tensor, order: str) -> Tensor:
        """The two stages of a block on `(B, T, V, D)`."""
        for axis in order:
            tokens = block.get_submodule(f"norm1_{axis}")(x)
            x = x + self.attention(block.get_submodule(f"attn_{axis}"), tokens, axis)
            x = x + self.mlp(block.get_submodule(f"mlp_{axis}"), block.get_submodule(f"norm2_{axis}")(x))
        return x

    @staticmethod
    def attention(layer: nn.Module, x: Tensor, axis: str) -> Tensor:
        """Soft-max attention over joints (`s`) or frames (`t`) of `(B, T, V, D)`."""
        assert isinstance(layer, Attention)
        b, t, v, d = x.shape
        q, k, value = layer.qkv(x).view(b, t, v, 3, layer.num_heads, -1).permute(3, 0, 4, 1, 2, 5)  # (B, H, T, V, D/H)
        if axis == "t":
            q, k, value = q.transpose(2, 3), k.transpose(2, 3), value.transpose(2, 3)
        attention = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1)
        out = attention @ value
        out = out.transpose(2, 3) if axis == "t" else out
        return layer.proj(out.permute(0, 2, 3, 1, 4).reshape(b, t, v, d))

    @staticmethod
    def mlp(layer: nn.Module, x: Tensor) -> Tensor:
        """Two linear layers with a GELU between."""
        assert isinstance(layer, Mlp)
        return layer.fc2(nn.functional.gelu(layer.fc1(x)))
