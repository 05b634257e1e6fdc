"""How commands answer: a table for people, or with `--json` what the API said.

rich is imported when something is drawn with it: completion, and what prints a line or JSON, does not wait for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PIPE_WIDTH = 240  # piped into a file or another program, a row stays one line


@cache
def console() -> Console:
    from rich.console import Console

    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def print_title(name: str, *words: str) -> None:
    """What is shown, in bold, and how it is."""
    typer.echo("  ".join([typer.style(name, bold=True), *words]))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns whose name begins with `#` are numbers."""
    console().print(table(columns, rows))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left", overflow="fold")
    for row in rows:
        # As text: an IPv6 address has in it what would be markup or an emoji.
        made.add_row(*(Text("-" if cell is None or cell == "" else str(cell)) for cell in row))
    return made


def size(count: float | None) -> str:
    """Of bytes: `64 MiB`, `79.4 KiB`."""
    if count is None:
        return "-"
    amount, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{amount:.1f}".removesuffix(".0") + f" {units[0]}"
