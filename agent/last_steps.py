"""The steps of a task that ends: it is killed, or was found to have exited; how it ended is saved, what is left of it
is cleared away, and only then is the end reported.
"""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from agent.adjust import thaw
from agent.books import Books
from agent.checkpoint import TaskRecord
from agent.containers import Containers
from agent.drain import drain
from agent.first_steps import FirstSteps
from agent.launcher.record import Exit
from agent.pods import Pods
from agent.sandboxes import Sandboxes
from isolators.base import Container, IsolatorError, Limit
from model.signals import parse_signal, signal_name
from model.task import Port, TaskState, TaskStatus, Usage
from netns.driver import NetworkError

log = structlog.get_logger()

KILL_DEADLINE_S = 10.0  # after SIGKILL
CLEANUP_TRIES = 3
RETRY_S = 1.0  # after a clean-up failed


class LastSteps:
    def __init__(
        self, containers: Containers, sandboxes: Sandboxes, books: Books, pods: Pods, first: FirstSteps
    ) -> None:
        self._containers = containers
        self._sandboxes = sandboxes
        self._books = books
        self._pods = pods
        self._first = first

    async def kill(self, record: TaskRecord) -> None:
        """The task's signal, its grace, and SIGKILL until it has ended."""
        stop, grace_s = parse_signal(record.spec.kill_signal), record.spec.kill_grace_s
        container, name = self._containers.container(record), signal_name(stop)
        exited = asyncio.ensure_future(self._containers.exited(container))
        try:
            if not record.fate:  # else the pod's end came before anybody could leave its VIPs
                await drain(self._containers, record, self._ports(record), exited, partial(self._tell, record))
            after = f"at once: nothing in it heeds {name}"
            if self._containers.ask(container, stop):
                after = f"after {grace_s:g} s of grace"
                await self._signalled(record, f"{name} sent, {grace_s:g} s of grace", exited, grace_s)
            if exited.done():
                return await self.exited(record, exited.result())
            while not exited.done():
                self._containers.kill(container)
                await self._signalled(record, f"SIGKILL sent {after}", exited, KILL_DEADLINE_S)
                if not exited.done():
                    log.error("container survives SIGKILL, trying again", task=record.spec.id, pid=record.status.pid)
            await self.exited(record, exited.result(), killed=f"killed with SIGKILL {after}")
        finally:
            exited.cancel()

    def _ports(self, record: TaskRecord) -> list[Port]:
        """All tasks of a pod are asked to end at the same time."""
        members = record.spec.pod.members if record.spec.pod is not None else (record.spec.id,)
        known = [self._books.records[each].spec for each in members if each in self._books.records]
        return [port for spec in known for port in spec.ports]

    def _tell(self, record: TaskRecord, message: str) -> None:
        self._books.observe(record.spec.id, TaskState.KILLING, message=message)

    async def _signalled(
        self, record: TaskRecord, message: str, exited: asyncio.Future[Exit], patience_s: float
    ) -> None:
        """Say so. Returns when the container has exited, or when patience ran out."""
        self._tell(record, message)
        await asyncio.wait({exited}, timeout=patience_s)

    async def end_limited(self, record: TaskRecord, limit: Limit) -> None:
        """A container that is over a limit has lost a process, or disturbs others: it ends as a whole, at once."""
        container = self._containers.container(record)
        self._containers.kill(container)
        await thaw(self._containers, record)
        try:
            end = await asyncio.wait_for(self._containers.exited(container), KILL_DEADLINE_S)
        except TimeoutError:
            log.error("container survives SIGKILL, trying again", task=record.spec.id, limit=limit.reason)
        else:
            await self.exited(record, end, limit)

    async def exited(self, record: TaskRecord, end: Exit, limit: Limit | None = None, killed: str = "") -> None:
        """`limit`: the one that ended it, as far as is known; `killed`: how, when it was killed with SIGKILL."""
        container = self._containers.container(record)
        limit = limit or await self._containers.exceeded(container)  # it may have ended before the watch could tell
        usage = await self._last_usage(record, container)
        if self._books.records[record.spec.id].kill:
            await self.end(record, TaskState.KILLED, killed or describe_exit(end), end.code, usage)
        elif limit is not None:
            await self.end(record, TaskState.FAILED, limit.reason, end.code, usage)
        else:
            state = TaskState.FINISHED if end.code == 0 else TaskState.FAILED
            await self.end(record, state, describe_exit(end), end.code, usage)

    async def _last_usage(self, record: TaskRecord, container: Container) -> Usage:
        """What it has used in all: the peak of its memory is of interest when it is over."""
        try:
            return await self._containers.usage(container)
        except IsolatorError as error:
            log.warning("last usage not read", task=record.spec.id, error=str(error))
            return record.status.usage

    async def end(
        self,
        record: TaskRecord,
        state: TaskState,
        reason: str,
        exit_code: int | None = None,
        usage: Usage | None = None,
    ) -> None:
        latest = self._books.records[record.spec.id]
        before = latest.status
        if state is TaskState.KILLED and latest.fate:
            reason = latest.fate
        end = self._books.next(
            before, state, reason=reason, message="", exit_code=exit_code, usage=usage or before.usage
        )
        await self._books.write_down(record.spec.id, end=end)
        self._pods.find_fate(self._books.records[record.spec.id])
        await self.clear(record, end)

    async def clear(self, record: TaskRecord, end: TaskStatus) -> None:
        """The end is on disk already."""
        for _ in range(CLEANUP_TRIES):
            if await self._cleaned(record):
                break
            await asyncio.sleep(RETRY_S)
        self._containers.let_logs_age(record.spec.id)
        await self._books.write_down(record.spec.id, status=end)
        self._books.report(end)

    async def _cleaned(self, record: TaskRecord) -> bool:
        """What can not be cleared away at all is found as an orphan at the next start."""
        complete = True
        for work in (partial(self._clean, record.spec.id), partial(self._pods.leave, record.spec)):
            try:
                await work()
            except* (IsolatorError, NetworkError, OSError) as group:
                complete = False
                for error in group.exceptions:
                    log.error("clean-up incomplete", task=record.spec.id, error=str(error))
        return complete

    async def _clean(self, task_id: str) -> None:
        made = self._first.give_up(task_id)
        record = self._books.records[task_id]
        if made is None and not record.container:
            return
        sandbox = made.sandbox if made is not None else self._containers.container(record).sandbox
        if made is not None:
            await made.launch.abort()
        await self._containers.cleanup(sandbox)
        self._sandboxes.release(sandbox)


def describe_exit(end: Exit) -> str:
    if end.lost:
        return "its exit code is lost: the keeper was killed"
    if end.error:
        return end.error
    if end.signal is not None:
        return f"killed by {signal_name(end.signal)}"
    return f"exited with {end.code}"
