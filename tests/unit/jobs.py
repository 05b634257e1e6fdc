"""What tests of jobs share: small definitions, a clock to set, and lives of a master."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from frameworks.jobs.definition import Definition, Overrides
from frameworks.jobs.framework import Jobs
from frameworks.jobs.run import Finished, Run
from frameworks.jobs.schedule import ScheduleDefinition
from master.store.base import Store
from model.task import TaskState
from tests.unit.cluster import Cluster, until

OVERLAY = [{"mode": "container", "name": "overlay"}]
NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC).timestamp()
MINUTE = 60.0


class Clock:
    """Stands still until it is set."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def definition(job: str = "job", depends_on: tuple[str, ...] = (), **run: Any) -> Definition:
    small = {"cpus": 0.1, "mem": 32.0, "disk": 0.0, "cmd": "true", "networks": OVERLAY}
    dependencies = [{"id": each} for each in depends_on]
    return Definition.model_validate({"id": job, "dependencies": dependencies, "run": {**small, **run}})


def schedule(name: str = "often", cron: str = "* * * * *", **fields: Any) -> ScheduleDefinition:
    return ScheduleDefinition.model_validate({"id": name, "cron": cron, **fields})


@asynccontextmanager
async def jobs(store: Store, cluster: Cluster, clock: Clock | None = None) -> AsyncIterator[Jobs]:
    """A master's life: cancelled at its end as if it was killed."""
    running = Jobs(store, cluster.subscribe(), clock or Clock())
    await running.load()
    task = asyncio.create_task(running.run())
    try:
        yield running
    finally:
        assert not task.done(), task.exception()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def start(running: Jobs, job: str = "job", **overrides: Any) -> Run:
    return await running.start(job, Overrides.model_validate(overrides))


async def launched(cluster: Cluster, task: str) -> None:
    await until(lambda: task in cluster.tasks, f"{task} is accepted")


async def end(cluster: Cluster, task: str, state: TaskState = TaskState.FINISHED, **attributes: Any) -> None:
    """Once it is there."""
    await launched(cluster, task)
    cluster.advance(task, state, **attributes)


async def finished(running: Jobs, run: Run) -> Finished:
    await until(lambda: running.ledger.runs.get(run.key) is None, f"{run.key} is over")
    found = [each for each in await running.ledger.finished(run.job) if each.id == run.id]
    assert len(found) == 1, found
    return found[0]
