"""The auto-encoder of ActionMAE (Woo et al., AAAI 2023): tokens of absent modalities from those of present ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from skelact.backbones.attention import PreNormTransformer, xavier_linear
from skelact.errors import SkelactError


class TokenAutoencoder(nn.Module):
    """Memory tokens and surviving tokens through an encoder, these and mask tokens through a decoder.

    Survivors are told apart by key masks, so that one pass serves a batch in which every clip lacks other modalities.
    It equals gathering each clip's survivors.

    Args:
        width: token width D.
        modalities: M.
        num_memory: learned tokens m that the encoder sees beside the survivors.
        depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        num_heads: heads.
        mlp_ratio: inner width of the MLPs over D.
        modality_embedding: add a learned vector of each modality to what encoder and decoder see in its slot. Without,
            as released, all missing modalities get the same reconstruction.
        mask_token: one for all modalities (`shared`), or one each (`per_modality`).

    Raises:
        SkelactError: `mask_token` is neither.
    """

    def __init__(
        self,
        width: int,
        modalities: int,
        num_memory: int = 4,
        depth: int = 2,
        decoder_depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        modality_embedding: bool = True,
        mask_token: Literal["shared", "per_modality"] = "shared",
    ) -> None:
        super().__init__()
        if mask_token not in ("shared", "per_modality"):
            raise SkelactError(f"mask_token={mask_token} is neither shared nor per_modality")
        self.width, self.modalities, self.num_memory = width, modalities, num_memory
        self.mem_token = nn.Parameter(torch.empty(1, num_memory, width)) if num_memory else None
        self.mask_token = nn.Parameter(torch.empty(1, modalities if mask_token == "per_modality" else 1, width))
        self.modality_embedding = nn.Parameter(torch.empty(1, modalities, width)) if modality_embedding else None
        self.encoder = PreNormTransformer(width, depth, num_heads, mlp_ratio)
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder = PreNormTransformer(width, decoder_depth, num_heads, mlp_ratio)
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = nn.Linear(width, width)
        xavier_linear(self.decoder_pred)
        for token in (self.mem_token, self.mask_token, self.modality_embedding):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        kept: Tensor,
        order: Tensor | None = None,
        slots: Literal["own", "packed"] = "own",
    ) -> tuple[Tensor, Tensor]:
        """Encode survivors and predict a token for every modality.

        Args:
            tokens: `(B, M, D)`, one slot a modality; what stands in those that are not kept does not matter.
            kept: `(B, M)` bool, survivors.
            order: `(B, M)` int64: the encoder sees slot `order[:, i]` in place i (training of the reference shuffles).
                It makes no difference but to the order of what the encoder returns.
            slots: `own`; or `packed`, the evaluation of the reference: survivors are moved to the first places and stay
                there, so that the decoder takes them for other modalities.

        Returns:
            encoded `(B, m + M, D)`: memory, then the places of the encoder, meaningless where nothing was kept;
            decoded `(B, M, D)`: predictions, in places for `packed`, else by modality.
        """
        if slots == "packed":
            order = (~kept).long().argsort(dim=1, stable=True)
        b, m = len(tokens), self.num_memory
        code: Tensor | float = 0.0 if self.modality_embedding is None else self.modality_embedding
        x = (tokens + code).masked_fill(~kept[..., None], 0)
        seen = kept
        if order is not None:
            x, seen = _take(x, order), kept.gather(1, order)
        keep = nn.functional.pad(seen, (m, 0), value=True)
        if self.mem_token is None:
            keep = keep | ~keep.any(1, keepdim=True)  # a clip without anything attends to zeros instead of to nothing
        else:
            x = torch.cat([self.mem_token.expand(b, -1, -1), x], 1)
        encoded = self.encoder_norm(self.encoder(x, keep))

        memory, survivors = encoded[:, :m], encoded[:, m:]
        if slots == "packed":
            kept = seen
        elif order is not None:
            survivors = _take(survivors, order.argsort(1))
        y = torch.where(kept[..., None], survivors, self.mask_token.to(survivors.dtype)) + code
        decoded = self.decoder_norm(self.decoder(torch.cat([memory, y], 1)))
        return encoded, self.decoder_pred(decoded[:, m:])

    def choose(
        self,
        tokens: Tensor,
        kept: Tensor,
        encoded: Tensor,
        decoded: Tensor,
        order: Tensor | None = None,
        fusion_input: Literal["bypass", "decoded"] = "bypass",
        full_path: Literal["tokens", "memory"] = "tokens",
    ) -> Tensor:
        """What the fusion head sees, `(B, M, D)`.

        Args:
            tokens: as given to :meth:`forward`.
            kept: likewise.
            encoded: as returned by it.
            decoded: likewise.
            order: as given to it.
            fusion_input: survivors go around the auto-encoder (`bypass`, the paper), or are what the decoder makes of
                them (`decoded`, as released).
            full_path: where a clip has all M modalities: its `tokens`, the original ones or, with `decoded`, what the
                encoder made of them; or the first M outputs of the encoder, memory first (`memory`, as released).
        """
        chosen = torch.where(kept[..., None], tokens, decoded) if fusion_input == "bypass" else decoded
        if full_path == "memory":
            whole = encoded[:, : self.modalities]
        elif fusion_input == "bypass":
            return chosen
        else:
            whole = encoded[:, self.num_memory :]
            whole = whole if order is None else _take(whole, order.argsort(1))
        return torch.where(kept.all(1)[:, None, None], whole, chosen)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Rows of `(B, M, D)` in another order `(B, M)`."""
    return x.gather(1, order[..., None].expand_as(x))
