"""UmURL: unified multi-modal unsupervised representation learning (Sun et al., ACM MM 2023, arXiv 2311.03106).

Several views of each clip are made. Every stream is encoded alone from its own view; all streams together are fused
early and encoded by the same modality-agnostic encoder from one more view. Stream-aware projectors decompose the
fused feature, which intra-modal consistency pulls to the embedding of each stream alone; inter-modal consistency
pulls the streams together; variance and covariance regularisation keeps every embedding from collapsing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skelact.backbones.base import Encoder
from skelact.backbones.normalisation import global_std
from skelact.backbones.umurl import code_of
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.base import Method
from skelact.methods.layers import projector
from skelact.objectives import UmURLTerms, gather, umurl_loss


class Switches(TypedDict):
    """Options whose default depends on the preset."""

    loss_in_autocast: bool
    use_mask: bool


PRESETS: dict[str, Switches] = {
    "as_released": {"loss_in_autocast": True, "use_mask": False},
    "corrected": {"loss_in_autocast": False, "use_mask": True},
}
"""`as_released` is the published code, its half-precision loss under mixed precision included."""


class UmURL(Method):
    """UmURL pretraining.

    Args:
        backbone: encoder that accepts any subset of `streams`.
        layout: joint layout of the views.
        sampler: evaluation sampling.
        augment: makes `len(streams) + 1` training views: one for each stream, in order, and one for their fusion.
        streams: two or more streams; the paper uses joint, bone and motion.
        optimizer: factory; published: Adam, learning rate 5e-4, weight decay 1e-5 on all parameters.
        scheduler: factory; published: times 0.1 at the start of epoch 351 of 451.
        projector_width: embedding width; published: 4096.
        projector_hidden: hidden width of the projectors, the feature's width where None.
        projector_bias: whether the projectors' last layer has a bias; VICReg's has none.
        consistency: weight of both consistency terms.
        variance: weight of the variance hinge.
        covariance: weight of the covariance penalty.
        preset: `corrected`, or `as_released` for the published code's behaviour; fills options that are None.
        loss_in_autocast: compute the loss in mixed precision instead of in float32.
        use_mask: see :class:`Method`.
        scheduler_interval: see :class:`Method`.
        exclude_from_decay: see :class:`Method`; published: False.
        seed: seed of the training views.
    """

    sync_batchnorm = True
    joins = "its loss is made of variances and covariances of a batch"

    def __init__(
        self,
        backbone: Encoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        augment: nn.Module | None = None,
        streams: Sequence[str] = ("joint", "bone", "motion"),
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        projector_width: int = 4096,
        projector_hidden: int | None = None,
        projector_bias: bool = True,
        consistency: float = 5.0,
        variance: float = 5.0,
        covariance: float = 1.0,
        preset: Literal["as_released", "corrected"] = "corrected",
        loss_in_autocast: bool | None = None,
        use_mask: bool | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        exclude_from_decay: bool = False,
        seed: int = 0,
    ) -> None:
        if preset not in PRESETS:
            raise SkelactError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        super().__init__(
            backbone,
            layout,
            streams,
            sampler,
            augment,
            optimizer,
            scheduler,
            scheduler_interval,
            exclude_from_decay,
            use_mask=PRESETS[preset]["use_mask"] if use_mask is None else use_mask,
            seed=seed,
        )
        if len(self.streams) < 2:
            raise SkelactError(f"UmURL needs two or more streams, got {list(self.streams)}")
        for stream in self.streams:
            hidden = projector_hidden or self.num_features
            head = projector(self.num_features, hidden, projector_width, projector_bias)
            self.add_module(f"{code_of(stream)}_projector", head)
        self.consistency, self.variance, self.covariance = consistency, variance, covariance
        self.preset = preset
        preferred = PRESETS[preset]["loss_in_autocast"]
        self.loss_in_autocast = preferred if loss_in_autocast is None else loss_in_autocast

    @property
    def num_views(self) -> int:
        """One view for each stream and one for their fusion."""
        return len(self.streams) + 1

    def embed(self, views: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[list[Tensor], list[Tensor]]:
        """Embeddings of the training views.

        Args:
            views: one (view, mask) for each stream, in order, then one for the fusion of all.

        Returns:
            (uni-modal z_k, decomposed z_uk), one `(N, projector_width)` for each stream in both.
        """
        *single, (joint_view, joint_mask) = views
        if len(single) != len(self.streams):
            raise SkelactError(
                f"UmURL with {len(self.streams)} streams needs {len(self.streams) + 1} views: "
                f"`augment` made {len(views)}"
            )
        inputs = [self.derive(view, [k], mask) for k, (view, mask) in zip(self.streams, single, strict=True)]
        inputs.append(self.derive(joint_view, None, joint_mask))
        *y, y_u = self.backbone.forward_many(inputs, [mask for _, mask in views])
        uni, fused = [], []
        for stream, y_k in zip(self.streams, y, strict=True):
            head = self.get_submodule(f"{code_of(stream)}_projector")
            # Two calls, fused first: each has batch statistics of its own, and the running ones follow that order.
            fused.append(head(y_u))
            uni.append(head(y_k))
        return uni, fused

    def objective(self, uni: Sequence[Tensor], fused: Sequence[Tensor]) -> UmURLTerms:
        """Loss of the global batch: embeddings of all ranks are gathered with their gradients."""
        z = gather(torch.stack([*uni, *fused]), dim=1)
        weights = (self.consistency, self.variance, self.covariance)
        return umurl_loss(z[: len(uni)], z[len(uni) :], *weights, in_autocast=self.loss_in_autocast)

    def training_step(self, batch: RaggedClips, batch_idx: int = 0) -> dict[str, Tensor]:
        """One step: `loss` with its graph; the terms and `z_std`, the embeddings' mean standard deviation, without."""
        uni, fused = self.embed(self.views(batch))
        terms = self.objective(uni, fused)
        with torch.no_grad():
            values = {
                "intra": terms.intra.sum().detach(),
                "inter": terms.inter.sum().detach(),
                "variance": terms.variance.sum().detach(),
                "covariance": terms.covariance.sum().detach(),
                "z_std": global_std(uni).mean(),
            }
        self.report({"loss": terms.total.detach(), **values}, batch_size=len(batch))
        return {"loss": terms.total, **values}
