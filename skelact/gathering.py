"""Runs brought together: averaged over their seeds, told apart by what else differs, compared in pairs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from skelact.results import Record, ResultsError, load_scores, paired_test, read_records, t_interval


@dataclass(frozen=True)
class Found:
    """A record and the flat config of its run, None where the run directory has no `config.yaml`."""

    record: Record
    config: dict[str, Any] | None


def gather_results(directories: Sequence[str | Path]) -> list[Record]:
    """Collect runs, and average those that differ in nothing but the seed.

    Args:
        directories: run directories or folders of them; every `results.json` below is read, and the `config.yaml`
            beside it.

    Returns:
        One record per setting: metrics are means over seeds, `ci95` t-intervals over seeds where there are at least
        two, in quadrature with the clip intervals (else the run's own), `extra["seeds"]` the seeds. Where runs differ
        in other keys of their config, `extra["setting"]` has those that tell them apart, with their values.

    Raises:
        ResultsError: a directory does not exist or holds no results.
    """
    groups: dict[tuple[Any, ...], list[Found]] = {}
    for directory in map(Path, directories):
        files = sorted(directory.rglob("results.json")) if directory.is_dir() else [directory]
        if not files:
            raise ResultsError(f"{directory}: no results.json below it; give the directory of a run")
        for file in files:
            config = _flat_config(file.with_name("config.yaml"))
            for record in read_records(file):
                groups.setdefault(_setting(record), []).append(Found(record, config))
    return [_average(runs, setting) for group in groups.values() for setting, runs in _apart(group)]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A plain config as dotted key -> value; entries of lists of nodes by number, other lists as tuples."""
    if isinstance(node, (list, tuple)) and any(isinstance(value, (Mapping, list, tuple)) for value in node):
        node = dict(enumerate(node))
    if isinstance(node, Mapping) and node:
        return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}
    return {prefix: tuple(node) if isinstance(node, (list, tuple)) else node}


