"""From the features of a clip's frames to one token (ActionMAE; Woo et al., AAAI 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skelact.backbones.attention import PreNormTransformer
from skelact.backbones.transformer import sinusoids_at


class TemporalEncoder(nn.Module):
    """A transformer over a class token and frames; the token of the clip is the class token's normalised output.

    Args:
        width: token width D.
        depth: blocks.
        num_heads: heads.
        mlp_ratio: inner width of the MLPs over D.
        drop_path: stochastic depth of every block, for each clip.
        position: add sinusoids to the frames. The reference computes them and leaves them out.
    """

    def __init__(
        self,
        width: int,
        depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        position: bool = True,
    ) -> None:
        super().__init__()
        self.position = position
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.transformer = PreNormTransformer(width, depth, num_heads, mlp_ratio, drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames `(n, T, D)` to tokens `(n, D)`; only those in `mask` `(n, T)` bool take part, None: all."""
        n, t, width = frames.shape
        if self.position:
            counted = torch.ones(1, t, device=frames.device) if mask is None else mask
            frames = frames + sinusoids_at(counted.cumsum(1), width)  # valid frames are counted, from 1
        keep = None
        if mask is not None:
            frames = frames.masked_fill(~mask[..., None], 0)
            keep = nn.functional.pad(mask, (1, 0), value=True)
        x = torch.cat([self.cls_token.expand(n, -1, -1), frames], 1)
        return self.norm(self.transformer(x, keep)[:, 0])
