"""Which modalities a clip keeps in training: policies of modality dropout.

N clips, M modalities, in the order of `names`. A policy is split as the transforms of views are: `draw` turns random
numbers into parameters, `replay` applies them. What is kept is within what a clip has, and a clip that has anything
keeps at least one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from skelact.errors import SkelactError
from skelact.skeleton.constants import constant
from skelact.transforms.base import Params, check_p
from skelact.transforms.draws import Draws


class DropPolicy(nn.Module):
    """Base of the policies: `forward(...)` = `replay(available, names, groups, **draw(...))`."""

    def draw(
        self, draws: Draws, available: Tensor, names: Sequence[str], groups: Mapping[str, str], step: int = 0
    ) -> Params:
        """Parameters by name."""
        raise NotImplementedError(f"{type(self).__name__} must define draw")

    def replay(self, available: Tensor, names: Sequence[str], groups: Mapping[str, str], **params: Tensor) -> Tensor:
        """`(N, M)` bool, what is kept, of given parameters."""
        raise NotImplementedError(f"{type(self).__name__} must define replay")

    def forward(
        self, draws: Draws, available: Tensor, names: Sequence[str], groups: Mapping[str, str], step: int = 0
    ) -> Tensor:
        """What each clip keeps.

        Args:
            draws: of the N clips.
            available: `(N, M)` bool, what each clip has.
            names: of the M modalities.
            groups: modality -> the sensor it comes from.
            step: number of the batch, the same on all ranks: what is drawn once a batch is keyed by it.

        Returns:
            `(N, M)` bool.
        """
        return self.replay(available, names, groups, **self.draw(draws, available, names, groups, step))


class UniformCount(DropPolicy):
    """As many survivors as a die says, all numbers alike, and which ones by another (Woo et al., AAAI 2023).

    Args:
        per: `sample`: each clip draws its own number, out of 1 to what it has; `batch`: one number out of 1 to M for
            all ranks, as published (a clip that has fewer keeps all). Which ones survive is each clip's own draw
            either way.

    Raises:
        SkelactError: `per` is neither.
    """

    def __init__(self, per: Literal["sample", "batch"] = "sample") -> None:
        super().__init__()
        if per not in ("sample", "batch"):
            raise SkelactError(f"per={per} is neither sample nor batch")
        self.per = per

    def draw(
        self, draws: Draws, available: Tensor, names: Sequence[str], groups: Mapping[str, str], step: int = 0
    ) -> Params:
        """`count` `(N,)` int64, how many survive, and `noise` `(N, M)`, of which the smallest do."""
        noise = draws.uniform("drop.noise", available.shape[1])
        if self.per == "sample":
            return {"count": 1 + draws.integers("drop.count", available.sum(1)), "noise": noise}
        batch = Draws(draws.seed, draws.epoch, draws.index.new_full((1,), step))
        return {"count": 1 + batch.integers("drop.batch", available.shape[1]).expand(len(available)), "noise": noise}

    def replay(self, available: Tensor, names: Sequence[str], groups: Mapping[str, str], **params: Tensor) -> Tensor:
        """See :class:`DropPolicy`."""
        place = params["noise"].masked_fill(~available, torch.inf).argsort(1).argsort(1)
        return available & (place < params["count"][:, None])


class Bernoulli(DropPolicy):
    """Each modality is dropped with the same probability; of a clip that would lose all, one survives, any alike.

    Args:
        p: the probability.

    Raises:
        SkelactError: not within 0 and 1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_p(p)

    def draw(
        self, draws: Draws, available: Tensor, names: Sequence[str], groups: Mapping[str, str], step: int = 0
    ) -> Params:
        """`noise` `(N, M)`: what is below `p` is dropped, the largest last of all."""
        return {"noise": draws.uniform("drop.noise", available.shape[1])}

    def replay(self, available: Tensor, names: Sequence[str], groups: Mapping[str, str], **params: Tensor) -> Tensor:
        """See :class:`DropPolicy`."""
        noise = params["noise"].masked_fill(~available, -1.0)
        last = torch.zeros_like(available).scatter(1, noise.argmax(1, keepdim=True), True)
        return available & ((noise >= self.p) | last)


