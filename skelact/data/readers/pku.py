"""PKU-MMD, phases I and II: untrimmed Kinect v2 videos, cut into their labelled instances.

Source: C. Liu, Y. Hu, Y. Li, S. Song, J. Liu, "PKU-MMD: A large scale benchmark for continuous multi-modal human
action understanding", arXiv:1703.07475, 2017. One text a video with a row of 150 numbers a frame (two persons x 25
joints x xyz, an absent person zero) and a label text of `class,start,end,confidence`. Frames are counted from 1 and
both ends belong to the instance, as in AimCLR's conversion; the conversions of CMD and MAMP start one frame later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers.base import Clip, DamagedClip, Item, Reader, refuse_non_finite
from skelact.data.readers.names import named_files
from skelact.data.readers.pku_files import SCHEME, VIDEO, Places, Row, SplitList, find_places, read_labels
from skelact.data.readers.tables import BadTable, parse_table
from skelact.errors import SkelactError

CAMERAS = {"L": 1, "M": 2, "R": 3}
#: In the order of the label numbers, as commonly reproduced; phase II uses part of them.
CLASSES = (
    "bow", "brushing hair", "brushing teeth", "check time", "cheer up", "clapping", "cross hands in front",
    "drink water", "drop", "eat meal/snack", "falling", "giving something to other person", "hand waving",
    "handshaking", "hopping", "hugging other person", "jump up", "kicking other person", "kicking something",
    "phone call", "pat on back of other person", "pickup", "playing with phone/tablet",
    "point finger at the other person", "pointing to something", "punching/slapping other person",
    "pushing other person", "put on a hat/cap", "put something inside pocket", "reading", "rub two hands together",
    "salute", "sitting down", "standing up", "take off a hat/cap", "take off glasses", "take off jacket",
    "take out something from pocket", "taking a selfie", "tear up paper", "throw", "touch back", "touch chest",
    "touch head", "touch neck", "typing on a keyboard", "use a fan", "wear jacket", "wear on glasses", "wipe face",
    "writing",
)  # fmt: skip
#: As reported by the set's authors; nobody here has counted them.
VIDEOS = {1: 1076, 2: 1009}
INSTANCES = {1: 21545}
_SHARE = 0.1
_SHOWN = 5


class PKUReader(Reader):
    """Read a folder with skeleton texts, label texts and the split lists, wherever they lie in it.

    Args:
        phase: 1 or 2.
        pipeline: order of the two persons: `file_order` as listed, which is what AimCLR, CMD and MAMP keep on this
            set; `energy`, the one that moves more first, as the skeleton conversions of 2s-AGCN's line do on NTU.
        bounds: `inclusive` takes frames start..end from 1; `half_open` start+1..end, as CMD and MAMP do.
        keep_empty: keep instances without a person in any frame, as AimCLR and CMD do; else they are skipped and
            counted.
        unlisted: what becomes of videos in neither side of a split list: `left_out` of that split, or `test`, where
            the published conversions put everything that is not listed for training.
    """

    masked = True

    def __init__(
        self,
        phase: int = 1,
        pipeline: str = "file_order",
        bounds: str = "inclusive",
        keep_empty: bool = False,
        unlisted: str = "left_out",
    ) -> None:
        for key, value, known in (
            ("phase", phase, (1, 2)),
            ("pipeline", pipeline, ("file_order", "energy")),
            ("bounds", bounds, ("inclusive", "half_open")),
            ("unlisted", unlisted, ("left_out", "test")),
        ):
            if value not in known:
                raise SkelactError(f"pku: {key}={value!r} is not one of {', '.join(map(str, known))}")
        self.phase, self.name = phase, f"pku{phase}"
        self.pipeline, self.bounds, self.keep_empty, self.unlisted = pipeline, bounds, keep_empty, unlisted
        self._lists: dict[str, SplitList] = {}

    def scan(self, source: str | Path | None) -> list[Item]:
        """One item for each labelled instance, by video and line of its label text.

        A label text without a skeleton text, or with a line that is wrong, becomes damage; a skeleton text without
        labels, and videos that a split list does not name, are told in :attr:`notes`.

        Raises:
            SkelactError: no skeletons, labels or split lists in the source, or a split list that is not one.
        """
        places = find_places(self.locate(source), self.phase)
        self._lists = places.lists
        pattern, scheme = VIDEO[self.phase], f"{SCHEME[self.phase]}.txt"
        skeletons, damaged = named_files(places.skeletons, ".txt", pattern, scheme, _video)
        labels, more = named_files(places.labels, ".txt", pattern, scheme, _video)
        items = []
        for video, path in labels.items():
            rows, wrong = read_labels(path)
            if video not in skeletons:
                where = " or ".join(map(str, places.skeletons))
                wrong, rows = [("", f"its {len(rows)} instances have no skeleton text {video}.txt in {where}")], []
            items += [self._item(video, skeletons[video], row) for row in rows]
            items += [Item(f"{video} {place}", path, damage=(place, reason)) for place, reason in wrong]
        self.notes = self._noted(places, set(skeletons), set(labels))
        return [*items, *damaged, *more]

    def read(self, item: Item) -> Clip:
        """Frames `(T, 2, 25, 3)` float32, metres, camera frame (x right, y up, z away); mask: who is there."""
        outcome = next(self.read_unit([item]))
        if isinstance(outcome, DamagedClip):
            raise outcome
        return outcome

    def read_unit(self, items: Sequence[Item]) -> Iterator[Clip | DamagedClip]:
        """The instances of one video, whose text is read once and parsed only where there are instances."""
        content, broken = b"", None
        try:
            content = items[0].path.read_bytes().rstrip()
        except OSError as error:
            broken = error.strerror or str(error)
        breaks = np.flatnonzero(np.frombuffer(content, np.uint8) == 10)
        edges = np.concatenate([[0], breaks + 1, [len(content) + 1]]) if content else np.zeros(1, np.int64)
        for item in items:
            try:
                if item.damage is not None or broken:
                    raise DamagedClip(item.path, *(item.damage or ("", str(broken))))
                yield self._cut(content, edges, item)
            except DamagedClip as damage:
                yield damage

    def card(self, items: Sequence[Item]) -> dict[str, Any]:
        """The dataset card's entries."""
        from skelact.skeleton.layouts import get_layout  # brings torch, which reader processes do without

        counted = "1-based, both ends included" if self.bounds == "inclusive" else "from start+1 to end"
        empty = "; instances without a person kept" if self.keep_empty else ""
        card = {
            "name": self.name,
            "layout": get_layout("ntu25").to_dict(),
            "channels": ["x", "y", "z"],
            "unit": "m",
            "fps": 30.0,
            "persons": 2,
            "class_names": list(CLASSES),
            "pipeline": self.pipeline,
            "splits": {split: self._rule(split) for split in self._lists},
            "source": f"PKU-MMD phase {'I' * self.phase}; Kinect v2; labelled instances, frames {counted}{empty}",
            "licence": "research use, by permission of the authors (Peking University); do not redistribute",
            "citation": (
                'C. Liu, Y. Hu, Y. Li, S. Song, J. Liu, "PKU-MMD: A large scale benchmark for continuous multi-modal '
                'human action understanding", arXiv:1703.07475, 2017.'
            ),
        }
        if self.phase in INSTANCES:
            card["published"] = {
                "clips": INSTANCES[self.phase],
                "splits": {},
                "source": "reported by the set's authors; instances without a person included",
            }
        return card

    def _item(self, video: str, path: Path, row: Row) -> Item:
        recording, view = video.split("-")
        columns: dict[str, int | str] = {
            "recording": recording,
            "subject": int(recording[-2:]) if self.phase == 2 else -1,
            "camera": CAMERAS[view],
            "action": row.action,
            "first": row.first,
            "last": row.last,
            "line": row.line,
            "confidence": row.confidence,
            **{split: self._lists[split].side(video) for split in self._lists},
        }
        name = f"{video}_{row.first:04d}-{row.last:04d}_c{row.action:02d}"
        return Item(name, path, row.action - 1, columns)

    def _cut(self, content: bytes, edges: np.ndarray, item: Item) -> Clip:
        """One instance out of the text of its video; `edges` are the places where its lines begin."""
        written, total = (int(item.columns["first"]), int(item.columns["last"])), len(edges) - 1
        first = max(written[0] if self.bounds == "half_open" else written[0] - 1, 0)
        last = min(written[1], total)
        where = f"frames {written[0]} to {written[1]}"
        if last <= first:
            raise DamagedClip(item.path, where, f"none of them is among the {total} of the video")
        try:
            values = parse_table(content[edges[first] : edges[last] - 1], 150)
        except BadTable as error:
            raise DamagedClip(item.path, f"line {first + error.line + 1}", error.reason) from None
        frames = values.reshape(-1, 2, 25, 3)
        refuse_non_finite(frames, item, "ntu25", first + 1)  # as the label text counts
        there: np.ndarray = np.any(frames, axis=(2, 3))
        if not there.any() and not self.keep_empty:
            raise DamagedClip(item.path, where, "no person in any of them (data.reader.keep_empty=true keeps it)")
        if self.pipeline == "energy" and _energy(frames[there[:, 1], 1]) > _energy(frames[there[:, 0], 0]):
            frames, there = frames[:, ::-1], there[:, ::-1]
        return Clip(frames.astype(np.float32), np.repeat(there[..., None], 25, axis=2))

    def _rule(self, split: str) -> dict[str, Any]:
        """The split by the side that its list gives; validation by subject where the split and phase have them."""
        rule: dict[str, Any] = {
            "factor": split,
            "train": ["train"],
            "test": ["test", "neither"] if self.unlisted == "test" else ["test"],
        }
        recordings = sorted({video.split("-")[0] for video in self._lists[split].train})
        subjects = sorted({int(name[-2:]) for name in recordings}) if self.phase == 2 and split == "xsub" else []
        if len(subjects) > 1:
            rule["val"] = {"factor": "subject", "values": _held_out(subjects, self.name)}
        elif len(recordings) > 1:
            rule["val"] = {"factor": "recording", "values": _held_out(recordings, self.name)}
        return rule

    def _noted(self, places: Places, skeletons: set[str], labels: set[str]) -> list[str]:
        notes = [f"{len(skeletons)} skeleton texts, {len(labels)} label texts; the authors report {VIDEOS[self.phase]}"]
        if bare := sorted(skeletons - labels):
            notes.append(f"{len(bare)} skeleton texts without labels: {_some(bare)}")
        for split, name in (("xsub", "cross-subject"), ("xview", "cross-view")):
            if split not in places.lists:
                notes.append(f"no {name} list found: no split {split}")
                continue
            found = places.lists[split]
            listed = {*found.train, *found.test}
            text = f"{found.path.name}: {len(found.train)} training and {len(found.test)} test videos"
            if absent := sorted(listed - skeletons):
                text += f"; {len(absent)} of them have no skeleton text: {_some(absent)}"
            if outside := sorted((skeletons & labels) - listed):
                fate = "tested, as the published conversions do" if self.unlisted == "test" else f"left out of {split}"
                text += f"; {len(outside)} labelled videos are in neither list and {fate}: {_some(outside)}"
            notes.append(text)
        return notes


def _video(match: Any) -> str:
    return str(match.group(0))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _held_out(values: Sequence[Any], name: str) -> list[Any]:
    """About a tenth of them, at least one: those whose hash is smallest, so that the choice hangs on names alone."""
    rank: Mapping[Any, bytes] = {value: hashlib.sha256(f"v1:{name}:{value}".encode()).digest() for value in values}
    return sorted(sorted(values, key=lambda value: rank[value])[: max(1, round(_SHARE * len(values)))])


def _energy(body: np.ndarray) -> float:
    """How much a person moves: the spread of each coordinate over all frames and joints `(T, 25, 3)`, added up."""
    return float(body.std(axis=(0, 1)).sum()) if len(body) else 0.0
