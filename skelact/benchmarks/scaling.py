"""How far a method's training step can be spread over devices: `skelact benchmark scaling experiment=NAME`.

    step(P, B) = computing a rank's B / P clips + what every rank repeats of the whole batch + what ranks exchange

Two processes of this machine, one thread each, time the links between them and the step: forward, backward, optimiser
on views that are given. Each computes alone, and as if there were another, so that computing is known apart from
waiting; and both train together, which tests the model. What P ranks exchange and repeat is counted on paper.
Exchanges are as in a ring, and none is hidden behind computing, as DDP hides some of its own.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skelact.benchmarks.collectives import PURPOSES, Exchange, Paper, on_paper, volumes
from skelact.benchmarks.steps import Numbers
from skelact.benchmarks.two_processes import Found, Link, step_and_clips, two_processes
from skelact.errors import SkelactError

RANKS = (1, 2, 4, 8, 16, 32, 64)
OPERATIONS = ("all_reduce", "all_gather")


def exchange_seconds(exchange: Exchange, count: int, links: Mapping[str, Link]) -> float:
    """Time of a collective operation of `count` ranks: as many latencies as a tree is deep, bytes as in a ring."""
    if count == 1:
        return 0.0
    link = links[exchange.operation]
    sent = exchange.size * (count - 1) * (2 / count if exchange.operation == "all_reduce" else 1)
    return link.latency * math.ceil(math.log2(count)) + sent / link.bandwidth


class Computing(NamedTuple):
    """Seconds of a step without waiting for others: fixed ones and those of a clip, of one rank and of several.

    Args:
        alone: of the only rank.
        joined: of one of two, whose layers and losses look at the whole batch.
        rate: FLOP/s of what every rank repeats.
    """

    alone: tuple[float, float]
    joined: tuple[float, float]
    rate: float

    def seconds(self, clips: int, count: int, repeated: float) -> float:
        """Of a rank's clips; `repeated`: FLOPs beyond those of one of two ranks with as many clips."""
        fixed, each = self.alone if count == 1 else self.joined
        return fixed + each * clips + repeated / self.rate


def predict(
    papers: Mapping[int, Paper], pairs: Mapping[int, Paper], batch: int, computing: Computing, links: Mapping[str, Link]
) -> list[Numbers]:
    """A row for each number of ranks.

    Args:
        papers: by number of ranks, a step with their share of the clips.
        pairs: likewise, a step of two ranks with as many clips each as these ranks have.
        batch: clips of all ranks, B.
        computing: constants of a device.
        links: by operation.
    """
    rows: list[Numbers] = []
    for count, paper in papers.items():
        clips = batch // count
        repeated = max(paper.gflops - pairs[count].gflops, 0.0) * 1e9 if count > 1 else 0.0
        row: Numbers = {"ranks": count, "clips each": clips, "GFLOPs each": paper.gflops}
        row["computing, ms"] = 1e3 * computing.seconds(clips, count, repeated)
        for purpose in PURPOSES:
            own = [e for e in paper.exchanges if e.purpose == purpose]
            row[f"{purpose}, ms"] = 1e3 * sum(exchange_seconds(e, count, links) for e in own)
        row["step, ms"] = row["computing, ms"] + sum(row[f"{purpose}, ms"] for purpose in PURPOSES)
        row["times as fast"] = rows[0]["step, ms"] / row["step, ms"] if rows else 1.0
        row["efficiency, %"] = 100 * row["times as fast"] / count
        rows.append(row)
    return rows


def stops_at(rows: Sequence[Numbers]) -> int:
    """Ranks from which twice as many make a step less than 1.5 times as fast; the most that there can be otherwise."""
    for row, twice in itertools.pairwise(rows):
        if twice["times as fast"] < 1.5 * row["times as fast"]:
            return int(row["ranks"])
    return int(rows[-1]["ranks"])


class Assumed(NamedTuple):
    """Constants of devices that are not measured here; None: those of this machine."""

    flops: float | None = None
    """FLOP/s that a device reaches."""
    bandwidth: float | None = None
    """Bytes/s between devices."""
    latency: float | None = None
    """Seconds of a collective operation of two."""


