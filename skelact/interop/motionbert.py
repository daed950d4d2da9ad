"""Released checkpoints of MotionBERT and MaskCLR.

MotionBERT's files hold `model` (a network of action recognition) or `model_pos` (the pretrained network with its head
of 3D poses). MaskCLR's have the same names inside one more network, and since the second release a mask token. What
our encoders have no use for, that head and a projection that nothing uses, is left out: see their `LEFT_OUT`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from skelact.backbones.dstformer import DSTformer
from skelact.backbones.plain_transformer import PlainTransformer
from skelact.backbones.released import CheckpointError, encoder_state, fill, shape_of, unwrapped
from skelact.backbones.tokens import TokenEncoder
from skelact.methods.base import Method
from skelact.methods.maskclr import MaskCLR
from skelact.methods.supcon import SupCon
from skelact.methods.supervised import Supervised
from skelact.skeleton.layouts import get_layout
from skelact.transforms.pose2d import CropScaledIndex


def load_motionbert(state: Mapping[str, Tensor], origin: str, num_classes: int | None = None, **hparams: Any) -> Method:
    """One of MotionBERT's networks.

    A network of action recognition is a :class:`Supervised` with `head=action`, one of one-shot recognition a
    :class:`SupCon`. Pretrained weights have no classes: with `num_classes` they are a :class:`Supervised` whose head is
    untrained, which a warning says. Widths, depth and the longest clip are read off the tensors.

    Args:
        state: tensors by original name.
        origin: where they come from, for messages.
        num_classes: of the head that pretrained weights lack.
        **hparams: see :func:`_encoder`; further ones are the method's.

    Raises:
        CheckpointError: names and shapes do not all match, or `num_classes` is not given where it is needed.
    """
    encoder, given = _encoder(state, origin, **hparams)
    head = _head(state)
    if not head and num_classes is None:
        raise CheckpointError(
            f"{origin}: pretrained weights without a head; say for how many classes to make one: num_classes=N"
        )
    if not head:
        warnings.warn(f"{origin}: has no head; that of the method is untrained", stacklevel=3)
        return Supervised(encoder, num_classes=num_classes, **{**ACTION, **given}).eval()  # type: ignore[arg-type]
    if any(name.startswith("fc2.") for name in head):
        classifier = Supervised(encoder, **{**ACTION, **_classes(head, origin), **given})
        fill(classifier.heads["all"], head, origin)
        return classifier.eval()
    embedding = shape_of(head, "fc1.weight", 2, origin)[0]
    method = SupCon(encoder, **{"embedding": embedding, "dropout": 0.0, "preset": "as_released", **given})
    fill(method.head, {name.removeprefix("fc1."): value for name, value in head.items()}, origin)
    return method.eval()


def load_maskclr(state: Mapping[str, Tensor], origin: str, **hparams: Any) -> MaskCLR:
    """MaskCLR of the first release (no mask token), of the second, or of the second on the plain transformer.

    Args:
        state: tensors by original name.
        origin: where they come from, for messages.
        **hparams: see :func:`_encoder`; further ones are the method's.

    Raises:
        CheckpointError: names and shapes do not all match.
    """
    encoder, given = _encoder(state, origin, **hparams)
    head = _head(state)
    preset = "as_released_c2" if "mask_token" in encoder_state(state) else "as_released_c1"
    method = MaskCLR(encoder, **{"preset": preset, **_classes(head, origin), **given})
    fill(method.head, head, origin)
    return method.eval()


ACTION = {"head": "action", "preset": "as_released_c1"}
"""Options of MotionBERT's action recognition; the preset's other releases belong to other code."""


def _encoder(
    state: Mapping[str, Tensor],
    origin: str,
    num_heads: int = 8,
    layout: str | Mapping[str, Any] = "h36m17",
    frames: int | None = None,
    token_dropout: float | None = None,
    **options: Any,
) -> tuple[TokenEncoder, dict[str, Any]]:
    """The filled encoder, and what every method around it is given.

    Args:
        state: tensors by original name.
        origin: where they come from, for messages.
        num_heads: attention heads of the checkpoint.
        layout: joint layout that it was trained on.
        frames: length of evaluation views; None: of the longest clip that the encoder reads.
        token_dropout: of tokens in training, which the tensors do not tell; None: as published, 0.5, of one-shot 0.1.
        **options: of the method.
    """
    inner, head = encoder_state(state), _head(state)
    kind: type[DSTformer | PlainTransformer] = PlainTransformer if "decoder_pos_embed" in inner else DSTformer
    joints = shape_of(inner, "pos_embed", 3 if kind is DSTformer else 4, origin)[-2]
    if joints != (expected := get_layout(layout).num_joints):
        raise CheckpointError(f"{origin}: was trained on {joints} joints; layout={layout} has {expected}")
    if token_dropout is None:
        token_dropout = 0.1 if head and not any(name.startswith("fc2.") for name in head) else 0.5
    released: dict[str, Any] = {"dropout": token_dropout, "absent": "count"}
    if kind is PlainTransformer:
        released["legacy_residual"] = True
    encoder = kind(layout, num_heads=num_heads, **kind.sizes(inner, origin), **released)
    encoder.load_released(state, origin)
    sampler = CropScaledIndex(layout, frames or encoder.max_frames, preset="as_released")
    return encoder, {"layout": layout, "sampler": sampler, **options}


def _head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors beside the encoder, under our names; none where the state is an encoder's alone."""
    names = unwrapped(state)
    if not any(name.startswith("backbone.") for name in names):
        return {}
    head = {name.removeprefix("head."): value for name, value in names.items() if not name.startswith("backbone.")}
    return {f"norm.{name[3:]}" if name.startswith("bn.") else name: value for name, value in head.items()}


def _classes(head: Mapping[str, Tensor], origin: str) -> dict[str, int]:
    classes, hidden = shape_of(head, "fc2.weight", 2, origin)
    return {"num_classes": classes, "head_hidden": hidden}
