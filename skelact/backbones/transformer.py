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


class _ShortAttention(torch.autograd.Function):
    """Projection and attention of one head, for short sequences on a CPU.

    PyTorch's CPU kernel works sequence by sequence, and the pieces of a packed projection are strided, which costs
    copies in both directions. Here queries, keys and values are blocks of their own and all work is large products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        n, s, d = x.shape
        rows = x.reshape(n * s, d)
        qkv = x.new_empty(3, n, s, d)
        for block, w, b in zip(qkv.view(3, n * s, d), weight.view(3, d, d), bias.view(3, d), strict=True):
            torch.addmm(b, rows, w.t(), out=block)
        q, k, v = qkv
        attention = torch.baddbmm(x.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=d**-0.5).softmax(-1)
        ctx.save_for_backward(rows, weight, qkv, attention)
        return attention.bmm(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        rows, weight, (q, k, v), attention = ctx.saved_tensors
        n, s, d = q.shape
        out = torch.empty_like(q[None].expand(3, n, s, d), memory_format=torch.contiguous_format)
        grad = grad.contiguous()
        slope = torch._softmax_backward_data(grad.bmm(v.transpose(1, 2)), attention, -1, attention.dtype)
        slope.mul_(d**-0.5)
        torch.bmm(slope, k, out=out[0])
        torch.bmm(slope.transpose(1, 2), q, out=out[1])
        torch.bmm(attention.transpose(1, 2), grad, out=out[2])
        out = out.view(3, n * s, d)
        grad_weight = torch.empty_like(weight).view(3, d, d)
        for block, w in zip(out, grad_weight, strict=True):
            torch.mm(block.t(), rows, out=w)
        grad_rows = None
        if ctx.needs_input_grad[0]:
            wq, wk, wv = weight.view(3, d, d)
            grad_rows = (out[0] @ wq).addmm_(out[1], wk).addmm_(out[2], wv).view(n, s, d)
        return grad_rows, grad_weight.view(3 * d, d), out.sum(1).view(3 * d)


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
        if self.num_heads == 1 and keep is None and _short(x):
            return self.out_proj(_ShortAttention.apply(x, self.in_proj_weight, self.in_proj_bias))
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(n, s, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        bias = None if keep is None else keep[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out_proj(out.transpose(1, 2).reshape(n, s, d))


def _short(x: Tensor) -> bool:
    """Whether a sequence is short enough, on a CPU in full precision, for the S x S matrices to be cheap."""
    return (
        x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and x.dtype.itemsize >= 4 and x.shape[1] <= 128
    )


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
