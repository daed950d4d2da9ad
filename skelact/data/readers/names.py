"""Files that follow a naming scheme, and those that should but do not."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from skelact.data.readers.base import Item

Key = TypeVar("Key")


def numbers(match: re.Match[str]) -> tuple[int, ...]:
    """The numbers of a name: what tells two clips apart where `a1` and `a01` mean the same."""
    return tuple(int(group) for group in match.groups())


def walk(source: Path, depth: int = 4) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below it to a depth, each with the names of its files, sorted; hidden ones are passed over.

    Links are followed, as data folders often are links, but no folder is visited twice.
    """
    seen: set[str] = set()
    for place, inner, names in os.walk(source, followlinks=True):
        folder = Path(place)
        real = os.path.realpath(folder)
        if real in seen or len(folder.relative_to(source).parts) >= depth:
            inner.clear()
        if real in seen:
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield folder, sorted(name for name in names if not name.startswith("."))


def named_files(
    folders: Path | Iterable[Path],
    suffix: str,
    pattern: re.Pattern[str],
    scheme: str,
    key: Callable[[re.Match[str]], Key],
    others: re.Pattern[str] | None = None,
) -> tuple[dict[Key, Path], list[Item]]:
    """Files of a naming scheme by key, and what is wrong with the rest of that ending.

    Args:
        folders: where to look, not below.
        suffix: ending with its point; its case does not matter. Files of other endings are nobody's business.
        pattern: what the stem must be.
        scheme: the pattern in words, for the report.
        key: from the match; two files of one key are duplicates, and the first by name is kept.
        others: stems that rightly lie there for another purpose, and hidden files, are passed over in silence.

    Returns:
        key -> file in the order of the keys, and damaged items (name outside the scheme, duplicate) by file name.
    """
    found: dict[Key, Path] = {}
    damaged: list[Item] = []
    for folder in [folders] if isinstance(folders, Path) else folders:
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix):
            if path.name.startswith(".") or (others is not None and others.fullmatch(path.stem)):
                continue
            match = pattern.fullmatch(path.stem)
            reason = ""
            if match is None:
                reason = f"its name does not follow the scheme {scheme}"
            elif (earlier := found.setdefault(key(match), path)) is not path:
                reason = f"is a second file of the clip in {earlier.name if earlier.parent == folder else earlier}"
            if reason:
                damaged.append(Item(path.name, path, damage=("", reason)))
    return dict(sorted(found.items())), damaged
