"""Jobs and their schedules: made, changed and removed, by the REST API alone.

What is asked for is looked at as a whole and then written at once. One after the other, so that of two that would
depend on each other in a circle the second is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from frameworks.jobs import pipeline, schedule
from frameworks.jobs.definition import Definition
from frameworks.jobs.events import JobEvents
from frameworks.jobs.job import Job, new
from frameworks.jobs.ledger import Change, Ledger
from frameworks.jobs.schedule import Scheduled, ScheduleDefinition
from master.rest.errors import json_path
from master.store.base import Conflict

SCHEDULES_MOST = 100
TRIES = 20
REMOVED = "its job was removed"

Changes = list[Change[Any]]
Result = TypeVar("Result")


class UnknownJob(Exception):
    """No job has this id."""


class UnknownSchedule(Exception):
    """The job has no schedule of this id."""


class Taken(Exception):
    """The id is another one's, or there are enough."""


class Blocked(Exception):
    """What there is would not go with the change."""


class Invalid(Exception):
    """`problems` by their places."""

    def __init__(self, problems: dict[str, list[str]]) -> None:
        super().__init__(str(problems))
        self.problems = problems


class Catalog:
    def __init__(self, ledger: Ledger, events: JobEvents, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._events = events
        self._clock = clock
        self._lock = asyncio.Lock()

    def read(self, job_id: str) -> Job:
        job = self._ledger.jobs.get(job_id)
        if job is None:
            raise UnknownJob(job_id)
        return job

    async def create(self, definition: Definition, schedules: Sequence[ScheduleDefinition]) -> Job:
        """Raises Taken or Invalid."""
        now = self._clock()
        job = new(definition)

        def changes() -> Changes:
            if self._ledger.jobs.get(job.id) is not None:
                raise Taken("Job with this id already exists")
            self._refuse_bad(definition)
            return [Change(self._ledger.jobs, job.id, job), *self._scheduling(job.id, [], schedules, now)]

        await self._write(changes)
        self._events.job("job_created", job, self._ledger)
        return job

    async def update(
        self, job_id: str, definition: Definition, schedules: Sequence[ScheduleDefinition] | None = None
    ) -> Job:
        """A whole new definition; without `schedules` these stay as they are. Raises UnknownJob or Invalid."""

        def changes() -> Changes:
            before = self.read(job_id)
            self._refuse_bad(definition)
            job = replace(before, definition=definition, version=before.version + 1)
            known = self._ledger.schedules_of(job_id)
            scheduling = [] if schedules is None else self._scheduling(job_id, known, schedules, self._clock())
            return [Change(self._ledger.jobs, job_id, job), *scheduling]

        await self._write(changes)
        job = self.read(job_id)
        self._events.job("job_updated", job, self._ledger)
        return job

    async def remove(self, job_id: str, stop: bool) -> Job:
        """With all that is known of it. Its runs are stopped if `stop` says so. Raises UnknownJob or Blocked."""
        job = self.read(job_id)
        ledger = self._ledger

        def changes() -> Changes:
            self.read(job_id)
            if others := sorted(ledger.dependents.get(job_id, ())):
                raise Blocked(f"Changes blocked by jobs that depend on it: {', '.join(others)}")
            runs = ledger.runs_of(job_id)
            if runs and not stop:
                raise Blocked(f"Changes blocked by {_counted(len(runs))}. Override with stopCurrentJobRuns=true")
            return [
                Change(ledger.jobs, job_id, None),
                Change(ledger.history, job_id, None),
                *(Change(ledger.schedules, each.key, None) for each in ledger.schedules_of(job_id)),
                *(Change(ledger.runs, run.key, replace(run, stopping=REMOVED)) for run in runs if not run.stopping),
                *(Change(ledger.pipelines, each.id, None) for each in ledger.pipelines_of(job_id) if each.over),
            ]

        await self._write(changes, forgetting=job_id)
        self._events.job("job_deleted", job, self._ledger)
        return job

    def schedules(self, job_id: str) -> list[Scheduled]:
        self.read(job_id)
        return self._ledger.schedules_of(job_id)

    def read_schedule(self, job_id: str, schedule_id: str) -> Scheduled:
        self.read(job_id)
        found = self._ledger.schedules.get(f"{job_id}/{schedule_id}")
        if found is None:
            raise UnknownSchedule(schedule_id)
        return found

    async def add_schedule(self, job_id: str, definition: ScheduleDefinition) -> Scheduled:
        """Raises UnknownJob or Taken."""

        def changes() -> Changes:
            known = self.schedules(job_id)
            if any(each.definition.id == definition.id for each in known):
                raise Taken(f"A schedule with id {definition.id} already exists")
            if len(known) >= SCHEDULES_MOST:
                raise Taken(f"A job has at most {SCHEDULES_MOST} schedules")
            return [self._schedule(schedule.changed(None, job_id, definition, self._clock()))]

        await self._write(changes)
        return await self._told(job_id, definition.id)

    async def update_schedule(self, job_id: str, definition: ScheduleDefinition) -> Scheduled:
        """Raises UnknownJob or UnknownSchedule."""

        def changes() -> Changes:
            before = self.read_schedule(job_id, definition.id)
            return [self._schedule(schedule.changed(before, job_id, definition, self._clock()))]

        await self._write(changes)
        return await self._told(job_id, definition.id)

    async def remove_schedule(self, job_id: str, schedule_id: str) -> None:
        """Raises UnknownJob or UnknownSchedule."""

        def changes() -> Changes:
            return [Change(self._ledger.schedules, self.read_schedule(job_id, schedule_id).key, None)]

        await self._write(changes)
        self._events.job("job_updated", self.read(job_id), self._ledger)

    async def _told(self, job_id: str, schedule_id: str) -> Scheduled:
        self._events.job("job_updated", self.read(job_id), self._ledger)
        return self.read_schedule(job_id, schedule_id)

    def _schedule(self, scheduled: Scheduled) -> Change[Scheduled]:
        return Change(self._ledger.schedules, scheduled.key, scheduled)

    def _scheduling(
        self, job_id: str, known: Sequence[Scheduled], wanted: Sequence[ScheduleDefinition], now: float
    ) -> Changes:
        before = {each.definition.id: each for each in known}
        kept = {each.id for each in wanted}
        changed = [schedule.changed(before.get(each.id), job_id, each, now) for each in wanted]
        gone = [Change(self._ledger.schedules, each.key, None) for each in known if each.definition.id not in kept]
        return [*map(self._schedule, changed), *gone]

    def _refuse_bad(self, definition: Definition) -> None:
        """Dependencies that do not exist, or that lead back to it."""
        problems: dict[str, list[str]] = {}
        for index, name in enumerate(definition.depends_on):
            if name != definition.id and self._ledger.jobs.get(name) is None:
                problems[json_path(("dependencies", index, "id"))] = [f"job {name!r} does not exist"]
        if way := pipeline.cycle(definition.id, definition.depends_on, self._ledger.dependencies):
            problems["/dependencies"] = [f"is a cycle: {' -> '.join(way)}"]
        if problems:
            raise Invalid(problems)

    async def _write(self, changes: Callable[[], Changes], forgetting: str = "") -> None:
        async def write() -> None:
            also = await self._ledger.forgetting(forgetting) if forgetting else []
            await self._ledger.write(changes(), also)

        async with self._lock:
            await until_written(write)


async def until_written(write: Callable[[], Awaitable[Result]]) -> Result:
    """Decides and writes, again whenever what it decided by was changed meanwhile."""
    for _ in range(TRIES):
        try:
            return await write()
        except Conflict:
            await asyncio.sleep(0)
    return await write()


def _counted(runs: int) -> str:
    return "1 active run" if runs == 1 else f"{runs} active runs"
