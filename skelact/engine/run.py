"""Runs one experiment: a protocol, then the protocols of `evaluate`, and everything a run leaves behind."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from skelact.engine.announce import announce, show, show_finished
from skelact.engine.build import attach, blank, build, build_data, locate, released
from skelact.engine.settings import ConfigError, freeze, write_yaml
from skelact.errors import SkelactError

if TYPE_CHECKING:
    from skelact.results import Record

CONFIG, RESULTS, SCORES, METRICS = "config.yaml", "results.json", "scores.npz", "metrics.csv"


def task(cfg: DictConfig) -> float | None:
    """What Hydra calls for each job; returns `judged_by`, or else the first number of the results, for sweepers."""
    from hydra.core.hydra_config import HydraConfig

    from skelact.engine.finished import last_value
    from skelact.engine.quiet import quiet

    quiet()
    hydra = HydraConfig.get()
    overrides, run_dir = list(hydra.overrides.task), Path(hydra.runtime.output_dir)
    records = run(cfg, overrides, dict(hydra.runtime.choices), run_dir)
    if cfg.get("judged_by"):
        return last_value(run_dir, str(cfg.judged_by))
    values = [value for record in records for value in record.metrics.values()]
    return values[0] if values else None


def run(cfg: DictConfig, overrides: list[str], choices: Mapping[str, Any], run_dir: Path) -> list[Record]:
    """Freeze a composed config and execute it, on as many processes as it asks for.

    Args:
        cfg: composed config.
        overrides: the command line.
        choices: options chosen in the groups.
        run_dir: where the run writes.

    Returns:
        The records, as in results.json.

    Raises:
        SkelactError: anything the user can mend.
    """
    from skelact.engine import finished
    from skelact.engine.launch import is_rank, launch
    from skelact.results import read_records

    if cfg.get("resume"):
        from skelact.engine.resume import thaw

        config = thaw(cfg, overrides)
        run_dir = Path(config["run_dir"])
    else:
        cfg = cfg.copy()
        OmegaConf.set_struct(cfg, False)
        OmegaConf.set_readonly(cfg, False)
        skip = finished.may_skip(cfg, overrides)
        cfg.run_dir = str(run_dir)
        config = freeze(cfg, overrides, choices)
        overwrite = bool(config.get("overwrite"))
        config = {key: value for key, value in config.items() if key not in finished.OF_THE_COMMAND}
        if skip and finished.is_finished(config, run_dir):
            show_finished(run_dir)
            return read_records(run_dir / RESULTS)
        if skip and (goes_on := finished.unfinished(config, run_dir, overwrite)):
            config = goes_on
        else:
            if not is_rank():
                _clear(run_dir, overwrite or skip, config.get("checkpoint"))
            write_yaml(run_dir / CONFIG, {k: v for k, v in config.items() if k != "resume"})
    (run_dir / finished.FINISHED).unlink(missing_ok=True)
    if _processes(config) > 1 and not is_rank():
        launch(config, run_dir)
        records = read_records(run_dir / RESULTS)
    else:
        records = execute(config)
    if records:  # of several processes only the first has any
        finished.mark(config, run_dir)
    show(records, run_dir / RESULTS)
    return records


def _clear(run_dir: Path, overwrite: bool, checkpoint: str | None) -> None:
    """Refuse a directory that holds what another run found; make room in it where that was asked for.

    A checkpoint without a single step, as a run leaves that failed in its first, is nothing to lose.

    Raises:
        ConfigError: there are results or a checkpoint, and nobody said that they may go.
    """
    from skelact.engine.checkpoint import find, trained_steps
    from skelact.protocols.base import val_scores

    kept = [run_dir / "checkpoints" / "last.ckpt", run_dir / RESULTS]
    found = [path for path in kept if path.exists() and not (path == kept[0] and trained_steps(path) == 0)]
    if found and not overwrite:
        raise ConfigError(
            f"run_dir={run_dir} holds a run already ({found[0].name}): choose another run_dir, continue that run with "
            f"resume={run_dir}, or give overwrite=true to lose it"
        )
    if checkpoint and find(checkpoint).resolve() == kept[0].resolve():
        raise ConfigError(f"run_dir={run_dir} holds the checkpoint itself, which would be lost; choose another run_dir")
    rest = [kept[0].with_name("best.ckpt"), run_dir / SCORES, val_scores(run_dir / SCORES), run_dir / METRICS]
    for path in [*kept, *rest]:
        path.unlink(missing_ok=True)


def _processes(config: Mapping[str, Any]) -> int:
    from skelact.engine.launch import processes

    count = processes(config["trainer"])
    return count if any(_trains(config, name) for name in _plan(config)) else 1


def _plan(config: Mapping[str, Any]) -> list[str]:
    asked = config.get("evaluate") or []
    return [config["selected"], *([asked] if isinstance(asked, str) else asked)]


def _node(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return config["protocol"] if name == config["selected"] else config["protocols"][name]


def _trains(config: Mapping[str, Any], name: str) -> bool:
    return bool(getattr(locate(_node(config, name)["_target_"], f"protocol {name}"), "trains", False))


def _judge_files(config: Mapping[str, Any], run_dir: Path) -> list[Record] | None:
    """Run a protocol that needs neither method nor data (an ensemble of runs); None: it is not of that kind."""
    from skelact.results import write_records

    name = config["selected"]
    if getattr(locate(_node(config, name)["_target_"], f"protocol {name}"), "needs_method", True):
        return None
    if len(_plan(config)) > 1:
        raise ConfigError(f"evaluate={config['evaluate']}: after protocol={name} there is no method to evaluate")
    records = build(_node(config, name), f"protocol {name}").run(seed=int(config["seed"]), scores=run_dir / SCORES)
    write_records(run_dir / RESULTS, records)
    return records


def execute(config: Mapping[str, Any]) -> list[Record]:
    """Run a frozen config in this process, which may be one of several.

    Writes metrics.csv, checkpoints/last.ckpt, results.json and scores.npz into `run_dir`.
    """
    import torch
    from pytorch_lightning import seed_everything

    from skelact.engine.checkpoint import read, restore
    from skelact.engine.classifier import Trainings, classifies, take_backbone
    from skelact.engine.memory import keep_freed_memory
    from skelact.engine.quiet import quiet
    from skelact.results import write_records

    quiet()
    os.environ["PL_SEED_EVERYTHING_VERBOSE"] = "0"
    run_dir, seed = Path(config["run_dir"]), int(config["seed"])
    run_dir.mkdir(parents=True, exist_ok=True)
    first = os.environ.get("RANK", "0") == "0"
    if (judged := _judge_files(config, run_dir)) is not None:
        return judged
    seed_everything(seed, verbose=False)
    datamodule = build_data(config["data"])
    datamodule.setup()  # a missing store, a foreign layout: say so before anything is built
    pretrained = restore(read(config["checkpoint"]), str(config["checkpoint"])) if config.get("checkpoint") else None
    if pretrained is not None and not classifies(config["protocol"], config["selected"]):
        method = pretrained
    else:
        method = build(blank(config["method"]) if config.get("resume") or pretrained else config["method"], "method")
        if pretrained is not None:
            take_backbone(method, pretrained, str(config["checkpoint"]))
    attach(datamodule, method)
    protocols = {name: build(_node(config, name), f"protocol {name}") for name in _plan(config)}
    for protocol in protocols.values():  # what no training can mend is said before there is one
        getattr(protocol, "check", lambda *_: None)(method, datamodule)
    fresh, trained, alone = pretrained is None and not released(config), False, functools.cache(_alone_again)
    device = pick_device(config["trainer"])
    keep_freed_memory(device)
    records: list[Record] = []
    loggers: list[Any] = []
    status = "failed"
    try:
        loggers = _loggers(config, run_dir)
        if first:
            announce(config, datamodule, method, _plan(config), device)
        for number, (name, protocol) in enumerate(protocols.items()):
            extra: dict[str, Any] = {
                "checkpoint": _checkpoint_name(config, run_dir, trained),
                "scores": run_dir / SCORES,
                "run_dir": run_dir,
                "loggers": loggers,
                "device": device,
                "untrained": lambda seed: untrained(config, seed),
                "encoder": "untrained" if fresh else "pretrained",
            }
            data = datamodule
            if getattr(protocol, "classifies", False):
                source = method if number else pretrained
                extra |= {"alone": alone, "pretrained": source, "subject": source and type(source).__name__.lower()}
                extra["train"] = Trainings(config, name, protocol, datamodule, source, device)
                extra["source"] = _source(config)
                data = datamodule if number else datamodule.variant(**config["training_data"])
            # the classifiers of a later protocol have trainers and directories of their own
            if getattr(protocol, "trains", False) and not (number and "train" in extra):
                trainer = make_trainer(config, data, method, loggers, run_dir)
                extra |= {"trainer": trainer, "ckpt_path": _continue(config, trainer, data, loggers)}
            else:
                method.eval().to(device)
            records += protocol.run(method, data, seed=seed, **_accepted(protocol.run, extra))
            if "trainer" in extra and not alone():
                return []
            fresh, trained = fresh and "trainer" not in extra, trained or "trainer" in extra
            write_records(run_dir / RESULTS, records)
        _log_results(loggers, records, run_dir, method, datamodule)
        status = "success"
    finally:
        for logger in loggers:
            logger.finalize(status)
        if "wandb" in (config.get("logger") or {}):
            import wandb

            wandb.finish(exit_code=int(status != "success"))
            # Wait until its helper process has written everything; it would mistake the same id for the old run.
            wandb.teardown()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return records


def untrained(config: Mapping[str, Any], seed: int) -> Any:
    """The configured method with fresh weights, the same for a seed whatever was drawn before."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(blank(config["method"]), "method").eval()


