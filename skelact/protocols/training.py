"""How classifiers are trained: recipes, and one training with what is left of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from skelact.callbacks.best_epoch import BestEpoch
from skelact.errors import SkelactError

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from skelact.data.datamodules import SkeletonDataModule
    from skelact.methods.supervised import Supervised


@dataclass(frozen=True)
class TrainingRecipe:
    """Optimiser, schedule and length of one training.

    Args:
        lr: learning rate.
        epochs: passes over the labelled clips; None: `max_steps` alone says when to stop.
        max_steps: optimiser steps at most.
        batch_size: clips of a global batch; None: the data's own.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        nesterov: of SGD.
        weight_decay: on all parameters.
        schedule: `milestones` (a tenth from each on; none: constant) or `cosine` (to zero).
        milestones: epochs, 0-based.
        warmup: epochs of linear warm-up; steps where only `max_steps` is given and the schedule is `cosine`.
        clip: largest norm of the gradient.
    """

    lr: float
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    optimizer: str = "sgd"
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "milestones"
    milestones: tuple[int, ...] = ()
    warmup: int = 0
    clip: float | None = None

    def __post_init__(self) -> None:
        total = self.epochs or self.max_steps
        if not total or total < 1:
            raise SkelactError("a training needs epochs or max_steps, at least 1")
        if self.optimizer not in ("sgd", "adamw"):
            raise SkelactError(f"optimizer={self.optimizer} is neither sgd nor adamw")
        if self.schedule not in ("milestones", "cosine"):
            raise SkelactError(f"schedule={self.schedule} is neither milestones nor cosine")
        if self.schedule == "cosine" and self.warmup >= total:
            raise SkelactError(f"warmup={self.warmup} must be less than the training's length {total}: set warmup=0")

    def method(self) -> dict[str, Any]:
        """Optimiser and schedule as nodes of a method's config."""
        optimizer: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            optimizer |= {"momentum": 0.9, "nesterov": self.nesterov}
        scheduler: dict[str, Any] | None = None
        if self.schedule == "cosine":
            scheduler = {"total": self.epochs or self.max_steps, "warmup": self.warmup}
        elif self.milestones or self.warmup:
            scheduler = {"milestones": list(self.milestones), "warmup": self.warmup}
        name = {"cosine": "warmup_cosine"}.get(self.schedule, self.schedule)
        return {
            "optimizer": _partial("torch.optim." + {"sgd": "SGD", "adamw": "AdamW"}[self.optimizer], optimizer),
            "scheduler": scheduler and _partial(f"skelact.methods.schedules.{name}", scheduler),
            "scheduler_interval": "step" if self.schedule == "cosine" and not self.epochs else "epoch",
        }

    def trainer(self) -> dict[str, Any]:
        """Length and clipping as options of a trainer's config."""
        return {"max_epochs": self.epochs or -1, "max_steps": self.max_steps or -1, "gradient_clip_val": self.clip}


