"""The jobs framework against a cluster in memory, with the real store."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from frameworks.jobs.catalog import Blocked
from frameworks.jobs.framework import Jobs, UnknownRun
from frameworks.jobs.job import RUNS_KEPT
from frameworks.jobs.launcher import NODE_LAUNCHES
from frameworks.jobs.run import FAILED, KILLED, SUCCESS, Run
from master.store.base import Delete, StoreError
from master.store.sqlite import SqliteStore
from model.task import TaskState
from tests.unit.cluster import Cluster, node, until
from tests.unit.jobs import NOON, Clock, definition, end, finished, jobs, launched, start

pytestmark = pytest.mark.anyio


async def attempt_of(running: Jobs, key: str, number: int) -> Run:
    """The run, once it is at this attempt."""

    def known() -> Run | None:
        return running.ledger.runs.get(key)

    await until(lambda: (run := known()) is not None and run.attempt == number)
    run = known()
    assert run is not None
    return run


async def test_a_run_from_start_to_end(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition("reports.daily", env={"A": "b"}, cpus=0.5), ())
        run = await start(running, "reports.daily")
        assert run.id.startswith("20260131120000") and run.created == NOON
        await launched(cluster, run.task)
        (spec,) = cluster.accepted
        env = dict(spec.env)
        assert spec.id == f"reports.daily.{run.id}.1" and spec.owner == "reports.daily" and spec.framework == "jobs"
        assert spec.argv == ("/bin/sh", "-c", "true") and spec.network == "overlay" and spec.resources.cpus == 500
        assert env["MESOS_TASK_ID"] == spec.id and env["A"] == "b" and env["HOST"] == "10.0.0.1"
        assert env["MARATHON_APP_ID"] == f"/reports/daily/{run.id}"
        cluster.advance(run.task, TaskState.RUNNING)
        await until(lambda: running.live.started(run.task) is not None)
        clock.now += 5
        await end(cluster, run.task, exit_code=0)
        over = await finished(running, run)
        await until(lambda: run.task not in cluster.tasks, "its end is acknowledged")
    assert (over.status, over.created, over.completed) == (SUCCESS, NOON, NOON + 5)
    (attempt,) = over.tasks
    assert (attempt.task, attempt.node, attempt.state, attempt.exit_code) == (run.task, "a", TaskState.FINISHED, 0)
    assert attempt.started is not None and attempt.started < attempt.ended


async def test_a_run_that_fails_is_not_tried_again_unless_it_says_so(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(), ())
        run = await start(running)
        await end(cluster, run.task, TaskState.FAILED, exit_code=3)
        over = await finished(running, run)
        history = running.ledger.history_of(running.catalog.read("job"))
    assert (over.status, over.reason, over.attempt) == (FAILED, "failed: exit code 3", 1)
    assert (history.successes, history.failures, history.last_failure) == (0, 1, NOON)


async def test_on_failure_it_is_tried_again_later_each_time(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(restart={"policy": "ON_FAILURE"}), ())
        run = await start(running)
        task = run.task
        for attempt, pause in ((2, 1.0), (3, 2.0), (4, 4.0)):
            await end(cluster, task, TaskState.FAILED, exit_code=1)
            known = await attempt_of(running, run.key, attempt)
            assert known.not_before == clock.now + pause
            (sentence,) = running.waiting(known)
            assert sentence == f"attempt {attempt - 1} failed (exit code 1): the next one in {pause:.1f} s"
            task = known.task
            assert task == f"job.{run.id}.{attempt}" and task not in cluster.tasks
            clock.now += pause
            running.wake()
        await end(cluster, task)
        over = await finished(running, run)
    assert over.status == SUCCESS and over.attempt == 4 and len(over.tasks) == 4
    assert [spec.id for spec in cluster.accepted] == [each.task for each in over.tasks]


async def test_it_is_tried_no_longer_than_its_active_deadline(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        restart = {"policy": "ON_FAILURE", "activeDeadlineSeconds": 60}
        await running.catalog.create(definition(restart=restart), ())
        run = await start(running)
        await end(cluster, run.task, TaskState.FAILED, exit_code=1)
        await attempt_of(running, run.key, 2)
        clock.now += 60
        running.wake()
        await end(cluster, f"job.{run.id}.2", TaskState.LOST, reason="node a was away for too long")
        over = await finished(running, run)
    assert over.status == FAILED and over.reason == "lost: node a was away for too long" and over.attempt == 2


async def test_a_run_that_is_stopped_is_killed_and_not_tried_again(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(restart={"policy": "ON_FAILURE"}), ())
        run = await start(running)
        await launched(cluster, run.task)
        await running.stop(run.key)
        await until(lambda: cluster.killed == [run.task])
        await end(cluster, run.task, TaskState.KILLED)
        over = await finished(running, run)
        with pytest.raises(UnknownRun):
            await running.stop(run.key)
    assert (over.status, over.reason) == (KILLED, "stopped by request")


async def test_a_task_that_somebody_kills_ends_its_run(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(restart={"policy": "ON_FAILURE"}), ())
        run = await start(running)
        await launched(cluster, run.task)
        cluster.kill(run.task)
        over = await finished(running, run)
    assert (over.status, over.reason) == (KILLED, "its task was killed")


async def test_a_run_that_waits_says_why_and_can_be_stopped(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=1000))
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(cpus=4.0), ())
        run = await start(running)
        await until(lambda: running.waiting(run) != ["no node has offered resources yet"])
        assert running.waiting(run) == ["needs 4 CPU: 1 of 1 node has too little (most free: 1 CPU)"]
        await until(lambda: cluster.declined[-1].reason == "job lacks CPU")
        await running.stop(run.key)
        over = await finished(running, run)
    assert over.status == KILLED and over.tasks == () and cluster.accepted == []


async def test_a_run_that_does_not_come_to_run_is_over(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=1000))
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(cpus=4.0, maxLaunchDelay=90), ())
        run = await start(running)
        await until(lambda: bool(cluster.declined))
        clock.now += 89
        running.wake()
        await asyncio.sleep(0.02)
        assert running.ledger.runs.get(run.key) is not None
        clock.now += 1
        running.wake()
        over = await finished(running, run)
    assert (over.status, over.reason) == (FAILED, "did not start by 2026-01-31 12:01:30 UTC")


async def test_what_waits_starts_when_there_is_room(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=200), automatic=False)
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(), ())
        runs = [await start(running) for _ in range(6)]
        for first, second in zip(runs[::2], runs[1::2], strict=True):
            await launched(cluster, first.task)
            await launched(cluster, second.task)
            assert len(cluster.active()) == 2
            cluster.advance(first.task, TaskState.FINISHED)
            cluster.advance(second.task, TaskState.FINISHED)
        for run in runs:
            assert (await finished(running, run)).status == SUCCESS


async def test_a_group_without_room_is_in_nobodys_way(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=1000))
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition("big", cpus=2.0), ())
        await running.catalog.create(definition("small"), ())
        for _ in range(3):
            await start(running, "big")
        small = await start(running, "small")
        await launched(cluster, small.task)
        assert Counter(task.spec.owner for task in cluster.active()) == {"small": 1}


async def test_a_run_may_have_something_different_this_once(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(env={"A": "1", "B": "2"}), ())
        different = await start(running, cmd="false", env={"B": "3"}, mem=64)
        plain = await start(running)
        await launched(cluster, different.task)
        await launched(cluster, plain.task)
        specs = {spec.id: spec for spec in cluster.accepted}
    env = dict(specs[different.task].env)
    assert (env["A"], env["B"]) == ("1", "3") and specs[different.task].argv[-1] == "false"
    assert specs[different.task].resources.mem == 64 and specs[plain.task].resources.mem == 32
    assert specs[plain.task].argv[-1] == "true" and dict(specs[plain.task].env)["B"] == "2"


async def test_a_change_of_the_job_is_for_runs_that_begin_later(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=100), automatic=False)
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(cmd="first"), ())
        runs = [await start(running), await start(running)]
        await running.catalog.update("job", definition(cmd="second"))
        runs.append(await start(running))
        for run in runs:
            await end(cluster, run.task)
            await finished(running, run)
    assert [spec.argv[-1] for spec in cluster.accepted] == ["first", "first", "second"]


async def test_the_history_is_bounded_and_counts_all(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=100_000, mem=1_000_000))
    clock = Clock()
    count = RUNS_KEPT + 20
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition(), ())
        runs = []
        for _ in range(count):
            clock.now += 1
            runs.append(await start(running))
        for run in runs:
            await end(cluster, run.task)
            await until(lambda: running.ledger.runs.get(run.key) is None)  # noqa: B023 - awaited here
        kept = await running.ledger.finished("job")
        history = running.ledger.history_of(running.catalog.read("job"))
    assert history.successes == count and len(kept) == RUNS_KEPT
    assert {each.id for each in kept} == {run.id for run in runs[-RUNS_KEPT:]}
    assert len(await store.range("jobs/")) == RUNS_KEPT + 2


async def test_many_ends_of_one_job_are_written_together(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=100_000, mem=1_000_000))
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(), ())
        runs = [await start(running) for _ in range(300)]
        await until(lambda: len(cluster.active()) == 300)
        before = await store.revision()
        for run in runs:
            cluster.advance(run.task, TaskState.FINISHED)
        await until(lambda: len(running.ledger.runs) == 0 and not cluster.tasks)
        assert await store.revision() - before <= 4
        assert running.ledger.history_of(running.catalog.read("job")).successes == 300


async def test_a_job_that_runs_is_removed_only_with_its_runs(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(), ())
        run = await start(running)
        await launched(cluster, run.task)
        with pytest.raises(Blocked, match="Changes blocked by 1 active run"):
            await running.catalog.remove("job", stop=False)
        await running.catalog.remove("job", stop=True)
        await until(lambda: cluster.killed == [run.task])
        again = await running.catalog.create(definition(), ())
        await end(cluster, run.task, TaskState.KILLED)
        await until(lambda: not cluster.tasks)
        assert running.ledger.history_of(again).failures == 0, "it was another job's"
        await running.catalog.remove("job", stop=False)
    assert await store.range("jobs/") == []


async def test_nothing_is_asked_for_while_nothing_waits(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with jobs(store, cluster) as running:
        await until(lambda: cluster.suppressed)
        await running.catalog.create(definition(), ())
        run = await start(running)
        await end(cluster, run.task)
        await finished(running, run)
        await until(lambda: cluster.suppressed)


async def test_what_the_master_can_not_write_is_tried_again(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with jobs(store, cluster) as running:
        cluster.rejecting = StoreError("disk full")
        await running.catalog.create(definition(), ())
        run = await start(running)
        await until(lambda: running.waiting(run) == ["disk full"])
        cluster.rejecting = None
        await launched(cluster, run.task)
        assert len(cluster.accepted) == 1


async def test_an_offer_that_is_gone_is_waited_for_again(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    cluster.losing_offers = 3
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(), ())
        run = await start(running)
        await until(lambda: cluster.losing_offers == 0)
        cluster.offer()
        await launched(cluster, run.task)


async def test_a_task_of_no_run_is_killed(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(), ())
        run = await start(running)
        await launched(cluster, run.task)
    await store.transaction(*[Delete(entry.key) for entry in await store.range("jobs/runs/")])
    async with jobs(store, cluster):
        await until(lambda: cluster.killed == [run.task] and not cluster.tasks)


async def test_nodes_that_come_a_little_later_get_their_part_of_many_runs(store: SqliteStore) -> None:
    cluster = Cluster(automatic=False)
    async with jobs(store, cluster) as running:
        await running.catalog.create(definition(), ())
        await asyncio.gather(*(start(running) for _ in range(500)))
        cluster.add_node(node("a", cpus=1_000_000, mem=10_000_000))
        await until(lambda: len(cluster.accepted) > 0)
        assert len(cluster.accepted) == NODE_LAUNCHES
        cluster.add_node(node("b", cpus=1_000_000, mem=10_000_000))
        await until(lambda: len(cluster.active()) == 500)
    spread = cluster.spread("job")
    assert abs(spread["a"] - spread["b"]) <= 3 * NODE_LAUNCHES
