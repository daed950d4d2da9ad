"""A plain transformer over all joints of all frames: MaskCLR's `Transformer` backbone (`MAMPformer`, CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from skelact.backbones.attention import Attention, Mlp
from skelact.backbones.released import layers, shape_of
from skelact.backbones.tokens import TokenEncoder
from skelact.skeleton.layouts import Layout


class Block(nn.Module):
    """Attention and MLP, pre-norm with residuals.

    Args:
        width: token width D.
        num_heads: heads.
        hidden: inner width of the MLP.
        legacy_residual: the released code adds attention to itself where its input was meant: `2 attention(norm(x))`.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, legacy_residual: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, num_heads), Mlp(width, hidden)
        self.legacy_residual = legacy_residual

    def forward(self, x: Tensor, importance: bool = False) -> tuple[Tensor, Tensor | None]:
        """Tokens `(B, S, D)` to the same shape; with `importance`, the attention that each receives `(B, S)`."""
        out, received = self.attn(self.norm1(x)[:, :, None], importance)
        x = 2 * out[:, :, 0] if self.legacy_residual else x + out[:, :, 0]
        return x + self.mlp(self.norm2(x)), None if received is None else received[:, :, 0]


class PlainTransformer(TokenEncoder):
    """Every token of a person's clip attends to every other: T * V of them, 4131 in 243 frames of 17 joints.

    Args:
        layout: see :class:`TokenEncoder`.
        channels: see :class:`TokenEncoder`.
        streams: see :class:`TokenEncoder`.
        width: width D of the tokens inside.
        token_features: width R of the tokens that leave, and of the decoder.
        depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        num_heads: heads.
        mlp_ratio: inner width of the MLPs over D.
        max_frames: rows of the tables of frame positions; the longest clip.
        legacy_residual: see :class:`Block`.
        dropout: see :class:`TokenEncoder`.
        absent: see :class:`TokenEncoder`.
        pack: see :class:`TokenEncoder`.
        unobserved: see :class:`TokenEncoder`.
        pretrained: file of released weights to begin with; see :meth:`TokenEncoder.load_released`.
    """

    LEFT_OUT: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("decoder_pred.weight", "decoder_pred.bias"), "prediction of coordinates, of another training"
    )

    def __init__(
        self,
        layout: str | Mapping[str, Any] | Layout,
        channels: int = 3,
        streams: Sequence[str] = ("joint",),
        width: int = 512,
        token_features: int = 512,
        depth: int = 3,
        decoder_depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        max_frames: int = 243,
        legacy_residual: bool = False,
        dropout: float = 0.0,
        absent: Literal["exclude", "count"] = "exclude",
        pack: Literal["auto", "eval", "always", "never"] = "auto",
        unobserved: Literal["zero", "token"] = "zero",
        pretrained: str | None = None,
    ) -> None:
        super().__init__(
            layout, channels, streams, width, token_features, max_frames, dropout, absent, pack, unobserved
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, self.joints, width))
        self.temp_embed = nn.Parameter(torch.zeros(1, max_frames, 1, width))
        self.blocks = nn.ModuleList(
            Block(width, num_heads, int(width * mlp_ratio), legacy_residual) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.decoder_embed = nn.Linear(width, token_features)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1, self.joints, token_features))
        self.decoder_temp_embed = nn.Parameter(torch.zeros(1, max_frames, 1, token_features))
        self.decoder_blocks = nn.ModuleList(
            Block(token_features, num_heads, int(token_features * mlp_ratio), legacy_residual)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(token_features)
        self.pre_logits = nn.ModuleDict({"fc": nn.Linear(token_features, token_features)})
        self.reset_parameters()
        if pretrained is not None:
            self.load_released(pretrained)

    @staticmethod
    def sizes(state: Mapping[str, Tensor], origin: str) -> dict[str, Any]:
        """See :class:`TokenEncoder`."""
        width, channels = shape_of(state, "joints_embed.weight", 2, origin)
        return {
            "channels": channels,
            "width": width,
            "token_features": shape_of(state, "decoder_embed.weight", 2, origin)[0],
            "depth": layers(state, "blocks"),
            "decoder_depth": layers(state, "decoder_blocks"),
            "mlp_ratio": shape_of(state, "blocks.0.mlp.fc1.weight", 2, origin)[0] / width,
            "max_frames": shape_of(state, "temp_embed", 4, origin)[1],
        }

    def reset_parameters(self) -> None:
        """Linear layers Xavier-uniform with biases 0, tables N(0, 0.02^2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name in sorted(self.no_weight_decay()):
            nn.init.trunc_normal_(self.get_parameter(name), std=0.02)

    def represent(
        self, x: Tensor, masked: Tensor | None = None, importance: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See :class:`TokenEncoder`. Importance is the attention received in the last block of the decoder."""
        t = x.shape[1]
        h = (self.embed(x, masked) + self.pos_embed + self.temp_embed[:, :t]).flatten(1, 2)
        for block in self.blocks:
            h, _ = block(h)
        h = self.decoder_embed(self.norm(h)).unflatten(1, x.shape[1:3])
        h = (h + self.decoder_pos_embed + self.decoder_temp_embed[:, :t]).flatten(1, 2)
        received, last = None, len(self.decoder_blocks) - 1
        for i, block in enumerate(self.decoder_blocks):
            h, received = block(h, importance and i == last)
        out = torch.tanh(self.pre_logits["fc"](self.decoder_norm(h))).unflatten(1, x.shape[1:3])
        return out, None if received is None else received.view(x.shape[:3])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Embedding and tables are the stem; the decoder's blocks follow the encoder's."""
        return {
            "stem": r"^(?:joints_embed|pos_embed|temp_embed|mask_token)",
            "blocks": [
                (r"^blocks\.(\d+)", None),
                (r"^(?:norm|decoder_embed|decoder_pos_embed|decoder_temp_embed)", (10_000,)),
                (r"^decoder_blocks\.(\d+)", (10_001,)),
                (r"^(?:decoder_norm|pre_logits)", (99_999,)),
            ],
        }

    def no_weight_decay(self) -> set[str]:
        """The tables of positions and the mask token."""
        return {"pos_embed", "temp_embed", "mask_token", "decoder_pos_embed", "decoder_temp_embed"}
