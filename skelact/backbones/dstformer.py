"""DSTformer (MotionBERT, Zhu et al., ICCV 2023), with the mask token and importance of MaskCLR (CVPR 2024).

Parameter names are those of the released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skelact.backbones.attention import Attention, Mlp, drop_path
from skelact.backbones.released import layers, shape_of
from skelact.backbones.tokens import TokenEncoder
from skelact.skeleton.layouts import Layout


class Block(nn.Module):
    """A spatial and a temporal stage, each attention and MLP, pre-norm with residuals.

    Args:
        width: token width D.
        num_heads: heads.
        hidden: inner width of the MLPs.
        order: `st` (spatial stage first) or `ts`.
        drop: rate of stochastic depth, for each frame.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, order: Literal["st", "ts"], drop: float) -> None:
        super().__init__()
        for axis in "st":
            self.add_module(f"norm1_{axis}", nn.LayerNorm(width, eps=1e-6))
            self.add_module(f"attn_{axis}", Attention(width, num_heads))
            self.add_module(f"norm2_{axis}", nn.LayerNorm(width, eps=1e-6))
            self.add_module(f"mlp_{axis}", Mlp(width, hidden))
        self.order, self.drop = order, drop

    def forward(self, x: Tensor, importance: bool = False) -> tuple[Tensor, Tensor | None]:
        """Tokens `(B, T, V, D)` to the same shape; with `importance`, attention received in the spatial stage."""
        seen = None
        for axis in self.order:
            attn, mlp = self.get_submodule(f"attn_{axis}"), self.get_submodule(f"mlp_{axis}")
            norm1, norm2 = self.get_submodule(f"norm1_{axis}"), self.get_submodule(f"norm2_{axis}")
            tokens = norm1(x)
            if axis == "s":  # a sequence of joints in each frame
                out, received = attn(tokens.flatten(0, 1)[:, :, None], importance)
                out, seen = out.view_as(x), received if received is None else received.view(x.shape[:3])
            else:  # a sequence of frames for each joint
                out, _ = attn(tokens)
            x = x + drop_path(out, self.drop, self.training)
            x = x + drop_path(mlp(norm2(x)), self.drop, self.training)
        return x, seen


class DSTformer(TokenEncoder):
    """Two streams of spatial and temporal attention in both orders, joined by learned shares after each block.

    Args:
        layout: see :class:`TokenEncoder`.
        channels: see :class:`TokenEncoder`.
        streams: see :class:`TokenEncoder`.
        width: width D of the tokens inside: 512, or 256 (Lite).
        token_features: width R of the tokens that leave.
        depth: blocks in each of the two streams.
        num_heads: heads.
        mlp_ratio: inner width of the MLPs over D: 2, or 4 (Lite).
        max_frames: rows of the table of frame positions; the longest clip.
        adaptive_fusion: learn the streams' shares for each token; otherwise both have one half.
        drop_path: stochastic depth of the last block, for each frame; it grows linearly from 0 in the first.
        dropout: see :class:`TokenEncoder`.
        absent: see :class:`TokenEncoder`.
        pack: see :class:`TokenEncoder`.
        unobserved: see :class:`TokenEncoder`.
        pretrained: file of released weights to begin with; see :meth:`TokenEncoder.load_released`.
    """

    LEFT_OUT: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("head.weight", "head.bias"), "3D-pose head"),
        **dict.fromkeys(("proj_head.weight", "proj_head.bias"), "projection that nothing uses"),
    }

    def __init__(
        self,
        layout: str | Mapping[str, Any] | Layout,
        channels: int = 3,
        streams: Sequence[str] = ("joint",),
        width: int = 512,
        token_features: int = 512,
        depth: int = 5,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        max_frames: int = 243,
        adaptive_fusion: bool = True,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        absent: Literal["exclude", "count"] = "exclude",
        pack: Literal["auto", "eval", "always", "never"] = "auto",
        unobserved: Literal["zero", "token"] = "zero",
        pretrained: str | None = None,
    ) -> None:
        super().__init__(
            layout, channels, streams, width, token_features, max_frames, dropout, absent, pack, unobserved
        )
        self.adaptive_fusion = adaptive_fusion
        self.pos_embed = nn.Parameter(torch.zeros(1, self.joints, width))
        self.temp_embed = nn.Parameter(torch.zeros(1, max_frames, 1, width))
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        hidden = int(width * mlp_ratio)
        self.blocks_st = nn.ModuleList(Block(width, num_heads, hidden, "st", rate) for rate in rates)
        self.blocks_ts = nn.ModuleList(Block(width, num_heads, hidden, "ts", rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pre_logits = nn.ModuleDict({"fc": nn.Linear(width, token_features)})
        if adaptive_fusion:
            self.ts_attn = nn.ModuleList(nn.Linear(2 * width, 2) for _ in rates)
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
            "token_features": shape_of(state, "pre_logits.fc.weight", 2, origin)[0],
            "depth": layers(state, "blocks_st"),
            "mlp_ratio": shape_of(state, "blocks_st.0.mlp_s.fc1.weight", 2, origin)[0] / width,
            "max_frames": shape_of(state, "temp_embed", 4, origin)[1],
            "adaptive_fusion": "ts_attn.0.weight" in state,
        }

    def reset_parameters(self) -> None:
        """Linear layers and tables N(0, 0.02^2) cut at +-2 (not at two standard deviations), biases 0; equal shares."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name in sorted(self.no_weight_decay()):
            nn.init.trunc_normal_(self.get_parameter(name), std=0.02)
        if self.adaptive_fusion:
            for name, value in self.ts_attn.named_parameters():
                nn.init.constant_(value, 0.5 if name.endswith("bias") else 0.0)

    def represent(
        self, x: Tensor, masked: Tensor | None = None, importance: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See :class:`TokenEncoder`. Importance is what the spatial stage of the last S-T block pays attention to."""
        h = self.embed(x, masked) + self.pos_embed + self.temp_embed[:, : x.shape[1]]
        seen, last = None, len(self.blocks_st) - 1
        for i, (st, ts) in enumerate(zip(self.blocks_st, self.blocks_ts, strict=True)):
            a, received = st(h, importance and i == last)
            seen = received if i == last else None
            h, _ = ts(h)
            h = torch.lerp(h, a, self.share(i, a, h)) if self.adaptive_fusion else (a + h) / 2
        return torch.tanh(self.pre_logits["fc"](self.norm(h))), seen

    def share(self, depth: int, a: Tensor, b: Tensor) -> Tensor:
        """Share of the S-T stream `a` `(..., D)` beside the T-S stream `b`, `(..., 1)`: a soft-max of two numbers."""
        layer = self.ts_attn.get_submodule(str(depth))  # whose weights are no parameters while FSDP gathers them
        weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
        of_a, of_b = (weight[:1] - weight[1:]).chunk(2, 1)
        return (F.linear(a, of_a, bias[:1] - bias[1:]) + F.linear(b, of_b)).sigmoid().to(b.dtype)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Embedding and tables are the stem; blocks of both streams come with their fusion; the output is last."""
        return {
            "stem": r"^(?:joints_embed|pos_embed|temp_embed|mask_token)",
            "blocks": [(r"^(?:blocks_st|blocks_ts|ts_attn)\.(\d+)", None), (r"^(?:norm|pre_logits)\.", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """The tables of positions and the mask token."""
        return {"pos_embed", "temp_embed", "mask_token"}
