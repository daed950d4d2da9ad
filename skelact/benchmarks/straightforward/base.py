"""What a straightforward form of a method is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from skelact.methods.base import Method
from skelact.skeleton.streams import derive

Views = Sequence[tuple[Tensor, Tensor | None]]


class StraightforwardMethod(nn.Module):
    """A method's training step as one would write it down from the paper, with a copy of its weights.

    Same numbers as the method's own step, single process, in the layers of torch: one network call for each view and
    stream, every person slot, attention matrices in memory, optimisers that walk from tensor to tensor.
    """

    def loss(self, batch: Any, views: Views) -> Tensor:
        """Loss of one step with its graph; keys that a step leaves behind (queues) are kept.

        Args:
            batch: clips, of which labels are read.
            views: training views `(N, M, T, V, C)` with their masks, in the order of the method's own.
        """
        raise TypeError(f"{type(self).__name__} does not say what its loss is")

    def follow(self) -> None:
        """What moves after the optimiser's step: momentum networks of methods that do it then."""


class StraightforwardViews(StraightforwardMethod):
    """The base of those that read views of skeletons.

    Args:
        method: whose streams and treatment of unobserved joints are taken.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.streams, self.layout, self.use_mask = method.streams, method.layout, method.use_mask

    def derive(self, view: Tensor, mask: Tensor | None, streams: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Streams by name, each `(N, M, T, V, C)`, of a joint view; unobserved joints count as zeros.

        Args:
            view: `(N, M, T, V, C)`.
            mask: `(N, M, T, V)` bool, True where observed; None: everywhere.
            streams: names; None: all of the method's.
        """
        if mask is not None:
            view = view.masked_fill(~mask[..., None], 0.0)
        return derive(view, self.streams if streams is None else streams, self.layout, mask if self.use_mask else None)
