"""What commands print: results on standard output, progress on standard error."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

# Wide when piped: a reader such as grep wants one row per line.
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def progress() -> Progress:
    """A bar with the time left, seen only on a terminal."""
    terminal = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    )


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object, with nothing else on standard output."""
    print(json.dumps(value, indent=1, default=str))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", numbers: bool = True
) -> None:
    """Columns of text; if they are numbers, all but the first are aligned to the right."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and numbers else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def print_text(text: str) -> None:
    """Text as it is, brackets included."""
    console.print(text, markup=False, highlight=False)


def milliseconds(seconds: float) -> str:
    """A time for people: three digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def bytes_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
