"""The log every run writes: `metrics.csv`, one row a logging step, one column a metric."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only


class MetricsCSV(Logger):
    """Appends to one CSV file; a resumed run drops the rows after its checkpoint and goes on.

    Lightning's own CSV logger starts the file anew when the folder exists, so a resumed run would lose its past.

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
        if self._written == len(self.rows):
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerows(self.rows[self._written :])
        self._written = len(self.rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Leave a file behind even where nothing was logged."""
        if not self.path.exists():
            self._rewrite()

    @rank_zero_only
    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        self._written = len(self.rows)
