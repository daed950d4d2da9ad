"""`skip_finished=true`: the same command again does only what is left of it, a sweep job by job."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from skelact.engine.checkpoint import KEY, read
from skelact.engine.launch import is_rank
from skelact.engine.resume import continued
from skelact.engine.settings import ConfigError, keys_of, read_yaml, write_yaml
from skelact.gathering import flat

CONFIG, RESULTS, METRICS = "config.yaml", "results.json", "metrics.csv"
FINISHED = "finished.yaml"
OF_THE_COMMAND = ("overwrite", "skip_finished", "judged_by")
"""Keys of a config that say how a command treats a run, not what the run is; they are not written down."""
_ELSEWHERE = ("run_dir", "resume", "logger_id")  # the same in another place, or continued, is the same run


def may_skip(cfg: DictConfig, overrides: Sequence[str]) -> bool:
    """Whether a composed config asks that finished runs be left as they are.

    Raises:
        ConfigError: it does, but that cannot mean anything here.
    """
    if not cfg.get("skip_finished"):
        return False
    if is_rank():
        raise ConfigError("skip_finished=true cannot be decided by several processes; let trainer.devices=N start them")
    named: Any = OmegaConf.to_container(cfg, resolve=False)
    if "skip_finished" in keys_of(overrides) and "${now:" in str(named["run_dir"]):
        raise ConfigError("skip_finished=true: run_dir has the time in its name, give one that stays: run_dir=FOLDER")
    return True


def mark(config: Mapping[str, Any], run_dir: Path) -> None:
    """Write down that the results of a run are whole, and of which config: a continued run may have been longer."""
    write_yaml(run_dir / FINISHED, {k: v for k, v in config.items() if k not in _ELSEWHERE})


def is_finished(config: Mapping[str, Any], run_dir: Path) -> bool:
    """Whether this very run has been done to its end in this directory."""
    return (run_dir / FINISHED).exists() and not differences(config, read_yaml(run_dir / FINISHED))


def unfinished(config: Mapping[str, Any], run_dir: Path, overwrite: bool = False) -> dict[str, Any] | None:
    """The config with which this run goes on from its last checkpoint.

    Args:
        config: frozen.
        run_dir: where the run writes.
        overwrite: another run that is there may go.

    Returns:
        None: the run begins, because nothing is there, nothing that is worth keeping, or what may go.

    Raises:
        ConfigError: the directory holds another run.
    """
    last = (run_dir / "checkpoints" / "last.ckpt").exists()
    if not (run_dir / CONFIG).exists() or not (last or (run_dir / RESULTS).exists()):
        return None
    # a checkpoint knows with which config it was written: the run may have been continued to another length since
    written = read(run_dir)[KEY]["config"] if last else read_yaml(run_dir / CONFIG)
    if other := differences(config, written):
        if overwrite:
            return None
        shown = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        raise ConfigError(
            f"skip_finished: {run_dir} holds another run, it differs in {shown}; choose another run_dir, or give "
            f"overwrite=true to lose it"
        )
    return continued(config, run_dir) if last else None


def differences(config: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """Dotted keys in which a frozen config is not the one that was written down."""
    one, other = (flat({k: v for k, v in c.items() if k not in _ELSEWHERE}) for c in (config, written))
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key, flat) != other.get(key, flat)]


def last_value(run_dir: Path, column: str) -> float:
    """The last number that a run has logged under a name.

    Raises:
        ConfigError: it has logged no such number.
    """
    with open(run_dir / METRICS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = [float(row[column]) for row in rows if row.get(column)]
    if not values or math.isnan(values[-1]):
        logged = sorted({name for row in rows for name, value in row.items() if value and name != "step"})
        raise ConfigError(
            f"judged_by={column}: {run_dir / METRICS} has no such number; it has {', '.join(logged) or 'none'}"
        )
    return values[-1]
