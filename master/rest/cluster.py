"""Our own part of the API: nodes, tasks and their output, VIPs, join tokens. Everything below `/api/v1`.

Answers are the model's objects as JSON. What a person asks first of each ("where? since when? why?") is in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from master.allocator import Allocator
from master.logs import LogError, Logs
from master.nodes import Nodes, NodeView
from master.offers import TaskView
from master.rest.errors import ApiError
from master.tasks import TaskRecord, Tasks, active
from master.tokens import Tokens
from model.fit import misfits
from model.health import describe
from model.resources import Resources
from model.task import TaskState, Usage
from wire import control_pb2 as pb

Stream = Annotated[str, Query(pattern="^(stdout|stderr|both)$")]
Tail = Annotated[int, Query(ge=-1, lt=2**63)]  # lines; -1: all
LISTED_AT_ONCE = 100  # tasks
Since = Annotated[float, Query(ge=0, allow_inf_nan=False)]  # seconds since the epoch


class NewToken(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ttl_s: float = Field(24 * 3600.0, gt=0, allow_inf_nan=False)
    uses: int | None = Field(1, ge=1)


def cluster_router(
    tasks: Tasks,
    nodes: Nodes,
    allocator: Allocator,
    logs: Logs,
    tokens: Tokens,
) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["cluster"])

    @router.get("/nodes")
    async def list_nodes() -> dict[str, Any]:
        return {"nodes": [_node(view, tasks, allocator) for view in nodes.all()]}

    @router.get("/tasks")
    async def list_tasks() -> dict[str, Any]:
        found = []
        for number, record in enumerate(sorted(tasks.all(), key=lambda record: record.spec.id)):
            if number % LISTED_AT_ONCE == LISTED_AT_ONCE - 1:  # of thousands: all else has its turn
                await asyncio.sleep(0)
            found.append(task_json(record))
        return {"tasks": found}

    @router.get("/tasks/{task_id}")
    async def show_task(task_id: str) -> dict[str, Any]:
        return {"task": task_json(known_task(tasks, task_id))}

    @router.delete("/tasks/{task_id}", status_code=202)
    async def kill_task(task_id: str) -> dict[str, Any]:
        """Its backends leave the VIPs, then it is stopped. What its framework does about that is the framework's."""
        known = known_task(tasks, task_id)
        return {"task": task_json(await tasks.mark(known.spec.id) or known)}

    @router.get("/tasks/{task_id}/log")
    async def read_log(
        task_id: str, stream: Stream = "stdout", tail: Tail = -1, since: Since = 0.0, follow: bool = False
    ) -> StreamingResponse:
        task = _known_or_none(tasks, task_id)
        name = task.spec.id if task is not None else task_id
        wanted = pb.OpenLog(task_id=name, stream=stream, tail=tail, since=since, follow=follow)
        if task is not None:
            chunks = await _opened(logs.read(task.node, wanted), failure=502)
        else:
            nodes_now = [view.node.id for view in nodes.all() if view.connected]
            chunks = await _opened(logs.find(nodes_now, wanted), failure=404)
        return StreamingResponse(chunks, media_type="application/octet-stream")

    @router.post("/tokens", status_code=201)
    async def mint_token(wanted: NewToken) -> dict[str, Any]:
        return {"token": str(await tokens.mint(wanted.ttl_s, wanted.uses))}

    return router


async def _opened(chunks: AsyncIterator[bytes], failure: int) -> AsyncIterator[bytes]:
    """The stream, once its first chunk is there: until then, an error can still be an HTTP status."""
    try:
        first = await anext(chunks)
    except StopAsyncIteration:
        first = b""
    except LogError as error:
        raise ApiError(failure, str(error)) from error

    async def all_of_it() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return all_of_it()


def known_task(tasks: Tasks, task_id: str) -> TaskRecord:
    task = _known_or_none(tasks, task_id)
    if task is None:
        raise ApiError(404, f"Task '{task_id}' does not exist")
    return task


