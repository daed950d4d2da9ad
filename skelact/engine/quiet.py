"""Messages of other libraries that would only worry the reader, each with the reason why it is left out."""

from __future__ import annotations

import logging
import warnings

_IGNORED = (
    # We choose the number of loader workers; stores in memory are fastest with none.
    r".*does not have many workers which may be a bottleneck.*",
    # Short epochs are normal for small datasets; throughput and losses are logged by steps anyway.
    r".*The number of training batches \(\d+\) is smaller than the logging interval.*",
    # Gradient-free modules (frozen teachers, samplers) are in eval mode on purpose.
    r".*module\(s\) in eval mode at the start of training.*",
    # The run directory is ours and may exist: `run_dir=` was given, or the run continues.
    r".*Checkpoint directory .* exists and is not empty.*",
    # Pretraining has no validation step; the validation part serves the monitors and the probes.
    r".*You passed in a `val_dataloader` but have no `validation_step`.*",
    # A training that chooses nothing on the validation part has no validation loader.
    r".*Total length of `list` across ranks is zero.*",
    # WandbLogger passes an argument that wandb no longer reads.
    r".*anonymous.*",
    # Lightning's own use of a torch function that torch has renamed.
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    # Someone who chooses trainer=cpu on a machine with an accelerator means it.
    r".*GPU available but not used.*",
    # Tensor-core precision is a choice of the user (torch.set_float32_matmul_precision), not a fault.
    r".*but not used. You can set it by doing.*",
    # Only monitored on some steps; the bar shows the newest value.
    r".*You called `self.log\(.*\)` in your `.*` but have no logger configured.*",
)


def quiet() -> None:
    """Filter known noise; everything else stays visible."""
    for message in _IGNORED:
        warnings.filterwarnings("ignore", message=message)
    # Device summaries and adverts ("Tip: ...") arrive as INFO of these loggers; warnings still pass.
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # The elastic launcher announces each of its steps at INFO and advises on OMP_NUM_THREADS at WARNING.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
