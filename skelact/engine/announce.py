"""What a run says: at its start what it is, at its end what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skelact.engine.build import released

if TYPE_CHECKING:
    from skelact.results import Record


def announce(config: Mapping[str, Any], datamodule: Any, method: Any, plan: Sequence[str], device: Any) -> None:
    """Method, data, protocols and directory of a run, on standard error."""
    from rich.console import Console

    parameters = sum(p.numel() for p in method.parameters())
    source = f" from {weights}" if (weights := config.get("checkpoint") or released(config)) else ""
    split, streams = config["data"].get("split", ""), "+".join(method.streams)
    layout = "" if method.layout is None else f", layout {method.layout.name}"
    read = "modalities" if hasattr(method, "groups") else "streams"
    lines = [
        f"method    {type(method).__name__}{source}, {parameters / 1e6:.2f} M parameters, {read} {streams}",
        f"data      {datamodule.name} {split}, {datamodule.num_classes} classes{layout}",
        f"protocol  {', '.join(plan)}   seed {config['seed']}   device {device}",
        f"run       {config['run_dir']}",
    ]
    Console(stderr=True, highlight=False).print("\n".join(lines), markup=False)


def show(records: Sequence[Record], file: Path) -> None:
    """The tables of a run, and where its results lie."""
    from rich.console import Console

    from skelact.tables import print_tables

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no width of its own
    print_tables(list(records), console)
    console.print(f"results in {file}", markup=False, soft_wrap=True)


def show_finished(run_dir: Path) -> None:
    """That a run is not done again."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"finished before: {run_dir}", markup=False, soft_wrap=True)
