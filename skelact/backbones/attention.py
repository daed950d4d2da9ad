"""Pre-norm transformer blocks on tokens that lie along one axis of a grid, with fused attention."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RECEIVED_AT_ONCE = 2**24
"""Entries of an attention map that exist at a time where the attention that tokens receive is asked for."""
SHORT = 32
"""Longest sequences, and widest heads, whose attention maps are made on a CPU."""


class Attention(nn.Module):
    """Multi-head self-attention along S of tokens `(B, S, G, C)`, for each of the B x G sequences on its own.

    Queries, keys and values are tensors of their own: heads and G then lie one after another, so that the fused kernel
    reads and writes them in place, whichever axis of the grid S is. Torch's kernel for CPUs takes sequences one by one:
    short ones (the joints of a frame) are sooner done as batches of small products, with their maps in memory.

    Args:
        width: token width C.
        num_heads: heads H, a divisor of C.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, importance: bool = False, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens `(B, S, G, C)` to the same shape; with `importance`, what each receives `(B, S, G)` as well.

        What a token receives is the soft-maxed attention to it, summed over queries, mean over heads; without gradient.
        `keep` `(B, S)` bool names the tokens that may be attended to, at least one in each row; None: all.
        """
        if _short(x, self.num_heads):
            return self._with_maps(x, importance, keep)
        b, s, g, c = x.shape
        parts = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        q, k, v = (
            F.linear(x, w, bias).view(b, s, g * self.num_heads, c // self.num_heads).transpose(1, 2)
            for w, bias in parts
        )
        given = received(q, k).unflatten(1, (g, self.num_heads)).mean(2).transpose(1, 2) if importance else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if keep is None else keep[:, None, None])
        return self.proj(out.transpose(1, 2).reshape(b, s, g, c)), given

    def _with_maps(self, x: Tensor, importance: bool, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        b, s, g, c = x.shape
        heads, d = self.num_heads, c // self.num_heads
        qkv = self.qkv(x).view(b, s, g, 3, heads, d).permute(3, 0, 2, 4, 1, 5)
        q, k, v = qkv.reshape(3, b * g * heads, s, d)
        maps = torch.baddbmm(q.new_empty(()), k, q.mT, beta=0, alpha=d**-0.5)  # keys by queries: the soft-max is faster
        if keep is not None:
            maps = maps.masked_fill(~keep.repeat_interleave(g * heads, 0)[:, :, None], -torch.inf)
        maps = maps.softmax(1)
        given = maps.detach().sum(2).view(b, g, heads, s).mean(2).transpose(1, 2) if importance else None
        out = maps.mT.bmm(v).view(b, g, heads, s, d).permute(0, 3, 1, 2, 4)
        return self.proj(out.reshape(b, s, g, c)), given


def _short(x: Tensor, heads: int) -> bool:
    """Whether maps of tokens `(B, S, G, C)` are cheap: on a CPU in full precision."""
    full = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and x.dtype.itemsize >= 4
    return full and x.shape[1] <= SHORT and x.shape[3] <= SHORT * heads


@torch.no_grad()
def received(q: Tensor, k: Tensor) -> Tensor:
    """Column sums of soft-max attention: queries and keys `(B, H, S, d)` to `(B, H, S)`.

    Written out, a slice of queries at a time: S x S matrices of whole clips need not fit into memory.
    """
    b, h, s, d = k.shape
    total = q.new_zeros(b, h, s)
    for rows in q.split(max(RECEIVED_AT_ONCE // max(b * h * s, 1), 1), dim=2):
        total += (rows @ k.transpose(-1, -2) * d**-0.5).softmax(-1).sum(2)
    return total


class Mlp(nn.Module):
    """`W2 gelu(W1 x)`, exact GELU.

    Args:
        width: token width C.
        hidden: inner width.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., C)` to `(..., C)`."""
        return self.fc2(F.gelu(self.fc1(x)))


def drop_path(x: Tensor, rate: float, training: bool, axes: int = 2) -> Tensor:
    """Leave a residual branch out for some of the entries of the first axes (stochastic depth); the rest scaled."""
    if not training or rate == 0:
        return x
    kept = torch.empty(*x.shape[:axes], *[1] * (x.dim() - axes), dtype=x.dtype, device=x.device)
    return x * kept.bernoulli_(1 - rate) / (1 - rate)


class PreNormBlock(nn.Module):
    """`x = x + attention(LN(x)); x = x + MLP(LN(x))`, each branch left out for some clips in training.

    Args:
        width: token width D.
        num_heads: heads.
        hidden: inner width of the MLP.
        drop: rate of stochastic depth, for each clip.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width, hidden)
        self.drop = drop

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens `(B, S, D)` to the same shape; `keep` `(B, S)` bool names the tokens that may be attended to."""
        out, _ = self.attn(self.norm1(x)[:, :, None], keep=keep)
        x = x + drop_path(out[:, :, 0], self.drop, self.training, axes=1)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop, self.training, axes=1)


class PreNormTransformer(nn.Module):
    """A stack of blocks of one rate of stochastic depth, without a norm at the end.

    Args:
        width: token width D.
        depth: blocks.
        num_heads: heads.
        mlp_ratio: inner width of the MLPs over D.
        drop_path: rate of stochastic depth of every block.
    """

    compiles: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(
        self, width: int, depth: int, num_heads: int = 8, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.blocks = nn.ModuleList(PreNormBlock(width, num_heads, hidden, drop_path) for _ in range(depth))
        xavier_linear(self)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens `(B, S, D)` to the same shape; `keep` `(B, S)` bool: those that may be attended to, None: all."""
        for block in self.blocks:
            x = block(x, keep)
        return x


def xavier_linear(module: nn.Module) -> None:
    """Linear layers inside a module Xavier-uniform, with biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
