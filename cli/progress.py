"""How far something is that takes a while, on stderr: a bar on a terminal, else a line whenever there is news.

What it comes to is printed afterwards, on stdout, by whoever waits for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

QUIET_S = 2.0  # amounts that only grow are news no more often than that

Tell = Callable[["Step"], None]


@dataclass(frozen=True, slots=True)
class Step:
    """`done` of `total`, and what is to be said of it. A terminal has room for a `picture` too."""

    done: int
    total: int
    text: str
    picture: str = field(default="", compare=False)


@contextmanager
def progress() -> Iterator[Tell]:
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column
    from rich.text import Text

    said = TextColumn(
        "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
    )
    bars, picture = Progress(BarColumn(bar_width=20), said, expand=True), Text(no_wrap=True)
    row = bars.add_task("", total=None)

    def tell(step: Step) -> None:
        bars.update(row, completed=step.done, total=max(step.total, 1), description=step.text)
        picture.plain = step.picture

    with Live(Group(bars, picture), console=Console(stderr=True, highlight=False, emoji=False), transient=True):
        yield tell


class Lines:
    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = Step(-1, -1, "")
        self._at = 0.0

    def __call__(self, step: Step) -> None:
        counted = (step.done, step.total) != (self._last.done, self._last.total)
        if step == self._last or not (counted or self._now() - self._at >= QUIET_S):
            return
        self._last, self._at = step, self._now()
        print(step.text, file=sys.stderr, flush=True)
