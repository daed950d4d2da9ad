"""Token encoders written down as in their papers, to measure the library's own forms against.

Every person slot is encoded, whoever is there; attention matrices exist, and importance is read off them; all rows are
computed at once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from skelact.backbones.attention import Attention, Mlp, drop_path
from skelact.backbones.base import Encoder
from skelact.backbones.dstformer import DSTformer
from skelact.backbones.plain_transformer import PlainTransformer
from skelact.backbones.tokens import TokenEncoder


class StraightforwardTokens(nn.Module):
    """What the token encoders have in common.

    Args:
        encoder: whose layers and weights are copied; absent people must be left out of its mean, and unobserved joints
            be read as they come.
    """

    def __init__(self, encoder: TokenEncoder) -> None:
        super().__init__()
        if encoder.absent != "exclude" or encoder.unobserved != "zero":
            raise TypeError("the straightforward form is of token encoders with absent=exclude and unobserved=zero")
        self.net = copy.deepcopy(encoder)

    def forward(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """The stream `(N, M, T, V, C)` and its mask `(N, M, T, V)` to `(N, V * R)`."""
        (x,) = streams.values()
        tokens, _ = self.represent(x)
        return self.pool(tokens, self.present(x, mask))

    def represent(self, x: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode every slot.

        Args:
            x: `(N, M, T, V, C)`.
            masked: `(N, M, T, V)` bool, tokens that become the mask token.

        Returns:
            Tokens `(N, M, T, V, R)`, and the attention that each joint receives `(N, M, T, V)`, without gradient.
        """
        h = self.net.joints_embed(x)
        if masked is not None:
            h = torch.where(masked[..., None], self.net.mask_token, h)
        tokens, received = self.encode(h.flatten(0, 1))
        return tokens.unflatten(0, x.shape[:2]), received.detach().view(x.shape[:4])

    def encode(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded joints `(B, T, V, D)` to tokens `(B, T, V, R)` and what each receives, `(B, T, V)` in order."""
        raise TypeError(f"{type(self).__name__} does not say how it encodes")

    @staticmethod
    def present(x: Tensor, mask: Tensor | None) -> Tensor:
        """Who is there, `(N, M)` bool: whoever has an observed joint; in a clip with nobody the first slot."""
        there = ((x != 0).any(-1) if mask is None else mask).any(-1).any(-1)
        nobody = ~there.any(1)
        return torch.cat([there[:, :1] | nobody[:, None], there[:, 1:]], 1)

    def pool(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Means over frames and over people who are there: `(N, M, T, V, R)` to `(N, V * R)`."""
        people = self.net.dropout(tokens).mean(2).flatten(2)
        share = present.to(people)[..., None]
        return (people * share).sum(1) / share.sum(1)


class StraightforwardDSTformer(StraightforwardTokens):
    """The same network as a :class:`DSTformer` with adaptive fusion, with a copy of its weights."""

    net: DSTformer

    def encode(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class; importance is of the spatial stage of the last S-T block."""
        h = h + self.net.pos_embed + self.net.temp_embed[:, : h.shape[1]]
        received = h.new_zeros(())
        for st, ts, fusion in zip(self.net.blocks_st, self.net.blocks_ts, self.net.ts_attn, strict=True):
            a, received = self.block(st, h, "st")
            b, _ = self.block(ts, h, "ts")
            share = fusion(torch.cat([a, b], -1)).softmax(-1)
            h = a * share[..., :1] + b * share[..., 1:]
        return torch.tanh(self.net.pre_logits["fc"](self.net.norm(h))), received

    def block(self, block: nn.Module, x: Tensor, order: str) -> tuple[Tensor, Tensor]:
        """The two stages of a block on `(B, T, V, D)`, and what the joints receive in the spatial one."""
        received, drop = x, cast(float, block.drop)
        for axis in order:
            tokens = block.get_submodule(f"norm1_{axis}")(x)
            out, matrix = attention(block.get_submodule(f"attn_{axis}"), tokens, axis)
            if axis == "s":
                received = matrix.detach().sum(-2).mean(1)
            x = x + drop_path(out, drop, self.training)
            tokens = block.get_submodule(f"norm2_{axis}")(x)
            x = x + drop_path(mlp(block.get_submodule(f"mlp_{axis}"), tokens), drop, self.training)
        return x, received


class StraightforwardPlainTransformer(StraightforwardTokens):
    """The same network as a :class:`PlainTransformer` with its residuals, with a copy of its weights."""

    net: PlainTransformer

    def encode(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class; importance is of the decoder's last block."""
        net, t, v = self.net, h.shape[1], h.shape[2]
        received = h.new_zeros(())
        h = (h + net.pos_embed + net.temp_embed[:, :t]).flatten(1, 2)
        for block in net.blocks:
            h, _ = self.block(block, h)
        h = net.decoder_embed(net.norm(h)).unflatten(1, (t, v))
        h = (h + net.decoder_pos_embed + net.decoder_temp_embed[:, :t]).flatten(1, 2)
        for block in net.decoder_blocks:
            h, received = self.block(block, h)
        return torch.tanh(net.pre_logits["fc"](net.decoder_norm(h))).unflatten(1, (t, v)), received

    @staticmethod
    def block(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attention and MLP on `(B, S, D)`, and what the tokens receive."""
        out, matrix = attention(block.get_submodule("attn"), block.get_submodule("norm1")(x)[:, None], "s")
        x = x + out[:, 0]
        return x + mlp(block.get_submodule("mlp"), block.get_submodule("norm2")(x)), matrix.detach().sum(-2).mean(1)


def attention(layer: nn.Module, x: Tensor, axis: str) -> tuple[Tensor, Tensor]:
    """Soft-max attention over joints (`s`) or frames (`t`) of `(B, T, V, D)`, and its matrices `(B, H, T, V, V)`."""
    assert isinstance(layer, Attention)
    b, t, v, d = x.shape
    q, k, value = layer.qkv(x).view(b, t, v, 3, layer.num_heads, -1).permute(3, 0, 4, 1, 2, 5)  # (B, H, T, V, D/H)
    if axis == "t":
        q, k, value = q.transpose(2, 3), k.transpose(2, 3), value.transpose(2, 3)
    matrix = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1)
    out = matrix @ value
    out = out.transpose(2, 3) if axis == "t" else out
    return layer.proj(out.permute(0, 2, 3, 1, 4).reshape(b, t, v, d)), matrix


def mlp(layer: nn.Module, x: Tensor) -> Tensor:
    """Two linear layers with a GELU between."""
    assert isinstance(layer, Mlp)
    return layer.fc2(nn.functional.gelu(layer.fc1(x)))


def token_form(encoder: Encoder) -> StraightforwardTokens:
    """The straightforward form of a token encoder.

    Raises:
        TypeError: another encoder.
    """
    if isinstance(encoder, DSTformer) and encoder.adaptive_fusion:
        return StraightforwardDSTformer(encoder)
    if isinstance(encoder, PlainTransformer) and not any(block.legacy_residual for block in encoder.blocks):
        return StraightforwardPlainTransformer(encoder)
    raise TypeError(f"there is no straightforward form of this {type(encoder).__name__}")
