"""Encoders of one modality: a token for each clip. Those of skeletons are here.

Images are read by :mod:`skelact.backbones.video`, inertial and other signals by :mod:`skelact.backbones.signal`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from skelact.backbones.attention import xavier_linear
from skelact.backbones.base import Encoder
from skelact.backbones.normalisation import GlobalBatchNorm
from skelact.backbones.temporal import TemporalEncoder
from skelact.backbones.tokens import TokenEncoder
from skelact.clips import Frames, RaggedClips
from skelact.errors import SkelactError
from skelact.skeleton.layouts import get_layout
from skelact.skeleton.streams import derive
from skelact.transforms.draws import Draws
from skelact.transforms.spatial import limit_dims

Part = TypeVar("Part", RaggedClips, Frames)


class ModalityEncoder(nn.Module):
    """Turns the part of a batch that has a modality into tokens.

    Args:
        width: token width D.
        source: which part it reads, a key of :attr:`skelact.clips.ModalClips.parts`.
        group: modalities of one sensor have one group: they are there or absent together. None: the source.
    """

    def __init__(self, width: int, source: str, group: str | None = None) -> None:
        super().__init__()
        self.width, self.source, self.group = int(width), source, group or source

    def forward(self, part: RaggedClips | Frames, draws: Draws | None = None) -> Tensor:
        """Tokens `(n, D)` of the n clips of a part, which may be none.

        Args:
            part: clips of the source.
            draws: of the clips of the part, in training; None: evaluation.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def blank(self, part: RaggedClips | Frames) -> RaggedClips | Frames:
        """One clip like those of a part, but all zeros, which count as observed."""
        if isinstance(part, Frames):
            shape = (1, *part.values.shape[1:])
            return Frames(part.values.new_zeros(shape), part.mask.new_ones(shape[:2]), shape[1])
        frames = int(getattr(getattr(self, "sampler", None), "frames", 1))
        mask = None if part.mask is None else part.mask.new_ones(frames, *part.mask.shape[1:])
        number = torch.zeros(1, dtype=torch.int64, device=part.device)
        return RaggedClips(
            part.frames.new_zeros(frames, *part.frames.shape[1:]), number, number + frames, number - 1, number, mask
        )

    def read(self, part: RaggedClips | Frames, kind: type[Part]) -> Part:
        """The part itself.

        Raises:
            SkelactError: it is not of the kind that the encoder reads.
        """
        if not isinstance(part, kind):
            raise SkelactError(
                f"{type(self).__name__} reads {kind.__name__}, but the clips of source={self.source} are "
                f"{type(part).__name__}: change method.encoders.<modality>.source"
            )
        return part


