"""The sub-commands `prepare`, `info` and `benchmark`: each takes a composed config and returns an exit code."""

from __future__ import annotations

import importlib
import inspect
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from skelact.engine.build import PREPARE_ONLY, build, build_data
from skelact.engine.pictures import plot
from skelact.engine.predict import predict
from skelact.errors import SkelactError

__all__ = ["benchmark", "info", "plot", "predict", "prepare"]


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def prepare(cfg: DictConfig) -> int:
    """Read original files into a store; other modalities into stores beside it."""
    OmegaConf.set_struct(cfg, False)
    if cfg.layout is not None:
        cfg.data.layout = cfg.layout
    wanted, optional = _modalities(cfg)
    if "skeleton" in wanted:
        _prepare_skeleton(cfg)
    if media := [name for name in wanted if name != "skeleton"]:
        from skelact.engine.modalities import prepare_media

        prepare_media(cfg, media, optional, _workers(cfg.workers))
    return 0


def _modalities(cfg: DictConfig) -> tuple[list[str], bool]:
    """What to prepare, and whether a modality that the source lacks may be left out (`all`)."""
    asked = _plain(cfg.modalities) or _plain(cfg.data.get("modalities")) or ["skeleton"]
    asked = [asked] if isinstance(asked, str) else [str(name) for name in asked]
    have = ["skeleton", *(name for name in cfg.data.get("media") or {} if name != "store")]
    if asked == ["all"]:
        return have, True
    if unknown := [name for name in asked if name not in have]:
        raise SkelactError(f"data={cfg.data.name} has no modality {', '.join(unknown)}; modalities=[{','.join(have)}]")
    return [name for name in have if name in asked], False


def _prepare_skeleton(cfg: DictConfig) -> None:
    from skelact.data.prepare import prepare_dataset

    node = cfg.data.get("reader")
    name = str(cfg.data.name)
    if node is None:
        raise SkelactError(
            f"prepare: there is no reader for data={name} yet; give your own with data.reader._target_=package.Class"
        )
    if OmegaConf.is_missing(cfg.data, "layout"):
        raise SkelactError("prepare: say which joints the clips have: layout=NAME or layout=FILE.yaml")
    reader = build({**_plain(node), **(_plain(cfg.options) or {})}, "data.reader")
    target = Path(str(cfg.target)).expanduser()
    report = prepare_dataset(reader, cfg.source, target, workers=_workers(cfg.workers), dtype=str(cfg.dtype))
    print(report)
    if cfg.strict and report.skipped:
        raise SkelactError(f"strict: {len(report.skipped)} of {len(report.skipped) + report.clips} clips are damaged")


def _workers(given: Any) -> int:
    if str(given) == "auto":
        return 0
    if not str(given).isdecimal():
        raise SkelactError(f"workers={given} is neither auto nor a number of processes")
    return int(given)


