"""Protocols that train a classifier: once or several times, then the test part is read once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from skelact.errors import SkelactError
from skelact.protocols.base import BASELINES, compare, forward_gflops, scores_key, summarise, write_scores
from skelact.protocols.features import Subject, pose_streams
from skelact.protocols.linear import clip_accuracies
from skelact.protocols.neighbours import search
from skelact.protocols.retrieval import class_scores
from skelact.protocols.training import Job, Outcome, fit, part_logits
from skelact.results import Record

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from skelact.data.datamodules import SkeletonDataModule
    from skelact.methods.base import Method

Train = Callable[[Job], Outcome]


class ClassifierProtocol:
    """Base: train once or several times, then read the test part once.

    Args:
        selection: `none` trains on the whole training side and takes the last epoch; `val` trains without the
            validation part and takes the epoch that is best on it.
        seeds: trainings whose accuracies are averaged.
        baselines: True for all, False for none, or some of `untrained` (the same network and recipe from fresh weights)
            and `raw_pose` (nearest neighbour on the poses themselves).
    """

    name = "classifier"
    trains = True
    classifies = True
    fresh = False  # from fresh weights: there is no encoder that could be judged
    follows = True  # may stand in `evaluate`

    def __init__(
        self, selection: Literal["none", "val"] = "none", seeds: int = 1, baselines: bool | Sequence[str] = True
    ) -> None:
        if selection not in ("none", "val"):
            raise SkelactError(f"selection={selection} is neither none nor val")
        if seeds < 1:
            raise SkelactError(f"seeds={seeds}: at least one training is needed")
        self.baselines = BASELINES if baselines is True else tuple(baselines or ())
        unknown = set(self.baselines) - set(BASELINES)
        if unknown:
            raise SkelactError(f"baselines: {sorted(unknown)} are not known; choose from {', '.join(BASELINES)}")
        self.selection, self.seeds = selection, int(seeds)

    @property
    def decides(self) -> tuple[str, ...]:
        """Options of the data that the protocol's own options say: they may not be given beside them."""
        return ("fit", "validation") if self.selection == "val" else ()

    def settings(self, seed: int) -> list[list[Job]]:
        """One list of repetitions for each label setting; the very first job is the run's own."""
        return [[Job(seed + i, pretrained=not self.fresh) for i in range(self.seeds)]]

    def changes(self, job: Job) -> dict[str, dict[str, Any]]:
        """What a job asks of the sections `method`, `data`, `trainer` and `callbacks` of a config."""
        chosen = self.selection == "val"
        best = {"_target_": "skelact.callbacks.best_epoch.BestEpoch"} if chosen else None
        return {
            "method": {},
            "data": {"fit": "train" if chosen else "train+val", "validation": chosen},
            "trainer": {},
            # the monitor of pretraining would look at validation clips that are trained on
            "callbacks": {"online_knn": None, "best_epoch": best},
        }

    def facts(self, job: Job) -> dict[str, Any]:
        """Further keys of a job's record."""
        return {}

    def run(
        self,
        method: Method,
        datamodule: SkeletonDataModule,
        *,
        seed: int = 0,
        trainer: pl.Trainer | None = None,
        ckpt_path: str | None = None,
        train: Train | None = None,
        alone: Callable[[], bool] | None = None,
        device: torch.device | str | None = None,
        subject: str | None = None,
        encoder: str = "pretrained",
        source: str | None = None,
        scores: str | Path | None = None,
        pretrained: Method | None = None,
        untrained: Callable[[int], Method] | None = None,
        checkpoint: str | None = None,
        run_dir: str | Path | None = None,
    ) -> list[Record]:
        """Train and judge.

        Args:
            method: the classifier to train, or without `trainer` the encoder of which `train` makes classifiers.
            datamodule: the data; with `trainer` as the first job wants them.
            seed: of the first training.
            trainer: trains the first job; without it `train` does.
            ckpt_path: checkpoint from which the first training goes on.
            train: does a job; needed for repetitions, label settings and the `untrained` row.
            alone: called after the first training; False on processes that are not needed any more.
            device: where to judge; None means where the method is.
            subject: name of the encoder, for the table.
            encoder: `pretrained`, or `untrained` where the encoder is freshly initialised.
            source: data that the encoder was pretrained on, for the record.
            scores: file for the test part's logits; None writes none. Those of the validation part lie in a file beside
                it, unless it was trained on.
            pretrained: the encoder before any job, for :meth:`further`, as the rest.
            untrained: builds a method with the same encoder and fresh weights.
            checkpoint: where `pretrained` lies.
            run_dir: features are kept below it.

        Returns:
            One record per row and label setting.
        """
        device = torch.device(device) if device is not None else next(method.parameters()).device
        settings = self.settings(seed)
        if self.selection == "val" and not datamodule.size("val"):
            raise SkelactError(f"selection=val: split {datamodule.split} has no validation part; take selection=none")
        gflops = _gflops(method, datamodule)
        done: dict[Job, Outcome] = {}
        if trainer is not None:
            done[settings[0][0]] = fit(method, datamodule, trainer, ckpt_path)  # type: ignore[arg-type]
        if alone is not None and not alone():
            return []

        def outcome(job: Job) -> Outcome:
            if job not in done and train is None:
                raise SkelactError(f"{self.name}: a training of its own is needed for {job.folder}: give `train`")
            return done.pop(job) if job in done else train(job)  # type: ignore[misc]

        name = subject or classifier_name(method)
        rows = [(name if self.fresh or encoder == "pretrained" else f"{name} (untrained)", encoder)]
        if "untrained" in self.baselines and encoder == "pretrained" and not self.fresh and train is not None:
            rows.append((f"{name} (untrained)", "untrained"))
        if "raw_pose" in self.baselines and pose_streams(method):
            rows.append(("raw pose (1-NN)", "raw_pose"))
        records: list[Record] = []
        first: dict[str, tuple[Record, np.ndarray]] = {}
        found: dict[str, dict[str, np.ndarray]] = {"test": {}, "val": {}}
        given = {} if trainer is None else {"fit": datamodule.fit}
        for row, kind in rows:
            for jobs in settings:
                if kind == "untrained" and encoder == "pretrained":
                    jobs = [Job(job.seed, False, job.fraction, job.draw) for job in jobs]
                start = time.perf_counter()
                if kind == "raw_pose":
                    record, correct, logits = self._neighbours(method, datamodule, jobs, device, given)
                else:
                    record, correct, logits = self._classifier(datamodule, jobs, outcome, device)
                    record.gflops = gflops
                record.method, record.seed, record.wall_s = row, seed, record.wall_s or time.perf_counter() - start
                record.extra |= {"encoder": kind, "labels": jobs[0].labels}
                record.extra |= {"source": source} if source and kind == "pretrained" else {}
                compare(first, jobs[0].labels, record, correct, datamodule.groups("test"))
                for part, values in logits.items():
                    found[part][scores_key(self.name, row, record.extra)] = values
                records.append(record)
        if scores is not None:
            write_scores(scores, datamodule, found)
        own = {"run_dir": run_dir, "untrained": untrained, "checkpoint": checkpoint, "scores": scores}
        others = [] if pretrained is None else self.further(pretrained, datamodule, device=device, seed=seed, **own)
        for record in others:
            record.extra |= {"source": source} if source and record.extra.get("encoder") == "pretrained" else {}
        return records + others

    def further(self, pretrained: Method, datamodule: SkeletonDataModule, **options: Any) -> list[Record]:
        """Records of questions that are not about trained classifiers."""
        return []

    def _classifier(
        self, datamodule: SkeletonDataModule, jobs: list[Job], outcome: Train, device: torch.device
    ) -> tuple[Record, np.ndarray, dict[str, np.ndarray]]:
        """Record, `(R, N)` percent right, and by part the mean logits `(N, classes)` of trained classifiers."""
        logits: dict[str, list[torch.Tensor]] = {}
        outcomes = []
        for job in jobs:
            found = outcome(job)
            for part in _parts(datamodule, found.fit):
                logits.setdefault(part, []).append(part_logits(found.method, datamodule, part, device))
            outcomes.append(found)
        last, start = outcomes[-1], outcomes[0]
        extra: dict[str, Any] = {
            "streams": "+".join(last.method.streams), "backbone": type(_network(last.method)).__name__,
            "mode": last.method.mode, "steps": start.steps, "train_clips": start.clips, **self.facts(jobs[0]),
        }  # fmt: skip
        epochs = [found.best_epoch for found in outcomes if found.best_epoch is not None]
        if epochs:
            extra["epochs_chosen"] = epochs
        record, correct = self._record(datamodule, logits["test"], device, extra)
        chosen = f"{last.method.monitor.replace('/', ':')}, its epoch"
        record.selection = chosen if len(epochs) == len(jobs) else "none, last epoch"
        record.checkpoint, record.samples_per_s = start.checkpoint, start.samples_per_s
        record.parameters = sum(p.numel() for p in last.method.parameters() if p.requires_grad)
        record.wall_s = sum(found.seconds for found in outcomes)
        return record, correct, _means(logits)

    def _neighbours(
        self,
        method: Method,
        datamodule: SkeletonDataModule,
        jobs: list[Job],
        device: torch.device,
        given: Mapping[str, Any],
    ) -> tuple[Record, np.ndarray, dict[str, np.ndarray]]:
        """The same of the nearest labelled pose; `given` are options of the data that the command has changed."""
        poses = Subject("raw pose", "raw_pose", method, datamodule, device)
        logits: dict[str, list[torch.Tensor]] = {}
        for job in {job.draw: job for job in jobs}.values():
            data = datamodule.variant(**{**self.changes(job)["data"], **given})
            subject = Subject("raw pose", "raw_pose", method, data, device)
            gallery = subject.tables(data.fit)[subject.full]
            for part in _parts(datamodule, data.fit):
                found = search(poses.tables(part)[poses.full].features, gallery.features, 1)
                votes = class_scores(found, gallery.labels, datamodule.num_classes)
                logits.setdefault(part, []).append(votes.cpu())
        extra = {"streams": "+".join(poses.full), "train_clips": len(gallery)}
        record, correct = self._record(datamodule, logits["test"], device, extra)
        record.metrics.pop("top5")  # one neighbour names one class
        record.ci95.pop("top5")
        return record, correct, _means(logits)

    def _record(
        self,
        datamodule: SkeletonDataModule,
        logits: list[torch.Tensor],
        device: torch.device,
        extra: dict[str, Any],
    ) -> tuple[Record, np.ndarray]:
        labels = torch.from_numpy(datamodule.labels("test"))
        runs = [clip_accuracies(one, labels) for one in logits]
        values = {name: torch.stack([run[name] for run in runs]).numpy() for name in runs[0]}
        metrics, ci95, more = summarise(values, datamodule.groups("test"))
        record = Record(
            protocol=self.name,
            method="",
            data=str(datamodule.name),
            split=str(datamodule.split),
            seed=None,
            metrics=metrics,
            ci95=ci95,
            fingerprint=str(datamodule.fingerprint),
            device=str(device),
            extra=extra | more,
        )
        return record, values["top1"]


