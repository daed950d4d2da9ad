"""`skelact results DIR...`: runs gathered into one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO


def results(arguments: Sequence[str]) -> int:
    """Print the runs below the given directories, averaged over their seeds.

    Args:
        arguments: the command line after `skelact results`.
    """
    parser = argparse.ArgumentParser(
        prog="skelact results",
        description="Gather runs into one table; runs that differ only in their seed are averaged (95 %% intervals).",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="run directories, or folders of them (sweeps)")
    parser.add_argument("--format", choices=("table", "markdown", "csv"), default="table", help="default: table")
    parser.add_argument("--protocol", action="append", help="only this protocol; may be repeated")
    parser.add_argument("--output", type=Path, help="write to a file instead of printing")
    options = parser.parse_args(list(arguments))

    from skelact.tables import csv_text, gather_results, markdown, print_tables

    records = gather_results(options.directories)
    if options.protocol:
        records = [record for record in records if record.protocol in options.protocol]
    if options.format == "table":
        from rich.console import Console

        with open(options.output, "w", encoding="utf-8") if options.output else _Stdout() as file:
            console = Console(file=file, highlight=False)
            if not console.is_terminal:
                console.width = 140
            print_tables(records, console)
        return 0
    text = markdown(records) if options.format == "markdown" else csv_text(records)
    if options.output:
        from skelact.engine.files import replace_text

        replace_text(options.output, text)
    else:
        print(text, end="")
    return 0


class _Stdout:
    """Standard output as a context that does not close it."""

    def __enter__(self) -> TextIO:
        return sys.stdout

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