def _flat_config(path: Path) -> dict[str, Any] | None:
    """The config of a run, None where it was not kept.

    Raises:
        ResultsError: the file is not YAML.
    """
    if not path.is_file():
        return None
    try:
        return flat(yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ResultsError(f"{path}: cannot be read ({error})") from error


# Where a run lies, who watched it and on what it ran does not make it another one; nor do the checkpoint and the run
# whose encoders it begins with, which have a seed of their own.
_NOT_TOLD = {
    "run_dir",
    "resume",
    "name",
    "checkpoint",
    "paths",
    "logger",
    "logger_id",
    "callbacks",
    "evaluate",
    "given",
}
_NOT_TOLD |= {"method.pretrained"}
_NOT_TOLD |= {f"trainer.{key}" for key in ("accelerator", "devices", "strategy", "num_nodes", "log_every_n_steps")}
_NOT_TOLD |= {f"data.{key}" for key in ("store", "residence", "num_workers", "eval_batch_size")}


def _facts(found: Found) -> dict[str, Any]:
    """The keys of a run's config that may change a record of it: no seeds, of the protocols the record's own."""
    config = found.config or {}
    known = {key.split(".")[1] for key in config if key.startswith("protocols.") and key.count(".") > 1}
    own = found.record.protocol
    facts = {}
    for key, value in config.items():
        head, _, rest = key.partition(".")
        other = head == "protocols" and own in known and rest.partition(".")[0] != own
        twice = (head == "protocol" and config.get("selected") in known) or key == "selected"
        if not (other or twice or {key, head} & _NOT_TOLD or key.rpartition(".")[2] == "seed"):
            facts[key] = value
    return facts


def _apart(group: Sequence[Found]) -> list[tuple[dict[str, Any], list[Record]]]:
    """Records that say the same of themselves, by what else their configs say: what tells them, and the runs.

    What tells them is a small set of keys, the least deep first. Where one seed was asked of several checkpoints, these
    tell them, too. Untrained encoders and raw poses that another key has changed nothing about stay together.
    """
    records = [found.record for found in group]
    facts = [_facts(found) for found in group]
    keys = _telling(facts) if all(found.config is not None for found in group) else []
    parts = _parts(facts, keys)
    for one, found in zip(facts, group, strict=True):
        one["checkpoint"] = (found.config or {}).get("checkpoint")
    several: dict[str, tuple[list[str], list[int]]] = {}
    for part in parts:
        seeds = [(records[i].seed, facts[i]["checkpoint"]) for i in part]
        clash = ["checkpoint"] if len(set(seeds)) > len({seed for seed, _ in seeds}) else []
        for places in _parts(facts, clash, part):
            numbers = sorted(str((records[i].seed, records[i].metrics)) for i in places)
            fixed = all(records[i].extra.get("encoder") in ("untrained", "raw_pose") for i in places)
            told, joined = several.setdefault(str(numbers if fixed else places), ([], []))
            told += [key for key in [*keys, *clash] if key not in told]
            joined += places
    found_runs = []
    for told, places in several.values():
        agreed = {key: facts[places[0]].get(key) for key in told if len(_parts(facts, [key], places)) == 1}
        found_runs.append((agreed, [records[i] for i in places]))
    return found_runs


def _telling(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that tell apart everything that all keys together tell apart."""
    keys: list[str] = []
    varied = [key for key in {key for one in facts for key in one} if len(_parts(facts, [key])) > 1]
    for key in sorted(varied, key=lambda k: (k.count("."), len(k), k)):
        if len(_parts(facts, [*keys, key])) > len(_parts(facts, keys)):
            keys.append(key)
    return keys


def _parts(
    facts: Sequence[Mapping[str, Any]], keys: Sequence[str], places: Sequence[int] | None = None
) -> list[list[int]]:
    """Places that agree in all keys, together, in order of first appearance."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place in range(len(facts)) if places is None else places:
        found.setdefault(tuple(repr(facts[place].get(key, "absent")) for key in keys), []).append(place)
    return list(found.values())


_SETTING = (
    "labels", "head", "fill", "suite", "reference", "encoder",
    "steps", "recipe", "streams", "fusion", "fuse", "space", "temperature", "weights",
    "novel", "part",
)  # fmt: skip


def _setting(record: Record) -> tuple[Any, ...]:
    fitted = "val:weights" in record.selection  # then weights are a finding, and differ between seeds
    extra = tuple(str(record.extra.get(k)) for k in _SETTING if not (fitted and k == "weights"))
    return (record.protocol, record.method, record.data, record.split, record.selection, record.fingerprint, *extra)


def _average(runs: Sequence[Record], setting: Mapping[str, Any]) -> Record:
    if setting:
        runs = [replace(r, extra=r.extra | {"setting": dict(setting)}) for r in runs]
    first = Record.from_dict(runs[0].to_dict())
    seeds = [r.seed for r in runs]
    first.extra["seeds"] = seeds
    if len(set(seeds)) < 2:
        return Record.from_dict(runs[-1].to_dict() | {"seeds": seeds[-1:]})  # the same run twice: the later one
    latest = list({r.seed: r for r in runs}.values())
    names = [k for k in first.metrics if all(k in r.metrics for r in latest)]
    first.metrics = {k: float(np.mean([r.metrics[k] for r in latest])) for k in names}
    first.extra["ci95_seeds"] = {k: t_interval([r.metrics[k] for r in latest]) for k in names}
    clips = [r.extra.get("ci95_clips", {}) for r in latest]
    first.ci95 = {
        k: _widened(
            first.metrics[k],
            first.extra["ci95_seeds"][k],
            [c[k] for c in clips if k in c],
            -100.0 * k.startswith("drop/"),
        )
        for k in names
    }
    others = [r.extra.get("differences", {}) for r in latest]
    shared = [name for name in others[0] if all(name in o for o in others)]
    first.extra["differences"] = {name: _average_difference([o[name] for o in others]) for name in shared}
    own = [key for key in ("weights", "run", "runs") if any(r.extra.get(key) != runs[0].extra.get(key) for r in latest)]
    for key in ("ci95_clips", "std", "repetitions", "lr", *own, *(() if shared else ("differences",))):
        first.extra.pop(key, None)  # of one run
    first.seed, first.checkpoint, first.extra["seeds"] = None, None, [r.seed for r in latest]
    return first


def _widened(
    middle: float, seeds: tuple[float, float], clips: Sequence[Sequence[float]], least: float = 0.0
) -> tuple[float, float]:
    """The interval over seeds and, in quadrature, the runs' mean clip interval: all were tested on the same clips."""
    if not clips:
        return seeds
    below, above = (np.mean([abs(c[k] - sum(c) / 2) for c in clips]) for k in (0, 1))
    spread = seeds[1] - middle
    return max(least, middle - math.hypot(spread, below)), min(100.0, middle + math.hypot(spread, above))


def _average_difference(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = [f["difference"] for f in found]
    middle, half = float(np.mean(values)), float(np.mean([(f["ci95"][1] - f["ci95"][0]) / 2 for f in found]))
    reach = math.hypot(t_interval(values)[1] - middle, half)
    return {"metric": found[0]["metric"], "difference": middle, "ci95": [middle - reach, middle + reach]}


# ---------------------------------------------------------------------------------------------- pairs


def compare_runs(first: str | Path, second: str | Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Paired tests of two runs by their `scores.npz`, for every row that both have.

    Rows are the same by their key (`linear/umurl/all`), or by their place beside it where the two runs' methods have
    other names: `linear/umurl/all` of one goes with `linear/aimclr/all` of the other, untrained with untrained. Rows
    that the runs share (raw poses) are left out.

    Args:
        first: run directory or scores file.
        second: the same of the other run.

    Returns:
        (key of the first, key of the second) -> what :func:`~skelact.results.paired_test` found.

    Raises:
        ResultsError: no scores, other clips or labels, or no row that both have.
    """
    one, other = load_scores(first), load_scores(second)
    same = [key for key in one.scores if key in other.scores]
    pairs = {key: key for key in same}
    places, others = (_by_place([key for key in scores if key not in same]) for scores in (one.scores, other.scores))
    pairs |= {key: others[place] for place, key in places.items() if place in others}
    if not pairs:
        known = (", ".join(sorted(scores)) or "none" for scores in (one.scores, other.scores))
        raise ResultsError(f"{first} and {second} have no scores in common: {' | '.join(known)}")
    found = {(a, b): paired_test(one, other, a, b) for a, b in pairs.items()}
    shared = {(a, b) for a, b in found if np.array_equal(one.scores[a], other.scores[b])}
    return {pair: test for pair, test in found.items() if pair not in shared}


def _by_place(keys: Sequence[str]) -> dict[str, str]:
    """Key with a role in place of the method's name -> key, without roles that several have."""
    roles: dict[str, list[str]] = {}
    for key in keys:
        protocol, method, *rest = [*key.split("/"), ""]
        role = method if method.startswith("raw pose") else "untrained" if method.endswith("(untrained)") else "own"
        roles.setdefault("/".join([protocol, role, *rest]), []).append(key)
    return {role: found[0] for role, found in roles.items() if len(found) == 1}


def paired_rows(tests: Mapping[tuple[str, str], Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of paired tests."""
    header = ["scores", "first", "second", "difference", "McNemar p", "only first", "only second", "clips"]
    rows = []
    for (key, other), found in tests.items():
        low, high = found["ci95"]
        rows.append([
            key if key == other else f"{key} | {other}", f"{found['top1']:.1f}", f"{found['top1_other']:.1f}",
            f"{found['difference']:+.1f} [{low:.1f}, {high:.1f}]", f"{found['mcnemar_p']:.2g}",
            str(found["only_first"]), str(found["only_second"]), str(found["n"]),
        ])  # fmt: skip
    return header, rows


def paired_csv(tests: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Paired tests as CSV, numbers as they are."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    numbers = ("top1", "top1_other", "difference", "mcnemar_p", "only_first", "only_second", "n")
    write(["first", "second", *numbers, "low", "high"])
    for pair, found in tests.items():
        write([*pair, *(found[name] for name in numbers), *found["ci95"]])
    return out.getvalue()
