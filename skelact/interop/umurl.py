"""Released UmURL checkpoints."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from skelact.backbones.released import CheckpointError, fill, shape_of
from skelact.backbones.umurl import UmURLEncoder
from skelact.methods.umurl import UmURL
from skelact.skeleton.layouts import get_layout
from skelact.transforms.sampling import CenterCrop


def load_umurl(
    state: Mapping[str, Tensor],
    origin: str,
    num_heads: int = 1,
    layout: str | Mapping[str, Any] = "ntu25",
    channels: int = 3,
    frames: int | None = None,
) -> UmURL:
    """UmURL (reference code HuiGuanLab/UmURL).

    Width, depth, feed-forward and projector widths, clip length and persons are read off the tensors. A downstream
    checkpoint has a classifier `fc.*`, which is left out, and may have no projectors: those of the returned method
    are then untrained, which a warning says; features do not pass through them.

    Args:
        state: tensors by original name.
        origin: where they come from, for messages.
        num_heads: attention heads of the checkpoint.
        layout: joint layout that it was trained on.
        channels: coordinates a joint.
        frames: clip length to expect; a checkpoint of another length is refused.
    """
    state = {name: value for name, value in state.items() if name not in ("fc.weight", "fc.bias")}
    joints = get_layout(layout).num_joints
    width, temporal = shape_of(state, "backbone.j_emb.t_embedding.0.weight", 2, origin)
    spatial = shape_of(state, "backbone.j_emb.s_embedding.0.weight", 2, origin)[1]
    persons, rest = divmod(temporal, joints * channels)
    if rest or not persons or spatial % channels:
        raise CheckpointError(
            f"{origin}: temporal tokens of {temporal} and spatial tokens of {spatial} numbers do not fit "
            f"layout={layout} ({joints} joints) with channels={channels}"
        )
    if frames is not None and spatial != frames * channels:
        raise CheckpointError(f"{origin}: was trained on clips of {spatial // channels} frames, not {frames}")
    layers = [re.match(r"backbone\.ma_encoder\.t_tr\.layers\.(\d+)\.", name) for name in state]
    projectors = any("_projector." in name for name in state)
    method = UmURL(
        UmURLEncoder(
            layout,
            persons=persons,
            frames=spatial // channels,
            channels=channels,
            width=width,
            depth=1 + max((int(found[1]) for found in layers if found), default=0),
            num_heads=num_heads,
            hidden=shape_of(state, "backbone.ma_encoder.t_tr.layers.0.linear1.weight", 2, origin)[0],
            positions=shape_of(state, "backbone.ma_encoder.pe.pe", 3, origin)[1],
        ),
        layout,
        CenterCrop(frames=spatial // channels),
        projector_width=shape_of(state, "j_projector.6.weight", 2, origin)[0] if projectors else 4096,
        projector_hidden=shape_of(state, "j_projector.0.weight", 2, origin)[0] if projectors else None,
        preset="as_released",
    )
    if projectors:
        fill(method, state, origin)
    else:
        warnings.warn(f"{origin}: has no projectors; those of the method are untrained", stacklevel=3)
        fill(method.backbone, {name.removeprefix("backbone."): value for name, value in state.items()}, origin)
    return method.eval()
