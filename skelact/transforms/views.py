"""From ragged clips to the augmented views a method trains on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws
from skelact.transforms.sampling import Sampler
from skelact.transforms.spatial import Compose, Transform


class ViewMaker(nn.Module):
    """Several independent views of each clip: a sampler, then a transform, with draws of their own for each view.

    Args:
        sampler: makes dense views of ragged clips.
        transform: augments all views alike; None leaves them as they are.
        views: how many views of each clip; None: as many as `transforms`, or without these as many as the method it is
            given to asks for (its `num_views`).
        transforms: instead of `transform`, one for each view in turn, None for a view left as it is. AimCLR: extremely
            augmented, normally augmented query, normally augmented key.

    Raises:
        SkelactError: fewer than one view, both `transform` and `transforms`, or another number of views than these.
    """

    def __init__(
        self,
        sampler: Sampler,
        transform: Transform | None = None,
        views: int | None = 1,
        transforms: Sequence[Transform | None] | None = None,
    ) -> None:
        super().__init__()
        if views is not None and views < 1:
            raise SkelactError(f"views must be at least 1, got {views}")
        self.sampler, self.transform = sampler, transform
        self.views = None if views is None else int(views)
        self.transforms: nn.ModuleList | None = None
        if transforms is None:
            return
        if transform is not None:
            raise SkelactError(
                "augment.transform is for all views and augment.transforms one for each; give one of them"
            )
        count = len(transforms)
        if not count or views not in (None, 1, count):  # 1 is what is there when nothing was said
            raise SkelactError(f"augment.transforms has {count} entries, one for each view, but augment.views={views}")
        self.transforms = nn.ModuleList(Compose([]) if one is None else one for one in transforms)
        self.views = count

    @torch.no_grad()
    def forward(self, clips: RaggedClips, draws: Draws) -> list[tuple[Tensor, Tensor | None]]:
        """For each view, views `(N, M, T, V, C)` float32 and mask `(N, M, T, V)` or None."""
        if self.views is None:
            raise SkelactError("ViewMaker(views=None) leaves the number to a method; give it to one, or say views=N")
        # without randomness the sampler would make the same views again; transforms do not write to them
        sampled = None if self.sampler.random else self.sampler(clips, None)
        out = []
        for number in range(self.views):
            own = draws.view(number)
            views, mask = self.sampler(clips, own) if sampled is None else sampled
            transform = self.transform if self.transforms is None else self.transforms[number]
            if transform is not None:
                views, mask = transform(views, mask, own)
            out.append((views, mask))
        return out
