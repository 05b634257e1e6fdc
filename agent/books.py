"""What is known of every task on this node, and what of it is on disk.

Reads: the checkpoint. Writes: the checkpoint, and every observation to `report`, which sees to it that the master hears
of it. What must be on disk when:

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
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import structlog

from agent.checkpoint import Checkpoint, TaskRecord
from model.adjustment import Adjustment
from model.fit import misfits
from model.resources import Resources
from model.task import TASK_ID, TaskSpec, TaskState, TaskStatus

log = structlog.get_logger()

SEQUENCE_BITS = 32  # for the observations of one life of an agent; the lives are counted above
RETRY_S = 1.0  # after the disk failed

Report = Callable[[TaskStatus], None]


@dataclasses.dataclass(frozen=True, slots=True)
class PutOff:
    """What the master wants of a task, and why it is not on disk yet."""

    task: TaskSpec
    kill: bool
    adjustment: Adjustment | None
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What the master wants of a task that is looked after, for who waits for that."""

    end: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    adjustment: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Books:
    """`records` and `wanted` are by the task's id, and for others to read; `put_off` is what `settle` tells besides.
    Verbs that write raise OSError, unless they say what they do about it."""

    def __init__(self, checkpoint: Checkpoint, boot_id: str, report: Report) -> None:
        self.boot_id = boot_id
        self.report = report
        self.records: dict[str, TaskRecord] = {}
        self.wanted: dict[str, Wanted] = {}
        self.put_off: dict[str, PutOff] = {}
        self._checkpoint = checkpoint
        self._first_sequence = 0
        self._saving: dict[str, asyncio.Task[None]] = {}  # tasks that are not on disk yet: nobody hears of them
        self._unsaved: dict[str, str] = {}  # those of them that could not be written, and why

    def open(self) -> None:
        """Once, before anything else."""
        self._first_sequence = self._checkpoint.new_life() << SEQUENCE_BITS
        self.records = self._checkpoint.load()

    def writing(self) -> list[asyncio.Task[None]]:
        """What goes on beside the tasks' own loops, and has to be cancelled in the end."""
        return list(self._saving.values())

    def statuses(self) -> list[TaskStatus]:
        return [record.status for task_id, record in self.records.items() if task_id not in self._saving]

    def unacknowledged(self, task_id: str) -> TaskStatus | None:
        record = self.records.get(task_id)
        if record is None or task_id in self._saving or record.status.sequence <= record.acknowledged:
            return None
        return record.status

    def acknowledged(self, task_id: str, sequence: int) -> None:
        record = self.records.get(task_id)
        if record is not None and sequence > record.acknowledged:
            self.records[task_id] = dataclasses.replace(record, acknowledged=sequence)

    def over(self, task_id: str) -> bool:
        """Whether nothing more will come of the task: it has ended, or is not known."""
        record = self.records.get(task_id)
        return record is None or record.over

    def addresses(self, task_id: str) -> tuple[str, ...]:
        record = self.records.get(task_id)
        return record.status.addresses if record else ()

    def misfits(self, capacity: Resources, rights: frozenset[str]) -> list[str]:
        """What of the tasks that are not over no longer fits this node."""
        return misfits([record.spec for record in self.records.values() if not record.over], capacity, rights)

    def first(self, task: TaskSpec, kill: bool, adjustment: Adjustment | None) -> TaskRecord:
        """The record that a task begins with. Raises ValueError."""
        if not TASK_ID.fullmatch(task.id):
            raise ValueError(f"task {task.id!r}: not a task id")
        status = self.next(TaskStatus(task.id, TaskState.ASSIGNED), TaskState.ACCEPTED)
        asked = adjustment if adjustment is not None and adjustment.number else None
        record = TaskRecord(task, status, self.boot_id, kill=kill, adjustment=asked)
        if task.id in self._checkpoint.damaged:
            lost = self.next(status, TaskState.LOST, reason="what was written down of it is damaged: it may have run")
            record = dataclasses.replace(record, end=lost)
        return record

    def enter(self, record: TaskRecord) -> None:
        """A task's first record. It is written beside the task's start; `saved` waits for that."""
        self.records[record.spec.id] = record
        self._saving[record.spec.id] = asyncio.create_task(self._save_first(record.spec.id))

    async def _save_first(self, task_id: str) -> None:
        """Beside the start, which waits for it in the end. The master may ask for the task's end meanwhile."""
        saved = None
        while saved is None or saved.kill != self.records[task_id].kill:
            record = self.records[task_id]
            try:
                await asyncio.to_thread(self._checkpoint.begin(record))
                saved = record
            except OSError as error:
                self._unsaved[task_id] = f"task {task_id} is not written down: {error}"
                log.error("checkpoint not written, trying again", task=task_id, error=str(error))
                await asyncio.sleep(RETRY_S)
        self._unsaved.pop(task_id, None)
        del self._saving[task_id]
        self.report(self.records[task_id].status)

    async def saved(self, task_id: str) -> None:
        if task_id in self._saving:
            await asyncio.shield(self._saving[task_id])

    async def settle(self) -> list[str]:
        """Until all tasks are on disk, or a moment has passed. Returns what is not, in words."""
        if self._saving:
            await asyncio.wait(self._saving.values(), timeout=RETRY_S)
        return [*self._unsaved.values(), *(put_off.reason for put_off in self.put_off.values())]

    def watch(self, task_id: str) -> None:
        """The task is looked after from now on, and who does that waits for what is wanted of it."""
        wanted = self.wanted[task_id] = Wanted()
        if self.records[task_id].kill:
            wanted.end.set()

    def unwatch(self, task_id: str) -> None:
        del self.wanted[task_id]

    def kill(self, task_id: str) -> None:
        """The master wants its end."""
        killed = dataclasses.replace(self.records[task_id], kill=True)
        if task_id in self._saving:
            self.records[task_id] = killed
        else:
            self.save(killed)
        self.wanted[task_id].end.set()

    def doom(self, task_id: str, fate: str) -> None:
        """It has to end because of its pod. Should that not be written down, the next agent finds it out anew."""
        record = self.records[task_id] = dataclasses.replace(self.records[task_id], kill=True, fate=fate)
        if task_id not in self._saving:
            self._try_save(record, "fate")
        if task_id in self.wanted:
            self.wanted[task_id].end.set()

    def adjust(self, task_id: str, adjustment: Adjustment) -> None:
        """The master wants it adjusted."""
        self.save(dataclasses.replace(self.records[task_id], adjustment=adjustment))
        self.wanted[task_id].adjustment.set()

    def next(self, status: TaskStatus, state: TaskState, **seen: Any) -> TaskStatus:
        """The observation that follows. The count goes on when a task begins again, for the master acknowledged up to
        there, and is greater than any of an earlier agent, which may have told more than it has written down."""
        now, sequence = time.time(), max(status.sequence, self._first_sequence) + 1
        since = now if state != status.state else status.since
        return dataclasses.replace(status, state=state, sequence=sequence, at=now, **{"since": since, **seen})

    def observe(self, task_id: str, state: TaskState, **seen: Any) -> TaskRecord:
        """In memory, with what was just seen (fields of the status), and tell it."""
        latest = self.records[task_id]
        status = self.next(latest.status, state, **seen)
        after = self.records[task_id] = dataclasses.replace(latest, status=status)
        if task_id not in self._saving:
            self.report(status)
        return after

    def observe_health(self, task_id: str, **seen: Any) -> None:
        """Of a task that runs. Should that not be written down the next change is another chance, and an agent that
        dies before checks anew."""
        self._try_save(self.observe(task_id, TaskState.RUNNING, **seen), "health")

    async def write_down(self, task_id: str, **fields: Any) -> None:
        """Save the record with these fields: nobody may hear of them before, so this waits for a disk that is full."""
        while True:
            try:
                return await self.save_aside(task_id, **fields)
            except OSError as error:
                log.error("checkpoint not written, trying again", task=task_id, error=str(error))
            await asyncio.sleep(RETRY_S)

    async def save_aside(self, task_id: str, **fields: Any) -> None:
        """Save the record with these fields, while the others go on. Should the master have asked for its end
        meanwhile, that is kept."""
        await self.saved(task_id)
        record = dataclasses.replace(self.records[task_id], **fields)
        await asyncio.to_thread(self._checkpoint.save, record)
        now = dataclasses.replace(self.records[task_id], **fields)
        if now.kill != record.kill:
            self._checkpoint.save(now)
        self.records[task_id] = now

    def save(self, record: TaskRecord) -> None:
        self._checkpoint.save(record)
        self.records[record.spec.id] = record

    def forget(self, task_id: str) -> None:
        """Should it not be removed, the next agent finds it, is told that nobody knows it, and tries again."""
        try:
            self._checkpoint.forget(task_id)
        except OSError as error:
            log.error("checkpoint not removed", task=task_id, error=str(error))
        self.records.pop(task_id, None)
        self.put_off.pop(task_id, None)

    def _try_save(self, record: TaskRecord, what: str) -> None:
        try:
            self._checkpoint.save(record)
        except OSError as error:
            log.error(f"{what} not written down", task=record.spec.id, error=str(error))
