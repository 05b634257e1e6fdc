"""What one step does to a task.

`step` looks at the record and does the one operation that its state asks for. That may take as long as the task runs.
It is called for many tasks at once, but never twice at once for one. What goes wrong with a task becomes its end;
what `step` raises is a fault of ours: called again, with the record as it is then, it goes on from there.

`resume` is for a record of an agent before this one, before the first step: it finds out what is left of the task.

    ACCEPTED    begin: wait for the node's networks, and refuse what can not run here
    PREPARING   launch (`agent/first_steps.py`)
    RUNNING     adjust, if that is wanted; else wait for the end, and have the task checked meanwhile
    KILLING     kill (`agent/last_steps.py`)
    any         clear away, once it is known how the task ended (`agent/last_steps.py`)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from agent.adjust import adjust, thaw
from agent.books import Books
from agent.checkpoint import TaskRecord
from agent.commands import Commands
from agent.containers import Containers
from agent.first_steps import FirstSteps, Killed
from agent.health.checks import Checks, Results, known
from agent.health.probe import Prober, Target
from agent.last_steps import LastSteps
from agent.launcher.client import LaunchError
from agent.launcher.record import STARTING, Keeper, running_for
from agent.pods import PodEnded, Pods, absent
from isolators.base import Container, IsolatorError, Unsupported
from model.adjustment import Adjustment
from model.health import well
from model.resources import Resources, describe
from model.signals import parse_signal
from model.task import TaskSpec, TaskState
from netns.driver import NetworkError


class Steps:
    """`ready` is awaited before a container is made: the node's networks must be there."""

    def __init__(
        self,
        containers: Containers,
        books: Books,
        pods: Pods,
        first: FirstSteps,
        last: LastSteps,
        capacity: Resources,
        ready: asyncio.Event,
    ) -> None:
        self._containers = containers
        self._books = books
        self._pods = pods
        self._first = first
        self._last = last
        self._capacity = capacity
        self._ready = ready
        self._checks = Checks(Prober(Commands(containers, containers.launcher)))

    async def step(self, record: TaskRecord) -> None:
        """One operation, the one that is due; the record that results is in the books afterwards."""
        match record.status.state:
            case _ if record.end is not None:
                await self._last.clear(record, record.end)
            case TaskState.ACCEPTED:
                await self._begin(record)
            case TaskState.PREPARING:
                await self._launch(record)
            case TaskState.STARTING:
                await self._last.end(record, TaskState.FAILED, "its start did not come to an end")
            case TaskState.RUNNING if record.adjustment is not None and not record.kill:
                await self._adjust(record, record.adjustment)
            case TaskState.RUNNING:
                await self._await_end(record)
            case TaskState.KILLING:
                await self._last.kill(record)
            case state:
                raise AssertionError(f"task {record.spec.id}: nothing leads on from {state.name}")

    async def resume(self, record: TaskRecord) -> None:
        """After a restart of the agent, or of the node. Raises IsolatorError, OSError or ExceptionGroup when it can
        not be found out."""
        container = self._containers.container(record)
        keeper = self._containers.keeper(container) if record.container else None
        if record.end is not None:
            await self._last.clear(record, record.end)
        elif record.boot_id != self._books.boot_id:
            await self._last.end(record, TaskState.LOST, "the node was restarted")
        elif keeper is not None and keeper.phase == STARTING:
            # It runs, or has ended since: `step` will see.
            if record.holder:
                self._pods.started(record.spec)
            self._books.observe(record.spec.id, TaskState.RUNNING, **await self._found(record, container, keeper))
        elif record.container and keeper is None:
            await self._last.end(record, TaskState.FAILED, "it may have run, and what its keeper noted is lost")
        elif record.container:
            await self._first.begin_again(record, container)

    async def _found(self, record: TaskRecord, container: Container, keeper: Keeper) -> dict[str, Any]:
        """What is seen of a container that an earlier agent has started."""
        seen: dict[str, Any] = {"usage": await self._containers.usage(container), "pid": None}
        if keeper.container is not None:
            seen["pid"] = keeper.container.pid
            if record.status.state is not TaskState.RUNNING:  # that it is, was not written down
                seen["since"] = time.time() - running_for(keeper)
        return seen

    async def _begin(self, record: TaskRecord) -> None:
        task_id = record.spec.id
        if not self._ready.is_set():
            await _either(self._ready.wait(), self._books.wanted[task_id].end.wait())
        if self._books.records[task_id].kill:
            await self._last.end(record, TaskState.KILLED, "killed before it was started")
        elif shortage := self._capacity.shortage(record.spec.resources):
            lacking = ", ".join(describe(kind, amount) for kind, amount in shortage.items())
            await self._last.end(record, TaskState.REJECTED, f"this node has {lacking} too little, even when empty")
        elif missing := absent(record.spec, self._books.records):
            await self._last.end(record, TaskState.FAILED, f"{', '.join(missing)} of its pod did not come with it")
        elif problem := _unstoppable(record.spec):
            await self._last.end(record, TaskState.REJECTED, problem)
        else:
            self._books.observe(task_id, TaskState.PREPARING)

    async def _launch(self, record: TaskRecord) -> None:
        try:
            await self._first.launch(record)
        except (Killed, PodEnded) as error:
            await self._last.end(record, TaskState.KILLED, str(error))
        except Unsupported as error:
            await self._last.end(record, TaskState.REJECTED, str(error))
        except LaunchError as error:
            if not await self._first.tried_again(record, error):
                await self._last.end(record, TaskState.FAILED, str(error))
        except (IsolatorError, NetworkError, OSError) as error:
            await self._last.end(record, TaskState.FAILED, str(error))

    async def _adjust(self, record: TaskRecord, adjustment: Adjustment) -> None:
        task_id = record.spec.id
        self._books.wanted[task_id].adjustment.clear()
        after, refused = await adjust(self._containers, record, adjustment, self._capacity)
        usage = await self._containers.usage(self._containers.container(after))
        latest = self._books.records[task_id]
        paused = record.status.paused if refused else adjustment.paused
        status = self._books.next(
            latest.status,
            TaskState.RUNNING,
            usage=usage,
            paused=paused,
            adjustment=adjustment.number,
            refused=refused,
        )
        waiting = None if latest.adjustment == adjustment else latest.adjustment  # a greater one came meanwhile
        await self._books.write_down(task_id, spec=after.spec, status=status, adjustment=waiting)
        self._books.report(status)

    async def _await_end(self, record: TaskRecord) -> None:
        container, wanted = self._containers.container(record), self._books.wanted[record.spec.id]
        exited = asyncio.ensure_future(self._containers.exited(container))
        limited = asyncio.ensure_future(self._containers.watch(container))
        with self._checking(record, container):
            await _either(exited, limited, wanted.end.wait(), wanted.adjustment.wait())
        if exited.done() and not exited.cancelled():
            await self._last.exited(record, exited.result())
        elif limited.done() and not limited.cancelled():
            await self._last.end_limited(record, limited.result())
        elif wanted.end.is_set():
            await thaw(self._containers, self._books.records[record.spec.id])
            self._books.observe(record.spec.id, TaskState.KILLING, paused=False)

    def _checking(self, record: TaskRecord, container: Container) -> AbstractContextManager[None]:
        """A task that is paused is asked nothing: it could not answer."""
        keeper = self._containers.keeper(container)
        if record.status.paused or keeper is None or keeper.container is None:
            return contextlib.nullcontext()
        target = Target(container, keeper.container, record.status.addresses)
        results = known(record.spec, record.status.health, record.status.readiness)
        tell = partial(self._checked, record.spec.id)
        return self._checks.watching(record.spec, target, partial(running_for, keeper), results, tell)

    def _checked(self, task_id: str, results: Results) -> None:
        """Something about its health changed."""
        seen = {"health": results.health, "readiness": results.readiness}
        self._books.observe_health(task_id, healthy=well(results.health), **seen)


def _unstoppable(task: TaskSpec) -> str:
    """Why it could not be asked to end; empty when it could."""
    try:
        parse_signal(task.kill_signal)
    except ValueError as error:
        return f"kill signal: {error}"
    return ""


async def _either(*waits: Awaitable[object]) -> None:
    """Until the first of them is done; the others are cancelled."""
    futures = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in futures:
            future.cancel()
