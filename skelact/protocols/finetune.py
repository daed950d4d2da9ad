"""Training a classifier on labels: supervised, fine-tuning, few labels, transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from skelact.errors import SkelactError
from skelact.protocols.classifier import ClassifierProtocol
from skelact.protocols.linear import LinearProbe
from skelact.protocols.training import Job, TrainingRecipe, get_recipe

if TYPE_CHECKING:
    from skelact.data.datamodules import SkeletonDataModule
    from skelact.methods.base import Method
    from skelact.results import Record


LABELS = ("label_fraction", "label_draw", "label_rule", "labels_per_class")


class SupervisedTraining(ClassifierProtocol):
    """Train `method=supervised` from scratch: how good is the network with nothing but labels?

    Optimiser, schedule and augmentation are the method's, the length is the trainer's.
    """

    name = "supervised"
    fresh = True
    follows = False


class Finetune(ClassifierProtocol):
    """Train the encoder and a new head on labels: how good a start are the pretrained weights?

    Args:
        recipe: name in :data:`~skelact.protocols.training.RECIPES`, or one for each label setting.
        train: `all` weights, or the `head` alone.
        augment: None trains on the evaluation views; `method` on views augmented as in pretraining (where that makes
            several different ones, as the last of them).
        epochs: other than the recipe's, as all options down to `clip`.
        max_steps: optimiser steps; alone it takes the place of epochs.
        lr: learning rate.
        batch_size: clips of a global batch.
        optimizer: `sgd` or `adamw`.
        weight_decay: on all parameters.
        schedule: `milestones` or `cosine`.
        milestones: epochs.
        warmup: epochs; steps where only `max_steps` is given and the schedule is `cosine`.
        clip: largest norm of the gradient.
        fusion: see :class:`~skelact.methods.supervised.Supervised`, as all down to `label_smoothing`.
        head: `linear` or `action`.
        head_hidden: width of an action head's hidden layer.
        head_lr: learning rate of the heads; None: `lr`.
        mode: None: by the preset.
        dropout: before the head.
        label_smoothing: of the loss.
        selection: see :class:`ClassifierProtocol`, as the next two.
        seeds: trainings.
        baselines: rows.
    """

    name = "finetune"

    def __init__(
        self,
        recipe: str | Sequence[str] = "skelact_finetune_v1",
        train: Literal["all", "head"] = "all",
        augment: Literal["method"] | None = None,
        epochs: int | None = None,
        max_steps: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        optimizer: str | None = None,
        weight_decay: float | None = None,
        schedule: str | None = None,
        milestones: Sequence[int] | None = None,
        warmup: int | None = None,
        clip: float | None = None,
        fusion: Literal["sum", "mean"] = "sum",
        head: Literal["linear", "action"] = "linear",
        head_hidden: int = 2048,
        head_lr: float | None = None,
        mode: Literal["train", "eval"] | None = None,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        selection: Literal["none", "val"] = "none",
        seeds: int = 1,
        baselines: bool | Sequence[str] = True,
    ) -> None:
        super().__init__(selection, seeds, baselines)
        if train not in ("all", "head"):
            raise SkelactError(f"train={train} is neither all nor head")
        if augment not in (None, "method"):
            raise SkelactError(f"augment={augment} is neither null nor method")
        self.train, self.augment = train, augment
        self.recipe_names = [recipe] if isinstance(recipe, str) else list(recipe)
        numbers = {
            "epochs": epochs, "max_steps": max_steps, "lr": lr, "batch_size": batch_size, "optimizer": optimizer,
            "weight_decay": weight_decay, "schedule": schedule, "milestones": milestones, "warmup": warmup,
            "clip": clip,
        }  # fmt: skip
        self.recipes: list[TrainingRecipe] = [get_recipe(name, **numbers) for name in self.recipe_names]
        self.network = {
            "fusion": fusion, "head": head, "head_hidden": head_hidden, "head_lr": head_lr, "mode": mode,
            "dropout": dropout, "label_smoothing": label_smoothing,
        }  # fmt: skip

    def _number(self, job: Job) -> int:
        """Which of the recipes a job follows."""
        return 0

    def changes(self, job: Job) -> dict[str, dict[str, Any]]:
        """See :meth:`ClassifierProtocol.changes`."""
        recipe, changes = self.recipes[self._number(job)], super().changes(job)
        changes["method"] = {**self.network, "head_only": self.train == "head", **recipe.method()}
        changes["trainer"] = recipe.trainer()
        changes["data"] |= {"per_class": None, **({"batch_size": recipe.batch_size} if recipe.batch_size else {})}
        return changes

    def facts(self, job: Job) -> dict[str, Any]:
        """See :meth:`ClassifierProtocol.facts`."""
        number = self._number(job)
        return {"recipe": self.recipe_names[number], "lr": self.recipes[number].lr, "trained": self.train}


class Semi(Finetune):
    """Fine-tuning where few of the training clips keep their label.

    Args:
        fractions: shares of each class.
        draws: label lists for each fraction, each a training of its own; in place of `seeds`.
        label_rule: `names` (frozen lists, at least one clip a class) or `aimclr` (as its code draws them).
        options: see :class:`Finetune`; several recipes are one for each fraction.
    """

    name = "semi"

    def __init__(
        self,
        fractions: Sequence[float] | float = (0.01, 0.05, 0.1),
        draws: int = 1,
        label_rule: Literal["names", "aimclr"] = "names",
        recipe: str | Sequence[str] = "skelact_semi_v1",
        **options: Any,
    ) -> None:
        super().__init__(recipe, **options)
        self.fractions = [float(f) for f in ([fractions] if isinstance(fractions, (int, float)) else fractions)]
        if not self.fractions or any(not 0 < f <= 1 for f in self.fractions):
            raise SkelactError(f"fractions={self.fractions}: give at least one, each above 0 and at most 1")
        if draws < 1 or self.seeds != 1:
            raise SkelactError(f"draws={draws}, seeds={self.seeds}: repetitions are label lists: draws at least 1")
        if len(self.recipes) not in (1, len(self.fractions)):
            raise SkelactError(f"recipe: {len(self.recipes)} names, {len(self.fractions)} fractions; give one or all")
        self.draws, self.label_rule = int(draws), label_rule

    def settings(self, seed: int) -> list[list[Job]]:
        """See :meth:`ClassifierProtocol.settings`."""
        return [[Job(seed + i, True, fraction, i) for i in range(self.draws)] for fraction in self.fractions]

    def _number(self, job: Job) -> int:
        return 0 if len(self.recipes) == 1 or job.fraction is None else self.fractions.index(job.fraction)

    def changes(self, job: Job) -> dict[str, dict[str, Any]]:
        """See :meth:`ClassifierProtocol.changes`."""
        changes = super().changes(job)
        changes["data"] |= dict(zip(LABELS, (job.fraction, job.draw, self.label_rule, None), strict=True))
        return changes

    @property
    def decides(self) -> tuple[str, ...]:
        """See :meth:`ClassifierProtocol.decides`."""
        return (*super().decides, *LABELS)


class Transfer(Finetune):
    """Fine-tuning on other data than those of the pretraining.

    Args:
        linear: also ask :class:`~skelact.protocols.linear.LinearProbe` of the pretrained encoder on the other data.
        options: see :class:`Finetune`.
    """

    name = "transfer"
    follows = False

    def __init__(self, linear: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.linear = linear

    def further(self, pretrained: Method, datamodule: SkeletonDataModule, **options: Any) -> list[Record]:
        """See :meth:`ClassifierProtocol.further`."""
        return LinearProbe(labels="all").run(pretrained, datamodule, **options) if self.linear else []
