"""Layers of ST-GCN for several trunks of equal shape: every parameter has a leading axis, one entry a stream.

Each block has two forms that give the same numbers:

* *plain*, for processors: one stream after another as a `(T, V, R, C)` tensor (R people), channels last. The adjacency
  comes first, so that it works on the narrower side. The temporal convolution is a product of spectra: a clip is short,
  its spectrum costs one small matrix product, and 9 taps over 13 frames become 25 products of channels instead of 97.
* *grouped*, for accelerators: all streams at once as `(R, S*C, T, V)` through grouped convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from skelact.backbones.normalisation import StackedBatchNorm, pick


@lru_cache(maxsize=32)
def spectral_filters(frames: int, taps: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices B, G, A with `conv(x, w) = A @ ((G @ w) * (B @ x))` for a zero-padded correlation over `frames`.

    Real Fourier transform of length `frames + taps // 2`: where the ends wrap around they meet zeros. Taps that reach
    past all frames are left out. Each pair of frequencies takes three real products instead of four (Gauss). Four
    frames, of which seven taps see something, take 8 products instead of 10 (:func:`toom_cook`).

    Returns:
        B `(P, frames)`, G `(P, taps)`, A `(ceil(frames / stride), P)`, P about 1.5 times the length; float64.
    """
    if frames == 4 and taps >= 7:
        before, weights, after = toom_cook()
        return before, np.pad(weights, ((0, 0), (taps // 2 - 3,) * 2)), after[::stride].copy()
    length = frames + min(taps // 2, frames - 1)
    time, tap = np.arange(frames), np.arange(taps) - taps // 2
    b, g, a = [], [], []
    for k in range(length // 2 + 1):
        omega = 2 * np.pi * k / length
        real, imaginary = np.cos(omega * time), -np.sin(omega * time)
        cosine, sine = np.cos(omega * tap), np.sin(omega * tap)
        if k == 0 or 2 * k == length:
            b += [real]
            g += [cosine]
            a += [real / length]
        else:
            b += [real + imaginary, real, imaginary]
            g += [cosine, sine - cosine, cosine + sine]
            a += [2 / length * (real + imaginary), 2 / length * imaginary, -2 / length * real]
    return np.stack(b), np.stack(g) * (abs(tap) < frames), np.stack(a, 1)[::stride].copy()


def toom_cook() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of 4 frames and 7 taps: polynomials are multiplied at 0, infinity, 1, -1, 1/2 and i (Toom and Cook)."""
    real, imaginary = np.array([1.0, 0, -1, 0]), np.array([0, 1.0, 0, -1])
    points = [np.eye(4)[0], np.eye(4)[3], *(point ** np.arange(4) for point in (1.0, -1.0, 0.5))]
    first = np.stack([*points, real + imaginary, real, imaginary])
    second = np.stack([*points, real, imaginary - real, real + imaginary])
    # Coefficients of a product from its values, which convolution's transpose (correlation) has before the products.
    degree = np.add.outer(np.arange(4), np.arange(4)).ravel()
    values = np.einsum("pi,pj->ijp", first, second).reshape(16, 8)
    return first, np.linalg.lstsq(values, np.eye(7)[degree], rcond=None)[0], second[:, ::-1].T


def narrow(inputs: int, outputs: int, rows: int) -> bool:
    """Whether a product of rows of channels is so narrow that it is faster for two rows at once, see :func:`paired`.

    Vector units hold 16 numbers: products 8 columns wide run at a fifth of the rate of those 16 wide.
    """
    return min(inputs, outputs) < 16 and max(inputs, outputs) <= 16 and rows % 2 == 0


def paired(weight: Tensor) -> Tensor:
    """`(..., C, O)` to the map `(..., 2C, 2O)` of two neighbouring rows."""
    outputs = weight.shape[-1]
    return torch.cat([functional.pad(weight, (0, outputs)), functional.pad(weight, (outputs, 0))], -2)


def temporal_conv(x: Tensor, weight: Tensor, stride: int = 1, spectral: bool | None = None) -> Tensor:
    """Zero-padded correlation along the first axis, without bias.

    Args:
        x: `(T, Q, C)`, contiguous.
        weight: `(O, C, taps, 1)`, an odd number of taps.
        stride: step in frames.
        spectral: whether to multiply spectra; None: where that is less work, in single or double precision.

    Returns:
        `(ceil(T / stride), Q, O)`.
    """
    frames, rows, channels = x.shape
    outputs, _, taps, _ = weight.shape
    if spectral is None:
        length, steps = 1.5 * (frames + taps // 2), -(-frames // stride)
        work = length * (frames * channels + channels * outputs + steps * outputs)
        spectral = work < 1.25 * steps * taps * channels * outputs and x.dtype in (torch.float32, torch.float64)
        spectral |= rows == 0  # a rank without clips: the other form refuses them
    if not spectral:
        y = functional.conv2d(x.permute(2, 0, 1)[None], weight, None, (stride, 1), (taps // 2, 0))
        return y[0].permute(1, 2, 0).contiguous()
    b, g, a = (torch.from_numpy(m).to(x) for m in spectral_filters(frames, taps, stride))
    spectrum = torch.mm(b, x.reshape(frames, -1))
    kernel = torch.mm(g, weight.permute(2, 1, 0, 3).reshape(taps, -1)).view(-1, channels, outputs)
    kernel = paired(kernel) if narrow(channels, outputs, rows) else kernel
    product = torch.bmm(spectrum.view(len(b), -1, kernel.shape[1]), kernel)
    return torch.mm(a, product.view(len(g), -1)).view(len(a), rows, outputs)


def graph_conv(x: Tensor, adjacency: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Neighbours gathered by each subset of the adjacency, then one linear map a subset, summed.

    Args:
        x: `(T, V, R, C)`, contiguous.
        adjacency: `(K, V, V)`, from the first joint axis to the second.
        weight: `(K * O, C, 1, 1)`.
        bias: `(K * O,)`; it passes through the adjacency too.

    Returns:
        `(T, V, R, O)`.
    """
    frames, joints, rows, channels = x.shape
    subsets = len(adjacency)
    weights = weight.view(subsets, -1, channels).mT
    weights = paired(weights) if narrow(channels, weights.shape[2], frames * joints * rows) else weights
    flat = x.view(frames, joints, rows * channels)
    y: Tensor | None = None
    for matrix, linear in zip(adjacency.unbind(0), weights.unbind(0), strict=True):
        gathered = torch.bmm(matrix.t().expand(frames, joints, joints), flat).view(-1, len(linear))
        y = torch.mm(gathered, linear) if y is None else y.addmm_(gathered, linear)
    assert y is not None
    through = torch.mm(adjacency.sum(1).t(), bias.view(subsets, -1))  # (V, O)
    return y.view(frames, joints, rows, through.shape[1]) + through[:, None]


def keep_mask(like: Tensor, p: float) -> Tensor:
    """Ones and, with probability `p`, zeros; the shape and type of a contiguous tensor on the processor.

    One random byte an element where `256 p` is whole, several times cheaper than a draw an element.
    """
    mask = torch.empty_like(like)
    if (256 * p) % 1 or p == 1:
        return torch.ge(torch.rand_like(like), p, out=mask)
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    return torch.ge(words.view(torch.uint8)[: like.numel()].view(like.shape), int(256 * p), out=mask)


class StackedConv(nn.Module):
    """Weights of S convolutions of equal shape, `(S, O, C, taps, 1)` and `(S, O)`."""

    def __init__(self, stack: int, inputs: int, outputs: int, taps: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(stack, outputs, inputs, taps, 1))
        self.bias = nn.Parameter(torch.zeros(stack, outputs))

    def grouped(self, x: Tensor, streams: Sequence[int], stride: int = 1) -> Tensor:
        """`(R, S*C, T, V)` to `(R, S*O, T', V)`."""
        weight, bias = pick(self.weight, streams).flatten(0, 1), pick(self.bias, streams).flatten()
        return functional.conv2d(x, weight, bias, (stride, 1), (weight.shape[2] // 2, 0), groups=len(streams))


class Block(nn.Module):
    """Graph convolution, BN, ReLU, temporal convolution, BN, dropout, residual, ReLU; names as in the released code.

    Args:
        stack: number of trunks S.
        subsets: K of the adjacency.
        inputs: channels C.
        outputs: channels O.
        stride: in frames.
        taps: of the temporal convolution.
        dropout: probability.
        residual: False for the first block.
    """

    def __init__(
        self,
        stack: int,
        subsets: int,
        inputs: int,
        outputs: int,
        stride: int = 1,
        taps: int = 9,
        dropout: float = 0.0,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.subsets, self.outputs, self.stride, self.dropout = subsets, outputs, stride, dropout
        self.gcn = nn.ModuleDict({"conv": StackedConv(stack, inputs, subsets * outputs)})
        self.tcn = nn.ModuleDict(
            {
                "0": StackedBatchNorm(stack, outputs),
                "2": StackedConv(stack, outputs, outputs, taps),
                "3": StackedBatchNorm(stack, outputs),
            }
        )
        self.identity = residual and inputs == outputs and stride == 1
        if residual and not self.identity:
            self.residual = nn.ModuleDict(
                {"0": StackedConv(stack, inputs, outputs), "1": StackedBatchNorm(stack, outputs)}
            )
        self.projection = residual and not self.identity

    def layer(self, name: str) -> Any:
        """A layer by its released name, such as `tcn.2`."""
        return self.get_submodule(name)

    def plain(self, inputs: list[Tensor], adjacency: Tensor, streams: Sequence[int]) -> list[Tensor]:
        """Each stream's `(T, V, R, C)`, contiguous, to `(T', V, R, O)`; `adjacency` `(S, K, V, V)`."""
        frames, joints, rows, _ = inputs[0].shape
        conv, temporal = self.layer("gcn.conv"), self.layer("tcn.2")
        weights, biases, graphs = conv.weight.unbind(0), conv.bias.unbind(0), adjacency.unbind(0)
        gathered = [
            _image(graph_conv(x, graphs[i], weights[s], biases[s]))
            for i, (x, s) in enumerate(zip(inputs, streams, strict=True))
        ]
        hidden = [functional.relu_(y) for y in self.layer("tcn.0").plain(gathered, streams)]
        kernels = temporal.weight.unbind(0)
        hidden = [
            temporal_conv(_rows(y).view(frames, joints * rows, self.outputs), kernels[s], self.stride)
            for y, s in zip(hidden, streams, strict=True)
        ]
        dropout = self.dropout if self.training else 0.0
        hidden = self.layer("tcn.3").plain(
            [_image(y.unflatten(1, (joints, rows))) for y in hidden],
            streams,
            temporal.bias,
            gain=1 / (1 - dropout) if dropout < 1 else 0.0,
        )
        if dropout:
            hidden = [y.mul_(keep_mask(_rows(y.detach()), dropout).permute(0, 3, 1, 2)) for y in hidden]
        if self.identity:
            hidden = [y.add_(_image(x)) for y, x in zip(hidden, inputs, strict=True)]
        elif self.projection:
            linear = self.layer("residual.0")
            maps = linear.weight.unbind(0)
            short = [x[:: self.stride] @ maps[s].flatten(1).t() for x, s in zip(inputs, streams, strict=True)]
            short = self.layer("residual.1").plain([_image(x) for x in short], streams, linear.bias)
            hidden = [y.add_(x) for y, x in zip(hidden, short, strict=True)]
        return [_rows(functional.relu_(y))[0].unflatten(0, (-1, joints)) for y in hidden]

    def grouped(self, x: Tensor, adjacency: Tensor, streams: Sequence[int]) -> Tensor:
        """All streams' `(R, S*C, T, V)` to `(R, S*O, T', V)`; `adjacency` `(S, K, V, V)`."""
        rows, _, frames, joints = x.shape
        y = (
            self.layer("gcn.conv")
            .grouped(x, streams)
            .view(rows, len(streams), self.subsets, self.outputs, frames, joints)
        )
        y = torch.einsum("nskctv,skvw->nsctw", y, adjacency.to(y.dtype)).flatten(1, 2)
        y = functional.relu_(self.layer("tcn.0").grouped(y, streams))
        y = self.layer("tcn.3").grouped(self.layer("tcn.2").grouped(y, streams, self.stride), streams)
        y = functional.dropout(y, self.dropout, self.training)
        if self.identity:
            y = y + x
        elif self.projection:
            y = y + self.layer("residual.1").grouped(self.layer("residual.0").grouped(x, streams, self.stride), streams)
        return functional.relu_(y)


def _image(x: Tensor) -> Tensor:
    """`(T, V, R, C)` to a channels-last `(1, C, T*V, R)`, as batch normalisation reads fastest; a view."""
    frames, joints, rows, channels = x.shape
    return x.view(1, frames * joints, rows, channels).permute(0, 3, 1, 2)


def _rows(image: Tensor) -> Tensor:
    """Back to `(1, T*V, R, C)`; a view."""
    return image.permute(0, 2, 3, 1)
