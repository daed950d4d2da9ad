"""Weights & Biases without surprises: works without an account, continues a run, never blocks."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from skelact.errors import SkelactError


def wandb_logger(
    project: str,
    name: str,
    save_dir: str | Path = ".",
    mode: str = "auto",
    id: str | None = None,
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
) -> Any:
    """A `WandbLogger` of Lightning.

    Args:
        project: W&B project.
        name: name of the run.
        save_dir: folder that gets the `wandb` folder.
        mode: `online`, `offline`, `disabled`, or `auto`: online if `WANDB_API_KEY` is set, else offline.
        id: run to continue; None: a new one.
        entity: user or team.
        group: runs that belong together.
        tags: words to find the run by.

    Raises:
        SkelactError: unknown mode.
    """
    if mode not in ("auto", "online", "offline", "disabled"):
        raise SkelactError(f"logger.wandb.mode={mode} is none of auto, online, offline, disabled")
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    # A second run in one process would silently go on writing into the first (measured with wandb 0.31).
    wandb.finish()
    return WandbLogger(
        project=project,
        name=name,
        save_dir=str(save_dir),
        offline=mode == "offline",
        mode=mode,
        id=id or secrets.token_hex(4),
        resume="allow",
        log_model=False,
        entity=entity,
        group=group,
        tags=tags or [],
        settings=wandb.Settings(silent=True),
    )
