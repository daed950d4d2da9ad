"""Random numbers that belong to a clip, not to a process.

A draw is a pure function of (seed, epoch, clip, view, name): a counter-based generator in the manner of
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), evaluated for a whole batch at once in 64-bit integer arithmetic.
The same clip therefore gets the same view with any number of workers, in any batch, on any device and rank, and
adding one transform does not change the draws of another. A stateful `torch.Generator` cannot promise this
without one Python object and one call per clip.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that holds it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _mix_int(x: int) -> int:
    """:func:`_mix` of one number, without a tensor."""
    x &= (1 << 64) - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & ((1 << 64) - 1)
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & ((1 << 64) - 1)
    return _signed(x ^ (x >> 31))


_GAMMA = _signed(0x9E3779B97F4A7C15)
_STRIDE = _signed(0xD1342543DE82EF95)  # odd, so that frames of one clip differ, and large: those of others too
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, wrapping int64 arithmetic; in place, for fresh memory costs more than the rest."""
    x = _shift(x, 30).bitwise_xor_(x).mul_(_MIX1)
    x = _shift(x, 27).bitwise_xor_(x).mul_(_MIX2)
    return _shift(x, 31).bitwise_xor_(x)


class Draws:
    """Draws for a batch of N clips.

    Args:
        seed: experiment seed.
        epoch: current epoch; a new epoch means new views.
        index: `(N,)` int64 stable clip positions (`RaggedClips.index`).
        view: which view of the clip (methods with several views number them).
        scope: names of the transforms the draws are for, outermost first (see :meth:`scope`).
    """

    def __init__(self, seed: int, epoch: int, index: Tensor, view: int = 0, scope: tuple[str, ...] = ()) -> None:
        self.seed, self.epoch, self.index, self.view_id = int(seed), int(epoch), index, int(view)
        self._scope = scope
        key = _mix_int(self.seed + _GAMMA)
        key = _mix_int(key ^ _mix_int((self.epoch * 1_000_003 + self.view_id + 1) * _GAMMA))
        for name in scope:
            key = _mix_int(key ^ (zlib.crc32(name.encode()) * 0x2545F4914F6CDD1D))
        self._key = _mix(index.to(torch.int64) * _GAMMA + key)

    def view(self, number: int) -> Draws:
        """Draws of the same clips for another view."""
        return Draws(self.seed, self.epoch, self.index, number, self._scope)

    def scope(self, name: str) -> Draws:
        """Draws of the same clips and view for one of several transforms, so that two of a kind draw differently."""
        return Draws(self.seed, self.epoch, self.index, self.view_id, (*self._scope, name))

    def __len__(self) -> int:
        return self.index.shape[0]

    def bits(self, name: str, *shape: int) -> Tensor:
        """`(N, *shape)` int64 of 64 random bits, a stream of its own for each `name`."""
        count = math.prod(shape)
        stream = _signed(zlib.crc32(name.encode()) * 0x2545F4914F6CDD1D)
        counter = torch.arange(1, count + 1, dtype=torch.int64, device=self.index.device) * _GAMMA
        return _mix((self._key ^ stream)[:, None] + counter).view(len(self), *shape)

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """`(N, *shape)` float32, uniform on [low, high)."""
        unit = _shift(self.bits(name, *shape), 40).to(torch.float32) * 2.0**-24
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def normal(self, name: str, *shape: int) -> Tensor:
        """`(N, *shape)` float32, standard normal (Box-Muller; both numbers of a pair)."""
        count = math.prod(shape)
        bits = self.bits(name, (count + 1) // 2)
        radius = _shift(bits, 40).to(torch.float32).add_(1.0).mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
        angle = bits.bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0 * math.pi * 2.0**-24)
        pairs = torch.cat((angle.cos().mul_(radius), angle.sin_().mul_(radius)), 1)
        return pairs[:, :count].reshape(len(self), *shape)

    def rows(self, rows: Tensor) -> Draws:
        """Draws of some of the clips, by position `(K,)` in the batch; each clip draws the same as before."""
        return Draws(self.seed, self.epoch, self.index[rows], self.view_id, self._scope)

    def frames(self, owner: Tensor, frame: Tensor) -> Draws:
        """Draws of single frames: number `frame` `(G,)` of clip `owner` `(G,)`; each draws the same in any batch."""
        index = self.index[owner] + (frame + 1) * _STRIDE
        return Draws(self.seed, self.epoch, index, self.view_id, self._scope)

    def integers(self, name: str, high: Tensor | int) -> Tensor:
        """`(N,)` int64, uniform on {0, ..., high - 1}; `high` is a number or `(N,)`."""
        unit = _shift(self.bits(name), 11).to(torch.float64) * 2.0**-53
        return (unit * high).to(torch.int64)

    def coin(self, name: str, p: float = 0.5) -> Tensor:
        """`(N,)` bool, True with probability p."""
        return self.uniform(name) < p

    def subset(self, name: str, k: int, n: int) -> Tensor:
        """`(N, k)` int64: k of n, without replacement, each sample its own."""
        return self.uniform(name, n).argsort(dim=1)[:, :k]
