"""Events in order, for whoever wants to follow.

The last so many are in memory. Each has an id, `RUN-NUMBER`, by which a reader who was away goes on where it was: RUN
tells this life of the master from others, whose numbers mean nothing here. A reader who is too slow, or away for too
long, gets an event `missed` in place of what is no longer kept; nobody waits for it, and it costs a number.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

KEPT = 4096


@dataclass(frozen=True, slots=True)
class Event:
    """Of what is no longer kept the `kind` is `missed`."""

    id: str
    kind: str
    said: Mapping[str, Any]

    @property
    def data(self) -> str:
        """As JSON. Most events are never read."""
        return json.dumps(self.said)


class EventLog:
    def __init__(self, kept: int = KEPT) -> None:
        self._run = secrets.token_hex(4)
        self._next = 0
        self._events: deque[Event] = deque(maxlen=kept)
        self._more = asyncio.Event()

    def publish(self, kind: str, said: Mapping[str, Any]) -> None:
        """What was `said` stays as it is."""
        self._events.append(Event(self._id(self._next), kind, said))
        self._next += 1
        self._more.set()
        self._more = asyncio.Event()

    @property
    def newest(self) -> str:
        """The id of the last one."""
        return self._id(self._next - 1)

    async def read(self, last_id: str = "", follow: bool = True) -> AsyncIterator[Event]:
        """Those after `last_id`, or all that are kept; then, with `follow`, what comes."""
        position = self._position(last_id)
        while True:
            first = self._next - len(self._events)
            if position < first:
                yield self._missed(first - position, first)
                position = first
            more = self._more  # before the look: what comes after it is seen the next time
            for event in list(self._events)[position - first :]:
                yield event
                position += 1
            if not follow:
                return
            if position == self._next:
                await more.wait()

    def _position(self, last_id: str) -> int:
        run, _, number = last_id.rpartition("-")
        known = run == self._run and number.isdecimal() and int(number) < self._next
        return int(number) + 1 if known else self._next - len(self._events)

    def _missed(self, count: int, first: int) -> Event:
        return Event(self._id(first - 1), "missed", {"eventType": "missed", "count": count})

    def _id(self, number: int) -> str:
        return f"{self._run}-{number}"
