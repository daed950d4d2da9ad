"""The table of clips that every dataset has, whatever its clips are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class ClipTable:
    """Clips by name: classes, and the columns that splits speak of.

    Attributes:
        path: where the data lie, for messages.
        card: the dataset card as plain containers.
        columns: the clips table by column name, each `(N,)`; always has name and label.
    """

    path: Path
    card: dict[str, Any]
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return str(self.card["name"])

    @property
    def fingerprint(self) -> str:
        """Hash of the content; written into every record of a result."""
        return str(self.card["fingerprint"])

    @property
    def names(self) -> np.ndarray:
        """`(N,)` clip names, unique."""
        return self.columns["name"]

    @property
    def label(self) -> np.ndarray:
        """`(N,)` int64 classes, -1 where unknown."""
        return self.columns["label"]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by label."""
        return list(self.card["class_names"])

    def verify(self) -> None:
        """Check every byte of the data.

        Raises:
            StoreError: naming the file and the reason.
        """
        raise NotImplementedError