def _partial(target: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": target, "_partial_": True, **arguments}


# `skelact_*_v1` are ours. The published code of AimCLR's family has no settings for these protocols: its author named
# an initial rate of 0.1 for fine-tuning and nothing else. The others are SkeleMixCLR's, of the same group; where its
# rate of fine-tuning and its batch size of few-label training are not known, AimCLR's 0.1 and 128 stand.
RECIPES: dict[str, TrainingRecipe] = {
    "skelact_finetune_v1": TrainingRecipe(
        1e-3, epochs=60, optimizer="adamw", weight_decay=1e-4, schedule="cosine", warmup=5, clip=1.0
    ),
    "skelact_semi_v1": TrainingRecipe(
        1e-3, max_steps=500, optimizer="adamw", weight_decay=1e-4, schedule="cosine", warmup=25, clip=1.0
    ),
    "skelemixclr_finetune": TrainingRecipe(
        0.1, 110, None, 128, nesterov=True, weight_decay=1e-4, milestones=(50, 70, 90), warmup=10
    ),
    "skelemixclr_semi_1": TrainingRecipe(0.05, 150, None, 128, milestones=(40,)),
    "skelemixclr_semi_10": TrainingRecipe(0.1, 150, None, 128, weight_decay=1e-4, milestones=(80,), clip=5.0),
}


def get_recipe(name: str, **changes: Any) -> TrainingRecipe:
    """A named recipe with some of its numbers changed; None leaves one as it is.

    Of `epochs` and `max_steps` the one that is given alone takes the other's place.

    Raises:
        SkelactError: no such recipe, or numbers that do not go together.
    """
    if name not in RECIPES:
        raise SkelactError(f"recipe={name} is not known; choose from {', '.join(sorted(RECIPES))}")
    given = {key: value for key, value in changes.items() if value is not None}
    for key, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if key in given and other not in given:
            given[other] = None
    if "milestones" in given:
        given["milestones"] = tuple(int(m) for m in given["milestones"])
    return replace(RECIPES[name], **given)


@dataclass(frozen=True)
class Job:
    """One training of a protocol.

    Args:
        seed: of head, order of clips and views; without `pretrained` of all weights.
        pretrained: begin with the weights of the encoder that is judged.
        fraction: share of the training clips that keep their label; None: as the data have it.
        draw: which list of them.
    """

    seed: int
    pretrained: bool = True
    fraction: float | None = None
    draw: int = 0

    @property
    def labels(self) -> str:
        """`all` or `10 %`, as the tables print it."""
        return "all" if self.fraction is None else f"{100 * self.fraction:g} %"

    @property
    def folder(self) -> str:
        """Where it writes, below the protocol's folder."""
        labels = "" if self.fraction is None else f"{100 * self.fraction:g}_percent_draw{self.draw}_"
        return f"{'pretrained' if self.pretrained else 'untrained'}/{labels}seed{self.seed}"


@dataclass
class Outcome:
    """A finished training.

    Args:
        method: the classifier, with the weights that shall be judged.
        checkpoint: where these weights lie, None where they were not written.
        seconds: duration.
        clips: labelled clips.
        fit: part of the data that they are.
        steps: optimiser steps in all.
        samples_per_s: clips a second of training; of a continued run since it went on.
        best_epoch: epoch of the weights where validation chose it.
    """

    method: Supervised
    checkpoint: str | None
    seconds: float
    clips: int
    fit: str
    steps: int
    samples_per_s: float
    best_epoch: int | None = None


def fit(
    method: Supervised, datamodule: SkeletonDataModule, trainer: pl.Trainer, ckpt_path: str | None = None
) -> Outcome:
    """Train; the weights are the last, or those that a :class:`BestEpoch` among the trainer's callbacks has kept."""
    before = 0
    if ckpt_path:  # read now: the run writes its last checkpoint over the one it continues from
        before = int(torch.load(ckpt_path, map_location="cpu", weights_only=True).get("global_step", 0))
    start = time.perf_counter()
    trainer.fit(method, datamodule=datamodule, ckpt_path=ckpt_path)
    seconds = time.perf_counter() - start
    clips = datamodule.size(datamodule.fit)
    seen = (trainer.global_step - before) * min(datamodule.batch_size, clips)
    last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    file = str(last) if last.exists() else None
    outcome = Outcome(method, file, seconds, clips, datamodule.fit, int(trainer.global_step), seen / seconds)
    best = next((c for c in trainer.callbacks if isinstance(c, BestEpoch)), None)  # type: ignore[attr-defined]
    if best is not None and best.epoch is not None:
        outcome.checkpoint, outcome.best_epoch = str(best.path(trainer)), best.epoch
        state = torch.load(outcome.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        method.load_state_dict(state)
    return outcome


@torch.inference_mode()
def part_logits(method: Supervised, datamodule: SkeletonDataModule, part: str, device: torch.device) -> Tensor:
    """Class scores `(N, classes)` of every clip of a part, once each and in store order, on the CPU."""
    method.eval().to(device)
    rows = [method.classify(batch).float().cpu() for batch in datamodule.batches(part, device=device)]
    with torch.inference_mode(False):
        return torch.cat([row.clone() for row in rows])
