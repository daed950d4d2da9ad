"""`skelact plot`: pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from skelact.errors import SkelactError


def plot(cfg: DictConfig) -> int:
    """Draw what was asked for and say where it lies."""
    makers = {"tsne": _tsne, "confusion": _confusion, "clip": _clip, "subsets": _subsets}
    if cfg.kind not in makers:
        raise SkelactError(f"kind={cfg.kind} is none of {', '.join(makers)}")
    for path in makers[str(cfg.kind)](cfg):
        print(path)
    return 0


def _target(cfg: DictConfig, name: str) -> Path:
    if cfg.output:
        path = Path(str(cfg.output)).expanduser()
    else:
        run = _run_dir(str(cfg.checkpoint))
        path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _run_dir(checkpoint: str) -> Path:
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _save(figure: Any, path: Path) -> Path:
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format=path.suffix.lstrip(".") or "png")
    partial.replace(path)
    return path


def _tsne(cfg: DictConfig) -> list[Path]:
    from skelact.engine.run import load_run, pick_device
    from skelact.plots import embedding
    from skelact.protocols.features import extract

    method, datamodule, config = load_run(str(cfg.checkpoint))
    method.to(pick_device({"accelerator": cfg.accelerator}))
    streams = list(cfg.streams) if cfg.streams else None
    table = extract(method, datamodule, str(cfg.part), streams)
    rows = np.arange(len(table))
    if len(rows) > cfg.max_clips:
        rows = np.sort(np.random.default_rng(cfg.seed).choice(rows, int(cfg.max_clips), replace=False))
    features, labels = table.features.cpu().numpy()[rows], table.labels.cpu().numpy()[rows]
    title = f"{config['name']}: {'+'.join(streams or method.streams)}, {cfg.part} part"
    return [_save(embedding(features, labels, datamodule.class_names, title, int(cfg.seed)), _target(cfg, "tsne.png"))]


def _confusion(cfg: DictConfig) -> list[Path]:
    from skelact.engine.checkpoint import KEY, read
    from skelact.engine.settings import read_yaml
    from skelact.plots import confusion
    from skelact.results import load_scores

    run = _run_dir(str(cfg.checkpoint))
    scores = load_scores(run)
    keys = sorted(scores.scores)
    key = next((k for k in keys if k.startswith("linear") and "untrained" not in k and "raw" not in k and "all" in k), keys[0])
    values = scores.entry(key)
    try:
        names = read(str(cfg.checkpoint))[KEY]["class_names"]
    except SkelactError:  # a run that only judged another one's checkpoint
        names = read(read_yaml(run / "config.yaml")["checkpoint"])[KEY]["class_names"]
    known = scores.labels >= 0
    figure = confusion(scores.labels[known], values.argmax(1)[known], names, key)
    return [_save(figure, _target(cfg, "confusion.png"))]


def _clip(cfg: DictConfig) -> list[Path]:
    from skelact.engine.run import load_run
    from skelact.plots import clip_frames, save_gif

    _, datamodule, _ = load_run(str(cfg.checkpoint))
    names, labels = datamodule.clip_names(str(cfg.part)), datamodule.labels(str(cfg.part))
    wanted = cfg.clip
    if wanted is None:
        position = 0
    elif str(wanted).isdigit() and int(wanted) < len(names):
        position = int(wanted)
    elif str(wanted) in names:
        position = names.index(str(wanted))
    else:
        raise SkelactError(f"clip={wanted}: the {cfg.part} part has {len(names)} clips, such as {names[0]!r}")
    for first, batch in _numbered(datamodule.batches(str(cfg.part))):
        if first <= position < first + len(batch):
            row = position - first
            frames = batch.clip(row).cpu().numpy()
            mask = batch.clip_mask(row).cpu().numpy()
            break
    title = f"{datamodule.class_names[labels[position]]}  ({names[position]})" if labels[position] >= 0 else names[position]
    pictures = clip_frames(frames, datamodule.layout, mask, title)
    # Thinned clips keep their duration.
    fps = float(datamodule.card.get("fps") or 30.0) * len(pictures) / len(frames)
    return [save_gif(_target(cfg, "clip.gif"), pictures, min(fps, 30.0))]


def _numbered(batches: Any) -> Any:
    first = 0
    for batch in batches:
        yield first, batch
        first += len(batch)


def _subsets(cfg: DictConfig) -> list[Path]:
    from skelact.plots import subset_bars
    from skelact.results import read_records

    run = _run_dir(str(cfg.checkpoint))
    records = [record for record in read_records(run) if record.protocol == "missing"]
    if not records:
        raise SkelactError(f"{run}: has no results of protocol missing; run it with evaluate=[missing]")
    settings = dict.fromkeys((str(r.extra.get("labels")), str(r.extra.get("head"))) for r in records)
    paths = []
    for labels, head in settings:
        rows: dict[str, dict[str, tuple[float, float, float]]] = {}
        for record in records:
            if (str(record.extra.get("labels")), str(record.extra.get("head"))) != (labels, head):
                continue
            nan = (float("nan"), float("nan"))
            rows[record.method] = {
                name.removeprefix("top1/"): (value, *record.ci95.get(name, nan))
                for name, value in record.metrics.items()
                if name.startswith("top1/")
            }
        tag = f"{labels}-{head}".replace("/", "-per-")
        target = _target(cfg, f"subsets-{tag}.png")
        if cfg.output and len(settings) > 1:
            target = target.with_stem(f"{target.stem}-{tag}")
        paths.append(_save(subset_bars(rows, f"labels: {labels}, head: {head}"), target))
    return paths
