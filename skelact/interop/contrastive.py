"""Released checkpoints of SkeletonCLR, AimCLR, CrosSCLR and CMCS (CMAL, 3s-CACA).

All are ST-GCN trunks, one for each stream, with heads and a momentum copy. Ours hold the streams of a kind of tensor
in one, so each released tensor becomes a row of one of ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from skelact.backbones.released import CheckpointError, refuse, shape_of
from skelact.backbones.stgcn import STGCN
from skelact.methods.base import Method
from skelact.methods.caca import CACA, CMAL
from skelact.methods.moco import AimCLR, CrosSCLR, SkeletonCLR
from skelact.transforms.frame50 import Frame50

Rows = list[tuple[str, str, int | None]]
"""(released name, our name, row of ours or None for all of it)."""

STRATEGIES = {1: "uniform", 2: "distance", 3: "spatial"}
"""By the number of subsets of an adjacency of one hop."""


def load_skeletonclr(state: Mapping[str, Tensor], origin: str, **hparams: Any) -> Method:
    """SkeletonCLR of one stream; see :func:`load_moco` for the keywords."""
    return load_moco(SkeletonCLR, state, origin, **{"streams": ("joint",), **hparams})


def load_aimclr(state: Mapping[str, Tensor], origin: str, **hparams: Any) -> Method:
    """AimCLR of one stream; see :func:`load_moco` for the keywords."""
    return load_moco(AimCLR, state, origin, **{"streams": ("joint",), **hparams})


def load_crosclr(state: Mapping[str, Tensor], origin: str, **hparams: Any) -> Method:
    """CrosSCLR of two or three streams.

    The released heads of motion and bone contain the head of joint, whose tensors the file therefore holds two or
    three times; they must agree. A checkpoint of a mended fork has a head for each stream.
    """
    streams = tuple(s for s in ("joint", "motion", "bone") if s == "joint" or f"encoder_q_{s}.data_bn.weight" in state)
    if len(streams) < 2:
        raise CheckpointError(f"{origin}: has one stream; a file of SkeletonCLR or AimCLR?")
    tied = any(name.startswith(f"encoder_q_{streams[1]}.fc.2.0") for name in state)
    return load_moco(CrosSCLR, state, origin, **{"streams": streams, "tied_heads": tied, **hparams})


def load_moco(
    kind: type[SkeletonCLR],
    state: Mapping[str, Tensor],
    origin: str,
    streams: Sequence[str],
    layout: str | Mapping[str, Any] = "ntu25",
    persons: int = 2,
    frames: int = 50,
    dropout: float = 0.5,
    **options: Any,
) -> SkeletonCLR:
    """A momentum-contrast method; widths, graph partition and queue are read off the tensors.

    A checkpoint of linear evaluation has the trunk and a classifier only: the trunk is loaded, the rest of the method
    stays untrained, and a warning says so.

    Args:
        kind: class of the method.
        state: tensors by released name.
        origin: where they come from, for messages.
        streams: in the order of the file.
        layout: joint layout that it was trained on.
        persons: person slots.
        frames: length of evaluation views.
        dropout: of the encoder, which the tensors do not tell.
        **options: of the method, such as `momentum` or `temperature`.
    """
    names = {s: f"encoder_q{_suffix(s, streams)}" for s in streams}
    trunk = encoder_like(state, names[streams[0]], origin, streams, layout, persons, dropout)
    sampler = Frame50(frames=frames, layout=layout, preset="as_released")
    if all(f"{prefix}.fc.weight" in state for prefix in names.values()):  # linear evaluation
        warnings.warn(f"{origin}: is of linear evaluation; heads, key encoder and queue are untrained", stacklevel=4)
        method = kind(trunk, layout, sampler, streams=streams, preset="as_released", **options)
        kept = {name: value for name, value in state.items() if ".fc." not in name}
        place(method, kept, origin, [row for s in streams for row in _trunk(method, "backbone", names[s], s)])
        return method.eval()
    sizes = {
        "embedding": shape_of(state, "queue", 2, origin)[0],
        "queue_size": shape_of(state, "queue", 2, origin)[1],
    }
    method = kind(trunk, layout, sampler, streams=streams, preset="as_released", **{**sizes, **options})
    place(method, state, origin, moco_rows(method))
    return method.eval()


def moco_rows(method: SkeletonCLR) -> Rows:
    """Where each released tensor of a momentum-contrast method is in ours."""
    rows: Rows = []
    for number, stream in enumerate(method.streams):
        end = _suffix(stream, method.streams)
        layers = [("0", "hidden", number), ("2", "output", number)]
        if method.head.tied:
            layers = [("0", "hidden", 0), ("2", "output", 0)]
            if number:
                layers = [("0", "before", number - 1), ("2.0", "hidden", 0), ("2.2", "output", 0)]
        for room, prefix in (("", f"encoder_q{end}"), ("teacher.", f"encoder_k{end}")):
            rows += _trunk(method, f"{room}backbone", prefix, stream)
            rows += _layers(f"{prefix}.fc", f"{room}head", layers)
        rows += [(f"queue{end}", "queue.keys", number), (f"queue_ptr{end}", "queue.pointer", None)]
    return rows


def load_cmal(state: Mapping[str, Tensor], origin: str, **hparams: Any) -> Method:
    """CMAL (SkeletonCA) of one stream; see :func:`load_bootstrap` for the keywords."""
    return load_bootstrap(CMAL, state, origin, **{"streams": ("joint",), **hparams})


def load_caca(state: Mapping[str, Tensor], origin: str, **hparams: Any) -> Method:
    """3s-CACA (CMCS); see :func:`load_bootstrap` for the keywords."""
    return load_bootstrap(CACA, state, origin, **{"streams": ("joint", "motion", "bone"), **hparams})


def load_bootstrap(
    kind: type[CMAL],
    state: Mapping[str, Tensor],
    origin: str,
    streams: Sequence[str],
    layout: str | Mapping[str, Any] = "ntu25",
    persons: int = 2,
    frames: int = 50,
    dropout: float = 0.5,
    **options: Any,
) -> CMAL:
    """A method of the CMCS code; widths and graph partition are read off the tensors. Arguments as :func:`load_moco`.

    A checkpoint of linear evaluation has classifiers in the place of projectors: the trunks are loaded, the rest of
    the method stays untrained, and a warning says so.
    """
    ends = {s: "" if kind is not CACA else f"_{s}" for s in streams}
    first = ends[streams[0]]
    trunk = encoder_like(state, f"online_backbone{first}", origin, streams, layout, persons, dropout)
    sampler = Frame50(frames=frames, layout=layout, preset="as_released")
    if all(f"online_projector{end}.weight" in state for end in ends.values()):
        warnings.warn(f"{origin}: is of linear evaluation; heads and targets are untrained", stacklevel=4)
        method = kind(trunk, layout, sampler, streams=streams, preset="as_released", **options)
        kept = {name: value for name, value in state.items() if not name.startswith("online_projector")}
        place(
            method,
            kept,
            origin,
            [row for s, end in ends.items() for row in _trunk(method, "backbone", f"online_backbone{end}", s)],
        )
        return method.eval()
    sizes = {
        "projector_hidden": shape_of(state, f"online_projector{first}.net.0.weight", 2, origin)[0],
        "embedding": shape_of(state, f"online_projector{first}.net.3.weight", 2, origin)[0],
        "predictor_hidden": shape_of(state, f"online_predictor{first}.net.0.weight", 2, origin)[0],
    }
    method = kind(trunk, layout, sampler, streams=streams, preset="as_released", **{**sizes, **options})
    place(method, state, origin, bootstrap_rows(method))
    return method.eval()


def bootstrap_rows(method: CMAL) -> Rows:
    """Where each released tensor of a method of the CMCS code is in ours."""
    rows: Rows = []
    for number, stream in enumerate(method.streams):
        end = f"_{stream}" if isinstance(method, CACA) else ""
        mlp = [("0", "hidden", number), ("1", "norm", number), ("3", "output", number)]
        for room, prefix in (("", "online"), ("teacher.", "target")):
            rows += _trunk(method, f"{room}backbone", f"{prefix}_backbone{end}", stream)
            rows += _layers(f"{prefix}_projector{end}.net", f"{room}projector", mlp)
        rows += _layers(f"online_predictor{end}.net", "predictor", mlp)
    return rows


def encoder_like(
    state: Mapping[str, Tensor],
    prefix: str,
    origin: str,
    streams: Sequence[str],
    layout: str | Mapping[str, Any],
    persons: int,
    dropout: float,
) -> STGCN:
    """An ST-GCN of the sizes of a released trunk, whose graph must be that of the layout."""
    graph = state.get(f"{prefix}.A")
    shape_of(state, f"{prefix}.A", 3, origin)
    assert graph is not None
    subsets = len(graph)
    if subsets not in STRATEGIES:
        raise CheckpointError(f"{origin}: an adjacency of {subsets} subsets; ST-GCN's have 1, 2 or 3")
    first = shape_of(state, f"{prefix}.st_gcn_networks.0.gcn.conv.weight", 4, origin)
    last = shape_of(state, f"{prefix}.st_gcn_networks.9.gcn.conv.weight", 4, origin)
    encoder = STGCN(
        layout,
        persons=persons,
        channels=first[1],
        streams=streams,
        hidden=first[0] // subsets,
        num_features=last[0] // subsets,
        strategy=STRATEGIES[subsets],
        dropout=dropout,
        temporal_kernel=shape_of(state, f"{prefix}.st_gcn_networks.0.tcn.2.weight", 4, origin)[2],
        edge_importance=f"{prefix}.edge_importance.0" in state,
    )
    if graph.shape != encoder.A.shape or not torch.allclose(graph.to(encoder.A), encoder.A, atol=1e-6):
        raise CheckpointError(
            f"{origin}: was trained on another graph than layout={layout} with {STRATEGIES[subsets]} partition "
            f"({graph.shape[-1]} joints, here {encoder.joints})"
        )
    return encoder


def place(method: Method, state: Mapping[str, Tensor], origin: str, rows: Rows) -> None:
    """Copy released tensors to their places; several for one place must agree.

    Raises:
        CheckpointError: listing missing, unexpected, misshaped and contradicting names.
    """
    own = method.state_dict()
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "misshaped": [], "contradicting": []}
    known = {name for name, _, _ in rows}
    problems["unexpected"] = [name for name in state if name not in known and not name.endswith(".A")]
    filled: dict[tuple[str, int | None], Tensor] = {}
    for name, ours, row in rows:
        if name not in state:
            problems["missing"].append(name)
            continue
        value, target = state[name], own[ours] if row is None else own[ours][row]
        if value.dim() == 1 and value.numel() == target.numel() == 1:  # counters are scalars, or of one element
            value = value.reshape(target.shape)
        if value.shape != target.shape:
            problems["misshaped"].append(f"{name} {tuple(value.shape)} for {tuple(target.shape)}")
        elif (ours, row) in filled and not torch.equal(filled[ours, row], value):
            problems["contradicting"].append(name)
        else:
            filled[ours, row] = value
    refuse(origin, type(method).__name__, problems)
    with torch.no_grad():
        for (ours, row), value in filled.items():
            (own[ours] if row is None else own[ours][row]).copy_(value)


def _suffix(stream: str, streams: Sequence[str]) -> str:
    """The released names of a single stream, and of joint among several, have none."""
    return "" if len(streams) == 1 or stream == "joint" else f"_{stream}"


def _trunk(method: Method, room: str, prefix: str, stream: str) -> Rows:
    number = method.streams.index(stream)
    return [(f"{prefix}.{name}", f"{room}.{name}", number) for name in method.backbone.state_dict()]


def _layers(prefix: str, room: str, layers: Sequence[tuple[str, str, int]]) -> Rows:
    """Linear layers have weight and bias, `norm` its statistics as well."""
    tensors = ("weight", "bias"), ("running_mean", "running_var", "num_batches_tracked")
    return [
        (f"{prefix}.{released}.{tensor}", f"{room}.{ours}.{tensor}", row)
        for released, ours, row in layers
        for tensor in (*tensors[0], *(tensors[1] if ours == "norm" else ()))
    ]