def classifier_name(method: Method) -> str:
    """`supervised stgcn`, `multimodal sum`: what a classifier is called in tables."""
    network = type(_network(method)).__name__.lower().removesuffix("encoder").removesuffix("fusion")
    return f"{type(method).__name__} {network}".lower()


def _network(method: Any) -> nn.Module:
    """The backbone; of several modalities what joins them."""
    found: nn.Module = method.backbone if hasattr(method, "backbone") else method.fusion
    return found


def named(subjects: Iterable[Subject], label: str | None, judged: str) -> list[Subject]:
    """Subjects under the names of their rows, of a method that is judged by its own function of the name `judged`.

    Its untrained twin is left out, whose head says nothing.

    Args:
        subjects: the method first.
        label: what the method is called; None: by its kind and, of a classifier, its network.
        judged: without such a function all subjects stay.
    """
    first, *others = subjects
    kind, own = type(first.method).__name__.lower(), label
    if hasattr(first.method, judged):
        others = [subject for subject in others if subject.encoder != "untrained"]
        own = own or classifier_name(first.method)
    for subject in [first, *others]:
        subject.name = subject.name.replace(kind, own or kind, 1) if subject.encoder != "raw_pose" else subject.name
    return [first, *others]


def _parts(datamodule: SkeletonDataModule, fit: str) -> list[str]:
    """Parts to give scores of: the test part, and the validation part where it was not trained on."""
    return ["test", "val"] if fit == "train" and datamodule.size("val") else ["test"]


def _means(logits: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, np.ndarray]:
    return {part: torch.stack(list(each)).mean(0).numpy() for part, each in logits.items()}


def _gflops(method: Method, datamodule: SkeletonDataModule) -> float:
    try:  # of a training clip: the test part is not read before training has ended
        return forward_gflops(method, datamodule, datamodule.fit)
    except ValueError as error:
        raise SkelactError(f"the encoder cannot read clips of {datamodule.name}: {error}") from error
