"""UmURL's training step as one would write it down from the paper, to measure the library's own step against.

Same parameters, same numbers: `torch.nn.TransformerEncoderLayer`, the shared encoder called once for each of the
inputs, each embedding's full covariance matrix, plain batch normalisation. Single process only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skelact.backbones.transformer import sinusoids
from skelact.backbones.umurl import UmURLEncoder, code_of
from skelact.benchmarks.straightforward.base import StraightforwardViews, Views
from skelact.methods.umurl import UmURL


def _mlp(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))


class _Embedding(nn.Module):
    def __init__(self, temporal: int, spatial: int, width: int) -> None:
        super().__init__()
        self.t_embedding, self.s_embedding = _mlp(temporal, width), _mlp(spatial, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, m, t, v, c = x.shape
        temporal = x.permute(0, 2, 1, 3, 4).reshape(n, t, m * v * c)
        spatial = x.permute(0, 1, 3, 2, 4).reshape(n, m * v, t * c)
        return self.t_embedding(temporal), self.s_embedding(spatial)


class _Fusion(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.t_fusion = nn.Sequential(nn.Linear(width, width, bias=False))
        self.s_fusion = nn.Sequential(nn.Linear(width, width, bias=False))


class _Position(nn.Module):
    pe: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoids(0, 200, width)[None])


class _Encoder(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.pe = _Position(width)
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, batch_first=True)
        self.t_tr, self.s_tr = (nn.TransformerEncoder(layer, depth, enable_nested_tensor=False) for _ in "ts")

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        t, s = self.t_tr(t + self.pe.pe[:, : t.shape[1]]), self.s_tr(s)
        return torch.cat([t.amax(1), s.amax(1)], 1)


class StraightforwardUmURLEncoder(nn.Module):
    """The same network as a :class:`UmURLEncoder`, with a copy of its weights.

    Args:
        theirs: the published one (no joint code, no masking).

    Raises:
        TypeError: another encoder.
    """

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        if not isinstance(theirs, UmURLEncoder):
            raise TypeError(f"the straightforward form is of UmURLEncoder, not of {type(theirs).__name__}")
        temporal, spatial = theirs.persons * theirs.joints * theirs.channels, theirs.frames * theirs.channels
        for stream in theirs.streams:
            self.add_module(f"{code_of(stream)}_emb", _Embedding(temporal, spatial, theirs.width))
        if len(theirs.streams) > 1:
            self.mm_fusion = _Fusion(theirs.width)
        self.ma_encoder = _Encoder(theirs.width, theirs.depth, theirs.num_heads, theirs.hidden)
        self.load_state_dict(theirs.state_dict())

    def forward(self, streams: Mapping[str, Tensor]) -> Tensor:
        """Feature `(N, 2d)` of a stream `(N, M, T, V, C)`, or of the fusion of several."""
        pairs = [self.get_submodule(f"{code_of(stream)}_emb")(x) for stream, x in streams.items()]
        if len(pairs) == 1:
            return self.ma_encoder(*pairs[0])
        t = self.mm_fusion.t_fusion(torch.stack([t for t, _ in pairs]).mean(0))
        s = self.mm_fusion.s_fusion(torch.stack([s for _, s in pairs]).mean(0))
        return self.ma_encoder(t, s)


class StraightforwardUmURL(StraightforwardViews):
    """The same network and loss as a :class:`UmURL`, with a copy of its weights.

    Args:
        method: whose sizes, weights and loss weights are taken; the encoder must be the published one (no joint
            code, no masking).
    """

    def __init__(self, method: UmURL) -> None:
        super().__init__(method)
        self.weights = (method.consistency, method.variance, method.covariance)
        self.backbone = StraightforwardUmURLEncoder(method.backbone)
        for stream in self.streams:
            theirs = method.get_submodule(f"{code_of(stream)}_projector")
            layers: list[nn.Module] = []
            for layer in theirs.children():
                if isinstance(layer, nn.Linear):
                    layers.append(nn.Linear(layer.in_features, layer.out_features, layer.bias is not None))
                elif isinstance(layer, nn.BatchNorm1d):
                    layers.append(nn.BatchNorm1d(layer.num_features))
                else:
                    layers.append(nn.ReLU())
            self.add_module(f"{code_of(stream)}_projector", nn.Sequential(*layers))
        self.load_state_dict(method.state_dict())

    def loss(self, batch: Any, views: Views) -> Tensor:
        """Loss of one step from `len(streams) + 1` joint views."""
        *single, last = views
        pairs = zip(self.streams, single, strict=True)
        uni_features = [self.backbone(self.derive(*view, [stream])) for stream, view in pairs]
        fused_feature = self.backbone(self.derive(*last))
        heads = [self.get_submodule(f"{code_of(stream)}_projector") for stream in self.streams]
        fused = [head(fused_feature) for head in heads]
        uni = [head(y) for head, y in zip(heads, uni_features, strict=True)]
        return self._objective(uni, fused)

    def _objective(self, uni: list[Tensor], fused: list[Tensor]) -> Tensor:
        consistency, variance, covariance = self.weights
        centre = torch.stack(uni).mean(0)
        mse = nn.functional.mse_loss
        intra = torch.stack([mse(z, u) for z, u in zip(uni, fused, strict=True)]).sum()
        inter = torch.stack([mse(z, centre) for z in uni]).sum()
        total = consistency * (intra + inter)
        for z in [*uni, *fused]:
            spread = torch.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean()
            centred = z - z.mean(0)
            cov = centred.T @ centred / (len(z) - 1)
            off = cov - torch.diag(cov.diagonal())
            total = total + variance * spread + covariance * off.square().sum() / z.shape[1]
        return total
