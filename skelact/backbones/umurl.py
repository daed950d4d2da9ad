"""The encoder of UmURL (Sun et al., ACM MM 2023): early fusion, then one modality-agnostic transformer pair.

Parameter names are those of the UmURL reference code, so that released checkpoints load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from skelact.backbones.base import Encoder
from skelact.backbones.transformer import PositionTable, Transformer, sinusoids
from skelact.skeleton.layouts import Layout, get_layout

CODES = {"joint": "j", "bone": "b", "motion": "m", "bone_motion": "bm"}
"""Stream names and the short names under which the reference code keeps their layers."""


def code_of(stream: str) -> str:
    """Short layer prefix of a stream."""
    return CODES.get(stream, stream)


def temporal_tokens(x: Tensor) -> Tensor:
    """`(N, M, T, V, C)` to `(N, T, M*V*C)`: one token a frame; a view of what the samplers make, not a copy."""
    return x.transpose(1, 2).flatten(2)


def spatial_tokens(x: Tensor) -> Tensor:
    """`(N, M, T, V, C)` to `(N, M*V, T*C)`: one token a joint and person, its whole trajectory."""
    return x.transpose(2, 3).flatten(3).flatten(1, 2)


class StreamEmbedding(nn.Module):
    """Two MLPs that embed the temporal and the spatial tokens of one stream.

    Args:
        temporal: width of a temporal token, M*V*C.
        spatial: width of a spatial token, T*C.
        width: embedding width d.
    """

    def __init__(self, temporal: int, spatial: int, width: int) -> None:
        super().__init__()
        self.t_embedding = self._mlp(temporal, width)
        self.s_embedding = self._mlp(spatial, width)

    @staticmethod
    def _mlp(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU(inplace=True), nn.Linear(width, width)
        )

    def forward(self, inputs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Each `(N, M, T, V, C)` to temporal `(N, T, d)` and spatial `(N, M*V, d)` embeddings; all in one pass."""
        counts = [len(x) for x in inputs]
        t = self.t_embedding(_joined([temporal_tokens(x) for x in inputs]))
        s = self.s_embedding(_joined([spatial_tokens(x) for x in inputs]))
        return list(zip(t.split(counts), s.split(counts), strict=True))


class Fusion(nn.Module):
    """Mean of the present streams' embeddings, then a bias-free projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.t_fusion = nn.Sequential(nn.Linear(width, width, bias=False))
        self.s_fusion = nn.Sequential(nn.Linear(width, width, bias=False))

    def forward(self, embedded: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Embeddings `(N, T, d)` and `(N, M*V, d)` of two or more streams to one pair of the same shapes."""
        t, s = (_mean(tokens) for tokens in zip(*embedded, strict=True))
        return self.t_fusion(t), self.s_fusion(s)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


def _mean(tokens: Sequence[Tensor]) -> Tensor:
    total = tokens[0]
    for other in tokens[1:]:
        total = total + other
    return total / len(tokens)


class ModalityAgnosticEncoder(nn.Module):
    """A temporal and a spatial transformer, each max-pooled over its tokens; shared by all streams and their fusion.

    Args:
        width: token width d.
        depth: layers of each transformer.
        num_heads: attention heads.
        hidden: feed-forward width.
        positions: rows of the saved temporal position table.
        tokens: number of spatial tokens, M*V.
        joint_code: what tells spatial tokens apart; see :class:`UmURLEncoder`.
    """

    def __init__(
        self, width: int, depth: int, num_heads: int, hidden: int, positions: int, tokens: int, joint_code: str
    ) -> None:
        super().__init__()
        self.pe = PositionTable(width, positions)
        self.t_tr = Transformer(width, depth, num_heads, hidden)
        self.s_tr = Transformer(width, depth, num_heads, hidden)
        if joint_code == "learned":
            self.joint_code = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        elif joint_code == "sinusoidal":
            self.register_buffer("joint_code", sinusoids(0, tokens, width)[None], persistent=False)
        elif joint_code != "none":
            raise ValueError(f"joint_code must be none, learned or sinusoidal, got {joint_code!r}")
        self.has_joint_code = joint_code != "none"

    def forward(self, t: Tensor, s: Tensor, keep: Tensor | None = None) -> Tensor:
        """Temporal `(N, T, d)` and spatial `(N, S, d)` tokens to `(N, 2d)`, temporal half first.

        `keep` `(N, S)` bool leaves the other spatial tokens out of attention and pooling.
        """
        if self.has_joint_code:
            s = s + self.joint_code
        t, s = self.t_tr(self.pe(t)), self.s_tr(s, keep)
        if keep is not None:
            s = s.masked_fill(~keep[..., None], -math.inf)
        return torch.cat([t.amax(1), s.amax(1)], -1)


