"""Brings every task on this node from what it is to what the master wants, one operation at a time.

Reads: the assignments (`assign`, `withdraw`), the checkpoint, the exit of containers. Writes: the checkpoint, before
the kernel; containers; and every observation to `report`, which sees to it that the master hears of it.

Each task has a loop of its own that calls `step` until the task is over. A step looks at the record, does the one
operation that its state asks for, and returns the next record. What must be on disk when:

    ACCEPTED   before anything is done, so that the task is not forgotten
    STARTING   with its addresses, before exec; the keeper notes that exec is due, so that it never runs twice
    kill       before the signal, so that it is not restarted or reported as a failure
    ended      how, before it is cleared away, and with it what the keeper noted
    the end    after everything was cleared away, before it is reported

RUNNING itself needs no note of ours: it follows from STARTING and the keeper's note.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog

from agent.checkpoint import Checkpoint, TaskRecord
from agent.containers import Containers
from agent.launcher.client import Launch, LaunchError
from agent.launcher.record import STARTING, Exit
from agent.provision import is_due
from isolators.base import Container, IsolatorError, Limit, Unsupported
from model.resources import Resources, describe
from model.task import TASK_ID, TaskSpec, TaskState, TaskStatus, Usage
from netns.driver import NetworkError

log = structlog.get_logger()

# User ids of containers: above what distributions give to users and their sub-ids, below 2**31.
ID_RANGE_START = 1 << 20
ID_RANGE_SIZE = 1 << 16
ID_RANGES = (1 << 31) // ID_RANGE_SIZE - ID_RANGE_START // ID_RANGE_SIZE
LAUNCHES_AT_ONCE = 8
KILL_DEADLINE_S = 10.0  # after SIGKILL
ABORT_DEADLINE_S = 5.0  # for a keeper that lost its agent before the start
CLEANUP_TRIES = 3
RETRY_S = 1.0  # after the disk, or a step, failed

Report = Callable[[TaskStatus], None]


class Reconciler:
    """`ready` is awaited before a container is made: the node's networks must be there."""

    def __init__(
        self,
        containers: Containers,
        checkpoint: Checkpoint,
        boot_id: str,
        capacity: Resources,
        report: Report,
        ready: asyncio.Event,
    ) -> None:
        self._containers = containers
        self._checkpoint = checkpoint
        self._boot_id = boot_id
        self._capacity = capacity
        self._report = report
        self._ready = ready
        self._records: dict[str, TaskRecord] = {}
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._kills: dict[str, asyncio.Event] = {}
        self._withdrawn: set[str] = set()
        self._launching = asyncio.Semaphore(LAUNCHES_AT_ONCE)

    async def recover(self) -> None:
        """Read the books, find the containers that run, clear away everything else, and go on with every task."""
        self._records = self._checkpoint.load()
        known = [self._container(record) for record in self._records.values() if not record.over]
        await self._containers.recover(known)
        for record in list(self._records.values()):
            if not record.over:
                await self._try_resume(record)

    async def close(self) -> None:
        """Stop looking after the tasks. Containers go on."""
        for loop in self._loops.values():
            loop.cancel()
        await asyncio.gather(*self._loops.values(), return_exceptions=True)

    def statuses(self) -> list[TaskStatus]:
        return [record.status for record in self._records.values()]

    def over(self, task_id: str) -> bool:
        """Whether nothing more will come of the task: it has ended, or is not known."""
        record = self._records.get(task_id)
        return record is None or record.over

    def assign(self, task: TaskSpec, kill: bool) -> None:
        """The master wants this task, or its end. Returns when that is on disk."""
        record = self._records.get(task.id)
        if record is None:
            self._accept(task, kill)
        elif kill and not record.kill and not record.over:
            self._save(dataclasses.replace(record, kill=True))
            self._kills[task.id].set()

    def withdraw(self, task_id: str) -> None:
        """The master no longer knows this task: end it if it runs, and forget it."""
        record = self._records.get(task_id)
        if record is None:
            return
        if record.over:
            self._forget(task_id)
        else:
            self._withdrawn.add(task_id)
            self.assign(record.spec, kill=True)

    def withdraw_others(self, wanted: set[str]) -> None:
        for task_id in self._records.keys() - wanted:
            self.withdraw(task_id)

    def acknowledged(self, task_id: str, sequence: int) -> None:
        record = self._records.get(task_id)
        if record is not None and sequence > record.acknowledged:
            self._records[task_id] = dataclasses.replace(record, acknowledged=sequence)

    def unacknowledged(self, task_id: str) -> TaskStatus | None:
        record = self._records.get(task_id)
        return record.status if record is not None and record.status.sequence > record.acknowledged else None

    def _accept(self, task: TaskSpec, kill: bool) -> None:
        if not TASK_ID.fullmatch(task.id):
            raise ValueError(f"task {task.id!r}: not a task id")
        status = TaskStatus(task.id, TaskState.ACCEPTED, sequence=1, at=time.time())
        self._save(TaskRecord(task, status, self._boot_id, self._free_id_base(), kill))
        self._report(status)
        self._look_after(task.id)

    def _look_after(self, task_id: str) -> None:
        kill = self._kills[task_id] = asyncio.Event()
        if self._records[task_id].kill:
            kill.set()
        self._loops[task_id] = asyncio.create_task(self._run(task_id), name=task_id)

    async def _run(self, task_id: str) -> None:
        while not (record := self._records[task_id]).over:
            try:
                await self.step(record)
            except Exception:  # a fault of ours must not leave a task that nobody looks after
                log.exception("step failed, trying again", task=task_id, state=record.status.state.name)
                await asyncio.sleep(RETRY_S)
        del self._loops[task_id], self._kills[task_id]
        if task_id in self._withdrawn:
            self._forget(task_id)

    async def step(self, record: TaskRecord) -> None:
        """One operation, the one that is due; the record that results is in the books afterwards."""
        match record.status.state:
            case _ if record.end is not None:
                await self._clear(record, record.end)
            case TaskState.ACCEPTED:
                await self._begin(record)
            case TaskState.PREPARING:
                await self._launch(record)
            case TaskState.STARTING:
                await self._end(record, TaskState.FAILED, "its start did not come to an end")
            case TaskState.RUNNING:
                await self._await_end(record)
            case TaskState.KILLING:
                await self._kill(record)
            case state:
                raise AssertionError(f"task {record.spec.id}: nothing leads on from {state.name}")

    async def _begin(self, record: TaskRecord) -> None:
        await _either(self._ready.wait(), self._kills[record.spec.id].wait())
        if self._records[record.spec.id].kill:
            await self._end(record, TaskState.KILLED, "killed before it was started")
        elif shortage := self._capacity.shortage(record.spec.resources):
            lacking = ", ".join(describe(kind, amount) for kind, amount in shortage.items())
            await self._end(record, TaskState.REJECTED, f"this node has {lacking} too little, even when empty")
        else:
            self._observe(record, TaskState.PREPARING)

    async def _launch(self, record: TaskRecord) -> None:
        container = self._container(record)
        try:
            if is_due(record.spec):
                container = await self._provided(record, container)
                record = self._records[record.spec.id]
            if record.kill:
                return await self._end(record, TaskState.KILLED, "killed before it was started")
            async with self._launching:
                await self._containers.prepare(container)
                launch, addresses = await self._containers.create(container)
                await self._start(record, launch, tuple(map(str, addresses)))
        except Unsupported as error:
            await self._end(record, TaskState.REJECTED, str(error))
        except LaunchError as error:
            await self._end(record, TaskState.FAILED, self._containers.explain(container, error))
        except (IsolatorError, NetworkError, OSError) as error:
            await self._end(record, TaskState.FAILED, str(error))

    async def _provided(self, record: TaskRecord, container: Container) -> Container:
        """As it was, when the task is killed meanwhile."""
        task_id = record.spec.id
        providing = asyncio.ensure_future(self._containers.provide(container, partial(self._tell, task_id)))
        killed = asyncio.ensure_future(self._kills[task_id].wait())
        try:
            await asyncio.wait({providing, killed}, return_when=asyncio.FIRST_COMPLETED)
            if not providing.done():
                return container
            self._tell(task_id, "")
            return providing.result()
        finally:
            killed.cancel()
            providing.cancel()
            await asyncio.wait({providing})

    def _tell(self, task_id: str, message: str) -> None:
        """What takes so long."""
        record = self._records[task_id]
        if message != record.status.message:
            self._observe(record, TaskState.PREPARING, message=message)

    async def _start(self, record: TaskRecord, launch: Launch, addresses: tuple[str, ...]) -> None:
        try:
            starting = self._observe(record, TaskState.STARTING, addresses=addresses, pid=launch.pid)
            self._checkpoint.save(starting)
            await launch.start()
        except BaseException:
            await launch.abort()
            raise
        usage = await self._containers.usage(self._container(record))
        self._observe(starting, TaskState.RUNNING, usage=usage)

    async def _await_end(self, record: TaskRecord) -> None:
        container = self._container(record)
        exited = asyncio.ensure_future(self._containers.exited(container))
        limited = asyncio.ensure_future(self._containers.watch(container))
        await _either(exited, limited, self._kills[record.spec.id].wait())
        if exited.done() and not exited.cancelled():
            await self._exited(record, exited.result())
        elif limited.done() and not limited.cancelled():
            await self._end_limited(record, limited.result())
        else:
            self._observe(record, TaskState.KILLING)

    async def _end_limited(self, record: TaskRecord, limit: Limit) -> None:
        """A container that is over a limit has lost a process, or disturbs others: it ends as a whole, at once."""
        container = self._container(record)
        self._containers.signal(container, signal.SIGKILL)
        try:
            end = await asyncio.wait_for(self._containers.exited(container), KILL_DEADLINE_S)
        except TimeoutError:
            log.error("container survives SIGKILL, trying again", task=record.spec.id, limit=limit.reason)
        else:
            await self._exited(record, end, limit)

    async def _kill(self, record: TaskRecord) -> None:
        """SIGTERM, the task's grace, SIGKILL."""
        container = self._container(record)
        exited = asyncio.ensure_future(self._containers.exited(container))
        try:
            for number, patience in ((signal.SIGTERM, record.spec.kill_grace_s), (signal.SIGKILL, KILL_DEADLINE_S)):
                self._containers.signal(container, number)
                await asyncio.wait({exited}, timeout=patience)
                if exited.done():
                    return await self._exited(record, exited.result())
        finally:
            exited.cancel()
        log.error("container survives SIGKILL, trying again", task=record.spec.id, pid=record.status.pid)

    async def _exited(self, record: TaskRecord, end: Exit, limit: Limit | None = None) -> None:
        container = self._container(record)
        limit = limit or await self._containers.exceeded(container)  # it may have ended before the watch could tell
        usage = await self._last_usage(record, container)
        if self._records[record.spec.id].kill:
            await self._end(record, TaskState.KILLED, describe_exit(end), end.code, usage)
        elif limit is not None:
            await self._end(record, TaskState.FAILED, limit.reason, end.code, usage)
        else:
            state = TaskState.FINISHED if end.code == 0 else TaskState.FAILED
            await self._end(record, state, describe_exit(end), end.code, usage)

    async def _last_usage(self, record: TaskRecord, container: Container) -> Usage:
        """What it has used in all: the peak of its memory is of interest when it is over."""
        try:
            return await self._containers.usage(container)
        except IsolatorError as error:
            log.warning("last usage not read", task=record.spec.id, error=str(error))
            return record.status.usage

    async def _end(
        self,
        record: TaskRecord,
        state: TaskState,
        reason: str,
        exit_code: int | None = None,
        usage: Usage | None = None,
    ) -> None:
        before = self._records[record.spec.id].status
        end = _next(before, state, reason=reason, exit_code=exit_code, usage=usage or before.usage)
        await self._write_down(record.spec.id, end=end)
        await self._clear(record, end)

    async def _clear(self, record: TaskRecord, end: TaskStatus) -> None:
        for _ in range(CLEANUP_TRIES):
            if await self._cleaned(record):
                break
            await asyncio.sleep(RETRY_S)
        await self._write_down(record.spec.id, status=end)
        self._report(end)

    async def _cleaned(self, record: TaskRecord) -> bool:
        """What can not be cleared away at all is found as an orphan at the next start."""
        complete = True
        try:
            await self._containers.cleanup(self._container(record))
        except* (IsolatorError, NetworkError, OSError) as group:
            complete = False
            for error in group.exceptions:
                log.error("clean-up incomplete", task=record.spec.id, error=str(error))
        return complete

    async def _try_resume(self, record: TaskRecord) -> None:
        """One container that resists must not keep the others from being looked after."""
        try:
            await self._resume(record)
        except (IsolatorError, OSError, ExceptionGroup) as error:
            log.error("resume failed", task=record.spec.id, error=str(error))
            await self._end(record, TaskState.FAILED, f"the agent was restarted, and could not go on: {error}")
        if not self._records[record.spec.id].over:
            self._look_after(record.spec.id)

    async def _resume(self, record: TaskRecord) -> None:
        """After a restart of the agent, or of the node."""
        container = self._container(record)
        keeper = self._containers.keeper(container)
        if record.end is not None:
            await self._clear(record, record.end)
        elif record.boot_id != self._boot_id:
            await self._end(record, TaskState.LOST, "the node was restarted")
        elif keeper is not None and keeper.phase == STARTING:
            # It runs, or has ended since: `step` will see.
            usage = await self._containers.usage(container)
            self._observe(record, TaskState.RUNNING, usage=usage)
        elif keeper is None and record.status.state >= TaskState.STARTING:
            await self._end(record, TaskState.FAILED, "it may have run, and what its keeper noted is lost")
        else:
            if keeper is not None:
                async with asyncio.timeout(ABORT_DEADLINE_S):
                    await self._containers.exited(container)
            await self._containers.cleanup(container)
            self._observe(record, TaskState.ACCEPTED)

    def _observe(self, record: TaskRecord, state: TaskState, **seen: Any) -> TaskRecord:
        """The books, in memory, with what was just seen (fields of the status), and tell it."""
        status = _next(record.status, state, **seen)
        after = dataclasses.replace(self._records[record.spec.id], status=status)
        self._records[record.spec.id] = after
        self._report(status)
        return after

    async def _write_down(self, task_id: str, **fields: Any) -> None:
        """Save the record with these fields: nobody may hear of them before, so this waits for a disk that is full."""
        while True:
            try:
                return self._save(dataclasses.replace(self._records[task_id], **fields))
            except OSError as error:
                log.error("checkpoint not written, trying again", task=task_id, error=str(error))
            await asyncio.sleep(RETRY_S)

    def _save(self, record: TaskRecord) -> None:
        self._checkpoint.save(record)
        self._records[record.spec.id] = record

    def _forget(self, task_id: str) -> None:
        self._containers.forget(task_id)
        self._checkpoint.forget(task_id)
        self._records.pop(task_id, None)
        self._withdrawn.discard(task_id)

    def _container(self, record: TaskRecord) -> Container:
        return self._containers.container(record.spec, record.id_base)

    def _free_id_base(self) -> int:
        taken = {record.id_base for record in self._records.values()}
        bases = (ID_RANGE_START + index * ID_RANGE_SIZE for index in range(ID_RANGES))
        return next(base for base in bases if base not in taken)


def describe_exit(end: Exit) -> str:
    if end.lost:
        return "its exit code is lost: the keeper was killed"
    if end.error:
        return end.error
    if end.signal is not None:
        return f"killed by {_signal_name(end.signal)}"
    return f"exited with {end.code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of the real-time signals only the first and the last have a name
        return f"signal {number}"


def _next(status: TaskStatus, state: TaskState, **seen: Any) -> TaskStatus:
    """The observation that follows. The count goes on when a task begins again: the master acknowledged up to there."""
    return dataclasses.replace(status, state=state, sequence=status.sequence + 1, at=time.time(), **seen)


async def _either(*waits: Awaitable[object]) -> None:
    """Until the first of them is done; the others are cancelled."""
    futures = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in futures:
            future.cancel()
