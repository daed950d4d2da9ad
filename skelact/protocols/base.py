"""What every protocol is: a question, asked of an encoder and of its two baselines in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from skelact.errors import SkelactError
from skelact.methods.cost import forward_cost
from skelact.protocols.features import FeatureTable, Subject, Subset, modality_encoders, pose_streams
from skelact.results import Record, repeated_interval, save_scores

if TYPE_CHECKING:
    from skelact.data.datamodules import SkeletonDataModule
    from skelact.methods.base import Method

Labels = str | int
BASELINES = ("untrained", "raw_pose")


@dataclass
class Answer:
    """One row before it becomes a record.

    Args:
        metrics: name -> number.
        ci95: intervals over repetitions and clips.
        selection: how hyper-parameters were chosen.
        parameters: trained parameters of one head, 0 where nothing is trained.
        scores: `(N, classes)` per-clip scores of the test part, mean over seeds.
        val_scores: the same of the validation part, from heads that have not seen it.
        correct: `(R, N)` percent, the first metric of each repetition and clip: what paired differences are made of.
        cells: further per-clip scores of the test part, by what follows the row's name in their key.
        protocol: under which name the row is kept, if not the protocol's own.
        wall_s: seconds that the answer took; None: since the answer before.
        passes: which streams each pass through the encoder reads; None: one pass with all that are asked.
        pair: rows of several subjects with the same are compared; None: by their tags (:func:`row_tags`).
        extra: further keys of the record.
    """

    metrics: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    selection: str
    parameters: int = 0
    scores: np.ndarray | None = None
    val_scores: np.ndarray | None = None
    correct: np.ndarray | None = None
    cells: dict[str, np.ndarray] = field(default_factory=dict)
    protocol: str | None = None
    wall_s: float | None = None
    passes: Sequence[Subset] | None = None
    pair: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Protocol:
    """Base of the protocols that judge frozen features.

    Args:
        labels: label settings, each `all` or a number of labelled clips per class.
        draws: label lists per few-label setting; each list is one repetition.
        baselines: True for both, False for none, or some of `untrained` and `raw_pose`.
        precision: autocast of the encoder (`bf16`), None for float32.
        cache: keep extracted features in the run directory.
        streams: judge these of the method's streams alone; None means all.
    """

    name = "protocol"
    trains = False

    def __init__(
        self,
        labels: Sequence[Labels] | Labels = ("all", 1),
        draws: int = 20,
        baselines: bool | Sequence[str] = True,
        precision: str | None = None,
        cache: bool = True,
        streams: Sequence[str] | str | None = None,
    ) -> None:
        self.labels = [_setting(x) for x in ([labels] if isinstance(labels, (str, int)) else labels)]
        self.baselines = BASELINES if baselines is True else tuple(baselines or ())
        unknown = set(self.baselines) - set(BASELINES)
        if unknown:
            raise SkelactError(f"baselines: {sorted(unknown)} are not known; choose from {', '.join(BASELINES)}")
        if draws < 1:
            raise SkelactError(f"draws={draws}: at least one label list is needed")
        self.draws, self.precision, self.cache = draws, precision, cache
        self.streams = None if streams is None else (streams,) if isinstance(streams, str) else tuple(streams)
        self.space = "feature"

    def run(
        self,
        method: Method,
        datamodule: SkeletonDataModule,
        *,
        run_dir: str | Path | None = None,
        untrained: Callable[[int], Method] | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        checkpoint: str | None = None,
        encoder: str = "pretrained",
        scores: str | Path | None = None,
    ) -> list[Record]:
        """Ask the question of the method and of the baselines.

        Args:
            method: the encoder.
            datamodule: the data.
            run_dir: features are kept below it; None keeps none.
            untrained: builds the same method with fresh weights from a seed; without it there is no such row.
            device: where to compute; None means where the method is.
            seed: of the untrained weights and of the heads.
            checkpoint: where the method's weights come from, for the record.
            encoder: `pretrained`, or `untrained` if the method given is itself freshly initialised.
            scores: file for per-clip scores; None writes none. Scores of the validation part lie in a file beside it.

        Returns:
            One record per row and label setting.
        """
        device = torch.device(device) if device is not None else next(method.parameters()).device
        records: list[Record] = []
        first: dict[str, tuple[Record, np.ndarray]] = {}
        costs: dict[tuple[int, Subset], float] = {}
        found: dict[str, dict[str, np.ndarray]] = {"test": {}, "val": {}}
        start = time.perf_counter()
        subjects = self._subjects(method, datamodule, run_dir, untrained, device, seed, encoder)
        for subject, answer in self.answers(subjects, seed):
            raw = subject.encoder == "raw_pose"
            wall = time.perf_counter() - start if answer.wall_s is None else answer.wall_s
            passes = [tuple(subset) for subset in answer.passes or [subject.full]]
            streams = tuple(stream for subset in passes for stream in subset)
            for subset in passes:
                if (id(subject), subset) not in costs and not raw:
                    cost = forward_gflops(subject.method.to(device), datamodule, streams=subset)
                    costs[id(subject), subset] = cost
            size = 0 if raw else encoder_parameters(subject.method, streams)
            extra = {"encoder": subject.encoder, "streams": "+".join(streams), **answer.extra}
            protocol = answer.protocol or self.name
            records.append(
                Record(
                    protocol=protocol,
                    method=subject.name,
                    data=str(datamodule.name),
                    split=str(datamodule.split),
                    seed=seed,
                    metrics=answer.metrics,
                    ci95=answer.ci95,
                    selection=answer.selection,
                    checkpoint=checkpoint if subject.encoder == "pretrained" else None,
                    fingerprint=str(datamodule.fingerprint),
                    parameters=size + answer.parameters,
                    gflops=None if raw else sum(costs[id(subject), subset] for subset in passes),
                    wall_s=wall,
                    samples_per_s=subject.clips / subject.seconds if subject.seconds else None,
                    device=str(device),
                    extra=extra,
                )
            )
            if answer.correct is not None:
                tag = "/".join([protocol, *row_tags(extra)] if answer.pair is None else [protocol, answer.pair])
                compare(first, tag, records[-1], answer.correct, datamodule.groups("test"))
            key = scores_key(protocol, subject.name, extra)
            for part, values in (("test", answer.scores), ("val", answer.val_scores)):
                if values is not None:
                    found[part][key] = values
            found["test"] |= {f"{key}/{cell}": values for cell, values in answer.cells.items()}
            start = time.perf_counter()
        if scores is not None:
            write_scores(scores, datamodule, found)
        return records

    def answers(self, subjects: Iterable[Subject], seed: int) -> Iterator[tuple[Subject, Answer]]:
        """Rows of all subjects, one subject after another."""
        for subject in subjects:
            for answer in self.answer(subject, seed):
                yield subject, answer

    def answer(self, subject: Subject, seed: int) -> Iterator[Answer]:
        """Rows of one subject; implemented by each protocol."""
        raise NotImplementedError(f"{type(self).__name__} must define answer")

    def _subjects(
        self,
        method: Method,
        datamodule: SkeletonDataModule,
        run_dir: str | Path | None,
        untrained: Callable[[int], Method] | None,
        device: torch.device,
        seed: int,
        encoder: str,
    ) -> Iterator[Subject]:
        cache = Path(run_dir) / "features" if self.cache and run_dir is not None else None
        name = type(method).__name__.lower()
        own = name if encoder == "pretrained" else f"{name} (untrained)"
        unknown = [stream for stream in self.streams or () if stream not in method.streams]
        if unknown or self.streams == ():
            given, there = list(self.streams or ()), ", ".join(method.streams)
            raise SkelactError(f"protocol.streams={given}: must be some of this method's: {there}")
        asked = None if self.streams is None else tuple(s for s in method.streams if s in self.streams)
        of = partial(Subject, datamodule=datamodule, device=device, streams=asked, space=self.space)
        yield of(own, encoder, method, precision=self.precision, cache=cache)
        if "untrained" in self.baselines and encoder == "pretrained" and untrained is not None:
            twin = untrained(seed)
            yield of(f"{name} (untrained)", "untrained", twin.to(device), precision=self.precision)
        if "raw_pose" in self.baselines and set(pose_streams(method)) & set(asked or method.streams):
            yield of("raw pose", "raw_pose", method)


def row_tags(extra: Mapping[str, Any]) -> list[str]:
    """What tells the rows of one method apart: labels, head, fill, and the streams of a row beside a fused one."""
    keys = ("labels", "head", "fill", "streams") if extra.get("fusion") == "single" else ("labels", "head", "fill")
    return [str(extra[key]) for key in keys if key in extra]


def scores_key(protocol: str, method: str, extra: Mapping[str, Any]) -> str:
    """Under which key a row's per-clip scores lie in `scores.npz`, for example `linear/umurl/all`."""
    return "/".join([protocol, method, *row_tags(extra)])


