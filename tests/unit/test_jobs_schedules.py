"""Schedules followed by the framework: what is due is run once, whatever is missed meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from frameworks.jobs.framework import Jobs
from frameworks.jobs.run import FAILED, KILLED, SUCCESS, Run
from frameworks.jobs.schedule import Scheduled
from master.store.sqlite import SqliteStore
from model.task import TaskState
from tests.unit.cluster import Cluster, node, until
from tests.unit.jobs import MINUTE, NOON, Clock, definition, end, finished, jobs, launched, schedule, start

pytestmark = pytest.mark.anyio


def known(running: Jobs, name: str = "often") -> Scheduled:
    return running.catalog.read_schedule("job", name)


def runs(running: Jobs, job: str = "job") -> list[Run]:
    return running.ledger.runs_of(job)


async def dealt_with(running: Jobs, clock: Clock, at: float) -> None:
    """The clock is set, and what is due then was dealt with."""
    clock.now = at
    running.wake()
    await until(lambda: (due := known(running).due) is not None and due > at - MINUTE, f"what was due by {at}")


async def test_each_due_time_has_a_run_of_its_own(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock(NOON + 1)
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), [schedule()])
        await asyncio.sleep(0.02)
        assert runs(running) == []
        for minute in range(1, 4):
            await dealt_with(running, clock, NOON + minute * MINUTE)
            assert [run.due for run in runs(running)] == [NOON + each * MINUTE for each in range(1, minute + 1)]
        first = runs(running)[0]
        assert first.id.startswith("20260131120100") and first.schedule == "often" and len(first.id) == 24
        await end(cluster, first.task)
        assert (await finished(running, first)).due == NOON + MINUTE


async def test_a_disabled_schedule_stays_disabled(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), [schedule(enabled=False)])
    for hour in range(3):
        async with jobs(store, cluster, clock) as running:
            clock.now = NOON + hour * 3600
            running.wake()
            await asyncio.sleep(0.02)
            assert runs(running) == [] and known(running).due is None
    async with jobs(store, cluster, clock) as running:
        await running.catalog.update_schedule("job", schedule())
        clock.now += MINUTE - 1
        running.wake()
        await asyncio.sleep(0.02)
        assert runs(running) == [], "what was due while it was disabled is not made up for"
        await dealt_with(running, clock, clock.now + 1)
        assert len(runs(running)) == 1


async def test_of_several_missed_the_last_one_is_made_up_for(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), [schedule(cron="*/10 * * * *", startingDeadlineSeconds=300)])
    clock.now = NOON + 34 * MINUTE
    async with jobs(store, cluster, clock) as running:
        await until(lambda: len(runs(running)) == 1)
        assert runs(running)[0].due == NOON + 30 * MINUTE == known(running).due
        await launched(cluster, runs(running)[0].task)


async def test_what_was_missed_for_too_long_is_not_made_up_for_and_says_so(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), [schedule(cron="*/10 * * * *", startingDeadlineSeconds=300)])
    clock.now = NOON + 36 * MINUTE
    async with jobs(store, cluster, clock) as running:
        await until(lambda: known(running).due == NOON + 30 * MINUTE)
        skipped = known(running).skipped
        assert skipped is not None and skipped.reason == "was noticed 60 s after startingDeadlineSeconds"
        assert runs(running) == []
        clock.now = NOON + 40 * MINUTE
        running.wake()
        await until(lambda: len(runs(running)) == 1)
        assert known(running).skipped is None


async def test_a_run_that_does_not_come_to_run_by_its_starting_deadline_is_over(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=50))
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), [schedule(startingDeadlineSeconds=30)])
        clock.now = NOON + MINUTE + 10
        running.wake()
        await until(lambda: len(runs(running)) == 1)
        (run,) = runs(running)
        clock.now = NOON + MINUTE + 30
        running.wake()
        over = await finished(running, run)
    assert (over.status, over.reason) == (FAILED, "did not start by 2026-01-31 12:01:30 UTC")


async def test_forbid_passes_a_due_time_over_while_a_run_is_active(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), [schedule(concurrencyPolicy="FORBID")])
        by_hand = await start(running)
        await dealt_with(running, clock, NOON + MINUTE)
        assert runs(running) == [by_hand]
        skipped = known(running).skipped
        assert skipped is not None and skipped.reason == f"run {by_hand.id} is still active"
        await end(cluster, by_hand.task)
        await finished(running, by_hand)
        await dealt_with(running, clock, NOON + 2 * MINUTE)
        assert [run.due for run in runs(running)] == [NOON + 2 * MINUTE]


async def test_two_schedules_that_forbid_and_are_due_at_once_make_one_run(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    both = [schedule(name, concurrencyPolicy="FORBID") for name in ("often", "too")]
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), both)
        clock.now = NOON + MINUTE
        running.wake()
        await until(lambda: all(known(running, name).due == clock.now for name in ("often", "too")))
        assert len(runs(running)) == 1
        reasons = [known(running, name).skipped for name in ("often", "too")]
        assert sum(reason is not None for reason in reasons) == 1


async def test_allow_starts_another_one(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), [schedule()])
        await start(running)
        await dealt_with(running, clock, NOON + MINUTE)
        await until(lambda: len(cluster.active()) == 2)


async def test_replace_stops_the_one_that_runs_and_begins_when_it_has_ended(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), [schedule(concurrencyPolicy="REPLACE")])
        before = await start(running)
        await launched(cluster, before.task)
        await dealt_with(running, clock, NOON + MINUTE)
        await until(lambda: cluster.killed == [before.task])
        new = runs(running)[-1]
        assert running.held(new) and running.waiting(new) == [f"waits for run {before.id} of job to end"]
        assert new.task not in cluster.tasks
        await end(cluster, before.task, TaskState.KILLED)
        over = await finished(running, before)
        assert (over.status, over.reason) == (KILLED, f"replaced by run {new.id}")
        await end(cluster, new.task)
        assert (await finished(running, new)).status == SUCCESS


async def test_a_run_that_was_replaced_twice_never_begins(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), [schedule(concurrencyPolicy="REPLACE")])
        before = await start(running)
        await launched(cluster, before.task)
        await dealt_with(running, clock, NOON + MINUTE)
        second = runs(running)[-1]
        await dealt_with(running, clock, NOON + 2 * MINUTE)
        third = runs(running)[-1]
        assert (await finished(running, second)).status == KILLED
        assert running.held(third)
        await end(cluster, before.task, TaskState.KILLED)
        await launched(cluster, third.task)
    assert [spec.id for spec in cluster.accepted] == [before.task, third.task]


async def test_a_schedule_that_is_changed_or_removed_at_its_due_time(store: SqliteStore) -> None:
    """Whichever is written first: the run is there with the old one, or not at all."""
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), [schedule()])
        clock.now = NOON + MINUTE
        running.wake()
        await running.catalog.update_schedule("job", schedule(enabled=False))
        await asyncio.sleep(0.05)
        count = len(runs(running))
        assert count == (1 if known(running).due is not None else 0)
        clock.now += 10 * MINUTE
        running.wake()
        await asyncio.sleep(0.05)
        assert len(runs(running)) == count
        await running.catalog.remove_schedule("job", "often")
        assert running.catalog.schedules("job") == []


async def test_many_schedules_that_are_due_at_once(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=1_000_000, mem=10_000_000))
    clock = Clock()
    count = 600
    async with jobs(store, cluster, clock) as running:
        for number in range(count):
            await running.catalog.create(definition(f"job-{number}"), [schedule()])
        before = await store.revision()
        clock.now = NOON + MINUTE
        running.wake()
        await until(lambda: len(running.ledger.runs) == count)
        assert await store.revision() - before < 20
        await until(lambda: len(cluster.active()) == count)
        assert {run.due for run in running.ledger.runs} == {NOON + MINUTE}
