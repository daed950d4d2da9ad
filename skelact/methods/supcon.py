"""Supervised contrastive learning of an embedding, as MotionBERT (Zhu et al., ICCV 2023) prepares one-shot recognition.

A linear layer on the encoder's feature, scaled to unit length, is trained so that clips of one class are near each
other (SupCon, Khosla et al., NeurIPS 2020). Classes that training has not seen are then told apart by the cosine to one
clip of each (`protocol=oneshot`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skelact.backbones.base import Encoder
from skelact.backbones.tokens import TokenEncoder
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.base import Method, with_rate
from skelact.methods.momentum import spread, unit
from skelact.objectives import gather
from skelact.objectives.supcon import supcon

PRESETS = ("as_released", "corrected")


class SupCon(Method):
    """An embedding in which clips of a class lie together.

    Batches should hold several clips of a class: `data.per_class`. Labels are compared, not counted: where training has
    some of a set's classes they stay as they are.

    Args:
        backbone: the encoder.
        layout: joint layout of the views.
        sampler: evaluation sampling.
        augment: makes the training views.
        streams: what is embedded, all together; None: all that the backbone reads.
        num_views: training views W of each clip; published: one.
        embedding: width E of the embedding.
        temperature: of the loss.
        dropout: of the feature, before the layer. MotionBERT's is of single tokens: `backbone.dropout`.
        head_lr: learning rate of the layer; None: the optimiser's. Schedules scale both.
        legacy_dropout: let dropout be active while test clips are embedded, as the released code does; None: by the
            preset. The embedding is then random.
        optimizer: factory.
        scheduler: factory.
        preset: `corrected`, or `as_released` for the published code's behaviour; fills options that are None.
        use_mask: see :class:`Method`; None: by the preset.
        scheduler_interval: see :class:`Method`.
        exclude_from_decay: see :class:`Method`; published: False.
        seed: seed of the training views.
    """

    space = "embedding"
    joins = "it contrasts the clips of a batch"

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        augment: nn.Module | None = None,
        streams: Sequence[str] | None = None,
        num_views: int = 1,
        embedding: int = 2048,
        temperature: float = 0.1,
        dropout: float = 0.1,
        head_lr: float | None = None,
        legacy_dropout: bool | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        preset: Literal["as_released", "corrected"] = "corrected",
        use_mask: bool | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        exclude_from_decay: bool = False,
        seed: int = 0,
    ) -> None:
        if preset not in PRESETS:
            raise SkelactError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        if num_views < 1 or temperature <= 0:
            raise SkelactError(f"num_views={num_views} must be at least 1, temperature={temperature} above 0")
        released = preset == "as_released"
        self._num_views = num_views
        super().__init__(
            backbone,
            layout,
            backbone.streams if streams is None else streams,
            sampler,
            augment,
            optimizer,
            scheduler,
            scheduler_interval,
            exclude_from_decay,
            use_mask=not released if use_mask is None else use_mask,
            seed=seed,
        )
        self.temperature, self.head_lr, self.preset = temperature, head_lr, preset
        self.legacy_dropout = released if legacy_dropout is None else legacy_dropout
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(backbone.num_features, embedding)
        if isinstance(backbone, TokenEncoder) and backbone.unobserved == "zero":
            backbone.mask_token.requires_grad_(False)  # nothing is masked, and ranks would wait for its gradient

    @property
    def num_views(self) -> int:
        """Training views of a clip, W."""
        return self._num_views

    def embed(self, views: Tensor, streams: Sequence[str] | None = None, mask: Tensor | None = None) -> Tensor:
        """Unit embeddings `(N, E)`, in single precision at least, of joint views `(N, M, T, V, C)`."""
        return unit(self.head(self.dropout(self.encode(views, streams, mask))))

    def embed_features(self, views: Tensor, streams: Sequence[str] | None = None, mask: Tensor | None = None) -> Tensor:
        """What test clips are compared by: :meth:`embed`, under `legacy_dropout` with dropout."""
        if not self.legacy_dropout:
            return self.embed(views, streams, mask)
        with _dropping(self):
            return self.embed(views, streams, mask)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See :class:`Method`; each group is split where the layer has a learning rate of its own."""
        return with_rate(super().parameter_groups(), self.head, self.head_lr)

    def training_step(self, batch: RaggedClips, batch_idx: int = 0) -> Tensor:
        """SupCon of the global batch: all ranks' clips are each other's positives and negatives."""
        embeddings = torch.stack([self.embed(views, mask=mask) for views, mask in self.views(batch)], 1)
        loss = supcon(gather(embeddings), gather(batch.label), self.temperature)
        values = {"loss": loss.detach(), "feature_std": spread(embeddings[:, 0][None]).squeeze()}
        self.report(values, batch_size=len(batch))
        return loss


@contextmanager
def _dropping(module: nn.Module) -> Iterator[None]:
    """Dropout active, whatever the mode; all else as it was."""
    quiet = [layer for layer in module.modules() if isinstance(layer, nn.Dropout) and not layer.training]
    for layer in quiet:
        layer.train()
    try:
        yield
    finally:
        for layer in quiet:
            layer.eval()
