"""This node's metrics for Prometheus, on loopback: `http://127.0.0.1:PORT/metrics`.

On loopback since they tell what runs here, and a scraper on the node needs no certificate; containers have a loopback
of their own. From elsewhere the master has the containers' (`/metrics` of its API).
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import structlog

from agent.reconciler import Reconciler
from agent.usage import Sampler
from model.metrics import CONTENT_TYPE, Family, Kind, Labels, container_families, expose, gauge

log = structlog.get_logger()

ADDRESS = "127.0.0.1"
REQUEST_DEADLINE_S = 5.0
REQUEST_BYTES = 8192
MEMORY = {"MemTotal": "node_memory_MemTotal_bytes", "MemAvailable": "node_memory_MemAvailable_bytes"}

Render = Callable[[], str]


async def serve(port: int, render: Render) -> None:
    """Until cancelled. Nothing else of the agent needs this: a port that is taken is said, and no more."""
    try:
        server = await asyncio.start_server(partial(_answer, render), ADDRESS, port, limit=REQUEST_BYTES)
    except OSError as error:
        log.error("no metrics", address=ADDRESS, port=port, error=str(error))
        return
    async with server:
        await server.serve_forever()


async def _answer(render: Render, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request a connection: whoever scrapes comes back in some seconds."""
    try:
        async with asyncio.timeout(REQUEST_DEADLINE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            found = head.split(b" ", 2)[:2] == [b"GET", b"/metrics"]
            writer.write(_response("200 OK", render()) if found else _response("404 Not Found", "see /metrics\n"))
            await writer.drain()
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        return  # it is gone, or sends something else than a request
    finally:
        writer.close()


def _response(status: str, body: str) -> bytes:
    data = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


def render(reconciler: Reconciler, sampler: Sampler, state: Path) -> str:
    owners = {container.task.id: container.task.owner for container in reconciler.living()}
    return expose(
        (
            *node_families(Path("/proc"), state),
            _tasks(reconciler),
            *container_families((_labels(owners, task_id), usage) for task_id, usage in sampler.usages.items()),
        )
    )


def node_families(proc: Path, state: Path) -> Iterator[Family]:
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name in MEMORY:
            yield gauge(MEMORY[name], f"{name} of /proc/meminfo.", int(amount.split()[0]) * 1024)
    yield gauge("node_load1", "Processes that run or wait for a disk, over a minute.", _load(proc))
    disk = os.statvfs(state)
    labels = {"mountpoint": str(state)}
    yield gauge("node_filesystem_size_bytes", "Where the agent keeps things.", disk.f_blocks * disk.f_frsize, **labels)
    yield gauge("node_filesystem_avail_bytes", "Of that, what is free.", disk.f_bavail * disk.f_frsize, **labels)


def _load(proc: Path) -> float:
    return float((proc / "loadavg").read_text().split()[0])


def _tasks(reconciler: Reconciler) -> Family:
    counts = Counter(status.state.name for status in reconciler.books.statuses())
    samples = tuple(((("state", state),), float(count)) for state, count in sorted(counts.items()))
    return Family("tepui_agent_tasks", Kind.GAUGE, "Tasks on this node, by state.", samples)


def _labels(owners: dict[str, str], task_id: str) -> Labels:
    return (("task", task_id), ("owner", owners.get(task_id, "")))
