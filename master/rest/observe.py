"""For those who watch: `GET /api/v1/events` as server-sent events, and `GET /metrics` for Prometheus.

Both need a token like everything else: `authorization: {credentials: TOKEN}` in Prometheus' scrape configuration.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import Response, StreamingResponse

from master.events import Event, Events
from master.nodes import Nodes
from master.tasks import TaskRecord, Tasks, active
from model.metrics import CONTENT_TYPE, Family, Kind, Labels, container_families, expose, gauge
from model.node import NodeState
from model.task import TaskState

KEEPALIVE_S = 15.0  # a comment, so that proxies and clients know that the stream lives
KEEPALIVE = ": nothing happened\n\n"

LastEventId = Annotated[str, Header(alias="Last-Event-ID", max_length=100)]


def observe_router(tasks: Tasks, nodes: Nodes, events: Events) -> APIRouter:
    router = APIRouter(tags=["cluster"])

    @router.get("/api/v1/events")
    async def read_events(last_event_id: LastEventId = "", follow: bool = True) -> StreamingResponse:
        chunks = _kept_alive(events.read(last_event_id, follow))
        return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @router.get("/metrics")
    async def read_metrics() -> Response:
        return Response(expose(_families(tasks, nodes)), media_type=CONTENT_TYPE)

    return router


async def _kept_alive(events: AsyncIterator[Event]) -> AsyncIterator[str]:
    following = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=KEEPALIVE_S)
            if not done:
                yield KEEPALIVE
                continue
            if (event := following.result()) is None:
                return
            yield f"id: {event.id}\nevent: {event.kind}\ndata: {event.data}\n\n"
            following = asyncio.ensure_future(anext(events, None))
    finally:
        following.cancel()


def _families(tasks: Tasks, nodes: Nodes) -> Iterator[Family]:
    views = nodes.all()
    states = Counter(record.status.state for record in tasks.all())
    yield _by_state(
        "tepui_tasks", "Tasks that are known, by state.", ((state.name, states[state]) for state in TaskState)
    )
    nodes_in = Counter(view.state for view in views)
    yield _by_state("tepui_nodes", "Nodes, by state.", ((state.value, nodes_in[state]) for state in NodeState))
    yield gauge("tepui_sessions", "Nodes that are connected now.", sum(view.connected for view in views))
    yield from container_families((_labels(record), record.status.usage) for record in active(tasks.all()))


def _by_state(name: str, help: str, counts: Iterable[tuple[str, int]]) -> Family:
    return Family(name, Kind.GAUGE, help, tuple(((("state", state),), float(count)) for state, count in counts))


def _labels(record: TaskRecord) -> Labels:
    spec = record.spec
    return (("task", spec.id), ("owner", spec.owner), ("framework", spec.framework), ("node", record.node))
