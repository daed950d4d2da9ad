"""What a forward pass and a training step cost, by one rule whatever the algorithm.

2 FLOPs a multiply-add of matrix products and convolutions, those of attention and of graphs included; every person slot
of every clip is there. Training costs three times the forward pass of what has a gradient (backward twice as much) and
once that of what has none: momentum networks, frozen parts.

Our faster algorithms do less: ST-GCN multiplies spectra, UmURL's attention folds weights together, absent persons are
left out. So that figures can be compared, what is counted is a copy of the network in its straightforward form, on
the meta device, where there are no numbers. Losses count as they are written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from skelact.backbones.base import Encoder
from skelact.clips import ModalClips, RaggedClips, zero_clips
from skelact.methods.base import Method
from skelact.methods.multimodal import MultiModal
from skelact.objectives import largest

PLAIN = {
    "form": "grouped", "ignore_absent": False, "joined": False, "loss_in_autocast": False, "pack": "never",
    "use_mask": False,
}  # fmt: skip
"""What layers are told to be in their straightforward form, on every person slot and frame."""

Views = Sequence[tuple[Tensor, Tensor | None]]
Call = Callable[[Any, torch.device], Any]


class Cost(NamedTuple):
    """Of a network and one clip."""

    parameters: int
    """Those that are trained."""
    gflops: float
    """Of one clip's forward pass."""


class _Counter(TorchDispatchMode):
    """Adds up the FLOPs of forward passes, with and without gradient; torch's own knows only their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = {True: 0, False: 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            learns = any(isinstance(x, Tensor) and x.requires_grad for x in args)
            self.flops[torch.is_grad_enabled() and learns] += formula(*args, **(kwargs or {}), out_val=out)
        return out


class _Given(nn.Module):
    """Stands for a sampler: full views of a known shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, clips: RaggedClips, draws: Any = None) -> tuple[Tensor, None]:
        """`(N, M, T, V, C)` zeros, and no mask."""
        return torch.zeros(len(clips), *self.shape, device=clips.device), None


