"""Brings every task on this node from what it is to what the master wants, one operation at a time.

Reads: the assignments (`assign`, `withdraw`), and at the start the books and the containers that are there. Each task
has a loop of its own, which calls `step` (`agent/steps.py`) until the task is over. What is known of the tasks, what of
it has to be on disk when, and what the master is told is for `books` (`agent/books.py`).
"""

from __future__ import annotations

import asyncio

import structlog

from agent.adjust import outdated
from agent.books import Books, PutOff, Report
from agent.checkpoint import Checkpoint, TaskRecord
from agent.containers import Containers
from agent.first_steps import FirstSteps
from agent.last_steps import LastSteps
from agent.pods import Pods
from agent.sandboxes import Sandboxes
from agent.steps import Steps
from isolators.base import Container, IsolatorError
from model.adjustment import Adjustment
from model.resources import Resources
from model.task import TaskSpec, TaskState

log = structlog.get_logger()

ALIVE = (TaskState.RUNNING, TaskState.KILLING)
RETRY_S = 1.0  # after a step failed


class Reconciler:
    """`ready`: the node's networks are there. `report` hears what is to be told to the master."""

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
        self.books = Books(checkpoint, boot_id, report)
        self._containers = containers
        self._sandboxes = sandboxes
        self._pods = Pods(containers, sandboxes, self.books)
        self.first_steps = FirstSteps(containers, sandboxes, self.books, self._pods)
        self._last_steps = LastSteps(containers, sandboxes, self.books, self._pods, self.first_steps)
        self._steps = Steps(containers, self.books, self._pods, self.first_steps, self._last_steps, capacity, ready)
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._withdrawn: set[str] = set()

    async def recover(self) -> None:
        """Read the books, find the containers that run, clear away everything else, and go on with every task."""
        self.books.open()
        records = [record for record in self.books.records.values() if not record.over]
        known = self._pods.recover(records)
        found = [record for record in records if record.container and self._pods.known(record)]
        known += map(self._containers.container, found)
        for container in known:
            self._sandboxes.occupy(container.sandbox)
        await self._containers.recover(known)
        self._pods.find_fates()  # before anything of a pod goes on that must not
        for record in records:
            await self._resume(self.books.records[record.spec.id])
        self._pods.find_fates()  # now that it is known what runs

    async def _resume(self, record: TaskRecord) -> None:
        """One container that resists must not keep the others from being looked after."""
        try:
            await self._steps.resume(record)
        except (IsolatorError, OSError, ExceptionGroup) as error:
            log.error("resume failed", task=record.spec.id, error=str(error))
            reason = f"the agent was restarted, and could not go on: {error}"
            await self._last_steps.end(record, TaskState.FAILED, reason)
        if not self.books.over(record.spec.id):
            self._look_after(record.spec.id)

    async def close(self) -> None:
        """Stop looking after the tasks. Containers go on."""
        works = [*self._loops.values(), *self.books.writing()]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        await self._pods.close()
        self._containers.close()

    def living(self) -> list[Container]:
        """Those that live, as far as is known."""
        records = self.books.records.values()
        return [self._containers.container(record) for record in records if record.status.state in ALIVE]

    def running(self, task_id: str) -> Container | None:
        """The container of a task that runs; None when it does not, or is not known."""
        record = self.books.records.get(task_id)
        if record is None or record.status.state is not TaskState.RUNNING:
            return None
        return self._containers.container(record)

    def assign(self, task: TaskSpec, kill: bool, adjustment: Adjustment | None = None) -> None:
        """The master wants this task, adjusted so, or its end. It is on disk when `settle` has returned without an
        error; what the disk does not take is put off until it does."""
        self.books.put_off.pop(task.id, None)
        try:
            self._assign(task, kill, adjustment)
        except OSError as error:
            reason = f"task {task.id} is not written down: {error}"
            self.books.put_off[task.id] = PutOff(task, kill, adjustment, reason)

    def _assign(self, task: TaskSpec, kill: bool, adjustment: Adjustment | None) -> None:
        record = self.books.records.get(task.id)
        if record is None:
            self.books.enter(self.first_steps.claim(self.books.first(task, kill, adjustment)))
            self._look_after(task.id)
        elif kill and not record.kill and not record.over:
            self.books.kill(task.id)
            if task.pod is not None:  # nobody needs to wait for it any more
                self._pods.end(task.pod, "killed before it was started")
        elif adjustment is not None and not record.over and not outdated(record, adjustment):
            self.books.adjust(task.id, adjustment)

    async def settle(self) -> list[str]:
        """Until what was assigned is on disk, or a moment has passed. Returns what is not, in words."""
        for put_off in list(self.books.put_off.values()):
            self.assign(put_off.task, put_off.kill, put_off.adjustment)
        return await self.books.settle()

    def withdraw(self, task_id: str) -> None:
        """The master no longer knows this task: end it if it runs, and forget it."""
        record = self.books.records.get(task_id)
        if record is None:
            return
        if record.over:
            self._forget(task_id)
        else:
            self._withdrawn.add(task_id)
            self.assign(record.spec, kill=True)

    def withdraw_others(self, wanted: set[str]) -> None:
        for task_id in self.books.records.keys() - wanted:
            self.withdraw(task_id)

    def _look_after(self, task_id: str) -> None:
        self.books.watch(task_id)
        self._loops[task_id] = asyncio.create_task(self._run(task_id), name=task_id)

    async def _run(self, task_id: str) -> None:
        structlog.contextvars.bind_contextvars(task=task_id)
        while not (record := self.books.records[task_id]).over:
            try:
                await self._steps.step(record)
            except Exception:  # a fault of ours must not leave a task that nobody looks after
                log.exception("step failed, trying again", task=task_id, state=record.status.state.name)
                await asyncio.sleep(RETRY_S)
        del self._loops[task_id]
        self.books.unwatch(task_id)
        if task_id in self._withdrawn:
            self._forget(task_id)

    def _forget(self, task_id: str) -> None:
        self.books.forget(task_id)
        self._withdrawn.discard(task_id)
