"""A post-norm transformer layer and the sinusoidal position table.

The maths, the parameter names and the initialisation are those of `torch.nn.TransformerEncoderLayer` without
dropout, so that state dicts move freely; the layer leaves out what that class spends on options and copies.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _JoinedAttention(torch.autograd.Function):
    """`softmax((x A + c) x') x` of each sequence in `x`, for the CPU: as large products, gradients added in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
        n, s, d = x.shape
        queries = torch.addmm(shift, x.reshape(n * s, d), matrix).view(n, s, d)
        attention = queries.bmm(x.transpose(1, 2)).softmax(-1)
        ctx.save_for_backward(x, matrix, queries, attention)
        return attention.bmm(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, matrix, queries, attention = ctx.saved_tensors
        n, s, d = x.shape
        grad = grad.contiguous()
        slope = torch._softmax_backward_data(grad.bmm(x.transpose(1, 2)), attention, -1, attention.dtype)
        of_queries = slope.bmm(x).view(n * s, d)
        of_matrix, of_shift = x.reshape(n * s, d).t() @ of_queries, of_queries.sum(0)
        if not ctx.needs_input_grad[0]:
            return None, of_matrix, of_shift
        of_x = attention.transpose(1, 2).bmm(grad).baddbmm_(slope.transpose(1, 2), queries)
        of_x.view(n * s, d).addmm_(of_queries, matrix.t())
        return of_x, of_matrix, of_shift


class SelfAttention(nn.Module):
    """Self-attention with one packed query-key-value projection.

    Of one head, queries and keys only meet in `x Wq' Wk x'`, values and output in `Wo Wv x'`: with these products of
    weights there are two projections of the tokens instead of four, and equal numbers up to rounding. What is the same
    for all keys of a query cancels in the soft-max, so that the keys' bias gets a gradient of exactly zero.

    Args:
        width: token width d.
        num_heads: heads, a divisor of d.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.joined = num_heads, num_heads == 1
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens `(N, S, d)` to `(N, S, d)`; `keep` `(N, S)` bool names the tokens that may be attended to."""
        n, s, d = x.shape
        bias = None if keep is None else keep[:, None, None, :]
        if self.joined and n * s >= 2 * d and s <= 2 * d:  # otherwise the products of weights cost more
            return self._joined(x, bias)
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(n, s, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out_proj(out.transpose(1, 2).reshape(n, s, d))

    def _joined(self, x: Tensor, bias: Tensor | None) -> Tensor:
        wq, wk, wv = self.in_proj_weight.chunk(3)
        bq, bk, bv = self.in_proj_bias.chunk(3)
        scale = x.shape[-1] ** -0.5
        matrix, shift = wq.t() @ wk * scale, bq @ wk * scale
        if bias is None and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            out = _JoinedAttention.apply(x, matrix, shift)
        else:
            queries = F.linear(x, matrix.t(), shift)
            one = x[:, None]  # head
            out = F.scaled_dot_product_attention(queries[:, None], one, one, attn_mask=bias, scale=1.0)[:, 0]
        constant = self.out_proj.weight @ bv + self.out_proj.bias + 0 * bk  # every parameter has a gradient
        return F.linear(out, self.out_proj.weight @ wv, constant)


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
    angle = _angles(torch.arange(start, stop, dtype=torch.float32, device=device), width)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[:, :width]


def sinusoids_at(position: Tensor, width: int) -> Tensor:
    """Codes `(..., width)` float32 of positions `(...)`, which need not be whole: sines, then cosines."""
    angle = _angles(position.float(), width)
    return torch.cat([angle.sin(), angle.cos()], -1)


def _angles(position: Tensor, width: int) -> Tensor:
    rate = torch.exp(
        torch.arange(0, width, 2, dtype=torch.float32, device=position.device) * (-math.log(10000.0) / width)
    )
    return position[..., None] * rate


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
