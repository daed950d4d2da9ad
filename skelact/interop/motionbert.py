"""Released checkpoints of MotionBERT and MaskCLR.

A file of MotionBERT holds `model` (an action network) or `model_pos` (the pretrained network with a 3D-pose head); those
of MaskCLR have the same names within one more layer, and from the second release on a mask token. What our encoders have
no use for (the 3D-pose head, an unused projection) is left out and named in their `LEFT_OUT`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from skelact.backbones.dstformer import DSTformer
from skelact.backbones.plain_transformer import PlainTransformer
from skelact.backbones.released import CheckpointError, encoder_state, fill, shape_of
from skelact.backbones.tokens import TokenEncoder
from skelact.methods.maskclr import MaskCLR
from skelact.methods.supervised import Supervised
from skelact.skeleton.layouts import get_layout
from skelact.transforms.pose2d import CropScaledIndex

NAMES = {"fc1": "fc1", "bn": "norm", "fc2": "fc2"}
"""Layers of the released classification head, and ours."""


def load_motionbert(
    state: Mapping[str, Tensor],
    origin: str,
    num_heads: int = 8,
    layout: str | Mapping[str, Any] = "h36m17",
    frames: int | None = None,
    num_classes: int | None = None,
    dropout: float = 0.5,
    **options: Any,
) -> Supervised:
    """MotionBERT's action network as :class:`Supervised` with `head=action`, or its pretrained encoder with a fresh head.

    Widths, depth and the table of positions are read off the tensors.

    Args:
        state: tensors by original name.
        origin: where they come from, for messages.
        num_heads: attention heads of the checkpoint.
        layout: joint layout that it was trained on.
        frames: length of evaluation views; None: the longest that the encoder reads.
        num_classes: of the fresh head, for a checkpoint without one.
        dropout: of the tokens in training; the tensors do not tell.
        **options: of :class:`Supervised`.

    Raises:
        CheckpointError: names and shapes do not all match, or `num_classes` is needed.
    """
    encoder, head = _parts(state, origin, num_heads, layout, dropout)
    sampler = CropScaledIndex(layout, frames or encoder.max_frames, preset="as_released")
    made: dict[str, Any] = {"head": "action", "preset": "as_released_c1", **options}
    if not head:
        if num_classes is None:
            raise CheckpointError(
                f"{origin}: has no classes, it is of pretraining; say for how many a head shall be made: num_classes=N"
            )
        warnings.warn(f"{origin}: has no classification head; that of the method is untrained", stacklevel=3)
        return Supervised(encoder, layout, sampler, num_classes, **made).eval()
    sizes = _head_sizes(head, origin)
    method = Supervised(encoder, layout, sampler, **{**sizes, **made})
    fill(method.heads["all"], head, origin)
    return method.eval()


def load_maskclr(
    state: Mapping[str, Tensor],
    origin: str,
    num_heads: int = 8,
    layout: str | Mapping[str, Any] = "h36m17",
    frames: int | None = None,
    dropout: float = 0.5,
    **options: Any,
) -> MaskCLR:
    """MaskCLR of the first release (no mask token), the second, or the second on the plain transformer.

    Args:
        state: tensors by original name.
        origin: where they come from, for messages.
        num_heads: attention heads of the checkpoint.
        layout: joint layout that it was trained on.
        frames: length of evaluation views; None: the longest that the encoder reads.
        dropout: of the tokens in training; the tensors do not tell.
        **options: of :class:`MaskCLR`.

    Raises:
        CheckpointError: names and shapes do not all match.
    """
    encoder, head = _parts(state, origin, num_heads, layout, dropout)
    if not head:
        raise CheckpointError(f'{origin}: has no classification head; pretrained weights are read as "motionbert"')
    sampler = CropScaledIndex(layout, frames or encoder.max_frames, preset="as_released")
    second = "mask_token" in encoder_state(state)
    made: dict[str, Any] = {"preset": "as_released_c2" if second else "as_released_c1", **options}
    method = MaskCLR(encoder, layout, sampler, **{**_head_sizes(head, origin), **made})
    fill(method.head, head, origin)
    return method.eval()


def _parts(
    state: Mapping[str, Tensor], origin: str, num_heads: int, layout: str | Mapping[str, Any], dropout: float
) -> tuple[TokenEncoder, dict[str, Tensor]]:
    """The filled encoder, and the classification head's tensors under our names; none where there is no head."""
    inner = encoder_state(state)
    plain = "decoder_temp_embed" in inner
    kind: type[DSTformer | PlainTransformer] = PlainTransformer if plain else DSTformer
    joints, expected = shape_of(inner, "pos_embed", 4 if plain else 3, origin)[-2], get_layout(layout).num_joints
    if joints != expected:
        raise CheckpointError(f"{origin}: was trained on {joints} joints; layout={layout} has {expected}")
    released: dict[str, Any] = {"legacy_residual": True} if plain else {}
    encoder = kind(
        layout, num_heads=num_heads, dropout=dropout, absent="count", **kind.sizes(inner, origin), **released
    )
    encoder.load_released(state, origin)
    whole = {re.sub(r"^(?:(?:module|model)\.)+", "", name): value for name, value in state.items()}
    if not any(name.startswith("backbone.") for name in whole):
        return encoder, {}
    outside = {name: value for name, value in whole.items() if not name.startswith("backbone.")}
    head = {name.removeprefix("head."): value for name, value in outside.items()}
    return encoder, {_renamed(name): value for name, value in head.items()}


def _renamed(name: str) -> str:
    layer, dot, tensor = name.partition(".")
    return f"{NAMES.get(layer, layer)}{dot}{tensor}"


def _head_sizes(head: Mapping[str, Tensor], origin: str) -> dict[str, int]:
    if "fc1.weight" in head and "fc2.weight" not in head:
        raise CheckpointError(f"{origin}: has an embedding head, of one-shot recognition, and no classes")
    classes, hidden = shape_of(head, "fc2.weight", 2, origin)
    return {"num_classes": classes, "head_hidden": hidden}
