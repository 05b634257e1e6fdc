"""Pipelines: which jobs a run of one leads to, what becomes of them, and doing again what failed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frameworks.jobs import pipeline as pipelines
from frameworks.jobs.catalog import Blocked, Invalid
from frameworks.jobs.framework import Jobs, NothingFailed
from frameworks.jobs.pipeline import BLOCKED, RUNNING, SKIPPED, WAITING, Pipeline, cycle, nodes_of
from frameworks.jobs.run import FAILED, KILLED, SUCCESS, Run
from master.store.sqlite import SqliteStore
from model.task import TaskState
from tests.unit.cluster import Cluster, node, until
from tests.unit.jobs import MINUTE, NOON, Clock, definition, end, finished, jobs, launched, schedule, start

pytestmark = pytest.mark.anyio
DIAMOND = {"extract": (), "left": ("extract",), "right": ("extract",), "load": ("left", "right")}


def dependents(graph: Mapping[str, tuple[str, ...]]) -> dict[str, set[str]]:
    return {name: {other for other, names in graph.items() if name in names} for name in graph}


async def made(running: Jobs, graph: Mapping[str, tuple[str, ...]]) -> None:
    for name, depends_on in graph.items():
        await running.catalog.create(definition(name, depends_on), ())


def states(running: Jobs, run: Run) -> dict[str, str]:
    return {each.job: each.state for each in running.pipeline(run.id).nodes}


async def reach(running: Jobs, run: Run, **expected: str) -> None:
    await until(lambda: states(running, run).items() >= expected.items(), f"{expected}")


def task(running: Jobs, run: Run, job: str) -> str:
    return f"{job}.{running.pipeline(run.id).run}.1"


async def test_each_job_starts_when_all_that_it_depends_on_has_succeeded(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with jobs(store, cluster) as running:
        await made(running, DIAMOND)
        run = await start(running, "extract")
        assert states(running, run) == {"extract": RUNNING, "left": WAITING, "right": WAITING, "load": WAITING}
        await end(cluster, run.task)
        await reach(running, run, left=RUNNING, right=RUNNING, load=WAITING)
        await end(cluster, task(running, run, "left"))
        await reach(running, run, left=SUCCESS)
        assert states(running, run)["load"] == WAITING and running.ledger.runs_of("load") == []
        await end(cluster, task(running, run, "right"))
        await end(cluster, task(running, run, "load"))
        await until(lambda: running.pipeline(run.id).over)
        pipeline = running.pipeline(run.id)
        assert pipeline.state == SUCCESS and pipeline.completed == NOON
        assert {spec.id for spec in cluster.accepted} == {f"{job}.{run.id}.1" for job in DIAMOND}


async def test_what_depends_on_a_failure_does_not_start_and_says_why(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with jobs(store, cluster) as running:
        await made(running, {**DIAMOND, "report": ("load",), "notify": ("right",)})
        run = await start(running, "extract")
        await end(cluster, run.task)
        await reach(running, run, left=RUNNING)
        await end(cluster, task(running, run, "left"), TaskState.FAILED, exit_code=1)
        await reach(running, run, left=FAILED, load=BLOCKED, report=BLOCKED, right=RUNNING)
        reasons = {each.job: each.reason for each in running.pipeline(run.id).nodes}
        assert reasons["left"] == "failed: exit code 1"
        assert (reasons["load"], reasons["report"]) == ("left failed", "load did not start")
        assert running.pipeline(run.id).state == "ACTIVE"
        await end(cluster, task(running, run, "right"))
        await end(cluster, task(running, run, "notify"))
        await until(lambda: running.pipeline(run.id).state == FAILED)
        assert {spec.owner for spec in cluster.accepted} == {"extract", "left", "right", "notify"}


async def test_what_failed_is_run_again_and_what_succeeded_stays(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with jobs(store, cluster) as running:
        await made(running, DIAMOND)
        run = await start(running, "extract")
        await end(cluster, run.task)
        await reach(running, run, left=RUNNING)
        await end(cluster, task(running, run, "left"), TaskState.FAILED, exit_code=1)
        await end(cluster, task(running, run, "right"))
        await reach(running, run, load=BLOCKED, right=SUCCESS)
    async with jobs(store, cluster) as running:
        again = await running.rerun(run.id)
        assert again.reruns == 1
        assert states(running, run) == {"extract": SUCCESS, "left": RUNNING, "right": SUCCESS, "load": WAITING}
        await end(cluster, f"left.{run.id}-2.1")
        await end(cluster, f"load.{run.id}-2.1")
        await until(lambda: running.pipeline(run.id).state == SUCCESS)
        with pytest.raises(NothingFailed):
            await running.rerun(run.id)
    assert len(cluster.accepted) == 5


async def test_a_pipeline_is_stopped_as_a_whole_and_can_be_gone_on_with(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with jobs(store, cluster) as running:
        await made(running, DIAMOND)
        run = await start(running, "extract")
        await end(cluster, run.task)
        await reach(running, run, left=RUNNING, right=RUNNING)
        tasks = {task(running, run, name) for name in ("left", "right")}
        for each in tasks:
            await launched(cluster, each)
        await running.stop_pipeline(run.id)
        assert states(running, run)["load"] == BLOCKED
        await until(lambda: set(cluster.killed) == tasks)
        for each in tasks:
            await end(cluster, each, TaskState.KILLED)
        await until(lambda: running.pipeline(run.id).state == KILLED)
        assert running.pipeline(run.id).stopped == "stopped by request"
        await running.rerun(run.id)
        for name in ("left", "right", "load"):
            await end(cluster, f"{name}.{run.id}-2.1")
        await until(lambda: running.pipeline(run.id).state == SUCCESS)


async def test_a_run_that_is_stopped_blocks_what_depends_on_it(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with jobs(store, cluster) as running:
        await made(running, {"a": (), "b": ("a",)})
        run = await start(running, "a")
        await launched(cluster, run.task)
        await running.stop(run.key)
        await end(cluster, run.task, TaskState.KILLED)
        await until(lambda: running.pipeline(run.id).over)
        assert states(running, run) == {"a": KILLED, "b": BLOCKED}
        assert [each.reason for each in running.pipeline(run.id).nodes] == ["stopped by request", "a was killed"]


async def test_a_dependency_outside_counts_when_it_is_news(store: SqliteStore) -> None:
    """`join` depends on two jobs that nothing joins otherwise: it has one run whenever both have had one."""
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await made(running, {"one": (), "two": (), "join": ("one", "two"), "after": ("join",)})

        async def run_of(name: str) -> Run:
            clock.now += 1
            run = await start(running, name)
            await end(cluster, run.task)
            await finished(running, run)
            return run

        first = await run_of("one")
        await until(lambda: running.pipeline(first.id).over)
        assert states(running, first) == {"one": SUCCESS, "join": SKIPPED, "after": SKIPPED}
        assert running.pipeline(first.id).state == SUCCESS
        skipped = running.pipeline(first.id).node("join")
        assert skipped is not None and skipped.reason.startswith("two, outside of this run, has not succeeded since")
        second = await run_of("two")
        await reach(running, second, join=RUNNING)
        await end(cluster, task(running, second, "join"))
        await end(cluster, task(running, second, "after"))
        await until(lambda: running.pipeline(second.id).over)
        third = await run_of("two")
        await until(lambda: running.pipeline(third.id).over)
        assert states(running, third)["join"] == SKIPPED, "there is no news of the other"
        fourth = await run_of("one")
        await reach(running, fourth, join=RUNNING)


async def test_both_ends_in_one_moment_start_the_join_once(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await made(running, {"one": (), "two": (), "join": ("one", "two")})
        clock.now += 1
        one, two = await start(running, "one"), await start(running, "two")
        for run in (one, two):
            await launched(cluster, run.task)
        clock.now += 1
        for run in (one, two):
            cluster.advance(run.task, TaskState.FINISHED)
        await until(lambda: len(running.ledger.runs_of("join")) > 0)
        for run in running.ledger.runs_of("join"):
            await end(cluster, run.task)
        await until(lambda: running.pipeline(one.id).over and running.pipeline(two.id).over)
    assert [spec.owner for spec in cluster.accepted].count("join") == 1


async def test_a_schedule_starts_the_whole_pipeline(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition("a"), [schedule(concurrencyPolicy="FORBID")])
        await running.catalog.create(definition("b", ("a",)), ())
        clock.now = NOON + MINUTE
        running.wake()
        await until(lambda: len(running.ledger.pipelines) == 1)
        (pipeline,) = running.ledger.pipelines
        assert (pipeline.schedule, pipeline.due) == ("often", NOON + MINUTE)
        await end(cluster, f"a.{pipeline.id}.1")
        await launched(cluster, f"b.{pipeline.id}.1")
        clock.now = NOON + 2 * MINUTE
        running.wake()
        await until(lambda: running.catalog.read_schedule("a", "often").due == clock.now)
        skipped = running.catalog.read_schedule("a", "often").skipped
        assert skipped is not None and skipped.reason == f"run {pipeline.id} is still active"
        await end(cluster, f"b.{pipeline.id}.1")
        await until(lambda: running.pipeline(pipeline.id).over)
        clock.now = NOON + 3 * MINUTE
        running.wake()
        await until(lambda: len(running.ledger.pipelines) == 2)


async def test_replace_stops_the_whole_pipeline(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await running.catalog.create(definition("a"), [schedule(concurrencyPolicy="REPLACE")])
        await made(running, {"b": ("a",), "c": ("b",)})
        run = await start(running, "a")
        await end(cluster, run.task)
        await launched(cluster, f"b.{run.id}.1")
        clock.now = NOON + MINUTE
        running.wake()
        await until(lambda: cluster.killed == [f"b.{run.id}.1"])
        (new,) = running.ledger.runs_of("a")
        assert running.held(new) and states(running, run)["c"] == BLOCKED
        await end(cluster, f"b.{run.id}.1", TaskState.KILLED)
        await launched(cluster, new.task)
        assert running.pipeline(run.id).state == KILLED and running.pipeline(new.id).state == "ACTIVE"


async def test_a_job_on_which_others_depend_is_not_removed(store: SqliteStore) -> None:
    async with jobs(store, Cluster(node("a"))) as running:
        await made(running, DIAMOND)
        with pytest.raises(Blocked, match="Changes blocked by jobs that depend on it: left, right"):
            await running.catalog.remove("extract", stop=True)
        await running.catalog.remove("load", stop=False)
        await running.catalog.remove("left", stop=False)


async def test_a_job_that_is_removed_while_its_turn_is_to_come(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with jobs(store, cluster) as running:
        await made(running, {"a": (), "b": ("a",)})
        run = await start(running, "a")
        await running.catalog.remove("b", stop=False)
        await end(cluster, run.task)
        await until(lambda: running.pipeline(run.id).over)
        assert states(running, run) == {"a": SUCCESS, "b": FAILED}
        removed = running.pipeline(run.id).node("b")
        assert removed is not None and removed.reason == "the job was removed"


async def test_dependencies_that_can_not_be_are_refused(store: SqliteStore) -> None:
    async with jobs(store, Cluster(node("a"))) as running:
        await made(running, {"a": (), "b": ("a",), "c": ("b",)})
        with pytest.raises(Invalid) as unknown:
            await running.catalog.create(definition("d", ("a", "x", "y")), ())
        assert unknown.value.problems == {
            "/dependencies(1)/id": ["job 'x' does not exist"],
            "/dependencies(2)/id": ["job 'y' does not exist"],
        }
        with pytest.raises(Invalid) as circle:
            await running.catalog.update("a", definition("a", ("c",)))
        assert circle.value.problems == {"/dependencies": ["is a cycle: a -> c -> b -> a"]}
        with pytest.raises(Invalid) as own:
            await running.catalog.create(definition("d", ("d",)), ())
        assert own.value.problems == {"/dependencies": ["is a cycle: d -> d"]}
        assert running.ledger.jobs.get("d") is None


async def test_pipelines_are_forgotten_in_time(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    clock = Clock()
    async with jobs(store, cluster, clock) as running:
        await made(running, {"a": (), "b": ("a",)})
        for _ in range(pipelines.RUNS_KEPT + 5):
            clock.now += 1
            run = await start(running, "a")
            await end(cluster, run.task, TaskState.FAILED, exit_code=1)
            await until(lambda: running.pipeline(run.id).over)  # noqa: B023 - awaited here
        assert len(running.ledger.pipelines) == pipelines.RUNS_KEPT
    async with jobs(store, cluster, clock) as running:
        kept = running.ledger.pipelines_of("a")
        assert len(kept) == pipelines.RUNS_KEPT and kept[-1].id == run.id
        assert kept == sorted(kept, key=lambda each: each.created)


names = st.integers(0, 9).map(str)
graphs = st.dictionaries(names, st.sets(names, max_size=4).map(lambda found: tuple(sorted(found))), max_size=10)


@given(graphs, names)
def test_what_is_no_cycle_has_an_order(edges: dict[str, tuple[str, ...]], root: str) -> None:
    graph: dict[str, tuple[str, ...]] = {}
    for name, depends_on in edges.items():
        way = cycle(name, depends_on, graph)
        if way:
            assert way[0] == way[-1] == name and way[1] in depends_on
            assert all(after in graph.get(before, ()) for before, after in pairwise(way[1:]))
        else:
            graph[name] = depends_on
    graph.setdefault(root, ())
    nodes = nodes_of(root, graph, {name: {o for o in graph if name in graph[o]} for name in map(str, range(10))})
    assert nodes[0].job == root and len({node.job for node in nodes}) == len(nodes)
    for index, each in enumerate(nodes):
        assert set(each.dependencies) <= {before.job for before in nodes[:index]}
        if each.job != root:
            assert set(each.dependencies) | set(each.outside) == set(graph[each.job]) and each.dependencies


@given(st.data())
def test_every_pipeline_comes_to_an_end(data: st.DataObject) -> None:
    """Whatever becomes of its runs; and run again until all succeed, it succeeds."""
    graph = {str(n): tuple(data.draw(st.sets(st.integers(0, max(0, n - 1)).map(str), min_size=1))) for n in range(1, 8)}
    graph["0"] = ()
    pipeline = Pipeline("p", "0", 0.0, nodes_of("0", graph, dependents(graph)))
    started: list[str] = []
    for outcomes in (st.sampled_from([SUCCESS, FAILED, KILLED]), st.just(SUCCESS)):
        pipeline, starting = pipelines.advance(pipeline, lambda node: None, 0.0)
        while starting:
            started += starting
            job = data.draw(st.sampled_from([each.job for each in pipeline.nodes if each.state == RUNNING]))
            known = pipeline.node(job)
            assert known is not None
            ended = pipelines.ended(pipeline, job, known.run, data.draw(outcomes), "", 0.0)
            pipeline, _ = pipelines.advance(ended, lambda node: None, 0.0)
            starting = [each.job for each in pipeline.nodes if each.state == RUNNING]
        assert pipeline.over and pipeline.completed == 0.0
        for each in pipeline.nodes:
            before = [pipeline.node(name) for name in each.dependencies]
            ready = all(other is not None and other.state == SUCCESS for other in before)
            assert (each.state == BLOCKED) is not ready
        again = pipelines.again(pipeline)
        assert (again is None) is (pipeline.state == SUCCESS)
        pipeline = again or pipeline
    assert pipeline.state == SUCCESS