class UmURLEncoder(Encoder):
    """UmURL's encoder for any joint layout, person count, clip length and set of streams.

    Args:
        layout: name, mapping or :class:`Layout` of the skeleton; only its number of joints matters here.
        persons: person slots M.
        frames: clip length T; it fixes the width of a spatial token.
        channels: channels C of each joint.
        streams: streams that get an embedding.
        width: hidden size d; the feature is 2d wide.
        depth: transformer layers.
        num_heads: attention heads.
        hidden: feed-forward width, d where None.
        positions: rows of the saved position table; longer clips extend it on demand.
        joint_code: `none` (published: the spatial half cannot tell joints apart but by their trajectory), `learned`
            or `sinusoidal`.
        mask_absent: leave joints that were never observed in a clip out of spatial attention and pooling; the
            published model encodes them as zeros.
    """

    compiles: ClassVar[tuple[str, ...]] = ("forward_many",)

    def __init__(
        self,
        layout: str | Mapping[str, Any] | Layout,
        persons: int = 2,
        frames: int = 64,
        channels: int = 3,
        streams: Sequence[str] = ("joint", "bone", "motion"),
        width: int = 1024,
        depth: int = 1,
        num_heads: int = 1,
        hidden: int | None = None,
        positions: int = 200,
        joint_code: Literal["none", "learned", "sinusoidal"] = "none",
        mask_absent: bool = False,
    ) -> None:
        super().__init__()
        joints = (layout if isinstance(layout, Layout) else get_layout(layout)).num_joints
        self.streams = tuple(streams)
        self.persons, self.frames, self.joints, self.channels = persons, frames, joints, channels
        self.width, self.depth, self.num_heads, self.hidden = width, depth, num_heads, hidden or width
        self.mask_absent, self.num_features = mask_absent, 2 * width
        for stream in self.streams:
            embedding = StreamEmbedding(persons * joints * channels, frames * channels, width)
            self.add_module(f"{code_of(stream)}_emb", embedding)
        if len(self.streams) > 1:  # a parameter that no loss reaches stops training on several processes
            self.mm_fusion = Fusion(width)
        self.ma_encoder = ModalityAgnosticEncoder(
            width, depth, num_heads, self.hidden, positions, persons * joints, joint_code
        )

    def embedding(self, stream: str) -> nn.Module:
        """The embedding layers of a stream."""
        return self.get_submodule(f"{code_of(stream)}_emb")

    def forward_features(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Feature of a single stream, or of the fusion of several (their order does not matter); see the base class."""
        return self.forward_many([streams], [mask])[0]

    def forward_many(
        self, inputs: Sequence[Mapping[str, Tensor]], masks: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """Features `(N_i, 2d)` of several inputs in one pass of the shared encoder.

        Nothing in the network mixes rows of a batch, so joining inputs along the batch changes no result; it makes
        fewer and larger matrix products.
        """
        embedded: list[list[tuple[Tensor, Tensor]]] = [[] for _ in inputs]
        for stream in dict.fromkeys(name for streams in inputs for name in streams):
            of = [number for number, streams in enumerate(inputs) if stream in streams]
            for number in of:
                self._check(stream, inputs[number][stream])
            for number, pair in zip(of, self.embedding(stream)([inputs[i][stream] for i in of]), strict=True):
                embedded[number].append(pair)
        pairs = [self.mm_fusion(found) if len(found) > 1 else found[0] for found in embedded]
        t, s = (_joined(tokens) for tokens in zip(*pairs, strict=True))
        return list(self.ma_encoder(t, s, self._keep(inputs, masks)).split([len(pair[0]) for pair in pairs]))

    def _check(self, stream: str, x: Tensor) -> None:
        if stream not in self.streams:
            raise ValueError(f"stream {stream!r} is not one of this encoder's: {', '.join(self.streams)}")
        expected = (self.persons, self.frames, self.joints, self.channels)
        if x.shape[1:] != expected:
            raise ValueError(
                f"stream {stream!r} has (M, T, V, C) = {tuple(x.shape[1:])}, the encoder was built for {expected}"
            )

    def _keep(self, inputs: Sequence[Mapping[str, Tensor]], masks: Sequence[Tensor | None] | None) -> Tensor | None:
        if not self.mask_absent or masks is None or all(mask is None for mask in masks):
            return None
        rows = []
        for x, mask in zip(inputs, masks, strict=True):
            view = next(iter(x.values()))
            seen = view.new_ones(view.shape[:4], dtype=torch.bool) if mask is None else mask
            rows.append(seen.any(2).flatten(1))
        keep = torch.cat(rows)
        return keep | ~keep.any(1, keepdim=True)  # a clip without any joint attends to its zeros instead of to nothing

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Embeddings and fusion are the stem, layers of both transformers are blocks."""
        return {
            "stem": r"^(?:\w+_emb|mm_fusion|ma_encoder\.pe|ma_encoder\.joint_code)",
            "blocks": r"^ma_encoder\.[ts]_tr\.layers\.(\d+)",
        }

    def no_weight_decay(self) -> set[str]:
        """The learned joint code, where there is one."""
        return {"ma_encoder.joint_code"} if "ma_encoder.joint_code" in dict(self.named_parameters()) else set()
