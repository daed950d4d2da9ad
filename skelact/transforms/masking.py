"""Masks of joints chosen by how much attention they receive (MaskCLR, Abdelfattah, Hassan and Alahi, CVPR 2024).

Functions of importances and uniform numbers, nothing else. Shapes: N clips, M persons, T frames, V joints.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skelact.errors import SkelactError

GROUPS = ("sequence", "joint_batch", "frame", "block")
BATCH_GROUPS = ("joint_batch", "block")  # what a clip loses depends on the whole batch
BLOCK = 27  # frames that share the mask of the middle one


def agpm(
    importance: Tensor,
    uniform: Tensor,
    ratio: float = 0.5,
    temperature: float = 0.75,
    group: str = "sequence",
    present: Tensor | None = None,
) -> Tensor:
    """Attention-guided probabilistic masking: draw joints without replacement, important ones more likely.

    Among the n joints of a group, p = softmax(a / (temperature * max a)), and log p plus Gumbel noise is a joint's
    score; the floor(n (1 - ratio)) smallest are kept.

    Args:
        importance: `(N, M, T, V)`, at least 0; for `block` shares of a frame's attention.
        uniform: `(N, M, T, V)` on [0, 1).
        ratio: share that is masked.
        temperature: the smaller, the more do importances decide.
        group: `sequence` (a person's whole clip), `frame` (a person's frame), `joint_batch` (a joint in all clips,
            persons and frames, as the second release does it), or `block` (p within a frame, the smallest of the whole
            batch kept, and each 27 frames masked like the middle one: a variant in that code that nothing reaches).
        present: `(N, M)` bool; persons who are not there are not masked and do not count. None: all count.

    Returns:
        `(N, M, T, V)` bool, True where masked.

    Raises:
        SkelactError: no such group, or frames that do not fill blocks.
    """
    if group not in GROUPS:
        raise SkelactError(f"group={group} is none of {', '.join(GROUPS)}")
    shape, whole = importance.shape, group in BATCH_GROUPS
    if group == "block" and shape[2] % BLOCK:
        raise SkelactError(
            f"group=block masks blocks of {BLOCK} frames, and {shape[2]} are not a multiple (frames=243)"
        )
    there = torch.ones_like(importance[:, :, 0, 0], dtype=torch.bool) if present is None else present
    valid = there[..., None, None].expand(shape)
    importance = importance.masked_fill(~valid, 0)
    if group == "sequence":
        importance, uniform = importance.flatten(2), uniform.flatten(2)
    elif group == "joint_batch":
        importance, uniform, valid = (x.movedim(3, 0).flatten(1) for x in (importance, uniform, valid))
    log_p = (importance / (temperature * importance.amax(-1, keepdim=True) + 1e-10)).log_softmax(-1)
    scores = log_p - torch.log(-torch.log(uniform + 1e-10) + 1e-10)
    if group == "block":
        scores, valid = scores.flatten(), valid.flatten()
    if whole:  # the number of candidates stays on the device
        kept = (valid.sum(-1, keepdim=True).double() * (1 - ratio)).floor()
        masked = _rank(scores.masked_fill(~valid, torch.inf)) >= kept
    else:
        masked = _rank(scores) >= int(scores.shape[-1] * (1 - ratio))
    masked = masked.unflatten(1, shape[:3]).movedim(0, 3) if group == "joint_batch" else masked.view(shape)
    if group == "block":
        masked = masked.unflatten(2, (-1, BLOCK))[:, :, :, BLOCK // 2].repeat_interleave(BLOCK, 2)
    return masked & there[..., None, None]


def targeted(shares: Tensor, threshold: float = 0.2, present: Tensor | None = None) -> Tensor:
    """Targeted masking of the first release: joints whose share of attention exceeds a part of the batch's largest.

    Args:
        shares: `(N, M, T, V)`, softmax over a frame's joints of the attention that they receive.
        threshold: part of the largest share, delta; published: 0.2.
        present: `(N, M)` bool, see :func:`agpm`.

    Returns:
        `(N, M, T, V)` bool, True where masked.
    """
    if present is not None:
        shares = shares.masked_fill(~present[..., None, None], 0)
    return shares / shares.amax() > threshold


def _rank(scores: Tensor) -> Tensor:
    """Position of each entry in the ascending order of its row."""
    order = scores.argsort(dim=-1, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
