"""Loss of ActionMAE (Woo et al., AAAI 2023): dropped tokens against their reconstructions."""

from __future__ import annotations

import torch
from torch import Tensor

from skelact.objectives.ranks import all_reduce, at_least_single


def reconstruction_loss(
    decoded: Tensor, tokens: Tensor, dropped: Tensor, normalise: bool = True, detach: bool = False
) -> Tensor:
    """Mean squared error of reconstructed tokens, over the dropped ones of all ranks' clips.

    As with :func:`skelact.objectives.global_mean`, gradients averaged over ranks are those of one process.

    Args:
        decoded: `(B, M, D)`, a prediction for each token.
        tokens: `(B, M, D)`, the tokens before any was dropped.
        dropped: `(B, M)` bool, those that count: there, and not shown to the network.
        normalise: compare with tokens of zero mean and unit (unbiased) variance.
        detach: no gradient into `tokens`; the reference lets it through.

    Returns:
        `()`, 0 where no rank dropped any.
    """
    decoded, target = at_least_single(decoded), at_least_single(tokens.detach() if detach else tokens)
    if normalise:
        variance, mean = torch.var_mean(target, -1, keepdim=True)
        target = (target - mean) * (variance + 1e-6).rsqrt()
    error = (decoded - target).square().mean(-1).where(dropped, 0)
    total, count = all_reduce(torch.stack([error.sum(), dropped.sum().to(error)])).unbind()
    return total / count.clamp_min(1)
