"""Adjusts a container that runs: its limits and whether it is paused, in place, all of it or nothing.

The adjustment is in the task's record on disk before this is called. Whatever was done of it before the agent was
killed is done again: each step sets a state, whatever that was before.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from agent.checkpoint import TaskRecord
from agent.containers import Containers
from isolators.base import Container, IsolatorError
from model.adjustment import Adjustment, adjusted
from model.resources import Resources, describe

log = structlog.get_logger()


def outdated(record: TaskRecord, adjustment: Adjustment) -> bool:
    """Whether it was dealt with already, or is about to be."""
    waiting = record.adjustment.number if record.adjustment is not None else 0
    return adjustment.number <= max(record.status.adjustment, waiting)


async def adjust(
    containers: Containers, record: TaskRecord, adjustment: Adjustment, capacity: Resources
) -> tuple[TaskRecord, str]:
    """The record afterwards, with nothing left to adjust, and why it could not be done ("": it was)."""
    before = containers.container(record)
    wanted = replace(record, spec=adjusted(record.spec, adjustment), adjustment=None)
    container = containers.container(wanted)
    if shortage := capacity.shortage(adjustment.resources):
        lacking = ", ".join(describe(kind, amount) for kind, amount in shortage.items())
        return replace(record, adjustment=None), f"this node has {lacking} too little, even when empty"
    try:
        if container.task != before.task:
            await containers.update(container)
        await _freeze(containers, container, adjustment.paused)
    except IsolatorError as error:
        await _restore(containers, before, record.status.paused)
        return replace(record, adjustment=None), str(error)
    return wanted, ""


async def _restore(containers: Containers, container: Container, paused: bool) -> None:
    """To what it had: the kernel had taken that once."""
    try:
        await containers.update(container)
        await _freeze(containers, container, paused)
    except IsolatorError as error:
        log.error("limits not restored", task=container.task.id, error=str(error))


async def _freeze(containers: Containers, container: Container, wanted: bool) -> None:
    if wanted:
        await containers.pause(container)
    else:
        await containers.resume(container)


async def thaw(containers: Containers, record: TaskRecord) -> None:
    """Before a signal: a process that is frozen does not see it, on cgroup version 1 not even SIGKILL."""
    if record.status.paused or record.adjustment is not None:
        container = containers.container(record)
        try:
            await containers.resume(container)
        except IsolatorError as error:
            log.error("not thawed", task=container.task.id, error=str(error))
