"""`skelact plot`: pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from skelact.errors import SkelactError


def plot(cfg: DictConfig) -> int:
    """Draw what was asked for and say where it lies."""
    makers = {
        "tsne": _tsne,
        "confusion": _confusion,
        "clip": _clip,
        "subsets": _subsets,
        "robustness": _robustness,
    }
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


def save(figure: Any, path: Path) -> Path:
    """Write a figure to a sibling file and rename it."""
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format=path.suffix.lstrip(".") or "png")
    partial.replace(path)
    return path


def tsne_figure(
    method: Any, datamodule: Any, part: str, streams: list[str] | None, title: str, limit: int = 2000, seed: int = 0
) -> Any:
    """t-SNE of the features of a part, at most `limit` clips of it."""
    from skelact.plots import embedding
    from skelact.protocols.features import extract

    table = extract(method, datamodule, part, streams)
    rows = np.arange(len(table))
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    features, labels = table.features.cpu().numpy()[rows], table.labels.cpu().numpy()[rows]
    return embedding(features, labels, datamodule.class_names, title, seed)


def confusion_figure(run: Path, class_names: list[str]) -> Any:
    """Confusion matrix of the linear head with all labels, or of whatever scores the run has."""
    from skelact.plots import confusion
    from skelact.results import load_scores

    scores = load_scores(run)
    plain = [key for key in scores.scores if not key.startswith(("robustness/", "noise_sweep/"))]
    keys = sorted(plain, key=lambda k: (not k.startswith("linear/"), "untrained" in k, "raw" in k, k[-4:] != "/all"))
    keys += [key for key in scores.scores if key.startswith("robustness/") and key.endswith("/clean")]
    known = scores.labels >= 0
    return confusion(scores.labels[known], scores.entry(keys[0]).argmax(1)[known], class_names, keys[0])


def _tsne(cfg: DictConfig) -> list[Path]:
    from skelact.engine.run import load_run, pick_device

    method, datamodule, config = load_run(str(cfg.checkpoint))
    method.to(pick_device({"accelerator": cfg.accelerator}))
    streams = list(cfg.streams) if cfg.streams else None
    title = f"{config['name']}: {'+'.join(streams or method.streams)}, {cfg.part} part"
    figure = tsne_figure(method, datamodule, str(cfg.part), streams, title, int(cfg.max_clips), int(cfg.seed))
    return [save(figure, _target(cfg, "tsne.png"))]


def _confusion(cfg: DictConfig) -> list[Path]:
    from skelact.engine.checkpoint import KEY, read
    from skelact.engine.settings import read_yaml

    run = _run_dir(str(cfg.checkpoint))
    try:
        names = read(str(cfg.checkpoint))[KEY]["class_names"]
    except SkelactError:  # a run that only judged another one's checkpoint
        if not Path(str(cfg.checkpoint)).expanduser().exists():
            raise
        names = read(read_yaml(run / "config.yaml").get("checkpoint") or str(cfg.checkpoint))[KEY]["class_names"]
    return [save(confusion_figure(run, names), _target(cfg, "confusion.png"))]


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
    title = (
        f"{datamodule.class_names[labels[position]]}\n{names[position]}" if labels[position] >= 0 else names[position]
    )
    pictures = clip_frames(frames, datamodule.layout, mask, title)
    # Thinned clips keep their duration.
    fps = float(datamodule.card.get("fps") or 30.0) * len(pictures) / len(frames)
    return [save_gif(_target(cfg, "clip.gif"), pictures, min(fps, 30.0))]


def _numbered(batches: Any) -> Any:
    first = 0
    for batch in batches:
        yield first, batch
        first += len(batch)


def _robustness(cfg: DictConfig) -> list[Path]:
    from skelact.engine.robustness_pictures import robustness_figures
    from skelact.results import read_records

    runs = [_run_dir(str(run)) for run in [cfg.checkpoint, *(cfg.runs or [])]]
    names = [run.resolve().name for run in runs]
    names = [n if names.count(n) == 1 else str(run) for n, run in zip(names, runs, strict=True)]
    figures = robustness_figures({name: read_records(run) for name, run in zip(names, runs, strict=True)})
    targets = {name: _target(cfg, name) for name in figures}
    if cfg.output:
        targets = {name: path.with_stem(f"{path.stem}-{Path(name).stem}") for name, path in targets.items()}
    return [save(figure, targets[name]) for name, figure in figures.items()]


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
        paths.append(save(subset_bars(rows, f"labels: {labels}, head: {head}"), target))
    return paths
