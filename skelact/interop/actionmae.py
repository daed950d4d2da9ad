"""Checkpoints of ActionMAE's code: the method itself, and its fusion baselines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from skelact.backbones.modality import JointConvEncoder
from skelact.backbones.released import CheckpointError, fill, layers, shape_of
from skelact.backbones.video import ImageEncoder
from skelact.methods.actionmae import ActionMAE
from skelact.methods.multimodal import MultiModal
from skelact.transforms.indexing import VideoFrames

MODALITIES = ("rgb", "depth", "ir", "skeleton")
"""In the order in which the code stacks tokens, whatever the order on its command line."""

RESNETS = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}

LEFT_OUT = {
    r"s_encoder\.\w+\.fc\.": "ImageNet classifier of a ResNet",
    r"s_encoder\.skeleton\.": "a ResNet that is built for the skeleton and never used",
}
"""Tensors of released files that nothing uses, and what they are."""

RULES = (
    (r"s_encoder\.(\w+)\.", r"encoders.\1.frames.net."),
    (r"t_cls_token\.(\w+)$", r"encoders.\1.temporal.cls_token"),
    (r"t_encoder\.(\w+)\.", r"encoders.\1.temporal.transformer."),
    (r"t_encoder_norm\.(\w+)\.", r"encoders.\1.temporal.norm."),
    (r"skel_embed\.", "encoders.skeleton.embed."),
    (r"skel_encoder\.(\d+)\.conv\.", r"encoders.skeleton.convolutions.\1.conv."),
    (r"skel_encoder\.(\d+)\.BatchNorm\.", r"encoders.skeleton.convolutions.\1.norm."),
    (r"fusion_module\.", "fusion."),
    (r"(mem_token$|mask_token$|encoder\.|encoder_norm\.|decoder\.|decoder_norm\.|decoder_pred\.)", r"core.\1"),
)
"""Where a tensor of the released code is in ours; the heads of sum fusion apart, which are numbered here."""


def load_actionmae(
    state: Mapping[str, Tensor],
    origin: str,
    num_heads: int = 8,
    layout: str | Mapping[str, Any] = "ntu25",
    frames: int = 16,
    **options: Any,
) -> ActionMAE | MultiModal:
    """ActionMAE, or a baseline where the file has no auto-encoder (reference code sangminwoo/ActionMAE).

    Modalities, the kind of ResNet, the kind of fusion, all widths and depths and the number of memory tokens are read
    off the tensors. What is left out is in :data:`LEFT_OUT`.

    Args:
        state: tensors by original name.
        origin: where they come from, for messages.
        num_heads: of all attention.
        layout: joint layout of the skeletons, where there are any.
        frames: T of views of skeletons.
        **options: of the method.

    Raises:
        CheckpointError: names and shapes do not all match.
    """
    state = {name: value for name, value in state.items() if not any(re.match(rule, name) for rule in LEFT_OUT)}
    method = _build(state, origin, num_heads, layout, frames, **options)
    fill(method, {_renamed(name, method.streams): value for name, value in state.items()}, origin)
    return method.eval()


def _build(
    state: Mapping[str, Tensor], origin: str, num_heads: int, layout: Any, frames: int, **options: Any
) -> ActionMAE | MultiModal:
    """The method of a state dict, untrained."""
    found = [name.split(".")[1] for name in state if name.startswith("t_cls_token.")]
    if not found or not set(found) <= set(MODALITIES):
        raise CheckpointError(
            f"{origin}: has class tokens of {', '.join(found) or 'no modality'}; those of ActionMAE's code are of "
            f"{', '.join(MODALITIES)}"
        )
    modalities = [name for name in MODALITIES if name in found]
    width = shape_of(state, f"t_cls_token.{found[0]}", 3, origin)[2]
    first = f"t_encoder.{found[0]}.blocks"
    ratio = shape_of(state, f"{first}.0.mlp.fc1.weight", 2, origin)[0] / width
    over_time: dict[str, Any] = {"depth": layers(state, first), "num_heads": num_heads, "mlp_ratio": ratio}
    encoders: dict[str, Any] = {}
    for name in modalities:
        if name == "skeleton":
            encoders[name] = partial(JointConvEncoder, layout=layout, sampler=VideoFrames(frames), **over_time)
            continue
        stages = tuple(layers(state, f"s_encoder.{name}.layer{stage}") for stage in range(1, 5))
        if stages not in RESNETS:
            raise CheckpointError(f"{origin}: s_encoder.{name} has stages of {stages} blocks: not a ResNet-18 or 34")
        encoders[name] = partial(
            ImageEncoder, source=name, name=RESNETS[stages], tag=None, pretrained=False, **over_time
        )
    fusion = "concat" if "fusion_module.fc.weight" in state else "sum"
    if "fusion_module.cls_token" in state:
        fusion = "transformer"
        options = {"fusion_depth": layers(state, "fusion_module.transformer.blocks"), **options}
    head = "fusion_module.fc.weight" if fusion != "sum" else f"fusion_module.fc.{modalities[0]}.weight"
    given = {
        "num_classes": shape_of(state, head, 2, origin)[0], "width": width, "fusion": fusion, "num_heads": num_heads,
        "mlp_ratio": ratio, "layout": layout if "skeleton" in modalities else None, "preset": "as_released", **options,
    }  # fmt: skip
    if "mask_token" not in state:
        return MultiModal(encoders, modalities, **given)
    core = {
        "num_memory": shape_of(state, "mem_token", 3, origin)[1] if "mem_token" in state else 0,
        "depth": layers(state, "encoder.blocks"),
        "decoder_depth": layers(state, "decoder.blocks"),
    }
    return ActionMAE(encoders, modalities, **{**core, **given})


def _renamed(name: str, modalities: tuple[str, ...]) -> str:
    """A tensor's name in ours; unchanged where no rule knows it."""
    if found := re.match(r"fusion_module\.fc\.([a-z]{2,})\.(weight|bias)$", name):
        return f"fusion.heads.{modalities.index(found[1])}.{found[2]}" if found[1] in modalities else name
    for rule, ours in RULES:
        if re.match(rule, name):
            return re.sub(f"^{rule}", ours, name)
    return name
