"""The steps of a task on its way to its program: a sandbox, what has to be brought to the node, and exec.

A sandbox that is ready is claimed the moment the task is accepted, so that both go to disk together. Everything up to
exec is done to the sandbox, and while the disk is still busy; exec alone waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import structlog

from agent.books import Books
from agent.checkpoint import TaskRecord
from agent.containers import Containers, Made
from agent.launcher.client import LaunchError
from agent.pods import Pods
from agent.provision import Provided
from agent.sandboxes import Sandboxes
from isolators.base import Container
from model.task import TaskSpec, TaskState, TaskStatus

log = structlog.get_logger()

LAUNCHES_AT_ONCE = 8
ABORT_DEADLINE_S = 5.0  # for a keeper that lost its agent before the start
SANDBOX_TRIES = 3  # of a task whose sandboxes are killed before its program runs


class Killed(Exception):
    """The master wants the end of a task that was not started yet."""


class FirstSteps:
    """`made`: the sandboxes of tasks that are not started yet, by their ids."""

    def __init__(self, containers: Containers, sandboxes: Sandboxes, books: Books, pods: Pods) -> None:
        self.made: dict[str, Made] = {}
        self._containers = containers
        self._sandboxes = sandboxes
        self._books = books
        self._pods = pods
        self._tried: Counter[str] = Counter()  # sandboxes that ended before the task's program ran
        self._launching = asyncio.Semaphore(LAUNCHES_AT_ONCE)

    def claim(self, record: TaskRecord) -> TaskRecord:
        """The first record of a task, with a sandbox if one is ready that it can have."""
        task = record.spec
        made = None if record.kill or record.end is not None or task.pod else self._sandboxes.take_for(task)
        if made is None:
            return record
        self.made[task.id] = made
        return dataclasses.replace(record, **_place(record.status, made))

    async def launch(self, record: TaskRecord) -> None:
        """From PREPARING to RUNNING. Raises Killed, PodEnded, LaunchError, IsolatorError (Unsupported, if that is what
        the task asks for), NetworkError or OSError; the task has still got its sandbox then."""
        async with self._turn(record.spec):
            made = self.made.get(record.spec.id) or await self._make(record)
            if not record.spec.needs_provision:
                return await self._start(self._books.records[record.spec.id], made, Provided(record.spec))
        await self._provide(record, made)

    async def _make(self, record: TaskRecord) -> Made:
        """None was ready when it was accepted, or it is to be in its pod's."""
        task = record.spec
        if task.pod is not None:
            made = await self._pods.join(task)
        else:
            made = self._sandboxes.take_for(task) or await self._sandboxes.make_for(task)
        self.made[task.id] = made
        await self._books.save_aside(task.id, **_place(record.status, made))
        return made

    async def _provide(self, record: TaskRecord, made: Made) -> None:
        """What it needs is brought to the node, however long that takes; then it starts. Others start meanwhile."""
        task_id = record.spec.id
        providing = asyncio.ensure_future(self._containers.provide(made, record.spec, partial(self._tell, task_id)))
        killed = asyncio.ensure_future(self._books.wanted[task_id].end.wait())
        try:
            await asyncio.wait({providing, killed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            killed.cancel()
            providing.cancel()
            await asyncio.gather(providing, return_exceptions=True)
        if self._books.records[task_id].kill:
            raise Killed("killed before it was started")
        async with self._turn(record.spec):
            await self._start(self._books.records[task_id], made, providing.result())

    def _tell(self, task_id: str, message: str) -> None:
        """What takes so long."""
        if message != self._books.records[task_id].status.message:
            self._books.observe(task_id, TaskState.PREPARING, message=message)

    async def _start(self, record: TaskRecord, made: Made, provided: Provided) -> None:
        task_id = record.spec.id
        self._books.observe(task_id, TaskState.STARTING, message="")
        pid = await self._containers.start(made, provided.task, partial(self._may_start, record.spec), provided.layers)
        if record.spec.pod is not None:
            self._pods.started(record.spec)
        del self.made[task_id]
        usage = await self._containers.usage(self._containers.container(record))
        self._books.observe(task_id, TaskState.RUNNING, usage=usage, pid=pid)

    async def _may_start(self, task: TaskSpec) -> None:
        """When it is on disk."""
        await self._books.saved(task.id)
        if task.pod is not None:
            await self._pods.turn(task)

    def _turn(self, task: TaskSpec) -> AbstractAsyncContextManager[None]:
        """Among those that are launched at once. Who has to wait for others must not keep them out."""
        return self._launching if task.pod is None else contextlib.nullcontext()

    async def tried_again(self, record: TaskRecord, error: LaunchError) -> bool:
        """A sandbox that was killed while it waited is no fault of the task's, which takes another. In a pod it is the
        end of all. False when there is nothing to try again."""
        task_id = record.spec.id
        made, container = self.made.get(task_id), self._containers.container(self._books.records[task_id])
        self._tried[task_id] += 1
        again = made is not None and record.spec.pod is None and self._containers.never_ran(made, error)
        if not again or self._tried[task_id] == SANDBOX_TRIES:
            return False
        log.warning("sandbox was killed before it got its task, taking another", task=task_id, reason=str(error))
        await self._books.saved(task_id)
        del self.made[task_id]
        await self.begin_again(self._books.records[task_id], container)
        return True

    async def begin_again(self, record: TaskRecord, container: Container) -> None:
        """Its sandbox ended before its program ran, by itself or with the agent that had made it."""
        async with asyncio.timeout(ABORT_DEADLINE_S):
            await self._containers.exited(container)
        again = self._books.next(record.status, TaskState.ACCEPTED, addresses=(), pid=None)
        self._books.save(dataclasses.replace(record, status=again, container="", id_base=0, holder="", quota=0))
        await self._containers.cleanup(container.sandbox)
        self._sandboxes.release(container.sandbox)
        self._books.report(again)

    def give_up(self, task_id: str) -> Made | None:
        """The sandbox of a task that will not be started, if it has got one. Accepts being called again, and a task
        that was started."""
        self._tried.pop(task_id, None)
        return self.made.pop(task_id, None)


def _place(status: TaskStatus, made: Made) -> dict[str, Any]:
    """The fields of a record that say where the task is."""
    there = dataclasses.replace(status, addresses=tuple(map(str, made.addresses)), pid=made.launch.pid)
    place = {"status": there, "container": made.sandbox.id, "id_base": made.sandbox.id_base}
    if made.sandbox.holder is not None:
        place |= {"holder": made.sandbox.holder.id, "quota": made.sandbox.quota}
    return place
