"""Brings every task on this node from what it is to what the master wants, one operation at a time.

Reads: the assignments (`assign`, `withdraw`), the checkpoint, the exit of containers. Writes: the checkpoint, before
the kernel; containers; and every observation to `report`, which sees to it that the master hears of it.

A pod's tasks share one fate: with the first that ends all others do, and nobody is asked. It follows from the records,
so an agent that starts comes to the same.

Each task has a loop of its own that calls `step` until the task is over. A step looks at the record, does the one
operation that its state asks for, and returns the next record. What must be on disk when:

    ACCEPTED   before the program runs and before anybody hears of the task, so that it is not forgotten. What is done
               meanwhile is done to a sandbox, which its keeper takes back when the agent ends
    container  which one it is, with its addresses, before exec; the keeper notes that exec is due, so that it never
               runs twice. When a sandbox was ready, this goes down together with ACCEPTED
    kill       before the signal, so that it is not restarted or reported as a failure; for the pod's sake with `fate`
    adjustment before it is done, so that it is done in the end, and after it, with how it went
    ended      how, before it is cleared away, and with it what the keeper noted
    health     when what is known of it changed, so that the next agent goes on from there
    the end    after everything was cleared away, before it is reported

RUNNING itself needs no note of ours: it follows from the container and its keeper's note.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import Any

import structlog

from agent.adjust import adjust, outdated, thaw
from agent.checkpoint import Checkpoint, TaskRecord
from agent.commands import Commands
from agent.containers import Containers, Made
from agent.health.checks import Checks, Results, known
from agent.health.probe import Prober, Target
from agent.launcher.client import LaunchError
from agent.launcher.record import STARTING, Exit, age
from agent.pods import PodEnded, Pods, absent, fate
from agent.provision import Provided
from agent.sandboxes import Sandboxes
from isolators.base import Container, IsolatorError, Limit, Unsupported
from model.adjustment import Adjustment
from model.fit import misfits
from model.health import well
from model.pod import Pod
from model.resources import Resources, describe
from model.signals import parse_signal, signal_name
from model.task import TASK_ID, TaskSpec, TaskState, TaskStatus, Usage
from netns.driver import NetworkError

log = structlog.get_logger()

LAUNCHES_AT_ONCE = 8
SEQUENCE_BITS = 32  # for the observations of one life of an agent; the lives are counted above
KILL_DEADLINE_S = 10.0  # after SIGKILL
ABORT_DEADLINE_S = 5.0  # for a keeper that lost its agent before the start
CLEANUP_TRIES = 3
SANDBOX_TRIES = 3  # of a task whose sandboxes are killed before its program runs
RETRY_S = 1.0  # after the disk, or a step, failed

Report = Callable[[TaskStatus], None]


@dataclasses.dataclass(frozen=True, slots=True)
class PutOff:
    """What the master wants of a task, and why it is not on disk yet."""

    task: TaskSpec
    kill: bool
    adjustment: Adjustment | None
    reason: str


class Reconciler:
    """`ready` is awaited before a container is made: the node's networks must be there."""

    def __init__(
        self,
        containers: Containers,
        sandboxes: Sandboxes,
        checkpoint: Checkpoint,
        boot_id: str,
        capacity: Resources,
        report: Report,
        ready: asyncio.Event,
    ) -> None:
        self._containers = containers
        self._sandboxes = sandboxes
        self._checkpoint = checkpoint
        self._boot_id = boot_id
        self._capacity = capacity
        self._report = report
        self._ready = ready
        self._records: dict[str, TaskRecord] = {}
        self._first_sequence = 0
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._kills: dict[str, asyncio.Event] = {}
        self._adjustments: dict[str, asyncio.Event] = {}
        self._withdrawn: set[str] = set()
        self._made: dict[str, Made] = {}  # sandboxes of tasks that are not started yet
        self._tried: Counter[str] = Counter()  # sandboxes that ended before the task's program ran
        self._saving: dict[str, asyncio.Task[None]] = {}  # tasks that are not on disk yet: nobody hears of them
        self._unsaved: dict[str, str] = {}  # those of them that could not be written, and why
        self._put_off: dict[str, PutOff] = {}
        self._checks = Checks(Prober(Commands(containers, containers.launcher)))
        self._launching = asyncio.Semaphore(LAUNCHES_AT_ONCE)
        self._pods = Pods(containers, sandboxes, self._share_fate)

    async def recover(self) -> None:
        """Read the books, find the containers that run, clear away everything else, and go on with every task."""
        self._first_sequence = self._checkpoint.new_life() << SEQUENCE_BITS
        self._records = self._checkpoint.load()
        records = [record for record in self._records.values() if not record.over]
        known = self._pods.recover(records)
        placed = [record for record in records if record.container]
        known += [self._container(record) for record in placed if self._pods.known(record)]
        unheld = {record.spec.id for record in placed if not self._pods.known(record)}
        for container in known:
            self._sandboxes.occupy(container.sandbox)
        await self._containers.recover(known)
        self._find_fates()  # before anything of a pod goes on that must not
        for record in records:
            await self._try_resume(self._records[record.spec.id], record.spec.id in unheld)
        self._find_fates()  # now that it is known what runs

    async def close(self) -> None:
        """Stop looking after the tasks. Containers go on."""
        works = [*self._loops.values(), *self._saving.values()]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        await self._pods.close()
        self._containers.close()

    def statuses(self) -> list[TaskStatus]:
        return [record.status for task_id, record in self._records.items() if task_id not in self._saving]

    def misfits(self, rights: frozenset[str]) -> list[str]:
        """What of the tasks that are not over no longer fits this node."""
        return misfits([record.spec for record in self._records.values() if not record.over], self._capacity, rights)

    def living(self) -> list[Container]:
        """Those that live, as far as is known."""
        alive = (TaskState.RUNNING, TaskState.KILLING)
        return [self._container(record) for record in self._records.values() if record.status.state in alive]

    def over(self, task_id: str) -> bool:
        """Whether nothing more will come of the task: it has ended, or is not known."""
        record = self._records.get(task_id)
        return record is None or record.over

    def running(self, task_id: str) -> Container | None:
        """The container of a task that runs; None when it does not, or is not known."""
        record = self._records.get(task_id)
        return self._container(record) if record and record.status.state is TaskState.RUNNING else None

    def addresses(self, task_id: str) -> tuple[str, ...]:
        record = self._records.get(task_id)
        return record.status.addresses if record else ()

    def assign(self, task: TaskSpec, kill: bool, adjustment: Adjustment | None = None) -> None:
        """The master wants this task, adjusted so, or its end. It is on disk when `settle` has returned without an
        error; what the disk does not take is put off until it does."""
        self._put_off.pop(task.id, None)
        try:
            self._assign(task, kill, adjustment)
        except OSError as error:
            self._put_off[task.id] = PutOff(task, kill, adjustment, f"task {task.id} is not written down: {error}")

    def _assign(self, task: TaskSpec, kill: bool, adjustment: Adjustment | None) -> None:
        record = self._records.get(task.id)
        if record is None:
            self._accept(task, kill, adjustment)
        elif kill and not record.kill and not record.over:
            killed = dataclasses.replace(record, kill=True)
            if task.id in self._saving:
                self._records[task.id] = killed
            else:
                self._save(killed)
            self._kills[task.id].set()
            if task.pod is not None:  # nobody needs to wait for it any more
                self._pods.end(task.pod, "killed before it was started")
        elif adjustment is not None and not record.over and not outdated(record, adjustment):
            self._save(dataclasses.replace(record, adjustment=adjustment))
            self._adjustments[task.id].set()

    async def settle(self) -> list[str]:
        """Until what was assigned is on disk, or a moment has passed. Returns what is not, in words."""
        for put_off in list(self._put_off.values()):
            self.assign(put_off.task, put_off.kill, put_off.adjustment)
        if self._saving:
            await asyncio.wait(self._saving.values(), timeout=RETRY_S)
        return [*self._unsaved.values(), *(put_off.reason for put_off in self._put_off.values())]

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
        if record is None or task_id in self._saving or record.status.sequence <= record.acknowledged:
            return None
        return record.status

    def _accept(self, task: TaskSpec, kill: bool, adjustment: Adjustment | None) -> None:
        if not TASK_ID.fullmatch(task.id):
            raise ValueError(f"task {task.id!r}: not a task id")
        status = self._next(TaskStatus(task.id, TaskState.ASSIGNED), TaskState.ACCEPTED)
        asked = adjustment if adjustment is not None and adjustment.number else None
        record = TaskRecord(task, status, self._boot_id, kill=kill, adjustment=asked)
        if task.id in self._checkpoint.damaged:
            lost = self._next(status, TaskState.LOST, reason="what was written down of it is damaged: it may have run")
            record = dataclasses.replace(record, end=lost)
        made = None if kill or record.end is not None or task.pod else self._sandboxes.take(task.network)
        if made is not None:
            self._made[task.id] = made
            record = dataclasses.replace(record, **_place(status, made))
        self._records[task.id] = record
        self._saving[task.id] = asyncio.create_task(self._save_first(task.id))
        self._look_after(task.id)

    async def _save_first(self, task_id: str) -> None:
        """Beside the start, which waits for it in the end. The master may ask for the task's end meanwhile."""
        saved = None
        while saved is None or saved.kill != self._records[task_id].kill:
            record = self._records[task_id]
            try:
                await asyncio.to_thread(self._checkpoint.begin(record))
                saved = record
            except OSError as error:
                self._unsaved[task_id] = f"task {task_id} is not written down: {error}"
                log.error("checkpoint not written, trying again", task=task_id, error=str(error))
                await asyncio.sleep(RETRY_S)
        self._unsaved.pop(task_id, None)
        del self._saving[task_id]
        self._report(self._records[task_id].status)

    async def _saved(self, task_id: str) -> None:
        if task_id in self._saving:
            await asyncio.shield(self._saving[task_id])

    def _look_after(self, task_id: str) -> None:
        kill = self._kills[task_id] = asyncio.Event()
        self._adjustments[task_id] = asyncio.Event()
        if self._records[task_id].kill:
            kill.set()
        self._loops[task_id] = asyncio.create_task(self._run(task_id), name=task_id)

    async def _run(self, task_id: str) -> None:
        structlog.contextvars.bind_contextvars(task=task_id)
        while not (record := self._records[task_id]).over:
            try:
                await self.step(record)
            except Exception:  # a fault of ours must not leave a task that nobody looks after
                log.exception("step failed, trying again", task=task_id, state=record.status.state.name)
                await asyncio.sleep(RETRY_S)
        del self._loops[task_id], self._kills[task_id], self._adjustments[task_id], self._tried[task_id]
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
            case TaskState.RUNNING if record.adjustment is not None and not record.kill:
                await self._adjust(record, record.adjustment)
            case TaskState.RUNNING:
                await self._await_end(record)
            case TaskState.KILLING:
                await self._kill(record)
            case state:
                raise AssertionError(f"task {record.spec.id}: nothing leads on from {state.name}")

    async def _begin(self, record: TaskRecord) -> None:
        if not self._ready.is_set():
            await _either(self._ready.wait(), self._kills[record.spec.id].wait())
        if self._records[record.spec.id].kill:
            await self._end(record, TaskState.KILLED, "killed before it was started")
        elif shortage := self._capacity.shortage(record.spec.resources):
            lacking = ", ".join(describe(kind, amount) for kind, amount in shortage.items())
            await self._end(record, TaskState.REJECTED, f"this node has {lacking} too little, even when empty")
        elif missing := absent(record.spec, self._records):
            await self._end(record, TaskState.FAILED, f"{', '.join(missing)} of its pod did not come with it")
        elif problem := _unstoppable(record.spec):
            await self._end(record, TaskState.REJECTED, problem)
        else:
            self._observe(record, TaskState.PREPARING)

    async def _launch(self, record: TaskRecord) -> None:
        try:
            async with self._place(record.spec):
                made = self._made.get(record.spec.id) or await self._make(record)
                if not record.spec.needs_provision:
                    return await self._start(self._records[record.spec.id], made, Provided(record.spec))
            await self._provide(record, made)
        except PodEnded as error:
            await self._end(record, TaskState.KILLED, str(error))
        except Unsupported as error:
            await self._end(record, TaskState.REJECTED, str(error))
        except LaunchError as error:
            await self._not_launched(record, error)
        except (IsolatorError, NetworkError, OSError) as error:
            await self._end(record, TaskState.FAILED, str(error))

    async def _make(self, record: TaskRecord) -> Made:
        """None was ready when it was accepted, or it is to be in its pod's."""
        task = record.spec
        if task.pod is not None:
            made = await self._pods.join(task)
        else:
            made = self._sandboxes.take(task.network) or await self._sandboxes.make(task.network)
        self._made[task.id] = made
        await self._save_aside(record.spec.id, **_place(record.status, made))
        return made

    async def _provide(self, record: TaskRecord, made: Made) -> None:
        """What it needs is brought to the node, however long that takes; then it starts. Others start meanwhile."""
        task_id = record.spec.id
        providing = asyncio.ensure_future(self._containers.provide(made, record.spec, partial(self._tell, task_id)))
        killed = asyncio.ensure_future(self._kills[task_id].wait())
        try:
            await asyncio.wait({providing, killed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            killed.cancel()
            providing.cancel()
            await asyncio.gather(providing, return_exceptions=True)
        if self._records[task_id].kill:
            return await self._end(record, TaskState.KILLED, "killed before it was started")
        async with self._place(record.spec):
            await self._start(self._records[task_id], made, providing.result())

    def _tell(self, task_id: str, message: str) -> None:
        """What takes so long."""
        record = self._records[task_id]
        if message != record.status.message:
            self._observe(record, TaskState.PREPARING, message=message)

    async def _start(self, record: TaskRecord, made: Made, provided: Provided) -> None:
        starting = self._observe(record, TaskState.STARTING, message="")
        pid = await self._containers.start(made, provided.task, partial(self._may_start, record.spec), provided.layers)
        if record.spec.pod is not None:
            self._pods.started(record.spec)
        del self._made[record.spec.id]
        usage = await self._containers.usage(self._container(record))
        self._observe(starting, TaskState.RUNNING, usage=usage, pid=pid)

    async def _not_launched(self, record: TaskRecord, error: LaunchError) -> None:
        """A sandbox that was killed while it waited is no fault of the task's, which takes another. In a pod it is the
        end of all."""
        task_id = record.spec.id
        made, container = self._made.get(task_id), self._container(self._records[task_id])
        self._tried[task_id] += 1
        again = made is not None and record.spec.pod is None and self._containers.never_ran(made, error)
        if not again or self._tried[task_id] == SANDBOX_TRIES:
            return await self._end(record, TaskState.FAILED, str(error))
        log.warning("sandbox was killed before it got its task, taking another", task=task_id, reason=str(error))
        await self._saved(task_id)
        del self._made[task_id]
        await self._begin_again(self._records[task_id], container)

    def _place(self, task: TaskSpec) -> AbstractAsyncContextManager[None]:
        """Among those that are launched at once. Who has to wait for others must not keep them out."""
        return self._launching if task.pod is None else contextlib.nullcontext()

    async def _may_start(self, task: TaskSpec) -> None:
        """When it is on disk."""
        await self._saved(task.id)
        if task.pod is not None:
            await self._pods.turn(task)

    async def _adjust(self, record: TaskRecord, adjustment: Adjustment) -> None:
        self._adjustments[record.spec.id].clear()
        after, refused = await adjust(self._containers, record, adjustment, self._capacity)
        usage = await self._containers.usage(self._container(after))
        latest = self._records[record.spec.id]
        paused = record.status.paused if refused else adjustment.paused
        status = self._next(
            latest.status,
            TaskState.RUNNING,
            usage=usage,
            paused=paused,
            adjustment=adjustment.number,
            refused=refused,
        )
        waiting = None if latest.adjustment == adjustment else latest.adjustment  # a greater one came meanwhile
        await self._write_down(record.spec.id, spec=after.spec, status=status, adjustment=waiting)
        self._report(status)

    async def _await_end(self, record: TaskRecord) -> None:
        container = self._container(record)
        exited = asyncio.ensure_future(self._containers.exited(container))
        limited = asyncio.ensure_future(self._containers.watch(container))
        killed, adjusted = self._kills[record.spec.id], self._adjustments[record.spec.id]
        with self._checking(record, container):
            await _either(exited, limited, killed.wait(), adjusted.wait())
        if exited.done() and not exited.cancelled():
            await self._exited(record, exited.result())
        elif limited.done() and not limited.cancelled():
            await self._end_limited(record, limited.result())
        elif killed.is_set():
            await thaw(self._containers, self._records[record.spec.id])
            self._observe(record, TaskState.KILLING, paused=False)

    def _checking(self, record: TaskRecord, container: Container) -> AbstractContextManager[None]:
        """A task that is paused is asked nothing: it could not answer."""
        keeper = self._containers.keeper(container)
        if record.status.paused or keeper is None or keeper.container is None:
            return contextlib.nullcontext()
        target = Target(container, keeper.container, record.status.addresses)
        results = known(record.spec, record.status.health, record.status.readiness)
        tell = partial(self._checked, record.spec.id)
        return self._checks.watching(record.spec, target, partial(age, keeper.container), results, tell)

    def _checked(self, task_id: str, results: Results) -> None:
        """Something about its health changed."""
        after = self._observe(
            self._records[task_id],
            TaskState.RUNNING,
            healthy=well(results.health),
            health=results.health,
            readiness=results.readiness,
        )
        try:
            self._checkpoint.save(after)
        except OSError as error:  # the next change is another chance, and an agent that dies before checks anew
            log.error("health not written down", task=task_id, error=str(error))

    async def _end_limited(self, record: TaskRecord, limit: Limit) -> None:
        """A container that is over a limit has lost a process, or disturbs others: it ends as a whole, at once."""
        container = self._container(record)
        self._containers.kill(container)
        await thaw(self._containers, record)
        try:
            end = await asyncio.wait_for(self._containers.exited(container), KILL_DEADLINE_S)
        except TimeoutError:
            log.error("container survives SIGKILL, trying again", task=record.spec.id, limit=limit.reason)
        else:
            await self._exited(record, end, limit)

    async def _kill(self, record: TaskRecord) -> None:
        """The task's signal, its grace, and SIGKILL until it has ended."""
        stop, grace_s = parse_signal(record.spec.kill_signal), record.spec.kill_grace_s
        container, name = self._container(record), signal_name(stop)
        exited = asyncio.ensure_future(self._containers.exited(container))
        try:
            after = f"at once: nothing in it heeds {name}"
            if self._containers.ask(container, stop):
                after = f"after {grace_s:g} s of grace"
                await self._signalled(record, f"{name} sent, {grace_s:g} s of grace", exited, grace_s)
            if exited.done():
                return await self._exited(record, exited.result())
            while not exited.done():
                self._containers.kill(container)
                await self._signalled(record, f"SIGKILL sent {after}", exited, KILL_DEADLINE_S)
                if not exited.done():
                    log.error("container survives SIGKILL, trying again", task=record.spec.id, pid=record.status.pid)
            await self._exited(record, exited.result(), killed=f"killed with SIGKILL {after}")
        finally:
            exited.cancel()

    async def _signalled(
        self, record: TaskRecord, message: str, exited: asyncio.Future[Exit], patience_s: float
    ) -> None:
        """Say so. Returns when the container has exited, or when patience ran out."""
        self._observe(record, TaskState.KILLING, message=message)
        await asyncio.wait({exited}, timeout=patience_s)

    async def _exited(self, record: TaskRecord, end: Exit, limit: Limit | None = None, killed: str = "") -> None:
        container = self._container(record)
        limit = limit or await self._containers.exceeded(container)  # it may have ended before the watch could tell
        usage = await self._last_usage(record, container)
        if self._records[record.spec.id].kill:
            await self._end(record, TaskState.KILLED, killed or describe_exit(end), end.code, usage)
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
        latest = self._records[record.spec.id]
        before = latest.status
        if state is TaskState.KILLED and latest.fate:
            reason = latest.fate
        end = self._next(before, state, reason=reason, message="", exit_code=exit_code, usage=usage or before.usage)
        await self._write_down(record.spec.id, end=end)
        self._find_fate(self._records[record.spec.id])
        await self._clear(record, end)

    def _find_fates(self) -> None:
        for record in list(self._records.values()):
            self._find_fate(record)

    def _find_fate(self, record: TaskRecord) -> None:
        if record.spec.pod is not None and (found := fate(record, self._records)):
            self._share_fate(record.spec.pod, found)

    def _share_fate(self, pod: Pod, found: str) -> None:
        self._pods.end(pod, found)
        for member in pod.members:
            record = self._records.get(member)
            if record is not None and not (record.over or record.kill or record.end is not None):
                self._doom(dataclasses.replace(record, kill=True, fate=found))

    def _doom(self, record: TaskRecord) -> None:
        task_id = record.spec.id
        self._records[task_id] = record
        if task_id not in self._saving:
            try:
                self._checkpoint.save(record)
            except OSError as error:  # the next agent finds it out anew
                log.error("fate not written down", task=task_id, error=str(error))
        if task_id in self._kills:
            self._kills[task_id].set()

    async def _clear(self, record: TaskRecord, end: TaskStatus) -> None:
        for _ in range(CLEANUP_TRIES):
            if await self._cleaned(record):
                break
            await asyncio.sleep(RETRY_S)
        self._containers.let_logs_age(record.spec.id)
        await self._write_down(record.spec.id, status=end)
        self._report(end)

    async def _cleaned(self, record: TaskRecord) -> bool:
        """What can not be cleared away at all is found as an orphan at the next start."""
        complete = True
        for work in (self._clean, self._leave_pod):
            try:
                await work(record)
            except* (IsolatorError, NetworkError, OSError) as group:
                complete = False
                for error in group.exceptions:
                    log.error("clean-up incomplete", task=record.spec.id, error=str(error))
        return complete

    async def _leave_pod(self, record: TaskRecord) -> None:
        if record.spec.pod is not None:
            await self._pods.leave(record.spec)

    async def _clean(self, record: TaskRecord) -> None:
        made = self._made.pop(record.spec.id, None)
        record = self._records[record.spec.id]
        if made is None and not record.container:
            return
        sandbox = made.sandbox if made is not None else self._container(record).sandbox
        if made is not None:
            await made.launch.abort()
        await self._containers.cleanup(sandbox)
        self._sandboxes.release(sandbox)

    async def _try_resume(self, record: TaskRecord, unheld: bool) -> None:
        """One container that resists must not keep the others from being looked after."""
        try:
            await self._resume(record, unheld)
        except (IsolatorError, OSError, ExceptionGroup) as error:
            log.error("resume failed", task=record.spec.id, error=str(error))
            await self._end(record, TaskState.FAILED, f"the agent was restarted, and could not go on: {error}")
        if not self._records[record.spec.id].over:
            self._look_after(record.spec.id)

    async def _resume(self, record: TaskRecord, unheld: bool) -> None:
        """After a restart of the agent, or of the node. `unheld`: its pod never was, so nothing of it was executed, and
        its sandbox is gone."""
        container = self._container(record)
        keeper = self._containers.keeper(container) if record.container else None
        if record.end is not None:
            await self._clear(record, record.end)
        elif record.boot_id != self._boot_id:
            await self._end(record, TaskState.LOST, "the node was restarted")
        elif keeper is not None and keeper.phase == STARTING:
            # It runs, or has ended since: `step` will see.
            usage = await self._containers.usage(container)
            pid = keeper.container.pid if keeper.container is not None else None
            if record.holder:
                self._pods.started(record.spec)
            self._observe(record, TaskState.RUNNING, usage=usage, pid=pid)
        elif record.container and (keeper is not None or unheld):
            await self._begin_again(record, container)
        elif record.container:
            await self._end(record, TaskState.FAILED, "it may have run, and what its keeper noted is lost")

    async def _begin_again(self, record: TaskRecord, container: Container) -> None:
        """Its sandbox ended before its program ran, by itself or with the agent that had made it."""
        async with asyncio.timeout(ABORT_DEADLINE_S):
            await self._containers.exited(container)
        again = self._next(record.status, TaskState.ACCEPTED, addresses=(), pid=None)
        self._save(dataclasses.replace(record, status=again, container="", id_base=0, holder="", quota=0))
        await self._containers.cleanup(container.sandbox)
        self._sandboxes.release(container.sandbox)
        self._report(again)

    def _observe(self, record: TaskRecord, state: TaskState, **seen: Any) -> TaskRecord:
        """The books, in memory, with what was just seen (fields of the status), and tell it."""
        latest = self._records[record.spec.id]
        status = self._next(latest.status, state, **seen)
        after = self._records[record.spec.id] = dataclasses.replace(latest, status=status)
        if record.spec.id not in self._saving:
            self._report(status)
        return after

    def _next(self, status: TaskStatus, state: TaskState, **seen: Any) -> TaskStatus:
        """The observation that follows. The count goes on when a task begins again, for the master acknowledged up to
        there, and is greater than any of an earlier agent, which may have told more than it has written down."""
        now, sequence = time.time(), max(status.sequence, self._first_sequence) + 1
        since = now if state != status.state else status.since
        return dataclasses.replace(status, state=state, sequence=sequence, at=now, since=since, **seen)

    async def _write_down(self, task_id: str, **fields: Any) -> None:
        """Save the record with these fields: nobody may hear of them before, so this waits for a disk that is full."""
        while True:
            try:
                return await self._save_aside(task_id, **fields)
            except OSError as error:
                log.error("checkpoint not written, trying again", task=task_id, error=str(error))
            await asyncio.sleep(RETRY_S)

    async def _save_aside(self, task_id: str, **fields: Any) -> None:
        """As `_save`, while the others go on. Should the master have asked for its end meanwhile, that is kept."""
        await self._saved(task_id)
        record = dataclasses.replace(self._records[task_id], **fields)
        await asyncio.to_thread(self._checkpoint.save, record)
        now = dataclasses.replace(self._records[task_id], **fields)
        if now.kill != record.kill:
            self._checkpoint.save(now)
        self._records[task_id] = now

    def _save(self, record: TaskRecord) -> None:
        self._checkpoint.save(record)
        self._records[record.spec.id] = record

    def _forget(self, task_id: str) -> None:
        try:
            self._checkpoint.forget(task_id)
        except OSError as error:  # the next agent finds it, is told that nobody knows it, and tries again
            log.error("checkpoint not removed", task=task_id, error=str(error))
        self._records.pop(task_id, None)
        self._put_off.pop(task_id, None)
        self._withdrawn.discard(task_id)

    def _container(self, record: TaskRecord) -> Container:
        return self._containers.container(record)


def _place(status: TaskStatus, made: Made) -> dict[str, Any]:
    """The fields of a record that say where the task is."""
    there = dataclasses.replace(status, addresses=tuple(map(str, made.addresses)), pid=made.launch.pid)
    place = {"status": there, "container": made.sandbox.id, "id_base": made.sandbox.id_base}
    if made.sandbox.holder is not None:
        place |= {"holder": made.sandbox.holder.id, "quota": made.sandbox.quota}
    return place


def describe_exit(end: Exit) -> str:
    if end.lost:
        return "its exit code is lost: the keeper was killed"
    if end.error:
        return end.error
    if end.signal is not None:
        return f"killed by {signal_name(end.signal)}"
    return f"exited with {end.code}"


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
