"""The event streams of the cluster, of services and of jobs as one: in order of time, and through broken connections.

Each stream is read by a thread of its own and goes on after the last id that it had (`master/event_log.py`). What comes
within GATHER_S is put in order: of one moment, one stream may be heard of later than another.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cli.client import Client
from cli.duration import epoch
from cli.problem import Problem, Refused, Unreachable

SOURCES = {"cluster": "/api/v1/events", "services": "/v2/events", "jobs": "/api/v1/jobs/events"}
FIRST = "-"  # after an id that is not known comes all that is kept
SILENCE_S = 45.0  # a stream that lives says so every 15 s
RETRY_S = (0.5, 1.0, 2.0, 5.0)
GATHER_S = 0.1
QUEUED = 1000
NOTICE = "notice"  # of this program, about a stream

Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """`at` is seconds since the epoch, also in `data`. A notice has a `text`."""

    source: str
    id: str
    kind: str
    at: float
    data: Data


def kept(client: Client) -> dict[str, list[Event]]:
    """By source, as far back as the master remembers. A master that lacks a stream has the others."""
    found = {source: _kept(client, source) for source in SOURCES}
    return {source: events for source, events in found.items() if events is not None}


def follow(connect: Callable[[], Client], last: dict[str, str]) -> Iterator[list[Event]]:
    """What comes after the `last` ids, by source, in order. Never ends. Raises Problem when the master says no."""
    heard: queue.Queue[Event | Problem] = queue.Queue(QUEUED)
    for source, last_id in last.items():
        # Should the person interrupt, these must not keep the program.
        threading.Thread(target=_Reader(connect, source, last_id, heard).run, daemon=True).start()
    while True:
        together = [heard.get()]
        end = time.monotonic() + GATHER_S
        while (left := end - time.monotonic()) > 0:
            try:
                together.append(heard.get(timeout=left))
            except queue.Empty:
                break
        yield sorted(map(_or_raise, together), key=lambda event: event.at)


def parse(chunks: Iterable[bytes]) -> Iterator[tuple[str, str, Data]]:
    """Id, kind and data of each event in a stream of server-sent events, as the master writes them."""
    rest = b""
    for chunk in chunks:
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if not line.startswith(":"))
            if "data" in fields:
                yield fields["id"], fields["event"], json.loads(fields["data"])


def _kept(client: Client, source: str) -> list[Event] | None:
    try:
        with client.stream(SOURCES[source], headers={"Last-Event-ID": FIRST}, follow=False) as chunks:
            return list(_events(source, chunks))
    except Refused as refused:
        if refused.status == 404:
            return None
        raise


class _Reader:
    def __init__(
        self, connect: Callable[[], Client], source: str, last_id: str, heard: queue.Queue[Event | Problem]
    ) -> None:
        self._connect = connect
        self._source = source
        self._last = last_id
        self._heard = heard
        self._at = 0.0
        self._failures = 0

    def run(self) -> None:
        while True:
            try:
                self._read()
                self._broke("the stream has ended")
            except Unreachable as broken:
                self._broke(str(broken))
            except Problem as problem:
                return self._heard.put(problem)

    def _read(self) -> None:
        headers = {"Last-Event-ID": self._last}
        with self._connect().stream(SOURCES[self._source], headers=headers, silence_s=SILENCE_S) as chunks:
            if self._failures:
                self._tell("is read again")
            self._failures = 0
            for event in _events(self._source, chunks):
                if self._last != FIRST and _life(event.id) != _life(self._last):
                    self._tell("the master was started again: what happened between is not known")
                self._last, self._at = event.id, event.at
                self._heard.put(event)

    def _broke(self, why: str) -> None:
        if not self._failures:
            self._tell(f"broke: {why}")
        time.sleep(RETRY_S[min(self._failures, len(RETRY_S) - 1)])
        self._failures += 1

    def _tell(self, text: str) -> None:
        """In its place: after what was heard before it."""
        data = {"at": self._at, "text": f"events of {self._source}: {text}"}
        self._heard.put(Event(self._source, "", NOTICE, self._at, data))


def _events(source: str, chunks: Iterable[bytes]) -> Iterator[Event]:
    at = 0.0
    for event_id, kind, data in parse(chunks):
        at = _time(data, at)
        yield Event(source, event_id, kind, at, {**data, "at": at})


def _time(data: Data, before: float) -> float:
    """What was missed happened after what was seen before it."""
    return float(data["at"]) if "at" in data else epoch(data["timestamp"]) if "timestamp" in data else before


def _life(event_id: str) -> str:
    """Of the master, in which it was numbered."""
    return event_id.rpartition("-")[0]


def _or_raise(heard: Event | Problem) -> Event:
    if isinstance(heard, Problem):
        raise heard
    return heard
