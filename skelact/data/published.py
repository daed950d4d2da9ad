"""What a store holds beside what the dataset's authors say it should hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from skelact.data.splits import SplitRule


@dataclass(frozen=True)
class Count:
    """One number of clips: what is counted, how many are stored, how many were published."""

    what: str
    stored: int
    published: int

    @property
    def verdict(self) -> str:
        """`OK`, or by how much the store differs."""
        return "OK" if self.stored == self.published else f"{self.stored - self.published:+d}"

    def __str__(self) -> str:
        return f"{self.what} {self.stored}" + (
            " OK" if self.stored == self.published else f" ({self.verdict} from {self.published})"
        )


def compare(card: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> list[Count]:
    """The counts of the card's entry `published`: `{"clips": N, "splits": {name: {part: N}}, "source": ...}`.

    Args:
        card: of the store.
        columns: its clips table.

    Returns:
        One entry a count, the clips first; nothing where the card has no such entry.
    """
    published = card.get("published") or {}
    found = []
    if "clips" in published:
        found.append(Count("clips", len(columns["name"]), int(published["clips"])))
    for split, sizes in published.get("splits", {}).items():
        parts = SplitRule.from_dict(card["splits"][split]).parts(columns) if split in card["splits"] else {}
        found += [Count(f"{split} {part}", len(parts.get(part, ())), int(size)) for part, size in sizes.items()]
    return found
