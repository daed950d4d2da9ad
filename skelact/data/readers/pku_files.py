"""Where PKU-MMD's files lie, and its small texts: label files and split lists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from skelact.data.readers.names import walk
from skelact.errors import SkelactError

#: Names of the videos of each phase, and how they are put in words.
VIDEO = {1: re.compile(r"(\d{4})-([LMR])"), 2: re.compile(r"(A\d\dN\d\d)-([LMR])")}
SCHEME = {1: "0002-L", 2: "A01N01-L"}
CLASSES = 51
_DEPTH = 4
_LISTS = {"xsub": "cross_subject", "xview": "cross_view"}


@dataclass(frozen=True)
class Row:
    """One line of a label file: a class from 1, first and last frame as written, how sure the annotator was (1, 2)."""

    line: int
    action: int
    first: int
    last: int
    confidence: int


@dataclass(frozen=True)
class SplitList:
    """One split list: the file, and the videos of its two sides."""

    path: Path
    train: frozenset[str]
    test: frozenset[str]

    def side(self, video: str) -> str:
        """`train`, `test`, or `neither` for a video that the list does not name."""
        return "train" if video in self.train else "test" if video in self.test else "neither"


@dataclass(frozen=True)
class Places:
    """What a source holds: folders of skeleton texts, folders of label texts, split lists by split."""

    skeletons: tuple[Path, ...]
    labels: tuple[Path, ...]
    lists: dict[str, SplitList]


def find_places(source: Path, phase: int) -> Places:
    """Look through a source for one phase's skeletons, labels and split lists, however the download is nested.

    A folder counts by its name or that of a folder above it (skeleton, Skeleton, PKU_Skeleton_Renew, ...; label,
    Train_Label_PKU_final, ...) and by holding texts named as the phase's videos are. Where one of several skeleton
    folders is called "renew", the set's own second edition, it alone counts.

    Raises:
        SkelactError: something is not there (the message says what was looked for), or a split list is not one.
    """
    if not source.is_dir():
        raise SkelactError(f"pku{phase}: source {source} is not a folder")
    folders: dict[str, list[Path]] = {"skeleton": [], "label": []}
    lists: dict[str, list[Path]] = {split: [] for split in _LISTS}
    other = 0
    for folder, names in walk(source, _DEPTH):
        texts = [name[:-4] for name in names if name.lower().endswith(".txt")]
        for split, stem in _LISTS.items():
            lists[split] += [folder / f"{text}.txt" for text in texts if _plain(text).startswith(stem)]
        if kind := _kind(folder.relative_to(source)):
            if any(VIDEO[phase].fullmatch(text) for text in texts):
                folders[kind].append(folder)
            other += any(VIDEO[3 - phase].fullmatch(text) for text in texts)
    for kind, found in folders.items():
        if not found:
            hint = f"; it holds phase {3 - phase}, which is data=pku{3 - phase}" if other else ""
            raise SkelactError(
                f"pku{phase}: no {kind} texts in {source}: looked {_DEPTH} folders deep for a folder with {kind!r} in "
                f"its name or above it that holds files like {SCHEME[phase]}.txt{hint}"
            )
    renewed = [folder for folder in folders["skeleton"] if "renew" in str(folder.relative_to(source)).lower()]
    read = {split: _choose(paths, phase) for split, paths in lists.items()}
    if not any(read.values()):
        wanted = ("cross-subject.txt and cross-view.txt", "cross_subject_v2.txt and cross_view_v2.txt")[phase - 1]
        raise SkelactError(f"pku{phase}: neither split list in {source}: looked {_DEPTH} folders deep for {wanted}")
    return Places(
        tuple(sorted(renewed or folders["skeleton"])),
        tuple(sorted(folders["label"])),
        {split: found for split, found in read.items() if found is not None},
    )


def _kind(inside: Path) -> str:
    for part in reversed(inside.parts):
        for kind, sign in (("label", "label"), ("skeleton", "skel")):
            if sign in part.lower():
                return kind
    return ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def _choose(paths: list[Path], phase: int) -> SplitList | None:
    """The list that speaks of this phase's videos; the official name of the phase goes first."""
    for path in sorted(paths, key=lambda path: (("v2" in path.stem.lower()) != (phase == 2), str(path))):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise SkelactError(f"{path} cannot be read: {error.strerror or error}") from error
        if VIDEO[phase].search(text):
            return read_list(path, text, phase)
    return None


def read_list(path: Path, text: str, phase: int) -> SplitList:
    """A split list: heading, training videos, heading, test videos; commas or blanks between, a trailing one is fine.

    Raises:
        SkelactError: not two headings, a name that is no video, or a video on both sides; each with its line.
    """
    sides: list[dict[str, None]] = []
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        words = [word.removesuffix(".txt") for word in re.split(r"[,;\s]+", line.strip()) if word]
        if not words:
            continue
        names = [word for word in words if VIDEO[phase].fullmatch(word)]
        if not names:
            sides.append({})
        elif not sides:
            raise SkelactError(f"{path}, line {number}: videos before the heading that says which side they are on")
        elif len(names) < len(words):
            strange = next(word for word in words if word not in names)
            raise SkelactError(f"{path}, line {number}: {strange[:20]!r} is not a video like {SCHEME[phase]}")
        else:
            sides[-1].update(dict.fromkeys(names))
    if len(sides) != 2:
        raise SkelactError(f"{path}: expected two headings, each with its videos, found {len(sides)}")
    if both := [name for name in sides[0] if name in sides[1]]:
        raise SkelactError(f"{path}: {', '.join(both[:3])} stands on both sides of the split")
    return SplitList(path, frozenset(sides[0]), frozenset(sides[1]))


def read_labels(path: Path) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows of a label file `class,start,end,confidence`, and (where, reason) of each that cannot be used."""
    rows: list[Row] = []
    damaged: list[tuple[str, str]] = []
    seen: dict[tuple[int, int, int], int] = {}
    try:
        text = path.read_bytes().decode("ascii")
    except UnicodeDecodeError as error:
        return [], [(f"byte {error.start}", "is not text")]
    except OSError as error:
        return [], [("", error.strerror or str(error))]
    for number, line in enumerate(text.splitlines(), start=1):
        fields = [field.strip() for field in line.strip().rstrip(",").split(",")]
        if fields == [""]:
            continue
        reason = ""
        if len(fields) not in (3, 4) or not all(re.fullmatch(r"-?\d{1,9}", field) for field in fields):
            reason = f"{line[:40]!r} is not class,start,end,confidence in whole numbers"
        else:
            action, first, last, *rest = (int(field) for field in fields)
            if not 1 <= action <= CLASSES:
                reason = f"class {action} is not one of 1..{CLASSES}"
            elif last < first or last < 1:
                reason = f"frames {first} to {last} are no stretch of the video"
            elif (action, first, last) in seen:
                reason = f"repeats line {seen[action, first, last]}"
        if reason:
            damaged.append((f"line {number}", reason))
            continue
        seen[action, first, last] = number
        rows.append(Row(number, action, first, last, rest[0] if rest else 0))
    return rows, damaged
