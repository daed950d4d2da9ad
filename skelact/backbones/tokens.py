"""Encoders that make one token of each joint in each frame of each person, and what they have in common."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from skelact.backbones.base import Encoder
from skelact.backbones.released import CheckpointError, Source, encoder_state, fill, read_state
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.skeleton.layouts import Layout, get_layout

TOKENS_AT_ONCE = {"cpu": 2**12, "other": 2**17}
"""Tokens that are encoded at a time where no gradient is asked for: they bound the memory, whatever the batch."""


@dataclass(frozen=True)
class People:
    """The person-clips of a batch that are encoded.

    Args:
        rows: `(B, T, V, C)` one person-clip each.
        clip: `(B,)` int64, position of each row's clip in the batch.
        weight: `(B,)` share of the row in its clip's mean over persons; sums to 1 for each clip.
        slot: `(B,)` int64, person slot of each row.
        shape: (N, M), clips and person slots of the batch.
        unobserved: `(B, T, V)` bool, tokens that shall be the mask token; None: none.
    """

    rows: Tensor
    clip: Tensor
    weight: Tensor
    slot: Tensor
    shape: tuple[int, int]
    unobserved: Tensor | None = None

    def unpack(self, values: Tensor) -> Tensor:
        """Values of the rows `(B, ...)` in their places `(N, M, ...)`; zeros where there is no row."""
        n, m = self.shape
        out = values.new_zeros(n * m, *values.shape[1:])
        return out.index_copy(0, self.clip * m + self.slot, values).unflatten(0, (n, m))

    def part(self, rows: slice) -> People:
        """Some of the rows."""
        unobserved = None if self.unobserved is None else self.unobserved[rows]
        return People(
            self.rows[rows], self.clip[rows], self.weight[rows], self.slot[rows], self.shape, unobserved=unobserved
        )


class TokenEncoder(Encoder):
    """One token for each joint, frame and person of one stream; persons do not see each other.

    The feature of a clip is the mean of the tokens over frames, then over persons, joints side by side (MotionBERT's
    action network, Zhu et al., ICCV 2023).

    Args:
        layout: name, mapping or :class:`Layout` of the skeleton.
        channels: channels C of each joint.
        streams: the one stream that is read.
        width: width D of the tokens inside.
        token_features: width R of the tokens that leave.
        max_frames: the longest clip that it can read.
        dropout: of every element of the tokens before the mean over frames.
        absent: persons who are not there are left out of the mean over persons (`exclude`), or encoded and averaged in
            like any other (`count`, as released).
        pack: when excluded persons are not computed: in evaluation (`eval`), also in training (`always`, or `auto`
            where that makes no step wait for a GPU), or `never`: they are computed and have weight 0. A step need not
            wait where the host knows how many people its clips show (:attr:`RaggedClips.people`, of stores with masks).
        unobserved: joints that the mask calls unobserved are read as they come, zeros from any method (`zero`), or
            become the mask token (`token`).

    Raises:
        SkelactError: more than one stream, or an option that is none of those named.
    """

    compiles: ClassVar[tuple[str, ...]] = ("represent",)

    LEFT_OUT: ClassVar[Mapping[str, str]] = {}
    """Tensors of released files that the encoder has no use for, and what they are."""

    def __init__(
        self,
        layout: str | Mapping[str, Any] | Layout,
        channels: int,
        streams: Sequence[str],
        width: int,
        token_features: int,
        max_frames: int,
        dropout: float,
        absent: Literal["exclude", "count"],
        pack: Literal["auto", "eval", "always", "never"],
        unobserved: Literal["zero", "token"],
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if len(streams) != 1:
            raise SkelactError(f"{name} reads one stream, not {list(streams)}: method.streams=[joint]")
        for key, value, known in (
            ("absent", absent, ("exclude", "count")),
            ("pack", pack, ("auto", "eval", "always", "never")),
            ("unobserved", unobserved, ("zero", "token")),
        ):
            if value not in known:
                raise SkelactError(f"{name}: {key}={value} is none of {', '.join(known)}")
        layout = layout if isinstance(layout, Layout) else get_layout(layout)
        self.streams, self.joints, self.channels = tuple(streams), layout.num_joints, channels
        self.width, self.token_features, self.max_frames = width, token_features, max_frames
        self.num_features = self.joints * token_features
        self.absent, self.pack, self.unobserved = absent, pack, unobserved
        self.joints_embed = nn.Linear(channels, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dropout = nn.Dropout(dropout)
        self._expected: tuple[int, int] | None = None  # clips and people of the next training views

    def load_released(self, source: Source, origin: str = "state dict") -> tuple[str, ...]:
        """Take the weights of a file of the authors' code, strictly. Only a mask token may be missing.

        Args:
            source: path, checkpoint or state dict of the encoder or of a network around it; tensors outside the encoder
                (classifiers) are not looked at.
            origin: where a state dict comes from, for messages.

        Returns:
            Names of the encoder's tensors that were left out, all of them in :attr:`LEFT_OUT`.

        Raises:
            CheckpointError: unreadable, of another encoder, or of other sizes, which the message names.
        """
        origin = str(source) if isinstance(source, str | PathLike) else origin
        state = encoder_state(read_state(source))
        ours, theirs = self.sizes(self.state_dict(), origin), self.sizes(state, origin)
        if differing := [f"backbone.{key}={value:g}" for key, value in theirs.items() if ours[key] != value]:
            raise CheckpointError(f"{origin}: its encoder has other sizes; set {' '.join(differing)}")
        fill(self, {k: v for k, v in state.items() if k not in self.LEFT_OUT}, origin, optional=("mask_token",))
        return tuple(name for name in state if name in self.LEFT_OUT)

    @staticmethod
    def sizes(state: Mapping[str, Tensor], origin: str) -> dict[str, Any]:
        """Arguments of the constructor that the tensors of an encoder tell.

        Raises:
            CheckpointError: a tensor that tells them is missing.
        """
        raise NotImplementedError("an encoder with released weights defines sizes")

    def represent(
        self, x: Tensor, masked: Tensor | None = None, importance: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Encode person-clips.

        Args:
            x: `(B, T, V, C)`.
            masked: `(B, T, V)` bool, tokens that are replaced by the mask token before positions are added.
            importance: also return how much attention each token receives.

        Returns:
            Tokens `(B, T, V, R)` and importance `(B, T, V)` without gradient, or None.
        """
        raise NotImplementedError(f"{type(self).__name__} must define represent")

    def embed(self, x: Tensor, masked: Tensor | None = None) -> Tensor:
        """Tokens `(B, T, V, D)` without positions of coordinates `(B, T, V, C)`, or of the mask where `masked`.

        Raises:
            SkelactError: more frames than `max_frames`.
        """
        if x.shape[1] > self.max_frames:
            raise SkelactError(
                f"clips of {x.shape[1]} frames, but this encoder has positions for {self.max_frames}: "
                f"set backbone.max_frames={x.shape[1]}"
            )
        h: Tensor = self.joints_embed(x)
        return h if masked is None else torch.where(masked[..., None], self.mask_token.to(h.dtype), h)

    def expect(self, batch: RaggedClips) -> None:
        """See :class:`Encoder`."""
        self._expected = None if batch.people is None else (len(batch), batch.people)

    def people(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> People:
        """Who is encoded, with what weight.

        Somebody is there who has an observed joint or, without a mask, a coordinate that is not zero. A clip with
        nobody keeps slot 0.

        Args:
            streams: the one stream by name, `(N, M, T, V, C)`.
            mask: `(N, M, T, V)` bool, True where observed; None means everywhere.
        """
        x = self._read(streams)
        n, m = x.shape[:2]
        unobserved = ~mask.flatten(0, 1) if mask is not None and self.unobserved == "token" else None
        place = torch.arange(n * m, device=x.device)
        rows = x.flatten(0, 1)
        if self.absent == "count":
            weight = x.new_full((n * m,), 1 / m)
            return People(rows, place // m, weight, place % m, (n, m), unobserved)
        present = ((x != 0).any(-1) if mask is None else mask).flatten(2).any(2)
        nobody = ~present.any(1)
        present = torch.cat([(present[:, 0] | nobody)[:, None], present[:, 1:]], 1)
        weight, there = (present.to(x.dtype) / present.sum(1, keepdim=True)).flatten(), present.flatten()
        if m > 1 and (chosen := self._chosen(there, self._expected_of(n, mask))) is not None:
            place, rows, weight, there = chosen, rows[chosen], weight[chosen], there[chosen]
            unobserved = None if unobserved is None else unobserved[chosen]
        rows = rows.masked_fill(~there.view(-1, 1, 1, 1), 0.0)  # what stands there must not matter, not even times zero
        return People(rows, place // m, weight, place % m, (n, m), unobserved)

    def _expected_of(self, clips: int, mask: Tensor | None) -> int | None:
        """How many people a batch shows at most: of training views with a mask, if the host knows it of their clips."""
        if not self.training or mask is None or self._expected is None or self._expected[0] != clips:
            return None
        return self._expected[1]

    def _chosen(self, there: Tensor, expected: int | None) -> Tensor | None:
        """Slots `(B,)` that are encoded, in order, of those where somebody is `(N * M,)`; None: all."""
        if self.pack == "never" or (self.training and self.pack == "eval"):
            return None
        if expected is not None:
            torch._assert_async(there.sum() <= expected, "views show more people than their clips")
            return there.logical_not().to(torch.uint8).argsort(stable=True)[:expected].sort()[0]
        wait = not self.training or self.pack == "always" or there.device.type == "cpu"
        return there.nonzero()[:, 0] if wait else None

    def pool(self, tokens: Tensor, people: People) -> Tensor:
        """Dropout, mean over frames and over persons, joints side by side: `(B, T, V, R)` to `(N, V * R)`."""
        each = self.dropout(tokens).mean(1).flatten(1) * people.weight[:, None]
        return each.new_zeros(people.shape[0], each.shape[1]).index_add(0, people.clip, each)

    def forward_features(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Feature `(N, V * R)` of one stream; see the base class. Without gradients a few persons at a time."""
        people = self.people(streams, mask)
        count, frames = people.rows.shape[:2]
        step = max(count, 1)
        if not torch.is_grad_enabled():
            budget = TOKENS_AT_ONCE.get(people.rows.device.type, TOKENS_AT_ONCE["other"])
            step = max(budget // (frames * self.joints), 1)
        parts = (people.part(slice(begin, begin + step)) for begin in range(0, max(count, 1), step))
        pooled = (self.pool(self.represent(part.rows, part.unobserved)[0], part) for part in parts)
        return functools.reduce(Tensor.add_, pooled)

    def _read(self, streams: Mapping[str, Tensor]) -> Tensor:
        (name,) = self.streams
        if set(streams) != {name}:
            raise ValueError(f"streams {list(streams)} were given; this encoder reads {name!r}")
        x = streams[name]
        if x.dim() != 5 or x.shape[3:] != (self.joints, self.channels):
            raise ValueError(
                f"stream {name!r} has shape {tuple(x.shape)}; the encoder was built for (N, M, T, V, C) with "
                f"(V, C) = {(self.joints, self.channels)}"
            )
        return x
