"""Robustness: how much of the accuracy is left when sensor and tracker get worse?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skelact.clips import RaggedClips
from skelact.data.datamodules import SkeletonDataModule
from skelact.errors import SkelactError
from skelact.protocols.base import Answer, Protocol, encoder_parameters, paired, summarise
from skelact.protocols.classifier import named
from skelact.protocols.features import FeatureTable, Subject, autocast
from skelact.protocols.linear import LinearProbe, train_heads
from skelact.protocols.neighbours import search
from skelact.protocols.reference import Reference, corruption_errors, mce_interval
from skelact.protocols.retrieval import class_scores
from skelact.skeleton.layouts import get_layout
from skelact.transforms.corruptions import (
    CORRUPTIONS,
    FILLS,
    SEVERITIES,
    Corrupted,
    Corruption,
    NormalisedNoise,
    name_keys,
)

SUITE = "skelact_corruptions_v1"
"""Definitions and numbers of :mod:`skelact.transforms.corruptions`; a change of either gets a new name."""
SIGMAS = tuple(round(0.001 * i, 3) for i in range(11)) + tuple(round(0.01 * i, 2) for i in range(2, 11))
"""MaskCLR's sweep: 0 to 0.010 as plotted, then 0.02 to 0.1 as in its script."""
SWEEPS = ("spatiotemporal", "spatial")
NORMALISED = ("centered", "motionbert", "simulated")
"""Pipelines of 2D stores in whose coordinates the longer image side spans [-1, 1]."""


@dataclass
class Judge:
    """What gives class scores to clips.

    Args:
        subject: whom they are scores of.
        score: clips -> `(R, n, classes)`, one for each head.
        selection: how hyper-parameters were chosen.
        parameters: trained parameters beside the encoder's.
        extra: further keys of its records.
        seconds: spent so far.
    """

    subject: Subject
    score: Callable[[RaggedClips], Tensor]
    selection: str = "none"
    parameters: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One judge's answers under one corruption: `right (R, N)` percent, and `scores (N, classes)` float16."""

    right: np.ndarray
    scores: np.ndarray