def _accepted(function: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a protocol wants: a protocol of the user's own needs only what it uses."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in parameters}


def _alone_again() -> bool:
    from skelact.engine.launch import is_rank, leave_group

    return leave_group() if is_rank() else True


def _checkpoint_name(config: Mapping[str, Any], run_dir: Path, trained: bool) -> str | None:
    """Where the method's weights lie: once the run has trained it, in the run itself."""
    if config.get("checkpoint") and not trained:
        return str(config["checkpoint"])
    files = ("best.ckpt", "last.ckpt") if (config.get("callbacks") or {}).get("best_epoch") else ("last.ckpt",)
    paths = [run_dir / "checkpoints" / file for file in files]
    return next((str(path) for path in paths if path.exists()), None)


def _source(config: Mapping[str, Any]) -> str:
    """Dataset and split, or released file, that the weights come from."""
    data = config.get("source") or config["data"]
    return released(config) or f"{data['name']} {data['split']}"


def pick_device(trainer: Mapping[str, Any]) -> Any:
    """The single device on which features are extracted."""
    import torch

    accelerator = trainer.get("accelerator", "auto")
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if accelerator in ("gpu", "cuda"):
        raise ConfigError(
            f"trainer.accelerator={accelerator}, but no GPU can be used here; try trainer=auto or trainer=cpu"
        )
    return torch.device("cpu")


def make_trainer(config: Mapping[str, Any], datamodule: Any, method: Any, loggers: list[Any], run_dir: Path) -> Any:
    """The Lightning trainer of a run, with its callbacks, loggers and atomic checkpoints."""
    from skelact.callbacks.run_card import RunCard
    from skelact.engine.accumulation import accumulating
    from skelact.engine.checkpoint import AtomicCheckpointIO, make_card
    from skelact.engine.compiling import compiling
    from skelact.engine.strategies import Reassembled, sharing

    logger_id = next((str(logger.version) for logger in loggers if type(logger).__name__ == "WandbLogger"), None)
    plain = {key: value for key, value in config.items() if key not in ("resume", "logger_id")}
    callbacks: list[Any] = [RunCard(make_card(plain, datamodule, method, logger_id)), Reassembled()]
    callbacks += [build(node, f"callbacks.{name}") for name, node in (config.get("callbacks") or {}).items() if node]
    trainer = accumulating(config["trainer"], datamodule, method)
    callbacks += compiling(trainer.pop("compile", False))
    strategy = sharing(trainer, method)
    # The loader's own sampler deals clips to ranks; batch statistics over ranks are the method's own business.
    return build(
        {key: value for key, value in trainer.items() if key not in strategy},
        "trainer",
        **strategy,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(run_dir),
    )


def _continue(config: Mapping[str, Any], trainer: Any, datamodule: Any, loggers: list[Any]) -> str | None:
    """Prepare to go on from the run's last checkpoint; None for a run that begins."""
    if not config.get("resume"):
        return None
    from skelact.engine.checkpoint import KEY, find, read
    from skelact.engine.resume import continue_loaders

    step = read(path := find(config["resume"]))[KEY].get("progress", {}).get("step", 0)
    for logger in loggers:
        if hasattr(logger, "drop_after"):
            logger.drop_after(step)
    continue_loaders(trainer, datamodule)
    return str(path)


def _loggers(config: Mapping[str, Any], run_dir: Path) -> list[Any]:
    from skelact.callbacks.metrics_csv import MetricsCSV

    loggers: list[Any] = [MetricsCSV(run_dir / METRICS, resume=bool(config.get("resume")))]
    for name, node in (config.get("logger") or {}).items():
        if not node:
            continue
        extra: dict[str, Any] = {}
        if name == "wandb":
            extra = {"save_dir": str(run_dir), "id": config.get("logger_id")}
        logger = build(node, f"logger.{name}", **extra)
        logger.log_hyperparams(dict(config))
        loggers.append(logger)
    return loggers


def _log_results(loggers: list[Any], records: list[Record], run_dir: Path, method: Any, datamodule: Any) -> None:
    """Tables and pictures for loggers that show them."""
    from skelact.protocols.base import row_tags
    from skelact.tables import table_rows

    shown = [logger for logger in loggers if type(logger).__name__ == "WandbLogger"]
    if not shown:
        return
    from skelact.engine.pictures import confusion_figure, result_figures, save, tsne_figure

    pictures = []
    if datamodule.size("test") >= 4:
        pictures.append(save(tsne_figure(method, datamodule, "test", None, "test part"), run_dir / "tsne.png"))
    if (run_dir / SCORES).exists():
        pictures.append(save(confusion_figure(run_dir, datamodule.class_names), run_dir / "confusion.png"))
    pictures += result_figures(records, run_dir)
    for logger in shown:
        for protocol in dict.fromkeys(record.protocol for record in records):
            header, rows = table_rows([record for record in records if record.protocol == protocol])
            logger.log_table(key=f"results/{protocol}", columns=header, data=rows)
        for record in records:
            path = [record.protocol, record.method, *row_tags(record.extra)]
            name = "/".join(part.replace("/", " per ") for part in path)
            logger.experiment.summary.update({f"{name}/{metric}": value for metric, value in record.metrics.items()})
        for picture in pictures:
            logger.log_image(key=f"pictures/{picture.stem}", images=[str(picture)])


def load_run(path: str | Path) -> tuple[Any, Any, dict[str, Any]]:
    """Method, datamodule and config of a checkpoint, for notebooks, plots and predictions.

    Args:
        path: run directory or .ckpt.

    Raises:
        SkelactError: missing or foreign checkpoint, or its data are not there.
    """
    from skelact.engine.checkpoint import KEY, read, restore

    content = read(path)
    config = content[KEY]["config"]
    method, datamodule = restore(content, str(path)), build_data(config["data"])
    attach(datamodule, method)
    return method, datamodule, config


__all__ = ["ConfigError", "SkelactError", "execute", "load_run", "make_trainer", "pick_device", "run", "task"]
