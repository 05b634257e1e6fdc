"""What is known of jobs, in the store and, once that has it, in memory: `jobs/<table>/<key>`.

    specs/JOB   schedules/JOB/SCHEDULE   runs/JOB/RUN   history/JOB   pipelines/RUN   finished/JOB/OUTCOME/SLOT

Runs that are over are in the store alone. Every write compares the revisions of what it replaces with those that are
known here, so whoever decided by something that is no longer so gets a Conflict, and decides again. What belongs
together is written together: there is no moment in which a due time was dealt with and its run is not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from frameworks.jobs import job, pipeline, run, schedule
from frameworks.jobs.definition import Definition
from frameworks.jobs.job import History, Job
from frameworks.jobs.pipeline import Pipeline
from frameworks.jobs.run import FINISHED, Finished, Run
from frameworks.jobs.schedule import Scheduled
from master.store.base import Conflict, Delete, Put, Store
from master.store.damaged import readable
from model.codec import Codec, Damaged

T = TypeVar("T")
PREFIX = "jobs/"
FINISHED_PREFIX = PREFIX + "finished/"

# The key, and what was and is there; None: nothing.
Listener = Callable[[str, T | None, T | None], None]


class Table(Generic[T]):
    """Records of one kind by their keys, as they are in the store."""

    def __init__(self, name: str, codec: Codec[T]) -> None:
        self.prefix = f"{PREFIX}{name}/"
        self._codec = codec
        self._values: dict[str, T] = {}
        self._revisions: dict[str, int] = {}
        self._listeners: list[Listener[T]] = []

    async def load(self, store: Store) -> None:
        """Those that can not be read are put aside."""
        for path, value in await readable(store, self.prefix, self._codec.decode):
            self._values[path.removeprefix(self.prefix)] = value
        for entry in await store.range(self.prefix):
            self._revisions[entry.key.removeprefix(self.prefix)] = entry.revision

    def listen(self, listener: Listener[T]) -> None:
        self._listeners.append(listener)

    def get(self, key: str) -> T | None:
        return self._values.get(key)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._values.values()))

    def __len__(self) -> int:
        return len(self._values)

    def operation(self, key: str, value: T | None) -> Put | Delete:
        expected = self._revisions.get(key, 0)
        if value is None:
            return Delete(self.prefix + key, expected)
        return Put(self.prefix + key, self._codec.encode(value), expected)

    def keep(self, key: str, value: T | None, revision: int) -> None:
        before = self._values.pop(key, None)
        self._revisions.pop(key, None)
        if value is not None:
            self._values[key], self._revisions[key] = value, revision
        for listener in self._listeners:
            listener(key, before, value)

    def adjust(self, key: str, value: T) -> None:
        """In memory alone: an equal one."""
        self._values[key] = value

    async def read_again(self, store: Store, key: str) -> None:
        """It is not in the store as it is here."""
        entry = await store.get(self.prefix + key)
        if entry is None:
            self.keep(key, None, 0)
        elif entry.revision != self._revisions.get(key):
            self.keep(key, self._codec.decode(entry.value), entry.revision)


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """To be written; `value` None: removed."""

    table: Table[T]
    key: str
    value: T | None


class Ledger:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.jobs = Table("specs", job.CODEC)
        self.schedules = Table("schedules", schedule.CODEC)
        self.runs = Table("runs", run.CODEC)
        self.history = Table("history", job.HISTORY)
        self.pipelines = Table("pipelines", pipeline.CODEC)
        self._tables: tuple[Table[Any], ...] = (
            self.jobs,
            self.schedules,
            self.runs,
            self.history,
            self.pipelines,
        )
        self._runs_of: dict[str, dict[str, None]] = {}
        self._schedules_of: dict[str, dict[str, None]] = {}
        self._pipelines_of: dict[str, dict[str, None]] = {}
        self.dependents: dict[str, set[str]] = {}
        self.dependencies: dict[str, tuple[str, ...]] = {}
        self.runs.listen(lambda key, before, after: _index(self._runs_of, key, before or after, after))
        self.schedules.listen(lambda key, before, after: _index(self._schedules_of, key, before or after, after))
        self.pipelines.listen(lambda key, before, after: _index(self._pipelines_of, key, before or after, after))
        self.jobs.listen(self._job_changed)

    async def load(self) -> None:
        for table in self._tables:
            await table.load(self._store)
        for each in self.jobs:
            self._job_changed(each.id, None, each)
        for scheduled in self.schedules:
            _index(self._schedules_of, scheduled.key, scheduled, scheduled)
        shared: dict[str, Definition] = {}
        for active in self.runs:
            _index(self._runs_of, active.key, active, active)
            self.runs.adjust(active.key, replace(active, definition=shared.setdefault(active.group, active.definition)))
        for known in sorted(self.pipelines, key=lambda known: known.created):
            _index(self._pipelines_of, known.id, known, known)

    def runs_of(self, job_id: str) -> list[Run]:
        """Those that are not over, oldest first."""
        found = (self.runs.get(key) for key in self._runs_of.get(job_id, ()))
        return sorted((each for each in found if each is not None), key=lambda each: each.created)

    def active(self, job_id: str) -> bool:
        return job_id in self._runs_of

    def schedules_of(self, job_id: str) -> list[Scheduled]:
        found = (self.schedules.get(key) for key in sorted(self._schedules_of.get(job_id, ())))
        return [each for each in found if each is not None]

    def pipelines_of(self, job_id: str) -> list[Pipeline]:
        """Those that begin with it, oldest first."""
        found = (self.pipelines.get(key) for key in self._pipelines_of.get(job_id, ()))
        return [each for each in found if each is not None]

    def history_of(self, known: Job) -> History:
        history = self.history.get(known.id)
        fits = history is not None and history.life == known.life
        return history if history is not None and fits else History(known.id, known.life)

    def last_start(self, known: Job) -> float:
        """When the last run of the job was made; 0: there was none."""
        return max([self.history_of(known).started, *(each.created for each in self.runs_of(known.id))])

    async def write(self, changes: Iterable[Change[Any]], also: Iterable[Put | Delete] = ()) -> None:
        """All or nothing. Raises StoreError, and Conflict when something is not as it was known here."""
        # Whoever waits for it may be cancelled; what is written must be known here all the same.
        await asyncio.shield(asyncio.ensure_future(self._write(list(changes), list(also))))

    async def _write(self, changes: list[Change[Any]], also: list[Put | Delete]) -> None:
        operations = [change.table.operation(change.key, change.value) for change in changes]
        try:
            revision = await self._store.transaction(*operations, *also)
        except Conflict as conflict:
            for table in self._tables:
                if conflict.key.startswith(table.prefix):
                    await table.read_again(self._store, conflict.key.removeprefix(table.prefix))
            raise
        for change in changes:
            change.table.keep(change.key, change.value, revision)

    async def finished(self, job_id: str) -> list[Finished]:
        """Runs of the job that are over, as far as they are kept, the last one first. Raises StoreError."""
        found = []
        for entry in await self._store.range(f"{FINISHED_PREFIX}{job_id}/"):
            try:
                found.append(FINISHED.decode(entry.value))
            except Damaged:
                continue
        return sorted(found, key=lambda each: each.completed, reverse=True)

    async def forgetting(self, job_id: str) -> list[Delete]:
        """What removes all that is kept of its runs that are over."""
        return [Delete(entry.key) for entry in await self._store.range(f"{FINISHED_PREFIX}{job_id}/")]

    def _job_changed(self, job_id: str, before: Job | None, after: Job | None) -> None:
        for each in self.dependencies.pop(job_id, ()):
            self.dependents[each].discard(job_id)
            if not self.dependents[each]:
                del self.dependents[each]
        if after is not None and after.definition.dependencies:
            self.dependencies[job_id] = after.definition.depends_on
            for each in after.definition.depends_on:
                self.dependents.setdefault(each, set()).add(job_id)


def _index(index: dict[str, dict[str, None]], key: str, known: Any, after: Any) -> None:
    keys = index.setdefault(known.job, {})
    if after is not None:
        keys[key] = None
    else:
        keys.pop(key, None)
    if not keys:
        index.pop(known.job, None)
