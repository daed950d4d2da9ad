"""MaskCLR: attention-guided contrastive learning of robust action recognition (Abdelfattah, Hassan, Alahi, CVPR 2024).

A classifier of skeletons learns to decide the same without the joints that it looks at most. The standard pathway
classifies a clip and says how much attention each joint receives. The masked pathway, with the same weights, classifies
the clip without some of these joints. Both are trained to be right, a clip's two features are pulled together
(sample level), and so are features of one class (class level). At test time there is the standard pathway alone.

There are two releases: C1 (September 2023, of the ICLR submission, targeted masking) and C2 (November 2023, of the CVPR
paper, probabilistic masking). The paper's text was not at hand: its formulas are read off its figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from skelact.backbones.tokens import People, TokenEncoder
from skelact.clips import RaggedClips
from skelact.errors import SkelactError
from skelact.methods.layers import ActionHead
from skelact.methods.supervised import Supervised, count_correct, cross_entropy_sum
from skelact.objectives import all_reduce, at_least_single, gather, own_rows, supcon, world_size
from skelact.objectives.maskclr import class_mean_loss, log_confidence, nt_xent, targeted_class_loss
from skelact.transforms.draws import Draws
from skelact.transforms.masking import BATCH_GROUPS, GROUPS, agpm, targeted

Views = Sequence[tuple[Tensor, Tensor | None]]


class Switches(TypedDict):
    """Options whose default depends on the preset."""

    masking: str
    group: str
    second_view: str
    ce: str
    contrast_on: str
    sample_loss: str
    class_loss: str
    sample_weight: float
    class_weight: float
    confidence_axis: str


PRESETS: dict[str, Switches] = {
    "as_released_c1": {
        "masking": "targeted", "group": "sequence", "second_view": "noisy", "ce": "average", "contrast_on": "hidden",
        "sample_loss": "ntxent", "class_loss": "rowmax", "sample_weight": 1.0, "class_weight": 1.0,
        "confidence_axis": "batch",
    },
    "as_released_c2": {
        "masking": "agpm", "group": "joint_batch", "second_view": "masked", "ce": "standard", "contrast_on": "logits",
        "sample_loss": "ntxent", "class_loss": "rowmax", "sample_weight": 0.5, "class_weight": 0.5,
        "confidence_axis": "batch",
    },
    "corrected": {
        "masking": "agpm", "group": "sequence", "second_view": "masked", "ce": "average", "contrast_on": "hidden",
        "sample_loss": "ntxent", "class_loss": "supcon", "sample_weight": 0.5, "class_weight": 0.5,
        "confidence_axis": "class",
    },
}  # fmt: skip
PRESETS["as_released"] = PRESETS["as_released_c2"]
CHOICES = {
    "preset": tuple(PRESETS),
    "masking": ("agpm", "targeted"),
    "group": GROUPS,
    "second_view": ("masked", "noisy", "both"),
    "ce": ("average", "standard"),
    "contrast_on": ("hidden", "logits"),
    "sample_loss": ("ntxent", "targeted", "none"),
    "class_loss": ("supcon", "rowmax", "class_mean", "tcl", "none"),
    "confidence_axis": ("class", "batch"),
}


class MaskCLR(Supervised):
    """MaskCLR: ActionNet in two pathways.

    Epochs before `msk_path_start_epoch` are those of :class:`Supervised`; from then on the second pathway runs and the
    loss is the cross-entropy plus the weighted sample-level and class-level terms.

    Args:
        backbone: DSTformer or another token encoder.
        layout: joint layout of the views.
        sampler: evaluation sampling.
        num_classes: number of classes K.
        msk_path_start_epoch: first epoch of the second pathway, from 0; published: 300 of 600.
        second_view: `masked`: the clip without masked joints; `noisy`: a second, noisy view that `augment` makes (C1,
            which computed masks and did not use them); `both`: two pathways beside the standard one.
        masking: `agpm` draws joints, replaced by the mask token; `targeted` takes all above a threshold, set to zero.
        group: of `agpm`, see :func:`~skelact.transforms.masking.agpm`.
        ratio: share of the joints that `agpm` masks.
        mask_temperature: of `agpm`.
        threshold: of `targeted`, a part of the batch's largest share of attention.
        ce: cross-entropy `average` over the pathways, or of the `standard` one.
        contrast_on: vectors that are contrasted: `hidden` features of the head, or `logits`.
        sample_loss: `ntxent`; `targeted`: weighted by the confidence in the true class (C2's `tcl`); `none`.
        class_loss: `supcon` (Khosla et al., NeurIPS 2020, unit vectors); `rowmax`: with inner products divided by the
            largest of their row in place of a temperature (both releases); `class_mean`: NT-Xent of class means, as the
            paper words it; `tcl`: C2's targeted term, which has no gradient; `none`.
        sample_weight: of the sample-level term.
        class_weight: of the class-level term.
        sample_temperature: published: 0.5.
        class_temperature: None: 0.07 of samples, 0.5 of class means.
        class_momentum: of a memory of class means (`class_mean`); 0: the batch's alone.
        confidence_axis: of the softmax of the confidence: `class`, or `batch` as released.
        bn_update_on_masked: let the second pathways move the head's running statistics, too, as released.
        preset: `corrected`, `as_released_c1` or `as_released_c2` (`as_released` is the latter); fills options that are
            None.
        options: further ones of :class:`Supervised`.

    Raises:
        SkelactError: a backbone without attention, or options that do not exist or do not go together.
    """

    joins = "it contrasts the clips of a batch"

    def __init__(
        self,
        backbone: TokenEncoder,
        layout: str | Mapping[str, Any],
        sampler: nn.Module,
        num_classes: int,
        msk_path_start_epoch: int = 300,
        second_view: Literal["masked", "noisy", "both"] | None = None,
        masking: Literal["agpm", "targeted"] | None = None,
        group: Literal["sequence", "joint_batch", "frame", "block"] | None = None,
        ratio: float = 0.5,
        mask_temperature: float = 0.75,
        threshold: float = 0.2,
        ce: Literal["average", "standard"] | None = None,
        contrast_on: Literal["hidden", "logits"] | None = None,
        sample_loss: Literal["ntxent", "targeted", "none"] | None = None,
        class_loss: Literal["supcon", "rowmax", "class_mean", "tcl", "none"] | None = None,
        sample_weight: float | None = None,
        class_weight: float | None = None,
        sample_temperature: float = 0.5,
        class_temperature: float | None = None,
        class_momentum: float = 0.0,
        confidence_axis: Literal["class", "batch"] | None = None,
        bn_update_on_masked: bool = True,
        preset: Literal["as_released", "as_released_c1", "as_released_c2", "corrected"] = "corrected",
        **options: Any,
    ) -> None:
        given = {
            "preset": preset, "second_view": second_view, "masking": masking, "group": group, "ce": ce,
            "contrast_on": contrast_on, "sample_loss": sample_loss, "class_loss": class_loss,
            "sample_weight": sample_weight, "class_weight": class_weight, "confidence_axis": confidence_axis,
        }  # fmt: skip
        for name, value in given.items():
            if name in CHOICES and value is not None and value not in CHOICES[name]:
                raise SkelactError(f"{name}={value} is none of {', '.join(CHOICES[name])}")
        if not isinstance(backbone, TokenEncoder):
            raise SkelactError(
                f"MaskCLR masks tokens by their attention, which {type(backbone).__name__} does not give: take "
                f"backbone=dstformer"
            )
        if not 0 < ratio < 1 or mask_temperature <= 0:
            raise SkelactError(f"ratio={ratio} must lie between 0 and 1, mask_temperature={mask_temperature} above 0")
        chosen = {key: given[key] for key in PRESETS[preset] if given[key] is not None}
        self.switches = cast(Switches, {**PRESETS[preset], **chosen})
        super().__init__(backbone, layout, sampler, num_classes, head="action", preset="corrected", **options)
        self.preset, self.msk_path_start_epoch = preset, msk_path_start_epoch
        self.ratio, self.mask_temperature, self.threshold = ratio, mask_temperature, threshold
        self.sample_temperature, self.class_momentum = sample_temperature, class_momentum
        of_samples = self.switches["class_loss"] in ("supcon", "rowmax")
        self.class_temperature = class_temperature or (0.07 if of_samples else 0.5)
        self.bn_update_on_masked = bn_update_on_masked
        # the mask token is trained by the masked pathway alone, so that it idles before
        self.token_idles = self.masks and not self.zeroes and not self.head_only and backbone.unobserved == "zero"
        if self.token_idles:
            backbone.mask_token.requires_grad_(True)
        kind, remembers = self.switches["class_loss"], class_momentum > 0
        if remembers and (kind != "class_mean" or self.switches["second_view"] == "both"):
            raise SkelactError("class_momentum belongs to class_loss=class_mean with one second view")
        width = self.head.fc1.out_features if self.switches["contrast_on"] == "hidden" else self.num_classes
        self.memory: Tensor | None
        shape = (2, num_classes, width) if kind == "class_mean" else (num_classes, num_classes)
        self.register_buffer("memory", torch.zeros(shape) if kind == "tcl" or remembers else None)

    @property
    def head(self) -> ActionHead:
        """The head of both pathways."""
        return cast(ActionHead, self.heads["all"])

    @property
    def num_views(self) -> int:
        """Views of a clip that `augment` makes: a noisy one beside the standard one, where it is used."""
        return 1 if self.switches["second_view"] == "masked" else 2

    @property
    def masks(self) -> bool:
        """Whether there is a masked pathway."""
        return self.switches["second_view"] != "noisy"

    @property
    def zeroes(self) -> bool:
        """Whether masked joints are zero at the input; otherwise their tokens are replaced by the mask token."""
        return self.switches["masking"] == "targeted" or self.switches["group"] == "block"

    @property
    def contrasting(self) -> bool:
        """Whether the second pathway runs in this epoch."""
        return self.current_epoch >= self.msk_path_start_epoch

    def people(self, views: Tensor, mask: Tensor | None = None) -> People:
        """Person-clips of joint views `(N, M, T, V, C)`."""
        return self.backbone.people(self.derive(views, mask=mask), mask)  # type: ignore[operator]

    def pathway(
        self, people: People, masked: Tensor | None = None, importance: bool = False, track: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """One pass through backbone and head's hidden layer.

        Args:
            people: person-clips.
            masked: `(N, M, T, V)` bool joints to leave out; None: the standard pathway.
            importance: also say how much attention each joint receives.
            track: see :meth:`ActionHead.hidden`.

        Returns:
            Hidden features `(N, H)`, and importances `(N, M, T, V)` without gradient or None.
        """
        rows, replaced = people.rows, people.unobserved
        if masked is not None:
            away = masked[people.clip, people.slot]
            if self.zeroes:
                rows = rows.masked_fill(away[..., None], 0)
            else:
                replaced = away if replaced is None else away | replaced
        backbone = cast(TokenEncoder, self.backbone)
        tokens, attention = backbone.represent(rows, replaced, importance)
        hidden = self.head.hidden(self.dropout(backbone.pool(tokens, people)), track)
        return hidden, None if attention is None else people.unpack(attention)

    def mask(self, importance: Tensor, people: People, draws: Draws) -> Tensor:
        """Joints of each clip to leave out, `(N, M, T, V)` bool; never those of people who do not count.

        Args:
            importance: `(N, M, T, V)`.
            people: person-clips.
            draws: of these clips and epoch.
        """
        importance, present = at_least_single(importance), people.unpack(people.weight) > 0
        uniform = draws.uniform("agpm", *importance.shape[1:])
        by_share = self.zeroes  # as in C1: of shares of a frame's attention
        if by_share:
            importance = importance.softmax(-1)
        whole = self.switches["masking"] == "targeted" or self.switches["group"] in BATCH_GROUPS
        if whole:
            importance, uniform = gather(importance), gather(uniform)
            present = gather(present.to(importance)) > 0
        if self.switches["masking"] == "targeted":
            masked = targeted(importance, self.threshold, present)
        else:
            masked = agpm(importance, uniform, self.ratio, self.mask_temperature, self.switches["group"], present)
        return own_rows(masked) if whole else masked

    def objective(self, views: Views, labels: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The full loss of the global batch, with its graph, and what to log of it.

        Args:
            views: standard view and, where the method uses it, the noisy one; each with its mask.
            labels: `(N,)`; -1 where unknown.
            draws: of these clips and epoch.
        """
        people = self.people(*views[0])
        standard, importance = self.pathway(people, importance=self.masks)
        hidden, values = [standard], {}
        if importance is not None:
            masked = self.mask(importance, people, draws)
            hidden.append(self.pathway(people, masked, track=self.bn_update_on_masked)[0])
            values = mask_statistics(masked, importance, people)
        for view in views[1:]:
            hidden.append(self.pathway(self.people(*view), track=self.bn_update_on_masked)[0])
        logits = [self.head.fc2(h) for h in hidden]

        judged = logits if self.switches["ce"] == "average" else logits[:1]
        each = torch.stack([cross_entropy_sum(z, labels, self.label_smoothing) for z in judged]).mean()
        seen = all_reduce(count_correct(logits[0].detach(), labels, each.detach()))
        clips = seen[2].clamp_min(1)

        everyone, standard_logits = gather(labels), gather(logits[0])
        vectors = hidden if self.switches["contrast_on"] == "hidden" else logits
        first, *others = (gather(x) for x in map(at_least_single, vectors))
        sc = torch.stack([self.sample_term(first, x, standard_logits, everyone) for x in others]).mean()
        cc = torch.stack([self.class_term(first, x, everyone) for x in others]).mean()
        if self.switches["class_loss"] == "tcl":
            assert self.memory is not None
            cc, self.memory = targeted_class_loss(standard_logits, everyone, self.memory, self.class_temperature)
        contrast = self.switches["sample_weight"] * sc + self.switches["class_weight"] * cc
        values |= {"ce": seen[0] / clips, "sc": sc.detach(), "cc": cc.detach(), "top1": 100 * seen[1] / clips}
        values["loss"] = values["ce"] + contrast.detach()
        # gradients are averaged over ranks: the gathered terms take that into account, the sum of a rank's clips not
        return each * world_size() / clips + contrast, values

    def sample_term(self, first: Tensor, second: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Sample-level loss of two pathways' vectors `(B, D)` of the global batch."""
        if self.switches["sample_loss"] == "none":
            return first.new_zeros(())
        weight = None
        if self.switches["sample_loss"] == "targeted":
            weight = log_confidence(logits, labels, self.switches["confidence_axis"])
        return nt_xent(first, second, self.sample_temperature, log_weight=weight)

    def class_term(self, first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
        """Class-level loss of two pathways' vectors `(B, D)` of the global batch."""
        kind = self.switches["class_loss"]
        if kind == "class_mean":
            sizes = self.num_classes, self.class_temperature
            loss, self.memory = class_mean_loss(first, second, labels, *sizes, self.memory, self.class_momentum)
            return loss
        if kind in ("supcon", "rowmax"):
            raw = kind == "rowmax"
            views = torch.stack([first, second], 1)
            return supcon(views, labels, self.class_temperature, row_max=raw, normalize=not raw)
        return first.new_zeros(())

    def training_step(self, batch: RaggedClips, batch_idx: int = 0) -> Tensor:
        """The full loss, or before the second pathway begins that of :class:`Supervised`."""
        if not self.contrasting:
            loss = super().training_step(batch, batch_idx)
            idle = self.token_idles and world_size() > 1  # DDP waits for a gradient of each parameter
            return loss + 0 * self.backbone.mask_token.sum() if idle else loss  # type: ignore[operator]
        draws = Draws(self.seed, self.current_epoch, batch.index)
        loss, values = self.objective(self.views(batch), batch.label, draws)
        self.report(values, batch_size=len(batch))
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """A mask token that was not used does not decay."""
        if self.token_idles and not self.contrasting:
            self.backbone.mask_token.grad = None

    @torch.no_grad()
    def importance(self, views: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much attention each joint receives, `(N, M, T, V)`, zeros where nobody is encoded.

        Args:
            views: joint views `(N, M, T, V, C)`.
            mask: `(N, M, T, V)` bool, True where observed; None means everywhere.
        """
        people = self.people(views, mask)
        _, attention = cast(TokenEncoder, self.backbone).represent(people.rows, people.unobserved, importance=True)
        return people.unpack(cast(Tensor, attention))

    @torch.no_grad()
    def pathways(self, views: Tensor, mask: Tensor | None, draws: Draws) -> dict[str, Tensor]:
        """Hidden features `(N, H)` of the `standard` and the `masked` pathway, whatever the second view in training.

        Args:
            views: joint views `(N, M, T, V, C)`.
            mask: `(N, M, T, V)` bool, True where observed; None means everywhere.
            draws: of these clips and epoch.
        """
        people = self.people(views, mask)
        standard, importance = self.pathway(people, importance=True)
        assert importance is not None
        return {"standard": standard, "masked": self.pathway(people, self.mask(importance, people, draws))[0]}


@torch.no_grad()
def mask_statistics(masked: Tensor, importance: Tensor, people: People) -> dict[str, Tensor]:
    """Share of masked joints, and correlation of mask and importance, over all ranks' people who count.

    Args:
        masked: `(N, M, T, V)` bool.
        importance: `(N, M, T, V)`.
        people: person-clips.
    """
    importance = at_least_single(importance)
    there = (people.unpack(people.weight) > 0)[..., None, None].expand_as(masked).to(importance)
    m, a = masked * there, (importance - 1) * there  # the mean importance of a joint is 1
    n, sm, sa, saa, sma = all_reduce(torch.stack([x.sum() for x in (there, m, a, a * a, m * a)]))
    spread = (n * sm - sm * sm) * (n * saa - sa * sa)
    return {"masked": sm / n, "mask_correlation": (n * sma - sm * sa) / spread.clamp_min(1e-12).sqrt()}
