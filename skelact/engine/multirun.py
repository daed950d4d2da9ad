"""What a sweep needs to know before its jobs begin."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class KnowConfig(Callback):
    """Lets `${hydra:...}` be resolved in the process that starts the jobs: the sweep's folder has it in its name.

    Hydra sets its own config only within jobs.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra once for a sweep."""
        HydraConfig.instance().set_config(config)
