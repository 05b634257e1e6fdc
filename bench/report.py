"""The result of a benchmark: rows that compare ours with a peer, as a table for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """`what` names the statistic too (`start_p50`). Less is better: a `ratio` under 1 is in our favour. But of what is
    counted per second (`..._per_s`) more is."""

    what: str
    unit: str
    ours: float
    peer: float
    peer_name: str

    @property
    def ratio(self) -> float:
        return self.ours / self.peer


@dataclass(frozen=True, slots=True)
class Report:
    bench: str
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        rows = [{**asdict(row), "ratio": round(row.ratio, 3)} for row in self.rows]
        return {"bench": self.bench, "rows": rows}

    def print(self) -> None:
        table = Table(title=self.bench, title_justify="left")
        table.add_column("what", no_wrap=True)
        for heading in ("ours", "peer", "ratio"):
            table.add_column(heading, justify="right")
        table.add_column("peer is")
        for row in self.rows:
            values = (_number(row.ours, row.unit), _number(row.peer, row.unit), f"{row.ratio:.2f}")
            table.add_row(row.what, *values, row.peer_name)
        Console().print(table)


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all do not exceed (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def from_json(body: dict[str, Any]) -> Report:
    rows = (Row(**{key: value for key, value in row.items() if key != "ratio"}) for row in body["rows"])
    return Report(body["bench"], tuple(rows))


def _number(value: float, unit: str) -> str:
    return f"{value:,.1f} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
