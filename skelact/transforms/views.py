"""From ragged clips to the augmented views a method trains on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws
from skelact.transforms.sampling import Sampler
from skelact.transforms.spatial import Transform


class ViewMaker(nn.Module):
    """Several independent views of each clip: a sampler, then a transform, with draws of their own for each view.

    Args:
        sampler: makes dense views of ragged clips.
        transform: augments them; None leaves them as they are.
        views: how many views of each clip; None: as many as the method it is given to asks for (its `num_views`).

    Raises:
        SkelactError: fewer than one view.
    """

    def __init__(self, sampler: Sampler, transform: Transform | None = None, views: int | None = 1) -> None:
        super().__init__()
        if views is not None and views < 1:
            raise SkelactError(f"views must be at least 1, got {views}")
        self.sampler, self.transform = sampler, transform
        self.views = None if views is None else int(views)

    @torch.no_grad()
    def forward(self, clips: RaggedClips, draws: Draws) -> list[tuple[Tensor, Tensor | None]]:
        """For each view, views `(N, M, T, V, C)` float32 and mask `(N, M, T, V)` or None."""
        if self.views is None:
            raise SkelactError("ViewMaker(views=None) leaves the number to a method; give it to one, or say views=N")
        out = []
        for number in range(self.views):
            own = draws.view(number)
            views, mask = self.sampler(clips, own)
            if self.transform is not None:
                views, mask = self.transform(views, mask, own)
            out.append((views, mask))
        return out