def info(cfg: DictConfig) -> int:
    """Print versions, a store, or a checkpoint."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if cfg.get("data") and not cfg.checkpoint:
        Console(highlight=False).print(_describe_store(cfg))
        if cfg.verify:
            console.print("every byte fits the card")
        return 0
    lines = _about_checkpoint(str(cfg.checkpoint)) if cfg.checkpoint else _about_installation(cfg)
    for key, value in lines:
        console.print(f"{key:14s} {value}", markup=False)
    return 0


def _about_installation(cfg: DictConfig) -> list[tuple[str, Any]]:
    import torch

    from skelact import __version__
    from skelact.data.modalities import open_any
    from skelact.skeleton.layouts import list_layouts

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines: list[tuple[str, Any]] = [
        ("skelact", __version__),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("devices", ", ".join(names) if names else "cpu"),
        ("layouts", ", ".join(list_layouts())),
        ("stores in", cfg.paths.data),
    ]
    folder = Path(str(cfg.paths.data)).expanduser()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (path / "card.json").is_file():
            try:
                store = open_any(path)
                lines.append((f"  {path.name}", f"{len(store)} clips, fingerprint {store.fingerprint}"))
            except SkelactError as error:
                lines.append((f"  {path.name}", f"damaged: {error}"))
    return lines


def _describe_store(cfg: DictConfig) -> Any:
    """The store of a data choice, as tables."""
    from skelact.data.info import describe
    from skelact.engine.settings import complete_from_card

    OmegaConf.set_struct(cfg, False)
    complete_from_card(cfg)
    datamodule = build_data({k: _plain(v) for k, v in cfg.data.items() if k not in PREPARE_ONLY})
    datamodule.setup()
    if cfg.verify:
        datamodule.store.verify()
    from skelact.engine.modalities import describe_media

    return describe_media(cfg, describe(datamodule.store))


def _about_checkpoint(path: str) -> list[tuple[str, Any]]:
    from skelact.engine.checkpoint import KEY, find, read

    content = read(path)
    card = content[KEY]
    config = card["config"]
    count = sum(t.numel() for t in content["state_dict"].values())
    return [
        ("checkpoint", find(path)),
        ("written by", f"skelact {card['version']}, format {card['format']}"),
        ("method", f"{config['method']['_target_']}, {count / 1e6:.2f} M numbers"),
        ("trained", f"{card['progress']['step']} steps, {card['progress']['epoch']} epochs, seed {config['seed']}"),
        ("data", f"{config['data'].get('store')} {config['data'].get('split', '')}"),
        ("layout", f"{card['layout']['name']}, {len(card['layout']['joints'])} joints"),
        ("classes", f"{len(card['class_names'])}: {', '.join(card['class_names'][:20])}"),
        ("fingerprint", card["fingerprint"]),
    ]


_MEASURES = {
    "prepare": "skelact.benchmarks.prepare.measure",
    "simulate": "skelact.benchmarks.simulated_ntu.write",
    "data": "skelact.benchmarks.data.benchmark_views",
    "augment": "skelact.benchmarks.augment.benchmark_augment",
    "linear": "skelact.benchmarks.linear.measure",
    "retrieval": "skelact.benchmarks.retrieval.measure",
    "media": "skelact.benchmarks.media.measure",
    "stgcn": "skelact.benchmarks.stgcn.measure",
    "dstformer": "skelact.benchmarks.dstformer.measure",
}


def benchmark(cfg: DictConfig) -> int:
    """Measure preparation, data, probes or training on this machine; or make up the files to do so with."""
    kind = str(cfg.kind)
    if kind in ("method", "methods"):
        return _benchmark_methods(cfg, kind)
    if kind == "scaling":
        return _benchmark_scaling(cfg)
    if kind not in _MEASURES:
        raise SkelactError(f"benchmark kind={kind} is none of {', '.join(_MEASURES)}, scaling, method, methods")
    module, _, name = _MEASURES[kind].rpartition(".")
    function = getattr(importlib.import_module(module), name)
    asked: dict[str, Any] = {key: cfg[key] for key in ("seconds", "threads", "seed", "clips", "target", "archive")}
    if kind == "simulate" and cfg.target is None:
        raise SkelactError("benchmark simulate: say where the made-up files shall go: target=FOLDER")
    known = inspect.signature(function).parameters
    numbers = function(**{key: value for key, value in asked.items() if key in known and value is not None})
    _print_numbers(numbers)
    if cfg.output:
        from skelact.engine.files import replace_text

        replace_text(Path(str(cfg.output)), json.dumps(numbers, indent=1) + "\n")
    return 0


def _benchmark_methods(cfg: DictConfig, kind: str) -> int:
    """Training steps of one method as a list, of all as a table; results.json of both."""
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from skelact.benchmarks import methods
    from skelact.benchmarks.training import measure
    from skelact.results import write_records
    from skelact.tables import cells_table, print_wide

    file = Path(str(cfg.output or cfg.run_dir + "/results.json"))
    if kind == "method":
        media: Any = OmegaConf.to_container(cfg.data.media, resolve=True) if "modalities" in cfg.data else None
        config = _resolved(cfg)
        numbers = measure(config, media)
        _print_numbers(numbers)
        records = [methods.as_record(numbers, config)]
    else:
        own = ("kind", "sizes", "only", "seconds", "output", "run_dir")
        overrides = [o for o in HydraConfig.get().overrides.task if o.partition("=")[0].lstrip("+") not in own]
        only = [cfg.only] if isinstance(cfg.only, str) else list(cfg.only or [])
        records = methods.measure(str(cfg.sizes), only, overrides, float(cfg.seconds))
        print_wide([cells_table("training steps", *methods.table(records), "method")], Console(highlight=False))
    write_records(file, records)
    print(f"written to {file}")
    return 0


def _benchmark_scaling(cfg: DictConfig) -> int:
    """A method's step on more and more devices."""
    from rich.console import Console

    from skelact.benchmarks.scaling import Assumed, measure
    from skelact.engine.files import replace_text
    from skelact.tables import cells_table, print_wide

    media: Any = OmegaConf.to_container(cfg.data.media, resolve=True) if "modalities" in cfg.data else None
    asked = (cfg.gflops, 1e9), (cfg.bandwidth_gbs, 1e9), (cfg.latency_us, 1e-6)
    assumed = Assumed(*(None if value is None else float(value) * unit for value, unit in asked))
    numbers, rows = measure(_resolved(cfg), media, assumed)
    _print_numbers(numbers)
    cells = [[f"{value:,.4g}" for value in row.values()] for row in rows]
    print_wide([cells_table("predicted", list(rows[0]), cells, "ranks")], Console(highlight=False))
    if cfg.output:
        replace_text(Path(str(cfg.output)), json.dumps({**numbers, "predicted": rows}, indent=1) + "\n")
    return 0


def _print_numbers(numbers: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for key, value in numbers.items():
        text = f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 1e4 else value
        text = f"{text:.4g}" if isinstance(text, float) else text
        console.print(f"{key:44s} {text}", markup=False)


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    OmegaConf.set_struct(cfg, False)
    for key in PREPARE_ONLY:
        cfg.data.pop(key, None)
    resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return resolved
