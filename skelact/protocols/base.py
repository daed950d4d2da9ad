"""What every protocol is: a question, asked of an encoder and of its two baselines in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from skelact.errors import SkelactError
from skelact.protocols.features import FeatureTable, Subject
from skelact.results import Record, bootstrap_interval, save_scores, t_interval

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
        ci95: intervals over seeds, label draws or clips.
        selection: how hyper-parameters were chosen.
        parameters: trained parameters of one head, None where nothing is trained.
        scores: `(N, classes)` per-clip scores of the test part, mean over seeds.
        extra: further keys of the record.
    """

    metrics: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    selection: str
    parameters: int | None = None
    scores: np.ndarray | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Protocol:
    """Base of the protocols that judge frozen features.

    Args:
        labels: label settings, each `all` or a number of labelled clips per class.
        draws: label lists per few-label setting; each list is one repetition.
        baselines: True for both, False for none, or some of `untrained` and `raw_pose`.
        precision: autocast of the encoder (`bf16`), None for float32.
        cache: keep extracted features in the run directory.
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
    ) -> None:
        self.labels = [_setting(x) for x in ([labels] if isinstance(labels, (str, int)) else labels)]
        self.baselines = BASELINES if baselines is True else tuple(baselines or ())
        unknown = set(self.baselines) - set(BASELINES)
        if unknown:
            raise SkelactError(f"baselines: {sorted(unknown)} are not known; choose from {', '.join(BASELINES)}")
        if draws < 1:
            raise SkelactError(f"draws={draws}: at least one label list is needed")
        self.draws, self.precision, self.cache = draws, precision, cache

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
            scores: file for per-clip scores; None writes none.

        Returns:
            One record per row and label setting.
        """
        device = torch.device(device) if device is not None else next(method.parameters()).device
        records = []
        for subject in self._subjects(method, datamodule, run_dir, untrained, device, seed, encoder):
            gflops = forward_gflops(subject)
            start = time.perf_counter()
            for answer in self.answer(subject, seed):
                extra = {"encoder": subject.encoder, "streams": "+".join(subject.full), **answer.extra}
                records.append(
                    Record(
                        protocol=self.name,
                        method=subject.name,
                        data=str(datamodule.name),
                        split=str(datamodule.split),
                        seed=seed,
                        metrics=answer.metrics,
                        ci95=answer.ci95,
                        selection=answer.selection,
                        checkpoint=checkpoint if subject.encoder == "pretrained" else None,
                        fingerprint=str(datamodule.fingerprint),
                        parameters=answer.parameters,
                        gflops=gflops,
                        wall_s=time.perf_counter() - start,
                        samples_per_s=subject.clips / subject.seconds if subject.seconds else None,
                        device=str(device),
                        extra=extra,
                    )
                )
                if scores is not None and answer.scores is not None:
                    key = "/".join([self.name, subject.name, *_tags(answer)])
                    columns = (datamodule.clip_names("test"), datamodule.labels("test"))
                    save_scores(scores, *columns, {key: answer.scores}, [str(g) for g in datamodule.groups("test")])
                start = time.perf_counter()
        return records

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
        yield Subject(own, encoder, method, datamodule, device, self.precision, cache)
        if "untrained" in self.baselines and encoder == "pretrained" and untrained is not None:
            twin = untrained(seed)
            yield Subject(f"{name} (untrained)", "untrained", twin.to(device), datamodule, device, self.precision)
        if "raw_pose" in self.baselines:
            yield Subject("raw pose", "raw_pose", method, datamodule, device)


def _tags(answer: Answer) -> list[str]:
    return [str(answer.extra[k]) for k in ("labels", "head") if k in answer.extra]


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


def summarise(
    repetitions: Sequence[dict[str, float]],
    correct: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    metric: str = "top1",
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, Any]]:
    """Means and t-intervals over repetitions, and the clip bootstrap beside them.

    Args:
        repetitions: metrics of each seed or label draw.
        correct: `(N,)` per-clip value of `metric` in percent, mean over repetitions.
        groups: `(N,)` groups of the clips.
        metric: which metric `correct` is.

    Returns:
        metrics, ci95 and extra keys (`std` over repetitions, `repetitions`, `ci95_clips`).
    """
    names = list(repetitions[0])
    columns = {k: np.array([r[k] for r in repetitions]) for k in names}
    metrics = {k: float(v.mean()) for k, v in columns.items()}
    ci95 = {k: t_interval(v) for k, v in columns.items()} if len(repetitions) > 1 else {}
    extra: dict[str, Any] = {"repetitions": len(repetitions)}
    if len(repetitions) > 1:
        extra["std"] = {k: float(v.std(ddof=1)) for k, v in columns.items()}
    if correct is not None:
        extra["ci95_clips"] = {metric: list(bootstrap_interval(correct, groups))}
    return metrics, ci95, extra


def forward_gflops(subject: Subject) -> float | None:
    """Forward cost of one clip through the encoder, 2 x multiply-adds, attention included; None for raw pose."""
    if subject.encoder == "raw_pose":
        return None
    from torch.utils.flop_counter import FlopCounterMode

    method = subject.method
    was_training = method.training
    batch = next(iter(subject.datamodule.batches("test", 1, subject.device)))
    method.eval().to(subject.device)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            views, mask = method.sample(batch)
            method.encode(views, None, mask)
    finally:
        method.train(was_training)
    return counter.get_total_flops() / 1e9
