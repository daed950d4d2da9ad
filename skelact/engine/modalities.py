"""The other modalities of a dataset, for `skelact prepare` and `skelact info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from skelact.engine.build import build
from skelact.errors import SkelactError


def _media(cfg: DictConfig) -> dict[str, Any]:
    node = cfg.data.get("media")
    return {} if node is None else dict(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]


def prepare_media(cfg: DictConfig, names: list[str], optional: bool, workers: int) -> None:
    """Read the named modalities into stores beside the skeletons' and print which clip has what.

    Args:
        cfg: config of `skelact prepare`.
        names: modalities of the dataset.
        optional: leave out those that the source has not.
        workers: reader processes, 0 for as many as there are cores.
    """
    from skelact.data.modalities import media_paths, open_modalities, pair_stores
    from skelact.data.prepare import prepare_dataset

    media, target = _media(cfg), Path(str(cfg.target)).expanduser()
    if target != Path(str(cfg.data.store)).expanduser():
        media["store"] = str(target)
    paths = media_paths(target, media)
    damaged = 0
    for name in names:
        reader = build(media[name], f"data.media.{name}")
        if optional and not reader.scan(cfg.source):
            print(f"{reader.name}: not in {cfg.source}, left out")
            continue
        report = prepare_dataset(reader, cfg.source, paths[name], workers=workers)
        print(report)
        damaged += len(report.skipped)
    stores = open_modalities(target, media)
    if len(stores) > 1:
        print(pair_stores(stores))
    if cfg.strict and damaged:
        raise SkelactError(f"strict: {damaged} clips of {', '.join(names)} are damaged")


def describe_media(cfg: DictConfig, tables: Any) -> Any:
    """The tables of a skeleton store, and one of the modalities where some are prepared."""
    from rich.console import Group

    from skelact.data.modalities import SKELETON, describe, open_modalities

    stores = open_modalities(str(cfg.data.store), _media(cfg))
    if set(stores) <= {SKELETON}:
        return tables
    if cfg.verify:
        for store in stores.values():
            store.verify()
    return Group(tables, describe(stores))