class Robustness(Protocol):
    """Accuracy on corrupted test clips, of any method on any data.

    A method with `classify` (supervised ones) is judged by its own logits. Any other encoder gets linear heads, trained
    on clean features as :class:`~skelact.protocols.linear.LinearProbe` trains them with all labels, and then fixed; its
    untrained twin likewise. Raw pose: the nearest neighbour among the clean training poses. Only test clips are
    corrupted; nothing is chosen on them.

    One record per method and fill. Metrics in percent: `top1/clean`, `top1/<corruption>/<severity>`,
    `top1/<corruption>` (mean over severities), `top1/mean` (mean over corruptions), `top1/worst` (the lowest of
    them; `worst` says which), and with a reference `mce` and `relative_mce`
    (:func:`~skelact.protocols.reference.corruption_errors`). Fill `interpolate` differs from `none` under the
    corruptions that hide joints: what they hid is interpolated over time. Its record repeats the numbers of the others,
    so that means are over the same corruptions.

    Args:
        corruptions: names in :data:`~skelact.transforms.corruptions.CORRUPTIONS`; None: all that the data allow. Those
            that they do not allow are listed under `skipped`.
        severities: some of 1 to 5.
        fills: `none`, `interpolate` or both.
        reference: run of this protocol that errors are divided by: its directory, results.json or scores.npz.
        noise_sweep: True: also MaskCLR's noise in normalised image coordinates (:data:`SIGMAS`); or other sigmas. It
            makes records of their own under the name `noise_sweep`, metrics `spatiotemporal/<sigma>` and
            `spatial/<sigma>`.
        recipe: of linear heads.
        seeds: number of linear heads.
        epochs: of linear heads, other than the recipe's.
        baselines: True, False, or some of `untrained` and `raw_pose`.
        precision: autocast of the encoder.
        cache: keep features of clean training clips in the run directory.
        seed: of the corruptions; not the run's, so that all runs see the same corrupted clips.
        label: what the method is called in tables, to tell trainings of one method apart; None: by method and, of a
            classifier, backbone.

    Raises:
        SkelactError: an option that is none of those named.
    """

    name = "robustness"

    def __init__(
        self,
        corruptions: Sequence[str] | None = None,
        severities: Sequence[int] = SEVERITIES,
        fills: Sequence[str] = FILLS,
        reference: str | Path | None = None,
        noise_sweep: bool | Sequence[float] = False,
        recipe: str = "skelact_linear_v1",
        seeds: int = 5,
        epochs: int | None = None,
        baselines: bool | Sequence[str] = True,
        precision: str | None = None,
        cache: bool = True,
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        super().__init__("all", 1, baselines, precision, cache)
        corruptions = [corruptions] if isinstance(corruptions, str) else corruptions
        fills = [fills] if isinstance(fills, str) else fills
        for key, given, known in (("corruptions", corruptions or (), CORRUPTIONS), ("fills", fills, FILLS)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise SkelactError(f"protocol.{key}: {unknown[0]} is not known; choose from {', '.join(known)}")
        if not fills or not severities or corruptions == []:
            raise SkelactError("protocol: corruptions, severities and fills need at least one entry each")
        if set(severities) - set(SEVERITIES):
            raise SkelactError(f"protocol.severities={list(severities)}: choose from {', '.join(map(str, SEVERITIES))}")
        self.corruptions = list(CORRUPTIONS) if corruptions is None else list(dict.fromkeys(corruptions))
        self.severities = sorted({int(severity) for severity in severities})
        self.fills = [fill for fill in FILLS if fill in fills]
        self.reference = None if reference is None else Reference.load(reference)
        self.sigmas = () if noise_sweep is False else SIGMAS if noise_sweep is True else tuple(map(float, noise_sweep))
        self.probe = LinearProbe(recipe, seeds, epochs=epochs, baselines=False)
        self.seed, self.label = int(seed), label

    @property
    def suite(self) -> str:
        """What makes corrupted clips the same in two runs."""
        return f"{SUITE}, seed {self.seed}"

    def answers(self, subjects: Iterable[Subject], seed: int) -> Iterator[tuple[Subject, Answer]]:
        """Rows of all subjects, which see every corrupted batch together."""
        subjects = named(subjects, self.label, "classify")
        datamodule = subjects[0].datamodule
        chosen, skipped = self.choose(datamodule)
        if self.reference is not None:
            cells = ["clean", *(f"{name}/{severity}" for name in chosen for severity in self.severities)]
            self.reference.check(datamodule, self.suite, cells)
        if self.sigmas:
            _refuse_metres(datamodule)
        start = time.perf_counter()
        modes = [subject.method.training for subject in subjects]
        try:
            judges = [self.judge(subject, seed) for subject in subjects]
            tables = self._judged(judges, datamodule, chosen)
            sweeps = self._swept(judges, datamodule)
        finally:
            for subject, mode in zip(subjects, modes, strict=True):
                subject.method.train(mode)
        shared = time.perf_counter() - start - sum(judge.seconds for judge in judges)
        for judge, table in zip(judges, tables, strict=True):
            for fill in self.fills:
                answer = self._answer(judge, table, chosen, fill, datamodule)
                answer.extra |= {"skipped": skipped} if skipped else {}
                answer.wall_s = shared + judge.seconds
                yield judge.subject, answer
        for judge, sweep in zip(judges, sweeps, strict=True):
            if sweep:
                yield judge.subject, self._sweep_answer(judge, sweep, datamodule)

    def choose(self, datamodule: SkeletonDataModule) -> tuple[dict[str, Corruption], dict[str, str]]:
        """The corruptions that the data allow, and why the others are left out.

        Raises:
            SkelactError: none is left.
        """
        every = {name: CORRUPTIONS[name](datamodule.layout) for name in self.corruptions}
        reasons = {name: c.obstacle(datamodule.num_persons, datamodule.num_channels) for name, c in every.items()}
        skipped = {name: reason for name, reason in reasons.items() if reason}
        if len(skipped) == len(every):
            raise SkelactError(f"protocol.corruptions: {'; '.join(sorted(set(skipped.values())))}; choose others")
        return {name: c for name, c in every.items() if name not in skipped}, skipped

    def judge(self, subject: Subject, seed: int) -> Judge:
        """How a subject gives scores; heads are trained here."""
        method = subject.method.eval().to(subject.device)
        classes = subject.datamodule.num_classes
        start = time.perf_counter()
        if subject.encoder == "raw_pose":
            gallery = subject.official_training()

            def nearest(batch: RaggedClips) -> Tensor:
                return class_scores(search(subject.features(batch), gallery.features, 1), gallery.labels, classes)[None]

            judge = Judge(subject, nearest, extra={"judge": "nearest neighbour", "gallery": len(gallery)})
        elif hasattr(method, "classify"):
            device = next(method.parameters()).device

            def classify(batch: RaggedClips) -> Tensor:
                with autocast(device, self.precision):
                    return method.classify(batch)[None]  # type: ignore[operator]

            count = sum(p.numel() for p in method.parameters()) - encoder_parameters(method)
            judge = Judge(subject, classify, parameters=count, extra={"judge": "own classifier"})
        else:
            train = subject.own("train")[subject.full]
            val = subject.own("val")[subject.full] if subject.datamodule.size("val") else None
            choice = self.probe.choose(train, val, classes, "all", seed, scored=False)
            table = train if val is None else FeatureTable.join(train, val)
            heads = train_heads(table, classes, self.probe.recipe, "all", choice.rate, self.probe.seeds, seed)
            facts = {"judge": "linear head", "recipe": self.probe.recipe_name, "lr": choice.rate, "steps": heads.steps}
            size = classes * (table.features.shape[1] + 1)
            judge = Judge(subject, lambda batch: heads.logits(subject.features(batch)), choice.selection, size, facts)
        judge.seconds = time.perf_counter() - start
        return judge

    @torch.inference_mode()
    def _cells(
        self, judges: Sequence[Judge], datamodule: SkeletonDataModule, change: Corrupted | None, stored: bool = False
    ) -> list[Cell]:
        """One pass over the test part, changed once for all judges."""
        rows: list[list[Tensor]] = [[] for _ in judges]
        for batch in datamodule.batches("test", device=judges[0].subject.device, change=change, stored=stored):
            for judge, out in zip(judges, rows, strict=True):
                start = time.perf_counter()
                out.append(judge.score(batch).float().cpu())
                spent = time.perf_counter() - start
                judge.seconds += spent
                judge.subject.seconds += spent
                judge.subject.clips += len(batch)
        labels = torch.from_numpy(datamodule.labels("test"))
        found = []
        for out in rows:
            scores = torch.cat(out, 1)
            right = 100.0 * (scores.argmax(2) == labels).double()
            found.append(Cell(right.numpy(), scores.mean(0).clamp(-6e4, 6e4).half().numpy()))
        return found

    def _judged(
        self, judges: Sequence[Judge], datamodule: SkeletonDataModule, chosen: dict[str, Corruption]
    ) -> list[dict[tuple[str, str], Cell]]:
        """For each judge its cells by name (`clean`, `drift/3`) and fill; what cannot be filled is there once."""
        keys = name_keys(datamodule.store.names)
        tables: list[dict[tuple[str, str], Cell]] = [{} for _ in judges]
        jobs: dict[tuple[str, str], Corrupted | None] = {("clean", "none"): None}
        for name, corruption in chosen.items():
            for severity in self.severities:
                for fill in self.fills if corruption.hides else ["none"]:
                    jobs[f"{name}/{severity}", fill] = Corrupted(corruption, severity, keys, self.seed, fill)
        for place, change in jobs.items():
            for table, cell in zip(tables, self._cells(judges, datamodule, change), strict=True):
                table[place] = cell
        return tables

    def _swept(self, judges: Sequence[Judge], datamodule: SkeletonDataModule) -> list[dict[str, Cell]]:
        """For each judge its cells of the noise sweep by name (`spatial/0.01`)."""
        keys = name_keys(datamodule.store.names)
        layout = get_layout(datamodule.card["layout"])
        tables: list[dict[str, Cell]] = [{} for _ in judges]
        for kind in SWEEPS if self.sigmas else ():
            noise = NormalisedNoise(layout, self.sigmas, kind)
            for number, sigma in enumerate(self.sigmas, 1):
                change = Corrupted(noise, number, keys, self.seed)
                for table, cell in zip(tables, self._cells(judges, datamodule, change, stored=True), strict=True):
                    table[f"{kind}/{sigma:g}"] = cell
        return tables

    def _answer(
        self,
        judge: Judge,
        table: dict[tuple[str, str], Cell],
        chosen: dict[str, Corruption],
        fill: str,
        datamodule: SkeletonDataModule,
    ) -> Answer:
        """The row of a judge and a fill."""
        own = {cell: found for (cell, how), found in table.items() if how == fill or (cell, fill) not in table}
        stack = {name: np.stack([own[f"{name}/{s}"].right for s in self.severities]) for name in chosen}
        means = {name: each.mean(0) for name, each in stack.items()}
        worst = min(means, key=lambda name: float(means[name].mean()))
        values = {"top1/mean": np.mean(list(means.values()), 0), "top1/clean": own["clean"].right}
        values |= {"top1/worst": means[worst]} | {f"top1/{name}": each for name, each in means.items()}
        values |= {f"top1/{cell}": found.right for cell, found in own.items() if cell != "clean"}
        groups = datamodule.groups("test")
        metrics, ci95, more = summarise(values, groups)
        extra: dict[str, Any] = {"fill": fill, "suite": self.suite, "worst": worst, **judge.extra, **more}
        if fill != "none":
            extra["filled"] = [name for name, corruption in chosen.items() if corruption.hides]
        if self.reference is not None:
            errors, undefined = corruption_errors(metrics, self.reference.record.metrics, list(chosen), self.severities)
            metrics |= errors
            extra |= {"reference": self.reference.name, "reference_run": str(self.reference.path.parent)}
            extra |= {"without_relative_error": undefined} if undefined else {}
            cells = [f"{name}/{severity}" for name in chosen for severity in self.severities]
            other = self.reference.right(cells, datamodule.clip_names("test"), datamodule.labels("test"))
            if other is not None:
                ours, theirs = np.stack(list(stack.values())), other.reshape(len(chosen), len(self.severities), -1)
                ci95["mce"] = mce_interval(100.0 - ours.mean((1, 2)), 100.0 - theirs.mean(1), groups)
                found = paired(values["top1/mean"], theirs.mean((0, 1))[None], groups, "top1/mean")
                extra |= {"differences": {f"reference {self.reference.name}": found}}
        kept = {cell: found.scores for (cell, how), found in table.items() if how == fill}
        return Answer(
            metrics, ci95, judge.selection, judge.parameters, correct=values["top1/mean"], cells=kept, extra=extra
        )

    def _sweep_answer(self, judge: Judge, sweep: dict[str, Cell], datamodule: SkeletonDataModule) -> Answer:
        """The row of a judge's noise sweep."""
        values = {name: cell.right for name, cell in sweep.items()}
        metrics, ci95, more = summarise(values, datamodule.groups("test"))
        extra = {"suite": self.suite, **judge.extra, **more}
        kept = {name: cell.scores for name, cell in sweep.items()}
        answer = Answer(metrics, ci95, judge.selection, judge.parameters, cells=kept, extra=extra, wall_s=0.0)
        answer.protocol = "noise_sweep"
        return answer


def _refuse_metres(datamodule: SkeletonDataModule) -> None:
    """The sweep's sigma has a meaning only where the longer image side spans [-1, 1].

    Raises:
        SkelactError: other coordinates.
    """
    pipeline = datamodule.card.get("pipeline")
    if get_layout(datamodule.card["layout"]).dims != 2 or pipeline not in NORMALISED:
        unit = datamodule.card.get("unit")
        raise SkelactError(
            f"protocol.noise_sweep is noise in image coordinates of which the longer side spans [-1, 1] (2D stores of "
            f"data.pipeline {', '.join(NORMALISED)}), but the unit of {datamodule.name} is {unit!r}; leave it out: "
            f"joint_noise and joint_offset are in units of the body"
        )
