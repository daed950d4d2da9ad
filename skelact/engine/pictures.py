"""`skelact plot`: pictures of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig

from skelact.errors import SkelactError

if TYPE_CHECKING:
    from skelact.results import Record


def plot(cfg: DictConfig) -> int:
    """Draw what was asked for and say where it lies."""
    makers = {
        "tsne": _tsne,
        "confusion": _confusion,
        "clip": _clip,
        "subsets": _subsets,
        "robustness": _robustness,
        "attention": _attention,
        "pathways": _pathways,
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
    rows = _limited(len(table), limit, seed)
    features, labels = table.features.cpu().numpy()[rows], table.labels.cpu().numpy()[rows]
    return embedding(features, labels, datamodule.class_names, title, seed)


def _limited(count: int, limit: int, seed: int) -> np.ndarray:
    """At most `limit` of `count` rows, ascending."""
    rows = np.arange(count)
    return rows if count <= limit else np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


def confusion_figure(run: Path, class_names: list[str]) -> Any:
    """Confusion matrix of the linear head with all labels, or of whatever scores the run has."""
    from skelact.plots import confusion
    from skelact.results import load_scores

    scores = load_scores(run)
    cells = ("robustness/", "noise_sweep/", "missing/")
    plain = [key for key in scores.scores if not key.startswith(cells)]
    keys = sorted(plain, key=lambda k: (not k.startswith("linear/"), "untrained" in k, "raw" in k, k[-4:] != "/all"))
    keys += [key for key in scores.scores if key.startswith("robustness/") and key.endswith("/clean")]
    subsets = [key for key in scores.scores if key.startswith("missing/")]
    keys += sorted(subsets, key=lambda key: -key.rsplit("/", 1)[1].count("+"))
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
    clip, title = _chosen(cfg, datamodule)
    frames, mask = clip.clip(0).cpu().numpy(), clip.clip_mask(0).cpu().numpy()
    pictures = clip_frames(frames, datamodule.layout, mask, title)
    return [save_gif(_target(cfg, "clip.gif"), pictures, _rate(datamodule, len(frames), len(pictures)))]


def _rate(datamodule: Any, frames: int, pictures: int) -> float:
    """Pictures a second, so that a clip that was thinned keeps its duration."""
    return min(float(datamodule.card.get("fps") or 30.0) * pictures / frames, 30.0)


def _chosen(cfg: DictConfig, datamodule: Any, device: Any = None) -> tuple[Any, str]:
    """The one clip that was asked for, as a batch, and a title."""
    part = str(cfg.part)
    names, labels = datamodule.clip_names(part), datamodule.labels(part)
    wanted = cfg.clip
    if wanted is None:
        position = 0
    elif str(wanted).isdigit() and int(wanted) < len(names):
        position = int(wanted)
    elif str(wanted) in names:
        position = names.index(str(wanted))
    else:
        raise SkelactError(f"clip={wanted}: the {part} part has {len(names)} clips, such as {names[0]!r}")
    title = (
        f"{datamodule.class_names[labels[position]]}\n{names[position]}" if labels[position] >= 0 else names[position]
    )
    first = 0
    for batch in datamodule.batches(part, device=device):
        if position < first + len(batch):
            break
        first += len(batch)
    return batch.select(torch.tensor([position - first], device=batch.start.device)), title


@torch.inference_mode()
def _attention(cfg: DictConfig) -> list[Path]:
    from skelact.engine.run import load_run, pick_device
    from skelact.plots import attention, clip_frames, save_gif

    if cfg.colours not in ("range", "released"):
        raise SkelactError(f"colours={cfg.colours} is neither range nor released")
    method, datamodule, config = load_run(str(cfg.checkpoint))
    device = pick_device({"accelerator": cfg.accelerator})
    method.eval().to(device)
    batch, title = _chosen(cfg, datamodule, device)
    views, mask = method.sample(batch)
    found = _importance(method, views, mask, str(cfg.checkpoint))
    seen = mask if mask is not None else (views != 0).any(-1)
    clip, importance, seen = (x[0].transpose(0, 1).cpu().numpy() for x in (views, found, seen))
    target, released = _target(cfg, "attention.png"), cfg.colours == "released"
    if target.suffix.lower() == ".gif":
        pictures = clip_frames(clip, datamodule.layout, seen, title, importance=importance, released=released)
        return [save_gif(target, pictures, _rate(datamodule, int(batch.length[0]), len(pictures)))]
    title = f"{config['name']}: {title}".replace("\n", ", ")
    return [save(attention(clip, importance, datamodule.layout, seen, title, released=released), target)]


def _importance(method: Any, views: torch.Tensor, mask: torch.Tensor | None, run: str) -> torch.Tensor:
    """How much attention each joint of `(N, M, T, V, C)` receives, `(N, M, T, V)`."""
    from skelact.backbones.tokens import TokenEncoder

    if hasattr(method, "importance"):
        found: torch.Tensor = method.importance(views, mask)
        return found
    if not isinstance(method.backbone, TokenEncoder):
        raise SkelactError(
            f"kind=attention: {type(method.backbone).__name__} of {run} has no attention to joints; it needs a run "
            f"with backbone=dstformer or backbone=plain_transformer"
        )
    people = method.backbone.people(method.derive(views, mask=mask), mask)
    _, importance = method.backbone.represent(people.rows, people.unobserved, importance=True)
    assert importance is not None
    return people.unpack(importance)


@torch.inference_mode()
def _pathways(cfg: DictConfig) -> list[Path]:
    from skelact.engine.run import load_run, pick_device
    from skelact.plots import pathways
    from skelact.transforms.draws import Draws

    method, datamodule, config = load_run(str(cfg.checkpoint))
    if not hasattr(method, "pathways"):
        raise SkelactError(
            f"kind=pathways: {type(method).__name__} of {cfg.checkpoint} has one pathway only; it needs a run with "
            f"method=maskclr (kind=tsne shows the features of any method)"
        )
    device = pick_device({"accelerator": cfg.accelerator})
    method.eval().to(device)
    part, found = str(cfg.part), []
    for batch in datamodule.batches(part, device=device):
        hidden = method.pathways(*method.sample(batch), Draws(int(cfg.seed), 0, batch.index))
        found.append({name: values.float().cpu() for name, values in hidden.items()})
    labels = np.asarray(datamodule.labels(part))
    rows = _limited(len(labels), int(cfg.max_clips), int(cfg.seed))
    features = {name: torch.cat([each[name] for each in found]).numpy()[rows] for name in found[0]}
    title = f"{config['name']}: hidden features, {part} part"
    figure = pathways(features, labels[rows], datamodule.class_names, title, int(cfg.seed))
    return [save(figure, _target(cfg, "pathways.png"))]


def result_figures(records: Sequence[Record], run_dir: Path) -> list[Path]:
    """Figures of the protocols that have such, of one run, written into its directory."""
    from skelact.engine.missing_pictures import missing_figures
    from skelact.engine.robustness_pictures import robustness_figures

    protocols = {record.protocol for record in records}
    figures: dict[str, Any] = {}
    if protocols & {"robustness", "noise_sweep"}:
        figures |= robustness_figures({run_dir.name: records})
    if "missing" in protocols:
        figures |= missing_figures({run_dir.name: records})
    return [save(figure, run_dir / name) for name, figure in figures.items()]


def _robustness(cfg: DictConfig) -> list[Path]:
    from skelact.engine.robustness_pictures import robustness_figures

    return _of_runs(cfg, robustness_figures)


def _subsets(cfg: DictConfig) -> list[Path]:
    from skelact.engine.missing_pictures import missing_figures

    return _of_runs(cfg, missing_figures)


def _of_runs(cfg: DictConfig, draw: Callable[[dict[str, list[Record]]], dict[str, Any]]) -> list[Path]:
    """Several figures of the results of one run or more."""
    from skelact.results import read_records

    runs = [_run_dir(str(run)) for run in [cfg.checkpoint, *(cfg.runs or [])]]
    names = [run.resolve().name for run in runs]
    names = [n if names.count(n) == 1 else str(run) for n, run in zip(names, runs, strict=True)]
    figures = draw({name: read_records(run) for name, run in zip(names, runs, strict=True)})
    targets = {name: _target(cfg, name) for name in figures}
    if cfg.output:
        targets = {name: path.with_stem(f"{path.stem}-{Path(name).stem}") for name, path in targets.items()}
    return [save(figure, targets[name]) for name, figure in figures.items()]
