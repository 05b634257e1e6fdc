"""A task that has left its VIPs goes on while somebody is still connected to it, for as long as its ports' labels allow
(`tepui/drain`). Only then is it asked to end.

Clients elsewhere may have sent a first packet just before their node heard of it, so for a moment it goes on anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from agent.checkpoint import TaskRecord
from agent.containers import Containers
from agent.launcher.record import Exit
from isolators.base import IsolatorError
from model.task import Port
from model.vip import is_vip_label, parse_drain

log = structlog.get_logger()

SETTLE_S = 0.5
POLL_S = 0.2


async def drain(
    containers: Containers,
    record: TaskRecord,
    ports: Iterable[Port],
    exited: asyncio.Future[Exit],
    tell: Callable[[str], object],
) -> None:
    """Returns when nobody is connected any more, when patience ran out, or when the container has exited. `ports` are
    those of the task, or of its pod, which has one address."""
    served = [port for port in ports if any(is_vip_label(key) for key, _ in port.labels)]
    if not served:
        return
    patience_s = max(parse_drain(dict(port.labels)) for port in served)
    numbers, container = {port.number for port in served}, containers.container(record)
    loop, said = asyncio.get_running_loop(), 0
    end = loop.time() + patience_s
    await asyncio.wait({exited}, timeout=SETTLE_S)
    while not exited.done() and loop.time() < end:
        try:
            count = await containers.connections(container, numbers)
        except IsolatorError as error:
            log.warning("not waiting for connections", task=record.spec.id, reason=str(error))
            return
        if not count:
            return
        if count != said:
            tell(f"waiting for {count} open connection{'s' if count > 1 else ''}, for {patience_s} s at most")
            said = count
        await asyncio.wait({exited}, timeout=POLL_S)
