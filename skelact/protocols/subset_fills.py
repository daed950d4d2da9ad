"""How subjects answer when streams are missing: classifiers by themselves, encoders through linear heads, raw poses."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skelact.errors import SkelactError
from skelact.protocols.features import FeatureTable, Subject, Subset, autocast, pose_streams, trunks
from skelact.protocols.neighbours import search
from skelact.protocols.retrieval import class_scores
from skelact.protocols.subset_scores import SubsetScores, half, hits

LATE = "late_average"
Tables = Mapping[Subset, FeatureTable]


def known_fills(subject: Subject) -> tuple[str, ...]:
    """What a subject can put in the place of missing streams; the first is its own way.

    Of an encoder under a head of all streams: `drop`: the encoding of what is left (of stacked trunks zeros for the
    rest); `mean_token`: the training mean of a missing trunk's feature; `zero_input`: the encoder sees zeros;
    `late_average`: a head of each single stream, logits averaged over those that are there.
    """
    if subject.encoder == "raw_pose":
        return ("mean_token",)
    method: Any = subject.method
    if hasattr(method, "classify_subsets"):
        return tuple(method.fills)
    mean = () if trunks(method) is None else ("mean_token",)
    return ("drop", *mean, "zero_input", LATE)


def chosen_fills(subject: Subject, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Those of a subject's fills that are asked for; None: of a classifier all, of an encoder its own.

    Raises:
        SkelactError: one that it does not know.
    """
    known = known_fills(subject)
    if subject.encoder == "raw_pose":
        return known
    if asked is None:
        several = hasattr(subject.method, "classify_subsets") and len(subject.method.streams) > 1
        return known if several else known[:1]
    unknown = [fill for fill in asked if fill not in known]
    if unknown:
        kind = type(subject.method).__name__
        raise SkelactError(f"protocol.fills: {unknown[0]} is not known to {kind}; choose from {', '.join(known)}")
    return tuple(dict.fromkeys(asked))


@torch.inference_mode()
def classified(subject: Subject, wanted: Sequence[Subset], fills: Sequence[str]) -> dict[str, SubsetScores]:
    """A classifier's own answers by fill, of one pass over the test part; scores are kept of the first fill."""
    method: Any = subject.method.eval().to(subject.device)
    data, device = subject.datamodule, next(subject.method.parameters()).device
    streams = tuple(method.streams)
    table = torch.tensor([[s in subset for s in streams] for subset in wanted], device=device)
    start = time.perf_counter()
    amp, means = autocast(device, subject.precision), None
    if "mean_token" in fills:
        with amp:
            means = method.token_means(data.batches(data.fit, device=device))
    available: list[Tensor] = []
    scores: list[np.ndarray] = []
    right: dict[str, tuple[list[Tensor], list[Tensor]]] = {fill: ([], []) for fill in fills}
    for batch in data.batches("test", device=device):
        available.append(method.available(batch))
        answered = (table[:, None] & available[-1]).any(2)
        with amp:  # encoders of modalities run once for all fills
            shared = {"encoded": method.tokens(batch)} if hasattr(method, "tokens") else {}
        for fill in fills:
            with amp:
                found = method.classify_subsets(batch, wanted, fill, means, **shared).float()
            for rows, hit in zip(right[fill], hits(found, batch.label, answered), strict=True):
                rows.append(hit)
            if fill == fills[0]:
                scores.append(half(found))
    subject.seconds += time.perf_counter() - start
    subject.clips += data.size("test")
    facts = _facts(subject, torch.cat(available).cpu().numpy())
    out = {}
    for fill, (top1, top5) in right.items():
        measures = {"top1": torch.cat(top1, 1), "top5": torch.cat(top5, 1)}
        kept = np.concatenate(scores, 1) if fill == fills[0] else None
        found = {name: values[:, None].cpu().numpy() for name, values in measures.items()}
        out[fill] = SubsetScores(streams, wanted, found, scores=kept, **facts)
    return out


def nearest_poses(subject: Subject, wanted: Sequence[Subset]) -> SubsetScores | None:
    """What the nearest training pose says, beside a classifier: of the subsets that are read from a skeleton alone.

    Both sides hold a subset's streams and no others. A clip without a skeleton is not in the gallery and is not
    answered. None: there is no such subset.
    """
    poses = pose_streams(subject.method)
    own = [subset for subset in wanted if all(stream in poses for stream in subset)]
    if not own:
        return None
    single = sorted({(poses[stream],) for subset in own for stream in subset})
    data = subject.datamodule
    train, test = subject.tables("train", single), subject.tables("test", single)
    if data.size("val"):
        val = subject.tables("val", single)
        train = {s: FeatureTable.join(train[s], val[s]) for s in single}
    gallery, queries = ({s[0]: t for s, t in tables.items()} for tables in (train, test))
    first = next(iter(gallery))
    there, seen = gallery[first].features.any(1), queries[first].features.any(1)
    right = []
    for subset in own:
        columns = list(dict.fromkeys(poses[stream] for stream in subset))
        ours, theirs = (FeatureTable.beside([tables[c] for c in columns]).features for tables in (queries, gallery))
        labels = gallery[first].labels[there]
        votes = class_scores(search(ours, theirs[there], 1), labels, data.num_classes)
        right.append(hits(votes, queries[first].labels, seen)[0].cpu().numpy())
    streams = tuple(s for s in subject.method.streams if s in poses)
    available = seen.cpu().numpy()[:, None].repeat(len(streams), 1)
    return SubsetScores(streams, own, {"top1": np.stack(right)[:, None]}, **_facts(subject, available))


def filled(subject: Subject, fill: str, train: FeatureTable, test: Tables, wanted: Sequence[Subset]) -> Tables:
    """Test features under a head of all streams, by subset.

    Args:
        subject: an encoder, or the raw pose.
        fill: see :func:`known_fills`, not `late_average`.
        train: training features with all streams.
        test: test features with each subset, and with all streams.
        wanted: the subsets.
    """
    full = tuple(subject.method.streams)
    if fill == "drop":
        return test
    if fill == "zero_input":
        return replace(subject, space=fill).tables("test", wanted)
    streams = full if subject.encoder == "raw_pose" else trunks(subject.method) or ()
    mean, whole = train.features.mean(0), test[full].features
    names = np.array(streams).repeat(len(mean) // len(streams))
    out = {}
    for subset in wanted:
        kept = torch.from_numpy(np.isin(names, subset)).to(mean.device)
        out[subset] = replace(test[full], features=torch.where(kept, whole, mean))
    return out


def _facts(subject: Subject, available: np.ndarray) -> dict[str, Any]:
    data = subject.datamodule
    return {
        "labels": np.asarray(data.labels("test")),
        "names": data.clip_names("test"),
        "groups": np.asarray(data.groups("test")),
        "available": available,
    }
