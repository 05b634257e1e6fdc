"""For those who watch: `GET /api/v1/events` as server-sent events, and `GET /metrics` for Prometheus, or as JSON for
those who accept that.

Both need a token like everything else: `authorization: {credentials: TOKEN}` in Prometheus' scrape configuration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse, Response, StreamingResponse

from master.events import Events
from master.nodes import Nodes
from master.rest.accept import preferred
from master.rest.event_stream import LastEventId, stream
from master.tasks import TaskRecord, Tasks, active
from model.metrics import CONTENT_TYPE, Family, Kind, Labels, as_json, container_families, expose, gauge
from model.node import NodeState
from model.task import TaskState

Source = Callable[[], Iterable[Family]]


def observe_router(tasks: Tasks, nodes: Nodes, events: Events, others: Sequence[Source] = ()) -> APIRouter:
    """`others` have metrics of their own."""
    router = APIRouter(tags=["cluster"])

    @router.get("/api/v1/events")
    async def read_events(last_event_id: LastEventId = "", follow: bool = True) -> StreamingResponse:
        return stream(events.read(last_event_id, follow))

    @router.get("/metrics")
    async def read_metrics(accept: Annotated[str, Header()] = "") -> Response:
        families = chain(_families(tasks, nodes), *(source() for source in others))
        if preferred(accept, "text/plain", "application/json") == "application/json":
            return JSONResponse(as_json(families))
        return Response(expose(families), media_type=CONTENT_TYPE)

    return router


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