class SkeletonEncoder(ModalityEncoder):
    """Any skeleton backbone, its feature mapped to a token by a linear layer and a LayerNorm.

    Args:
        width: token width D.
        backbone: the encoder.
        layout: name or mapping of the joint layout of the clips.
        sampler: evaluation views, `RaggedClips -> (views, mask)`.
        augment: training views, `(RaggedClips, Draws) -> [(views, mask), ...]`, of which the first is taken; None:
            train on evaluation views.
        streams: streams that the backbone is given; a backbone of one stream takes any. Streams that shall be
            modalities of their own have an encoder each; their views of a clip are the same, for draws belong to clips.
        source: see :class:`ModalityEncoder`.
        group: see :class:`ModalityEncoder`.
        use_mask: see :class:`skelact.methods.base.Method`.

    Raises:
        SkelactError: streams that the backbone cannot read, or a sampler without evaluation views.
    """

    def __init__(
        self,
        width: int,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        augment: nn.Module | None = None,
        streams: Sequence[str] = ("joint",),
        source: str = "skeleton",
        group: str | None = "skeleton",
        use_mask: bool = True,
    ) -> None:
        super().__init__(width, source, group)
        self.layout = get_layout(layout)
        if len(streams) != 1 or len(backbone.streams) != 1:
            self.called = {name: name for name in streams}
        else:
            self.called = {streams[0]: backbone.streams[0]}  # whose name for its only input says nothing
        if not streams or not set(self.called.values()) <= set(backbone.streams):
            raise SkelactError(f"streams {list(streams)} must be some of the backbone's: {', '.join(backbone.streams)}")
        if not getattr(sampler, "evaluates", True):
            raise SkelactError(f"sampler: {type(sampler).__name__} is random; clips are evaluated without randomness")
        if augment is not None:
            limit_dims(augment, self.layout)
            if getattr(augment, "views", 1) is None:
                augment.views = 1  # type: ignore[assignment]
        if isinstance(backbone, TokenEncoder) and backbone.unobserved == "zero":
            backbone.mask_token.requires_grad_(False)  # nothing is masked, and ranks would wait for its gradient
        self.backbone, self.sampler, self.augment = backbone, sampler, augment
        self.streams, self.use_mask = tuple(streams), use_mask
        self.adapter = nn.Sequential(nn.Linear(backbone.num_features, width), nn.LayerNorm(width, eps=1e-6))
        xavier_linear(self.adapter)

    def views(self, part: RaggedClips, draws: Draws | None = None) -> tuple[Tensor, Tensor | None]:
        """Joint views `(n, M, T, V, C)` and their mask."""
        if draws is None or self.augment is None:
            return self.sampler(part, None)
        self.backbone.expect(part)
        return self.augment(part, draws)[0]

    def derive(self, views: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The backbone's streams of joint views, each `(n, M, T, V, C)`; what was not observed is not read."""
        if mask is not None:
            views = views.masked_fill(~mask[..., None], 0.0)
        made = derive(views, self.streams, self.layout, mask if self.use_mask else None)
        return {self.called[name]: stream for name, stream in made.items()}

    def forward(self, part: RaggedClips | Frames, draws: Draws | None = None) -> Tensor:
        """See :class:`ModalityEncoder`."""
        views, mask = self.views(self.read(part, RaggedClips), draws)
        return self.adapter(self.backbone.forward_features(self.derive(views, mask), mask))


class JointConvEncoder(ModalityEncoder):
    """ActionMAE's own skeleton encoder (reference code), for parity: ten convolutions over the order of the joints.

    It reads the first body alone and has no notion of neighbours; a backbone in :class:`SkeletonEncoder` does better.

    Args:
        width: token width D.
        layout: joint layout of the clips.
        sampler: training and evaluation views; the published one is `video` with 16 frames.
        channels: coordinates of a joint that are read.
        source: see :class:`ModalityEncoder`.
        group: see :class:`ModalityEncoder`.
        depth: blocks of the transformer over frames.
        num_heads: its heads.
        mlp_ratio: inner width of its MLPs over D.
        drop_path: its stochastic depth.
        position: see :class:`TemporalEncoder`.
        use_mask: leave out frames in which the body was not observed, those after the end of a short clip too. As
            released they take part as zeros.

    Raises:
        SkelactError: fewer than 21 joints, of which the convolutions leave nothing.
    """

    LAYERS = 10
    compiles: ClassVar[tuple[str, ...]] = ("frames",)

    def __init__(
        self,
        width: int,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        channels: int = 3,
        source: str = "skeleton",
        group: str | None = "skeleton",
        depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        position: bool = True,
        use_mask: bool = True,
    ) -> None:
        super().__init__(width, source, group)
        self.layout = get_layout(layout)
        if self.layout.num_joints <= 2 * self.LAYERS:
            raise SkelactError(
                f"JointConvEncoder needs more than {2 * self.LAYERS} joints, layout {self.layout.name!r} has "
                f"{self.layout.num_joints}: take a SkeletonEncoder"
            )
        self.sampler, self.channels, self.use_mask = sampler, channels, use_mask
        self.embed = nn.Linear(channels, width)
        xavier_linear(self.embed)
        self.convolutions = nn.Sequential(*(_convolution(width, number, self.LAYERS) for number in range(self.LAYERS)))
        self.temporal = TemporalEncoder(width, depth, num_heads, mlp_ratio, drop_path, position)

    def frames(self, body: Tensor) -> Tensor:
        """Coordinates `(B, V, C)` of one body in single frames to features `(B, D)`."""
        return self.convolutions(self.embed(body).transpose(1, 2)).mean(2)

    def forward(self, part: RaggedClips | Frames, draws: Draws | None = None) -> Tensor:
        """See :class:`ModalityEncoder`."""
        views, mask = self.sampler(self.read(part, RaggedClips), draws)
        if mask is not None:
            views = views.masked_fill(~mask[..., None], 0.0)
        seen = mask[:, 0].any(-1) if mask is not None and self.use_mask else None
        return self.temporal(each_frame(self.frames, views[:, 0, ..., : self.channels], self.width, seen), seen)


def _convolution(width: int, number: int, layers: int) -> nn.Sequential:
    """One of the convolutions: the last has no ReLU, every second no dropout."""
    block: dict[str, nn.Module] = {"conv": nn.Conv1d(width, width, 3), "norm": GlobalBatchNorm(width)}
    if number < layers - 1:
        block["relu"] = nn.ReLU(inplace=True)
    if number % 2 == 0:
        block["dropout"] = nn.Dropout(0.1)
    return nn.Sequential(OrderedDict(block))


def each_frame(
    network: nn.Module | Any, values: Tensor, width: int, mask: Tensor | None = None, count: int | None = None
) -> Tensor:
    """Features `(n, T, width)` of frames `(n, T, ...)`: only those in `mask` are computed, the others are zeros.

    That keeps what is not there out of batch statistics. How many there are must be known on the host: a GPU is waited
    for unless `count` says it.
    """
    n, t = values.shape[:2]
    values = values.flatten(0, 1)
    if mask is None:
        return network(values).unflatten(0, (n, t))
    count = int(mask.sum()) if count is None else count
    if count == n * t:
        return network(values).unflatten(0, (n, t))
    rows = mask.flatten().logical_not().to(torch.uint8).argsort(stable=True)[:count]
    features = network(values[rows])
    return features.new_zeros(n * t, width).index_copy(0, rows, features).unflatten(0, (n, t))