def measure(
    config: Mapping[str, Any], media: Mapping[str, Any] | None, assumed: Assumed
) -> tuple[Numbers, list[Numbers]]:
    """Predict a method's step on more and more ranks, from constants measured on two processes or assumed.

    Args:
        config: as :func:`skelact.benchmarks.training.measure` takes it; `data.batch_size` is that of all ranks.
        media: likewise.
        assumed: with all three constants nothing is run.

    Returns:
        Numbers by name, and predictions by number of ranks.

    Raises:
        SkelactError: a batch that two processes cannot share, or a process that failed.
    """
    batch = int(config["data"].get("batch_size") or 64)
    if batch < 4 or batch % 2:
        raise SkelactError(f"benchmark scaling: data.batch_size={batch} must be even and at least 4")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        step, give = step_and_clips(config, media or {}, place / "paper")
        clips, views = give(2)
        paper = partial(on_paper, step.method, clips if views is None else views)
        papers = {count: paper(batch // count, count) for count in RANKS if batch % count == 0}
        pairs = {count: paper(batch // count, 2) for count in papers}
        numbers: Numbers = {"method": type(step.method).__name__, "batch of all ranks": batch}
        sizes = sorted({max(2, batch // 8), max(2, batch // 4), batch // 2})
        found = None if None not in assumed else two_processes(config, media or {}, place, sizes)
    links = _links(found, assumed)
    computing = _computing(found, assumed, sizes, papers[1].gflops / batch, pairs[2].gflops / (batch // 2))
    numbers |= _constants(links, computing)
    for name, (count, size) in volumes(papers[2].exchanges).items():
        numbers[f"on paper, 2 ranks, {name}: operations"] = count
        numbers[f"on paper, 2 ranks, {name}: bytes"] = size
    if found is not None:
        for name, (count, size) in volumes(found.exchanges).items():
            numbers[f"recorded, 2 ranks, {name}: operations"] = count
            numbers[f"recorded, 2 ranks, {name}: bytes"] = size
        for each, seconds in zip(sizes, found.times["together"], strict=True):
            pair = {2: paper(each, 2)}
            numbers[f"2 ranks of {each} clips: step, ms"] = 1e3 * seconds
            numbers[f"2 ranks of {each} clips: predicted, ms"] = predict(pair, pair, 2 * each, computing, links)[0][
                "step, ms"
            ]
    rows = predict(papers, pairs, batch, computing, links)
    return numbers | {"scales to, ranks": stops_at(rows)}, rows


def _links(found: Found | None, assumed: Assumed) -> dict[str, Link]:
    links = {operation: Link(0.0, 1.0) for operation in OPERATIONS} if found is None else found.links
    given = {key: value for key in ("latency", "bandwidth") if (value := getattr(assumed, key)) is not None}
    return {operation: link._replace(**given) for operation, link in links.items()}


def _computing(found: Found | None, assumed: Assumed, sizes: Sequence[int], alone: float, joined: float) -> Computing:
    """Constants of a device; `alone` and `joined` are GFLOPs of a clip of the only rank and of one of two."""
    if assumed.flops is not None or found is None:
        rate = assumed.flops or 1.0
        return Computing((0.0, 1e9 * alone / rate), (0.0, 1e9 * joined / rate), rate)
    one, of_two = (_line(sizes, found.times[form]) for form in ("alone", "joined"))
    return Computing(one, of_two, 1e9 * joined * sizes[-1] / found.times["joined"][-1])


def _line(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Fixed seconds and those of a clip, of steps with `sizes` clips; none are below zero."""
    each, fixed = np.polyfit(sizes, seconds, 1, w=1 / np.asarray(seconds)) if len(sizes) > 1 else (0.0, -1.0)
    return (float(fixed), float(each)) if fixed > 0 else (0.0, float(np.mean(np.divide(seconds, sizes))))


def _constants(links: Mapping[str, Link], computing: Computing) -> Numbers:
    numbers: Numbers = {}
    for operation, link in links.items():
        numbers[f"{operation}: latency, us"] = 1e6 * link.latency
        numbers[f"{operation}: bandwidth, MB/s"] = link.bandwidth / 1e6
    for title, (fixed, each) in (("alone", computing.alone), ("one of several", computing.joined)):
        numbers[f"computing, {title}: fixed, ms"] = 1e3 * fixed
        numbers[f"computing, {title}: a clip, ms"] = 1e3 * each
    numbers["computing, what ranks repeat: GFLOP/s"] = computing.rate / 1e9
    return numbers
