"""`trainer.accumulate_grad_batches=k`: the step of a batch k times as large, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from skelact.backbones.normalisation import StackedBatchNorm
from skelact.errors import SkelactError


def accumulating(trainer: Mapping[str, Any], datamodule: Any, method: Any) -> dict[str, Any]:
    """A trainer's options, such that accumulated gradients are those of a batch `k * data.batch_size`.

    With `data.drop_last` an epoch ends where the larger batches would: batches that do not fill another step are left
    out, while Lightning would make a smaller step of them.

    Raises:
        SkelactError: the method joins the clips of a batch in its loss or by batch normalisation, or an epoch would end
            with fewer clips.
    """
    options, count = dict(trainer), int(trainer.get("accumulate_grad_batches") or 1)
    if count == 1:
        return options
    asked, name = f"trainer.accumulate_grad_batches={count}", type(method).__name__
    if reason := getattr(method, "joins", "nothing is known of its loss") or _batch_norm(method):
        raise SkelactError(
            f"{asked} would not be the step of a larger batch: {name}: {reason}. Take a larger data.batch_size, on "
            f"more devices if need be (trainer=ddp: one batch over all of them), or trainer.precision=bf16-mixed"
        )
    if (datamodule.labels(datamodule.fit) < 0).any():
        raise SkelactError(f"{asked}: some training clips have no label, so that batches count differently many")
    batches, limit = len(datamodule.train_dataloader()), options.get("limit_train_batches")
    if not datamodule.drop_last and datamodule.size(datamodule.fit) % (count * datamodule.batch_size):
        raise SkelactError(f"{asked}: the last step of an epoch counts fewer clips as much: set data.drop_last=true")
    if batches < count:
        raise SkelactError(f"{asked}: an epoch has {batches} batches: take a smaller data.batch_size")
    if isinstance(limit, float) or (limit is not None and limit % count):
        raise SkelactError(f"{asked}: trainer.limit_train_batches={limit} must be a multiple of it")
    return options | {"limit_train_batches": batches - batches % count if limit is None else limit}


def _batch_norm(method: nn.Module) -> str | None:
    """The first layer that training would let take statistics of a batch."""
    mode = method.training
    method.train()  # what it keeps in evaluation mode stays so
    kinds = (nn.modules.batchnorm._BatchNorm, StackedBatchNorm)
    found = [name for name, module in method.named_modules() if isinstance(module, kinds) and module.training]
    method.train(mode)
    return f"{found[0]} normalises by the statistics of a batch" if found else None
