"""ST-GCN (Yan et al., AAAI 2018), as the contrastive family of SkeletonCLR, AimCLR and CMCS uses it.

One trunk a stream, all of equal shape and with weights of their own, run as one program: every parameter is the
released one with a leading axis of streams. The layers are in :mod:`skelact.backbones.stgcn_blocks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from skelact.backbones.base import Encoder
from skelact.backbones.normalisation import StackedBatchNorm, pick
from skelact.backbones.stgcn_blocks import Block, StackedConv
from skelact.objectives import all_reduce
from skelact.skeleton.graph import adjacency
from skelact.skeleton.layouts import Layout, get_layout


class STGCN(Encoder):
    """Ten graph-convolution blocks a stream, then the mean over frames and joints and over persons.

    Batch statistics are those of all ranks' clips: several processes train as one does with the whole batch, also
    where they hold different numbers of clips or persons. Dropout alone differs: each process draws masks of its own.

    Args:
        layout: name, mapping or :class:`Layout` of the skeleton.
        persons: person slots M.
        channels: channels C of each joint.
        streams: S streams, each with a trunk.
        hidden: width h of the first block; 64 in the original, 16 in the contrastive family.
        num_features: width D of a stream's feature. The encoder's own `num_features` is `S * D`.
        strategy: partition of neighbours; see :func:`skelact.skeleton.graph.partition`.
        max_hop: neighbours up to so many bones away.
        true_distances: measure distances to the centre through the whole graph; the released code does not.
        dropout: after the temporal convolution, in blocks 2 to 10.
        temporal_kernel: taps of the temporal convolution, odd.
        edge_importance: learn a factor for each edge in each block.
        init: `released`: convolutions N(0, 0.02), as the family has it; `he`: by fan-in (He et al., ICCV 2015). Batch
            normalisation follows each convolution, so training differs in its first steps; but without training the
            released weights make features so small that a classifier sees next to nothing of them.
        ignore_absent: leave persons without an observed joint out, of batch statistics and of the mean over persons.
            The released model encodes them as zeros and averages them in.
        form: `plain` (fast on processors), `grouped` (all streams in each kernel, for accelerators and autocast) or
            `auto`. They give the same numbers up to rounding, but draw dropout differently.

    Raises:
        ValueError: no streams, or an even temporal kernel.
    """

    A: Tensor
    stacked = True
    compiles: ClassVar[tuple[str, ...]] = ("run_grouped",)  # what a CPU runs is faster than what is compiled for it

    def __init__(
        self,
        layout: str | Mapping[str, Any] | Layout,
        persons: int = 2,
        channels: int = 3,
        streams: Sequence[str] = ("joint",),
        hidden: int = 16,
        num_features: int = 256,
        strategy: str = "spatial",
        max_hop: int = 1,
        true_distances: bool = False,
        dropout: float = 0.5,
        temporal_kernel: int = 9,
        edge_importance: bool = True,
        init: Literal["released", "he"] = "released",
        ignore_absent: bool = False,
        form: Literal["auto", "plain", "grouped"] = "auto",
    ) -> None:
        super().__init__()
        layout = layout if isinstance(layout, Layout) else get_layout(layout)
        if not streams:
            raise ValueError("ST-GCN needs at least one stream")
        if temporal_kernel % 2 == 0:
            raise ValueError(f"temporal_kernel must be odd, got {temporal_kernel}")
        if form not in ("auto", "plain", "grouped"):
            raise ValueError(f"form must be auto, plain or grouped, got {form!r}")
        if init not in ("released", "he"):
            raise ValueError(f"init must be released or he, got {init!r}")
        self.streams, self.persons, self.channels, self.init = tuple(streams), persons, channels, init
        self.joints, self.width, self.hidden = layout.num_joints, num_features, hidden
        self.num_features = len(self.streams) * num_features
        self.dropout, self.ignore_absent, self.form = dropout, ignore_absent, form
        stack = len(self.streams)
        graph = torch.from_numpy(adjacency(layout, strategy, max_hop, true_distances)).float()
        self.register_buffer("A", graph, persistent=False)
        self.data_bn = StackedBatchNorm(stack, self.joints * channels)
        h, width = hidden, channels
        plan = [(h, 1), (h, 1), (h, 1), (h, 1), (2 * h, 2), (2 * h, 1), (2 * h, 1), (4 * h, 2), (4 * h, 1)]
        self.st_gcn_networks = nn.ModuleList()
        for i, (outputs, stride) in enumerate([*plan, (num_features, 1)]):
            block = Block(
                stack, len(graph), width, outputs, stride, temporal_kernel, dropout if i else 0.0, residual=i > 0
            )
            self.st_gcn_networks.append(block)
            width = outputs
        self.edge_importance = nn.ParameterList(
            nn.Parameter(torch.ones(stack, *graph.shape)) for _ in self.st_gcn_networks if edge_importance
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions as `init` says, batch-norm weights N(1, 0.02), biases zero."""
        for module in self.modules():
            if isinstance(module, StackedConv):
                fan_in = module.weight[0, 0].numel()
                nn.init.normal_(module.weight, 0.0, 0.02 if self.init == "released" else (2 / fan_in) ** 0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, StackedBatchNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """The streams' features side by side `(N, S * D)`, in the encoder's order.

        A stream that is not given contributes zeros: its weights drop out of a linear head.
        """
        features = dict(zip(self.given(streams), self.forward_streams(streams, mask).unbind(0), strict=True))
        zeros = next(iter(features.values()))
        return torch.cat([features.get(name, torch.zeros_like(zeros)) for name in self.streams], 1)

    def blocks(self) -> list[Block]:
        """The ten blocks, first to last."""
        return [block for block in self.st_gcn_networks if isinstance(block, Block)]

    def given(self, streams: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Names of the given streams in the encoder's order; ValueError where one is unknown or none is given."""
        unknown = [name for name in streams if name not in self.streams]
        if unknown or not streams:
            what = f"stream {unknown[0]!r} is not one of this encoder's" if unknown else "no stream given; there are"
            raise ValueError(f"{what}: {', '.join(self.streams)}")
        return tuple(name for name in self.streams if name in streams)

    def forward_streams(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Features of the given streams `(S', N, D)`, in the encoder's order.

        Args:
            streams: by name, each `(N, M, T, V, C)`.
            mask: `(N, M, T, V)` bool; only `ignore_absent` reads it.
        """
        maps, present, shape = self._trunks(streams, mask)
        people = [x.mean((2, 3)) if self._grouped(x) else _mean_of_frames(x) for x in maps]  # (R, D)
        return torch.stack([_mean_over_persons(x, present, shape) for x in people])

    def feature_map(self, streams: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """What the last block gives, `(S', N, M, D, T', V)`; zeros for persons that `ignore_absent` left out."""
        maps, present, (clips, persons) = self._trunks(streams, mask)
        x = torch.stack(maps)
        x = x if self._grouped(x) else x.permute(0, 3, 4, 1, 2)  # (S', R, D, T', V); channels stay last in memory
        if present is not None:
            x = x.new_zeros(len(x), clips * persons, *x.shape[2:]).index_copy(1, present, x)
        return x.unflatten(1, (clips, persons))

    def pool(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean of a feature map over frames, joints and persons: `(S', N, M, D, T', V)` to `(S', N, D)`."""
        people = features.mean((-1, -2))
        present = self._present(features.shape[1], mask)
        if present is None:
            return people.mean(2)
        shape = features.shape[1], features.shape[2]
        return torch.stack([_mean_over_persons(x.flatten(0, 1)[present], present, shape) for x in people])

    def _present(self, clips: int, mask: Tensor | None) -> Tensor | None:
        """Rows of `(N * M)` with an observed joint; None: all rows take part."""
        if not self.ignore_absent or mask is None:
            return None
        seen = mask.flatten(2).any(2)
        seen[:, 0] |= ~seen.any(1)  # a clip without anybody keeps its zeros instead of dividing by no person
        return seen.flatten().nonzero()[:, 0]

    def _grouped(self, x: Tensor) -> bool:
        return self.form == "grouped" or (
            self.form == "auto" and (x.device.type != "cpu" or torch.is_autocast_enabled(x.device.type))
        )

    def _trunks(
        self, streams: Mapping[str, Tensor], mask: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None, tuple[int, int]]:
        """Last maps of each stream: `(T', V, R, D)` (plain) or `(R, D, T', V)` (grouped); present rows; (N, M)."""
        names = self.given(streams)
        for name in names:
            self._check(name, streams[name])
        numbers = [self.streams.index(name) for name in names]
        clips, persons, frames = streams[names[0]].shape[:3]
        present = self._present(clips, mask)
        inputs = []
        for name in names:
            x = streams[name].reshape(clips * persons, frames, self.joints * self.channels)
            inputs.append(x if present is None else x[present])
        run = self.run_grouped if self._grouped(inputs[0]) else self.run_plain
        return run(inputs, numbers), present, (clips, persons)

    def run_grouped(self, inputs: list[Tensor], numbers: list[int]) -> list[Tensor]:
        """Each stream's people `(R, T, V * C)` to its last map `(R, D, T', V)`."""
        x = torch.cat(inputs, 2).transpose(1, 2)  # (R, S * V * C, T)
        x = self.data_bn.grouped(x, numbers).view(len(x), len(numbers), self.joints, self.channels, x.shape[2])
        x = x.permute(0, 1, 3, 4, 2).flatten(1, 2)
        for block, matrices in zip(self.blocks(), self._graphs(numbers), strict=True):
            x = block.grouped(x, matrices, numbers)
        return list(x.unflatten(1, (len(numbers), -1)).unbind(1))

    def run_plain(self, inputs: list[Tensor], numbers: list[int]) -> list[Tensor]:
        """Each stream's people `(R, T, V * C)` to its last map `(T', V, R, D)`."""
        frames = inputs[0].shape[1]
        normalised = self.data_bn.plain([x.flatten(0, 1) for x in inputs], numbers)
        maps = [x.view(-1, frames, self.joints, self.channels).permute(1, 2, 0, 3).contiguous() for x in normalised]
        for block, matrices in zip(self.blocks(), self._graphs(numbers), strict=True):
            maps = block.plain(maps, matrices, numbers)
        return maps

    def _graphs(self, numbers: list[int]) -> list[Tensor]:
        """Adjacency `(S, K, V, V)` of each block, times the importance of its edges."""
        graph = self.A.to(self.data_bn.weight.dtype)
        return [graph * pick(e, numbers) for e in self.edge_importance] or [
            graph.expand(len(numbers), *graph.shape) for _ in self.st_gcn_networks
        ]

    def _check(self, stream: str, x: Tensor) -> None:
        expected = (self.joints, self.channels)
        if x.dim() != 5 or x.shape[3:] != expected:
            raise ValueError(
                f"stream {stream!r} has shape {tuple(x.shape)}; the encoder was built for (N, M, T, V, C) with "
                f"(V, C) = {expected}"
            )

    def trunk_state(self, stream: str) -> dict[str, Tensor]:
        """One stream's parameters and buffers under the names and shapes of the released code."""
        s = self._number(stream)
        return {"A": self.A.clone()} | {name: value[s].clone() for name, value in self.state_dict().items()}

    def load_trunk_state(self, stream: str, state: Mapping[str, Tensor]) -> None:
        """Take one stream's trunk from a released state; `A` and heads (`fc.*`) in it are checked and left.

        Raises:
            ValueError: a tensor is missing, left over or of another shape, or the state's graph is not this one.
        """
        s, own = self._number(stream), self.state_dict()
        given = {name: value for name, value in state.items() if name != "A" and not name.startswith("fc.")}
        odd = sorted(set(own) ^ set(given))
        if odd:
            raise ValueError(f"the state of trunk {stream!r} and this encoder differ in {odd[0]} ({len(odd)} tensors)")
        if "A" in state and not (
            state["A"].shape == self.A.shape and torch.allclose(state["A"].to(self.A), self.A, atol=1e-6)
        ):
            raise ValueError("the state was trained on another graph (A differs): check layout, strategy and max_hop")
        for name, value in given.items():
            if value.numel() != own[name][s].numel():
                raise ValueError(f"{name} is {tuple(value.shape)}, expected {tuple(own[name][s].shape)}")
        with torch.no_grad():
            for name, value in given.items():
                own[name][s] = value.reshape(own[name][s].shape).to(own[name])

    def _number(self, stream: str) -> int:
        self.given({stream: self.A})
        return self.streams.index(stream)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The input's batch normalisation is the stem; blocks come with their edge importance."""
        return {"stem": r"^data_bn", "blocks": r"^(?:st_gcn_networks|edge_importance)\.(\d+)"}


def _mean_of_frames(x: Tensor) -> Tensor:
    """`(T, V, R, D)` to `(R, D)`; as a product, so that its gradient lies densely in memory."""
    frames, joints, rows, width = x.shape
    share = x.new_full((1, frames * joints), 1 / (frames * joints))
    return torch.mm(share, x.reshape(frames * joints, -1)).view(rows, width)


def _mean_over_persons(people: Tensor, present: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """`(R, D)` of the present rows to `(N, D)`."""
    if present is None:
        return people.unflatten(0, shape).mean(1)
    clip = present // shape[1]
    total = people.new_zeros(shape[0], people.shape[1]).index_add(0, clip, people)
    return total / torch.bincount(clip, minlength=shape[0])[:, None].to(total)


def attention_drop(features: Tensor, keep: float = 0.7, epsilon: float = 1e-4) -> Tensor:
    """AimCLR's attention-guided drop: zero the most salient joints and entries of a feature map, rescale the rest.

    Attention is the sigmoid of SimAM's energy of an entry within its map (Guo et al., AAAI 2022). Joints whose mean
    attention over channels and frames reaches `keep` are dropped, then entries whose own attention does; after each,
    what is left is scaled by the inverse share kept in the whole batch, that of all ranks. Masks carry no gradient. A
    mask that would keep nothing is not applied.

    Args:
        features: `(B, C, T, V)`.
        keep: attention from which on an entry is dropped.
        epsilon: added to variances.

    Returns:
        `(B, C, T, V)`.
    """
    with torch.no_grad():
        energy = (features - features.mean((2, 3), keepdim=True)).square_()
        count = max(features.shape[2] * features.shape[3] - 1, 1)
        variance = energy.sum((2, 3), keepdim=True) / count
        attention = energy.div_(4 * (variance + epsilon)).add_(0.5).sigmoid_()
        masks = attention.mean((1, 2), keepdim=True) < keep, attention < keep
        wide = torch.promote_types(features.dtype, torch.float32)  # counts pass the largest half
        sizes = [energy.new_full((), mask.numel(), dtype=wide) for mask in masks]
        kept, size = all_reduce(torch.stack([*(mask.sum(dtype=wide) for mask in masks), *sizes])).view(2, 2)
        scale = features.new_ones(())
        for mask, share in zip(masks, (kept / size).to(features.dtype), strict=True):
            nothing = share == 0
            scale = scale * torch.where(nothing, torch.ones_like(share), mask / torch.where(nothing, 1.0, share))
    return features * scale