def straightforward_copy(network: nn.Module, device: torch.device) -> Any:
    """The network in its straightforward form and the same mode, on a device; no trainer knows it."""
    trainer = vars(network).get("_trainer")
    memo: dict[int, Any] = {} if trainer is None else {id(trainer): None}
    for tensor in [*network.parameters(), *network.buffers()]:  # before the copy: there may be no room for two
        moved = tensor.detach().to(device, copy=True)
        memo[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    plain = copy.deepcopy(network, memo)
    for module in plain.modules():
        vars(module).update({name: value for name, value in PLAIN.items() if name in vars(module)})
    return plain


def gflops(network: nn.Module, call: Call, training: bool = False) -> float:
    """GFLOPs of what is done with a network.

    Args:
        network: it is not touched.
        call: does it, with a copy of the network and inputs on the device that it is told: the meta device or, where a
            network of yours looks at values, which are not there, the CPU.
        training: in training mode, and with what the backward pass costs.
    """
    try:
        return _count(network, call, training, torch.device("meta"))
    except RuntimeError:
        return _count(network, call, training, torch.device("cpu"))


def _count(network: nn.Module, call: Call, training: bool, device: torch.device) -> float:
    plain = straightforward_copy(network, device).train(training)
    with torch.set_grad_enabled(training), _Counter() as counter:
        call(plain, device)
    return (3 * counter.flops[True] + counter.flops[False]) / 1e9


def forward_cost(
    network: nn.Module, clip: Sequence[int] | RaggedClips | ModalClips, streams: Sequence[str] | None = None
) -> Cost:
    """Cost of the feature of one clip; of a method of several modalities, of its class scores.

    Args:
        network: a method, or an encoder of skeletons.
        clip: shape (M, T, V, C) of a view: person slots, frames, joints, channels; or clips, one or more, of which the
            method makes its evaluation view. Methods of several modalities need clips.
        streams: what is read, of those that the network knows; None: all.

    Raises:
        TypeError: clips for an encoder, or a shape for a method of several modalities.
    """
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    if isinstance(clip, RaggedClips | ModalClips):
        if isinstance(network, MultiModal):
            give = _giver(network, ModalClips.of(clip), 1)
            return Cost(parameters, gflops(network, lambda plain, device: plain.classify(give(plain, device), streams)))
        if not isinstance(network, Method) or isinstance(clip, ModalClips):
            raise TypeError(f"{type(network).__name__} is given the shape of a view, not {type(clip).__name__}")
        clip = network.sample(clip)[0].shape[1:]
    shape = (1, *clip)

    def features(plain: Any, device: torch.device) -> None:
        view = torch.zeros(shape, device=device)
        if isinstance(plain, Method):
            plain.encode(view, streams)
        elif isinstance(plain, Encoder):
            plain.forward_features(dict.fromkeys(plain.streams if streams is None else streams, view))
        else:
            raise TypeError(f"{type(plain).__name__} is given clips, not the shape of a view")

    return Cost(parameters, gflops(network, features))


def step_gflops(method: nn.Module, given: Views | RaggedClips | ModalClips) -> float:
    """GFLOPs of one training step in the method's present stage; of one without a trainer, that of epoch 0.

    Outside process groups: the clips given are the whole batch.

    Args:
        method: what is trained; it is not touched.
        given: its training views `(N, M, T, V, C)` with their masks, in order, of which the shapes are read; for a
            method of several modalities the batch.

    Raises:
        TypeError: a batch for a method of skeletons, or views for one of several modalities.
    """
    return gflops(method, step_of(method, given), training=True)


def step_of(method: nn.Module, given: Views | RaggedClips | ModalClips, clips: int | None = None) -> Call:
    """What has a copy of a method compute the loss of a step on zeros, see :func:`gflops`.

    Args:
        method: see :func:`step_gflops`.
        given: likewise.
        clips: how many there shall be; None: as many as are given.

    Raises:
        TypeError: a batch for a method of skeletons, or views for one of several modalities.
    """
    if isinstance(given, RaggedClips | ModalClips) != isinstance(method, MultiModal):
        raise TypeError(f"{type(method).__name__} is given its batch if it reads several modalities, otherwise views")
    if isinstance(given, RaggedClips | ModalClips):
        give = _giver(method, ModalClips.of(given), clips or len(given))
        return lambda plain, device: _loss(plain.training_step(give(plain, device), 0))
    shapes = [(clips or len(view), *view.shape[1:]) for view, _ in given]

    def step(plain: Any, device: torch.device) -> Tensor:
        views = [(torch.zeros(shape, device=device), None) for shape in shapes]
        count, persons, _, *joint = shapes[0]
        plain.views = lambda batch: views
        return _loss(plain.training_step(zero_clips(count, (persons, *joint), views[0][0]), 0))

    return step


def _loss(out: Tensor | dict[str, Tensor]) -> Tensor:
    return out["loss"] if isinstance(out, dict) else out


def _giver(method: Any, clips: ModalClips, count: int) -> Callable[[Any, torch.device], ModalClips]:
    """Makes as many clips as are asked for that have all of what the given ones have, and a copy's full views."""
    shapes = {name: part.shape for name, part in clips.parts.items()}
    views: dict[str, Sequence[int]] = {}
    for name in method.streams:
        encoder = method.encoder(name)
        if isinstance(part := clips.parts.get(encoder.source), RaggedClips):
            views[name] = encoder.sampler(part, None)[0].shape[1:]

    def agree(batch: ModalClips) -> ModalClips:
        largest(torch.zeros(len(shapes), 4, dtype=torch.int64))  # the method's own looks at what it learns of others
        return batch

    def give(plain: Any, device: torch.device) -> ModalClips:
        plain.agree = agree
        for name, shape in views.items():
            plain.encoder(name).sampler, plain.encoder(name).augment = _Given(shape), None
        like = torch.zeros(1, device=device)
        parts = {name: zero_clips(count, shape, like) for name, shape in shapes.items()}
        row = torch.zeros(count, dtype=torch.int64, device=device)
        everywhere = torch.ones(count, len(parts), dtype=torch.bool, device=device)
        return ModalClips(parts, everywhere, tuple(parts), row, row)

    return give
