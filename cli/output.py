"""How commands answer: a table for people, or with `--json` what the API said."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# Piped into a file or another program, a row stays one line.
console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 240)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns whose name begins with `#` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left", overflow="fold")
    for row in rows:
        # As text: an IPv6 address has in it what would be markup or an emoji.
        table.add_row(*(Text("-" if cell is None or cell == "" else str(cell)) for cell in row))
    console.print(table)


def size(count: int | None) -> str:
    """Of bytes: `64 MiB`, `79.4 KiB`."""
    if count is None:
        return "-"
    amount, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{amount:.1f}".removesuffix(".0") + f" {units[0]}"
