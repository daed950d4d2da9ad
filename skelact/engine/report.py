"""`skelact results DIR...`: runs gathered into one table; with `--paired` two runs clip by clip."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from skelact.errors import SkelactError

Rows = tuple[list[str], list[list[str]]]


def results(arguments: Sequence[str]) -> int:
    """Print the runs below the given directories, averaged over their seeds, or compare two of them.

    Args:
        arguments: the command line after `skelact results`.

    Raises:
        SkelactError: there is nothing to show, or `--paired` was not given two runs.
    """
    parser = argparse.ArgumentParser(
        prog="skelact results",
        description="Gather runs into one table; runs that differ only in their seed are averaged (95 %% intervals).",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="run directories, or folders of them (sweeps)")
    parser.add_argument("--paired", action="store_true", help="compare two runs clip by clip, by their scores.npz")
    parser.add_argument("--format", choices=("table", "markdown", "csv"), default="table", help="default: table")
    parser.add_argument("--protocol", action="append", help="only this protocol; may be repeated")
    parser.add_argument("--output", type=Path, help="write to a file instead of printing")
    parser.add_argument("--wandb", metavar="PROJECT", help="log the tables to Weights & Biases, too")
    options = parser.parse_args(list(arguments))
    tables = (_paired if options.paired else _gathered)(options)
    if options.wandb:
        _log(options.wandb, tables)
    return 0


def _gathered(options: argparse.Namespace) -> dict[str, Rows]:
    from skelact.gathering import gather_results
    from skelact.tables import csv_text, markdown, print_tables, table_rows

    records = gather_results(options.directories)
    if options.protocol:
        records = [record for record in records if record.protocol in options.protocol]
    if options.format == "table":
        _print(options.output, lambda console: print_tables(records, console))
    else:
        _write(options.output, markdown(records) if options.format == "markdown" else csv_text(records))
    protocols = dict.fromkeys(record.protocol for record in records)
    return {f"results/{name}": table_rows([r for r in records if r.protocol == name]) for name in protocols}


def _paired(options: argparse.Namespace) -> dict[str, Rows]:
    from skelact.gathering import compare_runs, paired_csv, paired_rows
    from skelact.tables import markdown_table, paired_table, print_wide

    if len(options.directories) != 2:
        raise SkelactError(f"--paired compares two runs, not {len(options.directories)}: skelact results RUN_A RUN_B")
    first, second = options.directories
    tests = compare_runs(first, second)
    if options.protocol:
        tests = {pair: found for pair, found in tests.items() if pair[0].partition("/")[0] in options.protocol}
    header, rows = paired_rows(tests)
    if options.format == "table":
        _print(options.output, lambda console: print_wide([paired_table(f"{first} - {second}", header, rows)], console))
    else:
        _write(
            options.output, markdown_table(header, rows) + "\n" if options.format == "markdown" else paired_csv(tests)
        )
    return {"results/paired": (header, rows)}


def _print(path: Path | None, show: Any) -> None:
    from rich.console import Console

    with open(path, "w", encoding="utf-8") if path else _Stdout() as file:
        console = Console(file=file, highlight=False)
        if not console.is_terminal:
            console.width = 140
        show(console)


def _write(path: Path | None, text: str) -> None:
    if path:
        from skelact.engine.files import replace_text

        replace_text(path, text)
    else:
        print(text, end="")


def _log(project: str, tables: Mapping[str, Rows]) -> None:
    """A run of its own in a project of Weights & Biases, with a table for each key."""
    import wandb

    from skelact.callbacks.wandb_logger import wandb_logger

    logger = wandb_logger(project, name="results")
    for key, (header, rows) in tables.items():
        logger.log_table(key=key, columns=header, data=rows)
    folder, offline = Path(logger.experiment.dir).parent, logger.experiment.settings._offline
    wandb.finish()
    wandb.teardown()
    print(f"W&B: {folder}" + (f" (upload it with: wandb sync {folder})" if offline else ""), file=sys.stderr)


class _Stdout:
    """Standard output as a context that does not close it."""

    def __enter__(self) -> TextIO:
        return sys.stdout

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
