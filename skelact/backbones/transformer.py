"""A post-norm transformer layer and the sinusoidal position table.

The maths, the parameter names and the initialisation are those of `torch.nn.TransformerEncoderLayer` without
dropout, so that state dicts move freely; the layer leaves out what that class spends on options and copies.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Self-attention with one packed query-key-value projection.

    Args:
        width: token width d.
        num_heads: heads, a divisor of d.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens `(N, S, d)` to `(N, S, d)`; `keep` `(N, S)` bool names the tokens that may be attended to."""
        n, s, d = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(n, s, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        bias = None if keep is None else keep[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out_proj(out.transpose(1, 2).reshape(n, s, d))


class TransformerLayer(nn.Module):
    """`a = LN1(x + attention(x)); out = LN2(a + W2 relu(W1 a))`.

    Args:
        width: token width d.
        num_heads: heads.
        hidden: feed-forward width.
    """

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, num_heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens `(N, S, d)` to `(N, S, d)`."""
        a = self.norm1(x + self.self_attn(x, keep))
        return self.norm2(a + self.linear2(F.relu(self.linear1(a), inplace=True)))


class Transformer(nn.Module):
    """A stack of layers that start as deep copies of one layer, as `torch.nn.TransformerEncoder` starts them.

    Args:
        width: token width d.
        depth: layers.
        num_heads: heads.
        hidden: feed-forward width.
    """

    def __init__(self, width: int, depth: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        layer = TransformerLayer(width, num_heads, hidden)
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(depth)])

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens `(N, S, d)` to `(N, S, d)`."""
        for layer in self.layers:
            x = layer(x, keep)
        return x


def sinusoids(start: int, stop: int, width: int, device: torch.device | None = None) -> Tensor:
    """`(stop - start, width)` float32 table: sine in even, cosine in odd columns (Vaswani et al., 2017)."""
    position = torch.arange(start, stop, dtype=torch.float32, device=device)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32, device=device) * (-math.log(10000.0) / width))
    return torch.stack([(position * rate).sin(), (position * rate).cos()], -1).flatten(1)[:, :width]


class PositionTable(nn.Module):
    """Adds sinusoidal positions; the table of the first `length` positions is part of the state dict.

    Args:
        width: token width d.
        length: rows of the saved table; longer clips get the missing rows computed on demand.
    """

    pe: Tensor

    def __init__(self, width: int, length: int = 200) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoids(0, length, width)[None])

    def forward(self, x: Tensor) -> Tensor:
        """`(N, T, d)` to `(N, T, d)`."""
        table = self.pe[:, : x.shape[1]]
        if x.shape[1] > table.shape[1]:
            rest = sinusoids(table.shape[1], x.shape[1], x.shape[2], x.device)
            table = torch.cat([table, rest[None].to(table.dtype)], 1)
        return x + table