class FixedSubsets(DropPolicy):
    """Each clip is cut down to one of given subsets, all alike, out of those that leave something of it.

    Args:
        subsets: each of names of modalities. A clip of which none leaves anything stays as it is.

    Raises:
        SkelactError: no subset, or an empty one; when used, a name that is none of the modalities.
    """

    def __init__(self, subsets: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.subsets = tuple(tuple(subset) for subset in subsets)
        if not self.subsets or not all(self.subsets):
            raise SkelactError(f"subsets={[list(s) for s in self.subsets]}: give at least one, and none of them empty")

    def draw(
        self, draws: Draws, available: Tensor, names: Sequence[str], groups: Mapping[str, str], step: int = 0
    ) -> Params:
        """`noise` `(N, subsets)`: the largest of those possible is taken."""
        return {"noise": draws.uniform("drop.noise", len(self.subsets))}

    def replay(self, available: Tensor, names: Sequence[str], groups: Mapping[str, str], **params: Tensor) -> Tensor:
        """See :class:`DropPolicy`."""
        table = subset_table(self.subsets, tuple(names), available.device)
        left = available[:, None] & table  # (N, subsets, M)
        choice = params["noise"].masked_fill(~left.any(2), -1.0).argmax(1)
        kept = left[torch.arange(len(left), device=left.device), choice]
        return torch.where(kept.any(1, keepdim=True), kept, available)


class Groups(DropPolicy):
    """A policy that acts on sensors: all modalities that come from one are kept or dropped together.

    Bone and motion follow from the joints, so that only a whole skeleton can really be missing.

    Args:
        policy: acts on the groups, in the order in which they first appear; by their names where it is given names.
    """

    def __init__(self, policy: DropPolicy) -> None:
        super().__init__()
        self.policy = policy

    @staticmethod
    def _members(names: Sequence[str], groups: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """Group -> its modalities."""
        own = [groups[name] for name in names]
        return {group: tuple(n for n, g in zip(names, own, strict=True) if g == group) for group in own}

    def draw(
        self, draws: Draws, available: Tensor, names: Sequence[str], groups: Mapping[str, str], step: int = 0
    ) -> Params:
        """Those of the inner policy."""
        members = self._members(names, groups)
        table = subset_table(tuple(members.values()), tuple(names), available.device)
        there = (available[:, None] & table).any(2)
        return self.policy.draw(draws, there, tuple(members), {group: group for group in members}, step)

    def replay(self, available: Tensor, names: Sequence[str], groups: Mapping[str, str], **params: Tensor) -> Tensor:
        """See :class:`DropPolicy`."""
        members = self._members(names, groups)
        table = subset_table(tuple(members.values()), tuple(names), available.device)
        there = (available[:, None] & table).any(2)
        kept = self.policy.replay(there, tuple(members), {group: group for group in members}, **params)
        return available & (kept[:, :, None] & table).any(1)


def subset_table(subsets: tuple[tuple[str, ...], ...], names: tuple[str, ...], device: torch.device) -> Tensor:
    """`(S, M)` bool: which of M names each of S subsets holds.

    Raises:
        SkelactError: a subset holds another name.
    """
    unknown = {name for subset in subsets for name in subset} - set(names)
    if unknown:
        raise SkelactError(f"subsets of modalities: {', '.join(sorted(unknown))} is none of {', '.join(names)}")
    return constant(tuple(tuple(name in subset for name in names) for subset in subsets), device)


def subsets_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """All non-empty subsets, the whole last; of more than five names those of one, of all but one, and of all."""
    count = len(names)
    sizes = range(1, count + 1) if count <= 5 else (1, count - 1, count)
    return [subset for size in sizes for subset in combinations(names, size)]
