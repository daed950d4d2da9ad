"""Several processes on one machine, started from a frozen config.

Lightning starts its ranks by repeating the command line; under `-m` every rank would then run the whole sweep, and
under joblib the command is not even ours. Here the ranks read `config.json` of the run and are started by torch's
elastic launcher with a command as entry point, the one way that works under every launcher of Hydra.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skelact.engine.files import replace_text
from skelact.errors import SkelactError

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "SLURM_PROCID")


def processes(trainer: Mapping[str, Any]) -> int:
    """How many processes on this machine a trainer config asks for."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, (list, tuple)):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        import torch

        return max(1, torch.cuda.device_count()) if trainer.get("accelerator") in ("auto", "gpu", "cuda") else 1
    try:
        count = int(devices)
    except (TypeError, ValueError):
        raise SkelactError(f"trainer.devices={devices!r} is neither a number, a list of devices, nor auto") from None
    if count < 1:
        raise SkelactError(f"trainer.devices={devices} must be at least 1")
    return count


def is_rank() -> bool:
    """Whether this process was started as one of several (by us, torchrun or SLURM)."""
    return any(name in os.environ for name in _RANK_VARIABLES[:3]) or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(config: Mapping[str, Any], run_dir: Path) -> None:
    """Run a frozen config on several processes and wait for them.

    Raises:
        SkelactError: a process failed; the message is the process's own where it had one to give.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    path, failure = run_dir / "config.json", run_dir / "failure.txt"
    replace_text(path, json.dumps(config, indent=1))
    failure.unlink(missing_ok=True)
    count = processes(config["trainer"])
    before = dict(os.environ)
    if "OMP_NUM_THREADS" not in os.environ:  # or every process would take all cores
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{_free_port()}",
        rdzv_configs={"rank": 0, "timeout": 900},
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "skelact.engine.worker", str(path))
    except ChildFailedError as error:
        if failure.exists():
            raise SkelactError(failure.read_text(encoding="utf-8").strip()) from error
        rank, first = error.get_first_failure()
        raise SkelactError(
            f"process {rank} of {count} ended with exit code {first.exitcode}; see its messages above"
        ) from error
    finally:  # the launcher leaves variables behind that the next job of a sweep must not see
        for name in set(os.environ) - set(before):
            del os.environ[name]


def leave_group() -> bool:
    """End the process group; True on the first process, which may go on alone.

    The variables of the group are removed, or a trainer built later would wait for ranks that are gone.
    """
    import torch.distributed as dist

    rank = int(os.environ.get("RANK", "0"))
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    for name in list(os.environ):
        if name in _RANK_VARIABLES or name.startswith("TORCHELASTIC_") or name in ("MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
    return rank == 0
