"""ST-GCN written down layer by layer as in the paper, to measure the library's own form against.

One trunk a stream, one after the other, on `(N * M, C, T, V)`: 1x1 convolution to all subsets, sum over the weighted
adjacency, batch normalisation, ReLU, 9x1 convolution, batch normalisation, dropout, residual, ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skelact.backbones.stgcn import STGCN
from skelact.backbones.stgcn_blocks import Block


class _Block(nn.Module):
    def __init__(self, theirs: Block) -> None:
        super().__init__()
        self.subsets, outputs, stride = theirs.subsets, theirs.outputs, theirs.stride
        subsets, inputs, taps = (
            self.subsets,
            theirs.layer("gcn.conv").weight.shape[2],
            theirs.layer("tcn.2").weight.shape[3],
        )
        kind = "identity" if theirs.identity else "projection" if theirs.projection else "none"
        self.gcn = nn.ModuleDict({"conv": nn.Conv2d(inputs, outputs * subsets, 1)})
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, (taps, 1), (stride, 1), (taps // 2, 0)),
            nn.BatchNorm2d(outputs),
            nn.Dropout(theirs.dropout, inplace=True),
        )
        self.kind = kind
        if kind == "projection":
            self.residual = nn.Sequential(nn.Conv2d(inputs, outputs, 1, (stride, 1)), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        y = self.gcn["conv"](x)
        n, kc, t, v = y.shape
        y = torch.einsum("nkctv,kvw->nctw", y.view(n, self.subsets, kc // self.subsets, t, v), adjacency)
        y = self.tcn(y.contiguous())
        if self.kind == "identity":
            y = y + x
        elif self.kind == "projection":
            y = y + self.residual(x)
        return torch.relu(y)


class Trunk(nn.Module):
    """One stream's network, with a copy of an encoder's weights for that stream.

    Args:
        theirs: the encoder; `ignore_absent` must be off.
        stream: name.
    """

    A: Tensor

    def __init__(self, theirs: STGCN, stream: str) -> None:
        super().__init__()
        self.register_buffer("A", theirs.A.clone())
        self.data_bn = nn.BatchNorm1d(theirs.joints * theirs.channels)
        self.st_gcn_networks = nn.ModuleList(_Block(block) for block in theirs.blocks())
        self.edge_importance = nn.ParameterList(nn.Parameter(e[0].detach().clone()) for e in theirs.edge_importance)
        self.to(theirs.A.dtype).load_state_dict(theirs.trunk_state(stream))

    def feature_map(self, x: Tensor) -> Tensor:
        """What the last block gives, `(N * M, D, T', V)`, of a stream `(N, M, T, V, C)`."""
        n, m, t, v, c = x.shape
        x = x.permute(0, 1, 3, 4, 2).reshape(n * m, v * c, t)
        x = self.data_bn(x).view(n * m, v, c, t).permute(0, 2, 3, 1).contiguous()
        for i, block in enumerate(self.st_gcn_networks):
            x = block(x, self.A * self.edge_importance[i] if len(self.edge_importance) else self.A)
        return x

    def pool(self, x: Tensor, persons: int) -> Tensor:
        """Features `(N, D)` of a feature map."""
        return x.mean((2, 3)).unflatten(0, (-1, persons)).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(N, D)` of a stream `(N, M, T, V, C)`."""
        return self.pool(self.feature_map(x), x.shape[1])


class StraightforwardSTGCN(nn.Module):
    """The same network as an :class:`STGCN`, with a copy of its weights.

    Args:
        encoder: whose sizes and weights are taken; `ignore_absent` must be off.
    """

    def __init__(self, encoder: STGCN) -> None:
        super().__init__()
        self.streams = encoder.streams
        self.trunks = nn.ModuleDict({stream: Trunk(encoder, stream) for stream in encoder.streams})

    def forward(self, streams: Mapping[str, Tensor]) -> Tensor:
        """Streams `(N, M, T, V, C)` to `(N, S * D)`."""
        return torch.cat([self.trunks[stream](streams[stream]) for stream in self.streams], 1)