def _setting(value: Labels) -> Labels:
    if value == "all":
        return "all"
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise SkelactError(f"labels: {value!r} is neither `all` nor a number of clips per class")
    return number


def label_name(labels: Labels) -> str:
    """`all` or `1/class`, as the tables print it."""
    return "all" if labels == "all" else f"{labels}/class"


def label_rows(table: FeatureTable, per_class: int, draw: int) -> np.ndarray:
    """Rows of a table that keep their label in one draw; the list depends on clip names alone."""
    from skelact.data.splits import label_subset

    return label_subset(table.names, table.labels.cpu().numpy(), per_class=per_class, draw=draw)


def val_scores(path: str | Path) -> Path:
    """The file for scores of the validation part, beside that of the test part: `scores_val.npz`."""
    path = Path(path)
    return path.with_stem(f"{path.stem}_val")


def write_scores(
    path: str | Path, datamodule: SkeletonDataModule, found: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Add per-clip scores `(N, classes)` by part (test, val) and key to the files at `path` and beside it."""
    for part, entries in found.items():
        if entries:
            groups = [str(group) for group in datamodule.groups(part)]
            file = Path(path) if part == "test" else val_scores(path)
            save_scores(file, datamodule.clip_names(part), datamodule.labels(part), entries, groups)


def summarise(
    values: dict[str, np.ndarray], groups: np.ndarray | None = None, estimates: dict[str, np.ndarray] | None = None
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, Any]]:
    """Means over repetitions with intervals over repetitions and clips.

    Args:
        values: metric -> `(R, N)` percent of each repetition and clip.
        groups: `(N,)` groups of the clips.
        estimates: metric -> `(R,)` where it is not the mean over clips.

    Returns:
        metrics, ci95 and extra keys: `repetitions`, `ci95_clips` and, of several repetitions, `ci95_seeds` and `std`.
    """
    metrics: dict[str, float] = {}
    ci95: dict[str, tuple[float, float]] = {}
    seeds: dict[str, list[float]] = {}
    clips: dict[str, list[float]] = {}
    std: dict[str, float] = {}
    repetitions = 1
    for name, each in values.items():
        runs = each.mean(1) if estimates is None or name not in estimates else estimates[name]
        found = repeated_interval(each, groups, runs)
        metrics[name], ci95[name], clips[name] = float(runs.mean()), found.both, list(found.clips)
        repetitions = len(runs)
        if repetitions > 1:
            seeds[name], std[name] = list(found.seeds), float(runs.std(ddof=1))
    extra: dict[str, Any] = {"repetitions": repetitions, "ci95_clips": clips}
    if seeds:
        extra |= {"ci95_seeds": seeds, "std": std}
    return metrics, ci95, extra


def compare(
    first: dict[str, tuple[Record, np.ndarray]], tag: str, record: Record, correct: np.ndarray, groups: np.ndarray
) -> None:
    """Add the paired difference to the first subject's record: same clips, same label lists, same head seeds."""
    if tag not in first:
        first[tag] = (record, correct)
        return
    own, values = first[tag]
    own.extra.setdefault("differences", {})[record.method] = paired(values, correct, groups, next(iter(record.metrics)))


def paired(values: np.ndarray, others: np.ndarray, groups: np.ndarray, metric: str) -> dict[str, Any]:
    """The difference of two rows `(R, N)` in percent over the same clips, as records keep it."""
    difference = values - others
    found = repeated_interval(difference, groups, bounds=(-100.0, 100.0))
    return {"metric": metric, "difference": float(difference.mean()), "ci95": list(found.both)}


def encoder_parameters(method: Method, streams: Sequence[str] | None = None) -> int:
    """Number of parameters of the encoder, projectors apart; where each stream has its own, those of the given ones."""
    if not hasattr(method, "backbone"):
        own = [e for name, e in modality_encoders(method).items() if streams is None or name in streams]
        return sum(p.numel() for p in {p for encoder in own for p in encoder.parameters()})
    count = sum(p.numel() for p in method.backbone.parameters())
    if streams is None or not method.backbone.stacked:
        return count
    return count // len(method.backbone.streams) * len(streams)


def forward_gflops(
    method: Method, datamodule: SkeletonDataModule, part: str = "test", streams: Sequence[str] | None = None
) -> float:
    """Forward cost of one clip through the encoder, by default with all its streams.

    By the rule of :mod:`skelact.methods.cost`. The clip is the first that has all streams, if one of the first fifty
    does.
    """
    batches = iter(datamodule.batches(part, 1, next(method.parameters()).device))
    batch = first = next(batches)
    for other in islice(batches, 50):
        if bool(method.available(batch).all()):
            break
        batch = other
    else:
        batch = first
    return forward_cost(method, batch, streams).gflops