def _known_or_none(tasks: Tasks, task_id: str) -> TaskRecord | None:
    """The task with this id, or the only one whose id begins so: people copy beginnings."""
    exact = tasks.get(task_id)
    if exact is not None:
        return exact
    matching = [record for record in tasks.all() if record.spec.id.startswith(task_id)]
    if len(matching) > 1:
        raise ApiError(404, f"Task '{task_id}' is the beginning of {len(matching)} ids")
    return matching[0] if matching else None


def _node(view: NodeView, tasks: Tasks, allocator: Allocator) -> dict[str, Any]:
    node = view.node
    return {
        "id": node.id,
        "hostname": node.hostname,
        "address": str(node.address),
        "state": view.state.value,
        "connected": view.connected,
        "draining": view.draining,
        "boot_id": node.boot_id,
        "version": node.version,
        "attributes": dict(node.attributes),
        "rights": sorted(node.rights),
        "resources": resources_json(node.resources),
        "used": resources_json(allocator.used(node.id)),
        "tasks": sum(record.status.state is TaskState.RUNNING for record in tasks.on(node.id)),
        "errors": list(view.errors),
        "misfits": misfits([record.spec for record in active(tasks.on(node.id))], node.resources, node.rights),
    }


def task_json(task: TaskRecord | TaskView) -> dict[str, Any]:
    """What a person wants to know first. `limits` are read back from the kernel; null is "none set"."""
    spec, status, usage = task.spec, task.status, task.status.usage
    return {
        "id": spec.id,
        "owner": spec.owner,
        "pod": spec.pod.id if spec.pod else None,
        "framework": spec.framework,
        "node": task.node,
        "state": status.state.name,
        "killing": task.killing,
        "kill_grace_s": spec.kill_grace_s,
        "since": status.since or status.at,
        "reason": status.reason,
        "message": status.message,
        "addresses": list(status.addresses),
        "pid": status.pid,
        "exit_code": status.exit_code,
        "healthy": status.healthy,
        "health": [
            asdict(health) | {"alive": health.alive, "check": describe(check), "max_failures": check.max_failures}
            for check, health in zip(spec.health_checks, status.health, strict=False)
        ],
        "readiness": [
            asdict(readiness) | {"name": check.name, "check": describe(check)}
            for check, readiness in zip(spec.readiness_checks, status.readiness, strict=False)
        ],
        "paused": status.paused,
        "refused": status.refused,
        "network": spec.network,
        "resources": resources_json(spec.resources),
        "limits": limits_json(usage),
        "usage": usage_json(usage),
    }


def limits_json(usage: Usage) -> dict[str, float | None]:
    return {
        "cpus": usage.cpu_limit,
        "mem_bytes": usage.mem_limit_bytes,
        "disk_bytes": usage.disk_limit_bytes,
        "pids": usage.pids_limit,
    }


def usage_json(usage: Usage) -> dict[str, float]:
    return {
        "cpu_s": usage.cpu_s,
        "cpu_throttled_s": usage.cpu_throttled_s,
        "mem_bytes": usage.mem_bytes,
        "mem_peak_bytes": usage.mem_peak_bytes,
        "io_read_bytes": usage.io_read_bytes,
        "io_write_bytes": usage.io_write_bytes,
        "disk_bytes": usage.disk_bytes,
        "pids": usage.pids,
        "net_received_bytes": usage.net_received_bytes,
        "net_sent_bytes": usage.net_sent_bytes,
        "net_received_packets": usage.net_received_packets,
        "net_sent_packets": usage.net_sent_packets,
        "net_received_dropped": usage.net_received_dropped,
        "net_sent_dropped": usage.net_sent_dropped,
    }


def resources_json(resources: Resources) -> dict[str, float]:
    return {"cpus": resources.cpus / 1000, "mem": resources.mem, "disk": resources.disk, "gpus": resources.gpus}
