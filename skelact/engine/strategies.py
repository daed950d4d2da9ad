"""Strategies that share a model out over processes: what `trainer.strategy=fsdp` and `deepspeed` need to work here."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from skelact.callbacks.online_knn import whole_weights
from skelact.engine.launch import processes
from skelact.errors import SkelactError


class Sharded(FSDPStrategy):
    """Fully sharded data parallel, the model as one unit: each process keeps a part of weights, gradients and moments.

    Lightning's own name for it insists on a GPU, which gloo does not. Checkpoints are whole, as those of any other
    strategy: a run may be continued, judged and loaded without shards.
    """

    def _setup_model(self, model: nn.Module) -> nn.Module:
        """As Lightning's, which names the device by its number and so cannot name the CPU."""
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(
            model,
            cpu_offload=self.cpu_offload,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=self.root_device,
            **self.kwargs,
        )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Each process reads the whole file, as safely as any checkpoint, and takes its shards.

        Lightning's would unpickle it, and stumbles over optimisers without a state: before the first step, plain SGD.
        """
        from torch.distributed.fsdp import FullStateDictConfig, OptimStateKeyType, StateDictType
        from torch.distributed.fsdp import FullyShardedDataParallel as Shards

        model, content = self.model, self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path))
        assert isinstance(model, Shards)
        with Shards.state_dict_type(model, StateDictType.FULL_STATE_DICT, FullStateDictConfig(rank0_only=False)):
            model.load_state_dict(content.pop("state_dict"))
            for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
                if state["state"]:
                    named = Shards.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_NAME, model)
                    optimizer.load_state_dict(Shards.optim_state_dict_to_load(model, optimizer, named))
                    continue
                for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
                    group.update({key: value for key, value in saved.items() if key != "params"})
        return content


class Reassembled(pl.Callback):
    """After a training in shards the method has whole weights again, on all processes, for what follows."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put whole tensors into the places of the shards."""
        if not isinstance(trainer.strategy, Sharded):
            return
        trained = {name: p.requires_grad for name, p in pl_module.named_parameters()}
        with whole_weights(trainer.strategy.model):
            whole = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        for name, values in whole.items():
            place, _, leaf = name.rpartition(".")
            pl_module.get_submodule(place)._parameters[leaf] = nn.Parameter(values, trained[name])


def ddp_options() -> dict[str, Any]:
    """Options of DDP: it need not broadcast buffers before each step.

    They are equal on all ranks as they are, for batch statistics and queues are made of all ranks' clips. A queue of
    keys is several times as large as an ST-GCN's gradients.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters  # the older name warns where both are
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def sharing(trainer: Mapping[str, Any], method: Any) -> dict[str, Any]:
    """What takes the place of the option `strategy` of a trainer: an object, or the option as it was.

    Raises:
        SkelactError: a strategy that is not installed, or that the method or another option does not go with.
    """
    name = trainer.get("strategy")
    if name == "ddp" or (name in (None, "auto") and processes(trainer) > 1):
        return {"strategy": DDPStrategy(**ddp_options())}
    if not isinstance(name, str) or not name.startswith(("fsdp", "deepspeed")):
        return {}
    asked = f"trainer.strategy={name}"
    if reason := getattr(method, "whole", None):
        raise SkelactError(f"{asked}: {type(method).__name__}: {reason}; take trainer=ddp")
    if getattr(method, "exclude_from_decay", False):
        raise SkelactError(f"{asked}: method.exclude_from_decay=true tells weights by shapes that shards do not have")
    if name.startswith("deepspeed"):
        if importlib.util.find_spec("deepspeed") is None:
            raise SkelactError(f"{asked} needs the package deepspeed (pip install deepspeed); trainer=fsdp does not")
        return {}
    if trainer.get("gradient_clip_val") and trainer.get("gradient_clip_algorithm") != "value":
        raise SkelactError(
            f"{asked}: a norm of the gradient would be that of a shard: set trainer.gradient_clip_val=null, or take "
            f"trainer=ddp"
        )
    return {"strategy": Sharded(cpu_offload=name == "fsdp_cpu_offload")}
