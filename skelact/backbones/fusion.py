"""From the tokens of a clip's modalities to class scores (ActionMAE; Woo et al., AAAI 2023).

Tokens `(B, M, D)` have a slot for each modality. Those that are absent are left out, whatever stands in their slots,
and each clip may lack others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skelact.backbones.attention import PreNormTransformer, xavier_linear


class Fusion(nn.Module):
    """What fusion heads have in common.

    Args:
        width: token width D.
        modalities: M.
        num_classes: C.
    """

    def __init__(self, width: int, modalities: int, num_classes: int) -> None:
        super().__init__()
        self.width, self.modalities, self.num_classes = width, modalities, num_classes

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Class scores `(B, C)`.

        Args:
            tokens: `(B, M, D)`.
            present: `(B, M)` bool, the tokens that take part; None: all.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def unimodal(self, tokens: Tensor) -> Tensor | None:
        """Scores `(M, B, C)` of each token alone; None where the head has none such."""
        return None


class _Late(Fusion):
    """A linear classifier of each modality."""

    def __init__(self, width: int, modalities: int, num_classes: int) -> None:
        super().__init__(width, modalities, num_classes)
        self.heads = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(modalities))
        xavier_linear(self)

    def each(self, tokens: Tensor) -> Tensor:
        """`(M, B, C)`."""
        return torch.stack([head(token) for head, token in zip(self.heads, tokens.unbind(1), strict=True)])


class SumFusion(_Late):
    """`sum_m (W_m t_m + b_m)`; an absent modality adds nothing, its bias neither."""

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """See :class:`Fusion`."""
        return _sum(self.each(tokens), present)

    def unimodal(self, tokens: Tensor) -> Tensor:
        """`W_m t_m + b_m / M`, as released."""
        biases = torch.stack([head.bias for head in self.heads])[:, None]  # type: ignore[misc]
        return self.each(tokens) - biases * (1 - 1 / self.modalities)


class LateFusion(_Late):
    """Mean of the unimodal scores of those present."""

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """See :class:`Fusion`."""
        count = self.modalities if present is None else present.sum(1, keepdim=True).clamp_min(1)
        return _sum(self.each(tokens), present) / count

    def unimodal(self, tokens: Tensor) -> Tensor:
        """`W_m t_m + b_m`."""
        return self.each(tokens)


class ConcatFusion(Fusion):
    """`W [t_1; ...; t_M] + b`; absent tokens leave out their columns of W and their share of b."""

    def __init__(self, width: int, modalities: int, num_classes: int) -> None:
        super().__init__(width, modalities, num_classes)
        self.fc = nn.Linear(width * modalities, num_classes)
        xavier_linear(self)

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """See :class:`Fusion`."""
        if present is None:
            return self.fc(tokens.flatten(1))
        product = nn.functional.linear(tokens.masked_fill(~present[..., None], 0).flatten(1), self.fc.weight)
        return product + self.fc.bias * present.to(product).mean(1, keepdim=True)

    def unimodal(self, tokens: Tensor) -> Tensor:
        """`W[:, slice m] t_m + b / M`."""
        columns = self.fc.weight.unflatten(1, (self.modalities, self.width))
        return torch.einsum("bmd,cmd->mbc", tokens, columns) + self.fc.bias / self.modalities


class TransformerFusion(Fusion):
    """A transformer over a class token and the tokens of those present, and a linear layer on the class token.

    It tells modalities apart by their content alone: the order of the tokens does not matter.

    Args:
        width: see :class:`Fusion`.
        modalities: see :class:`Fusion`.
        num_classes: see :class:`Fusion`.
        depth: blocks.
        num_heads: heads.
        mlp_ratio: inner width of the MLPs over D.
    """

    def __init__(
        self,
        width: int,
        modalities: int,
        num_classes: int,
        depth: int = 4,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__(width, modalities, num_classes)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))  # not drawn: the reference leaves this one at zero
        self.transformer = PreNormTransformer(width, depth, num_heads, mlp_ratio)
        self.fc = nn.Linear(width, num_classes)
        xavier_linear(self.fc)

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """See :class:`Fusion`."""
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        keep = None
        if present is not None:
            keep = nn.functional.pad(present, (1, 0), value=True)
            x = x.masked_fill(~keep[..., None], 0)
        return self.fc(self.transformer(x, keep)[:, 0])


def _sum(scores: Tensor, present: Tensor | None) -> Tensor:
    """Sum `(B, C)` of scores `(M, B, C)` over those present."""
    return (scores if present is None else scores.where(present.T[..., None], 0)).sum(0)
