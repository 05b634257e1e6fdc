"""What tasks take a second, from what they have taken in all.

A node tells of a change every REPORT_S, so between two looks there may be two reports, one or none. Two reports that
were seen to come are as far apart as they were seen; the one before the first was REPORT_S earlier.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

REPORT_S = 5.0
IDLE_S = 3 * REPORT_S  # without any change: it takes nothing

Task = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rate:
    """CPUs, and bytes of the network a second."""

    cpus: float = 0.0
    received: float = 0.0
    sent: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """`usage` came at `at`; with `rate` None it was there when we came."""

    usage: dict[str, float]
    at: float
    rate: Rate | None = None


class Rates:
    """Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}

    def note(self, tasks: Iterable[Task], now: float) -> None:
        """All that there are now; those that are not among them are forgotten."""
        self._seen = {task["id"]: self._look(task, now) for task in tasks}

    @property
    def complete(self) -> bool:
        """Whether there was news of every task."""
        return all(seen.rate is not None for seen in self._seen.values())

    def of(self, task: Task, now: float) -> Rate:
        """Of one that was noted. Before there was any news of it: on average since it runs."""
        seen = self._seen[task["id"]]
        if seen.rate is None:
            return between({}, seen.usage, max(1.0, now - task["since"]))
        return seen.rate if now - seen.at <= IDLE_S else Rate()

    def _look(self, task: Task, now: float) -> Seen:
        seen = self._seen.get(task["id"])
        if seen is None:
            return Seen(task["usage"], now)
        if seen.usage == task["usage"]:
            return seen
        apart = now - seen.at if seen.rate is not None else max(now - seen.at, REPORT_S)
        return Seen(task["usage"], now, between(seen.usage, task["usage"], min(apart, max(1.0, now - task["since"]))))


def between(before: dict[str, float], after: dict[str, float], apart_s: float) -> Rate:
    def grown(kind: str) -> float:
        return max(0.0, after[kind] - before.get(kind, 0)) / apart_s

    return Rate(grown("cpu_s"), grown("net_received_bytes"), grown("net_sent_bytes"))
