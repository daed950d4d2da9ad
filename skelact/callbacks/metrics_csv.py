"""The log every run writes: `metrics.csv`, one row a logging step, one column a metric."""

from __future__ import annotations

import csv
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only


class MetricsCSV(Logger):
    """Appends to one CSV file; a resumed run drops the rows after its checkpoint and goes on.

    Lightning's own CSV logger starts the file anew when the folder exists, so a resumed run would lose its past. Rows
    that cannot be written (a full disk) are warned of once, kept, and written when there is room.

    Args:
        path: the file.
        resume: keep what is there (see :meth:`drop_after`) instead of starting anew.
    """

    def __init__(self, path: str | Path, resume: bool = False) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = ["step"]
        self.rows: list[dict[str, Any]] = []
        self._written = 0
        self._full = False
        if resume and self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or ["step"])
                self.rows = [{k: v for k, v in row.items() if v not in ("", None)} for row in reader]
            self._written = len(self.rows)

    @property
    def name(self) -> str:
        """Lightning asks."""
        return "metrics"

    @property
    def version(self) -> int:
        """Lightning asks."""
        return 0

    def drop_after(self, step: int) -> None:
        """Forget rows of steps that a resumed run takes again."""
        self.rows = [row for row in self.rows if int(row["step"]) <= step]
        self._rewrite()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The config has its own file, config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row; numbers of one step share it."""
        step = 0 if step is None else int(step)
        fresh = [name for name in metrics if name not in self.columns]
        self.columns += fresh
        if self.rows and int(self.rows[-1]["step"]) == step:
            self.rows[-1].update(metrics)
            self._rewrite()
            return
        self.rows.append({"step": step, **metrics})
        if fresh or not self._written:
            self._rewrite()
        else:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Append what is not on disk yet."""
        if self._full:  # the last row may be there in part
            self._rewrite()
        elif self._written < len(self.rows):
            self._write(self.path, self.rows[self._written :])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Leave a file behind even where nothing was logged."""
        if self._full or not self.path.exists():
            self._rewrite()

    @rank_zero_only
    def _rewrite(self) -> None:
        """Write a sibling and rename it: rows on disk are not given up for such as may find no room."""
        partial = self.path.with_name(f"{self.path.name}.partial")
        self._write(partial, self.rows)

    def _write(self, file: Path, rows: list[dict[str, Any]]) -> None:
        """Append rows to the log itself, or make another file of all and put it into the log's place."""
        whole = file != self.path
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w" if whole else "a", newline="") as stream:
                writer = csv.DictWriter(stream, self.columns)
                if whole:
                    writer.writeheader()
                writer.writerows(rows)
            if whole:
                file.replace(self.path)
        except OSError as error:
            if not self._full:
                warnings.warn(f"{self.path}: {error.strerror}; rows are kept until there is room", stacklevel=4)
            self._full = True
            if whole:
                file.unlink(missing_ok=True)
            return
        self._full, self._written = False, len(self.rows)
