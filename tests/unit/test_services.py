"""The services framework against a cluster in memory, with the real store."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from frameworks.services import catalog, launcher
from frameworks.services.app import App, key
from frameworks.services.definition import Definition
from frameworks.services.framework import Services
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.wanted import Run
from master.store.base import Put, StoreError
from master.store.sqlite import SqliteStore
from model.task import TaskState
from tests.unit.cluster import Cluster, node, until

pytestmark = pytest.mark.anyio
OVERLAY = [{"mode": "container", "name": "overlay"}]
DATA = {"containerPath": "data", "mode": "RW", "persistent": {"size": 10}}
QUICK = {"backoffSeconds": 0.01, "maxLaunchDelaySeconds": 0.05}


def definition(app_id: str = "/web", instances: int = 1, **fields: Any) -> Definition:
    small = {"cpus": 0.1, "mem": 32.0, "cmd": "sleep 1000", "networks": OVERLAY, **QUICK}
    return Definition.model_validate({**small, "id": app_id, "instances": instances, **fields})


@asynccontextmanager
async def services(store: SqliteStore, cluster: Cluster) -> AsyncIterator[Services]:
    """A master's life: cancelled at its end as if it was killed."""
    running = Services(store, cluster.subscribe())
    task = asyncio.create_task(running.run())
    try:
        yield running
    finally:
        assert not task.done(), task.exception()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def runs(cluster: Cluster, app_id: str, count: int) -> None:
    await until(lambda: len(cluster.running(app_id)) == len(cluster.active(app_id)) == count)


async def test_instances_are_spread_over_the_nodes(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"), node("c"))
    async with services(store, cluster):
        await catalog.add(store, definition(instances=6))
        await runs(cluster, "/web", 6)
    assert cluster.spread("/web") == {"a": 2, "b": 2, "c": 2}


async def test_offers_that_come_one_by_one_are_spread_over_too(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster):
        await until(lambda: bool(cluster.declined))
        await catalog.add(store, definition(instances=4))
        cluster.add_node(node("b"))
        await runs(cluster, "/web", 4)
    assert cluster.spread("/web") == {"a": 2, "b": 2}


async def test_what_a_task_is_told(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    mappings = [{"containerPort": 8080, "name": "http-main", "labels": {"VIP_0": "/web:80"}}]
    wanted = definition("/group/web", container={"portMappings": mappings}, env={"PORT": "mine", "A": "b"}, cpus=0.5)
    async with services(store, cluster):
        app = await catalog.add(store, wanted)
        await runs(cluster, "/group/web", 1)
    (spec,) = cluster.accepted
    env = dict(spec.env)
    assert spec.id.startswith("group_web.") and spec.owner == "/group/web" and spec.framework == "services"
    assert spec.argv == ("/bin/sh", "-c", "sleep 1000") and spec.network == "overlay"
    assert env["MESOS_TASK_ID"] == spec.id and env["MARATHON_APP_ID"] == "/group/web"
    assert env["MARATHON_APP_VERSION"] == app.version and env["MARATHON_APP_RESOURCE_CPUS"] == "0.5"
    assert env["PORT0"] == env["PORT_8080"] == env["PORT_HTTP_MAIN"] == "8080"
    assert env["PORT"] == "mine" and env["A"] == "b"
    assert spec.ports[0].labels == (("VIP_0", "/web:80"),)


async def test_scaling(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"))
    async with services(store, cluster):
        await catalog.add(store, definition(instances=2))
        await runs(cluster, "/web", 2)
        first = {task.spec.id for task in cluster.active("/web")}
        await catalog.resize(store, "/web", 5)
        await runs(cluster, "/web", 5)
        await catalog.resize(store, "/web", 2)
        await runs(cluster, "/web", 2)
        assert {task.spec.id for task in cluster.active("/web")} == first  # the newest are killed
        await catalog.resize(store, "/web", 0)
        await runs(cluster, "/web", 0)
        assert len(cluster.killed) == 5


async def test_unhealthy_and_not_yet_running_are_killed_first(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with services(store, cluster):
        await catalog.add(store, definition(instances=3))
        await until(lambda: len(cluster.active("/web")) == 3)
        healthy, staging, sick = sorted(cluster.tasks)
        cluster.advance(healthy, TaskState.RUNNING)
        cluster.advance(sick, TaskState.RUNNING, healthy=False)
        cluster.advance(healthy, TaskState.RUNNING, healthy=True)
        await catalog.resize(store, "/web", 2)
        await until(lambda: cluster.killed == [sick])
        await catalog.resize(store, "/web", 1)
        await until(lambda: cluster.killed == [sick, staging])


async def test_a_task_being_killed_keeps_its_place(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    cluster.limits["/web"] = 2
    async with services(store, cluster) as running:
        await catalog.add(store, definition(instances=2))
        await until(lambda: len(cluster.active("/web")) == 2)
        app = await catalog.resize(store, "/web", 0)
        await until(lambda: len(cluster.killed) == 2)
        app = await catalog.resize(store, "/web", 2)
        await until(lambda: running.waiting(app) == ["waits for 2 tasks to end"])
        cluster.advance(cluster.killed[0], TaskState.KILLED)
        await until(lambda: len(cluster.accepted) == 3)
    assert running.last_failure("/web") is None


async def update(store: SqliteStore, **fields: Any) -> None:
    await catalog.replace(store, definition(**fields))


def versions(cluster: Cluster) -> Counter[str]:
    return Counter(task.spec.argv[-1] for task in cluster.active("/web"))


@pytest.mark.parametrize(
    ("strategy", "steps"),
    [
        # How many of each version there are, as the new ones come to run.
        ({}, [{"old": 4, "new": 4}]),
        ({"maximumOverCapacity": 0.5}, [{"old": 4, "new": 2}, {"old": 2, "new": 4}]),
        ({"maximumOverCapacity": 0}, [{"old": 4, "new": 1}, {"old": 3, "new": 2}, {"old": 2, "new": 3}]),
        ({"minimumHealthCapacity": 0.5, "maximumOverCapacity": 0}, [{"old": 2, "new": 2}, {"new": 4}]),
        ({"minimumHealthCapacity": 0, "maximumOverCapacity": 0}, [{"new": 4}]),
    ],
)
async def test_a_change_is_as_careful_as_it_is_to_be(
    store: SqliteStore, strategy: dict[str, float], steps: list[dict[str, int]]
) -> None:
    cluster = Cluster(node("a"), node("b"), automatic=False)

    def settle(state: TaskState) -> None:
        """What is being killed has ended, and what has begun is as far as that."""
        for task in cluster.active("/web"):
            if task.killing:
                cluster.advance(task.spec.id, TaskState.KILLED)
            elif task.status.state < state:
                cluster.advance(task.spec.id, state)

    async with services(store, cluster):
        fields: dict[str, Any] = {"instances": 4, "upgradeStrategy": strategy}
        await catalog.add(store, definition(cmd="old", **fields))
        await until(lambda: versions(cluster) == {"old": 4})
        settle(TaskState.RUNNING)
        await update(store, cmd="new", **fields)
        least = 4 * strategy.get("minimumHealthCapacity", 1)
        for step in steps:

            def reached(step: dict[str, int] = step) -> bool:
                settle(TaskState.STAGING)
                return versions(cluster) == step

            await until(reached)
            assert sum(not task.killing for task in cluster.running("/web")) >= least
            settle(TaskState.RUNNING)
        while versions(cluster) != {"new": 4}:
            await asyncio.sleep(0)
            settle(TaskState.RUNNING)
            assert sum(not task.killing for task in cluster.running("/web")) >= least


async def test_a_version_that_does_not_come_to_run_replaces_nobody(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with services(store, cluster):
        await catalog.add(store, definition(cmd="old", instances=2))
        await until(lambda: versions(cluster) == {"old": 2})
        for task in cluster.active("/web"):
            cluster.advance(task.spec.id, TaskState.RUNNING)
        await update(store, cmd="bad", instances=2, backoffSeconds=0.01, backoffFactor=1)
        for _ in range(3):
            await until(lambda: versions(cluster)["bad"] == 2)
            for task in cluster.active("/web"):
                if task.spec.argv[-1] == "bad":
                    cluster.advance(task.spec.id, TaskState.FAILED)
        assert versions(cluster)["old"] == 2 and cluster.killed == []
        await update(store, cmd="old", instances=2)
        await until(lambda: versions(cluster)["old"] == 4)  # of another version all the same
        for task in cluster.active("/web"):
            if task.status.state < TaskState.RUNNING:
                cluster.advance(task.spec.id, TaskState.RUNNING)
        await until(lambda: len(cluster.killed) >= 2)


async def test_constraints_hold_for_those_of_before_too(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"))
    unique: dict[str, Any] = {"constraints": [["hostname", "UNIQUE"]]}
    async with services(store, cluster):
        await catalog.add(store, definition(instances=3, **unique))
        await runs(cluster, "/web", 2)
    async with services(store, cluster) as again:  # another master: what was launched says where it is
        said = "constraint hostname UNIQUE: not met on 2 of 2 nodes"
        await until(lambda: any(said in again.waiting(app) for app in again.apps()))
        cluster.add_node(node("c"))
        await runs(cluster, "/web", 3)
        assert cluster.spread("/web") == {"a": 1, "b": 1, "c": 1}
        await update(store, cmd="new", instances=3, **unique)  # those of the last version are in nobody's way
        await until(lambda: versions(cluster) == {"new": 3})
        assert cluster.spread("/web") == {"a": 1, "b": 1, "c": 1}


async def told(running: Services) -> list[dict[str, Any]]:
    return [json.loads(event.data) async for event in running.events.read(follow=False)]


async def test_what_happens_is_told_in_marathons_words(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with services(store, cluster) as running:
        app = await catalog.add(store, definition())
        await until(lambda: len(cluster.active("/web")) == 1)
        (task,) = cluster.active("/web")
        cluster.advance(task.spec.id, TaskState.RUNNING)
        await until(lambda: not running.deploying())
        await update(store, cmd="new")
        await catalog.remove(store, "/web")
        await until(lambda: not running.apps())
        events = await told(running)
    assert [event["eventType"] for event in events] == [
        "deployment_info",
        "status_update_event",
        "instance_changed_event",
        "deployment_step_success",
        "deployment_success",
        "deployment_info",
        "deployment_failed",
        "app_terminated_event",
    ]
    assert (events[0]["plan"]["id"], events[4]["id"]) == (app.deployment, app.deployment)
    assert (events[2]["condition"], events[2]["runSpecId"]) == ("Running", "/web")
    status = events[1]
    assert (status["taskId"], status["taskStatus"], status["appId"], status["host"]) == (
        task.spec.id,
        "TASK_RUNNING",
        "/web",
        "a",
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", status["timestamp"])


async def test_a_master_that_starts_tells_of_nothing_that_was_before(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster) as first:
        await catalog.add(store, definition())
        await runs(cluster, "/web", 1)
        await until(lambda: not first.deploying())
    async with services(store, cluster) as again:
        await until(lambda: bool(again.runs("/web")))
        assert [event["eventType"] for event in await told(again)] == []


async def test_what_is_on_a_node_that_drains_moves_when_others_serve_in_its_place(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"), automatic=False)
    async with services(store, cluster):
        await catalog.add(store, definition(instances=4))
        await until(lambda: len(cluster.active("/web")) == 4)
        for task in cluster.active("/web"):
            cluster.advance(task.spec.id, TaskState.RUNNING)
        before = {task.spec.id for task in cluster.active("/web")}
        leaving = {task.spec.id for task in cluster.active("/web") if task.node == "a"}
        cluster.drain("a")
        await until(lambda: len(cluster.active("/web")) == 6)
        assert cluster.killed == [] and cluster.spread("/web") == {"a": 2, "b": 4}
        for count, task_id in enumerate({task.spec.id for task in cluster.active("/web")} - before):
            cluster.advance(task_id, TaskState.RUNNING)
            await until(lambda count=count: len(cluster.killed) == count + 1)  # type: ignore[misc]
        assert set(cluster.killed) == leaving
        for task_id in leaving:
            cluster.advance(task_id, TaskState.KILLED)
        await until(lambda: len(cluster.active("/web")) == 4)
    assert cluster.spread("/web") == {"b": 4}


async def test_what_has_no_other_place_stays_on_a_node_that_drains(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster):
        await catalog.add(store, definition(instances=2))
        await runs(cluster, "/web", 2)
        cluster.drain("a")
        await catalog.resize(store, "/web", 3)
        await until(lambda: cluster.spread("/web") == {"a": 2})
        assert cluster.killed == []
        await catalog.resize(store, "/web", 1)
        await runs(cluster, "/web", 1)
        cluster.add_node(node("b"))
        await until(lambda: cluster.spread("/web") == {"b": 1})


async def test_deleting_kills_all(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster):
        await catalog.add(store, definition("/web", 3))
        await catalog.add(store, definition("/other", 1))
        await runs(cluster, "/web", 3)
        await runs(cluster, "/other", 1)
        await catalog.remove(store, "/web")
        await runs(cluster, "/web", 0)
        assert len(cluster.running("/other")) == 1


async def test_deleted_and_made_again_runs_the_new_definition_only(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster):
        await catalog.add(store, definition(instances=2))
        await runs(cluster, "/web", 2)
        await catalog.remove(store, "/web")
        await catalog.add(store, definition(instances=2, cmd="sleep 2000"))
        await until(lambda: [task.spec.argv[2] for task in cluster.running("/web")] == ["sleep 2000"] * 2)
        await runs(cluster, "/web", 2)


@pytest.mark.parametrize("state", [TaskState.FAILED, TaskState.FINISHED, TaskState.KILLED, TaskState.LOST])
async def test_whatever_ended_is_replaced(store: SqliteStore, state: TaskState) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster):
        await catalog.add(store, definition(instances=2))
        await runs(cluster, "/web", 2)
        (victim, survivor) = [task.spec.id for task in cluster.active("/web")]
        cluster.advance(victim, state, exit_code=1)
        await until(lambda: len(cluster.accepted) == 3)
        await runs(cluster, "/web", 2)
        assert survivor in cluster.tasks and victim not in cluster.tasks and not cluster.killed


async def test_failures_make_it_wait_and_say_so(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster) as running:
        app = await catalog.add(store, definition(backoffSeconds=60.0, maxLaunchDelaySeconds=300.0))
        await runs(cluster, "/web", 1)
        cluster.advance(cluster.accepted[0].id, TaskState.FAILED, exit_code=3)
        await until(lambda: "failed" in "".join(running.waiting(app)))
        (sentence,) = running.waiting(app)
        assert re.fullmatch(r"1 start failed: the next one in (59|60)\.\d s \(last: failed: exit code 3\)", sentence)
        failure = running.last_failure("/web")
        assert failure and failure.view.status.exit_code == 3
        await catalog.remove(store, "/web")  # a new definition starts at once
        await catalog.add(store, definition())
        await runs(cluster, "/web", 1)


async def test_the_loss_of_a_node_slows_nothing_down(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"))
    async with services(store, cluster):
        await catalog.add(store, definition(instances=4, backoffSeconds=60.0))
        await runs(cluster, "/web", 4)
        lost = [task.spec.id for task in cluster.active("/web") if task.node == "a"]
        cluster.remove_node("a")
        for task_id in lost:
            cluster.advance(task_id, TaskState.LOST)
        await runs(cluster, "/web", 4)
    assert cluster.spread("/web") == {"b": 4}


async def test_why_it_waits(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=1000), node("b", cpus=1500), node("c", cpus=500, mem=16))
    async with services(store, cluster) as running:
        big = await catalog.add(store, definition("/big", 2, cpus=4.0))
        await until(lambda: len(running.waiting(big)) == 2)
        assert running.waiting(big) == [
            "needs 4 CPU: 3 of 3 nodes have too little (most free: 1.5 CPU)",
            "needs 32 MiB memory: 1 of 3 nodes have too little (most free: 16 MiB memory)",
        ]
        assert "/big lacks CPU" in {declined.reason for declined in cluster.declined}
        lost = await catalog.add(store, definition("/lost", networks=[{"mode": "container", "name": "prod"}]))
        await until(lambda: running.waiting(lost)[0].startswith("needs"))
        assert running.waiting(lost)[0] == 'needs network "prod": 3 of 3 nodes do not have it'
        await catalog.add(store, definition("/small"))
        await runs(cluster, "/small", 1)  # nobody waits behind those who can't run
        cluster.add_node(node("d", cpus=8000))
        await runs(cluster, "/big", 2)
        await until(lambda: not running.waiting(big))


async def test_without_nodes(store: SqliteStore) -> None:
    cluster = Cluster()
    async with services(store, cluster) as running:
        app = await catalog.add(store, definition())
        assert running.waiting(app) == ["no node has offered resources yet"]
        cluster.add_node(node("late"))
        await runs(cluster, "/web", 1)


async def test_two_apps_share_what_there_is(store: SqliteStore) -> None:
    await_both = Cluster(node("a", cpus=1000))
    await catalog.add(store, definition("/one", 10, cpus=0.2))
    await catalog.add(store, definition("/two", 10, cpus=0.2))
    async with services(store, await_both):
        await until(lambda: len(await_both.active()) == 5)
        assert {len(await_both.active("/one")), len(await_both.active("/two"))} == {2, 3}
        await catalog.remove(store, "/one")
        await runs(await_both, "/two", 5)


async def test_freed_resources_go_to_who_waits(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=1000))
    async with services(store, cluster):
        await catalog.add(store, definition("/first", cpus=0.8))
        await runs(cluster, "/first", 1)
        await catalog.add(store, definition("/second", cpus=0.8))
        await until(lambda: "/second lacks CPU" in {declined.reason for declined in cluster.declined})
        await catalog.resize(store, "/first", 0)
        await runs(cluster, "/second", 1)


async def test_a_master_that_restarts_starts_nothing_twice(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    cluster.limits["/web"] = 3
    async with services(store, cluster):
        await catalog.add(store, definition(instances=3))
        await until(lambda: len(cluster.accepted) == 3)
    one, two, _ = sorted(cluster.tasks)
    cluster.advance(one, TaskState.RUNNING)
    cluster.advance(two, TaskState.FAILED)  # while nobody listens
    async with services(store, cluster) as running:
        await until(lambda: len(cluster.accepted) == 4)
        await until(lambda: len(running.runs("/web")) == 3)
        assert not cluster.killed and two not in cluster.tasks


async def test_apps_changed_while_the_master_was_down(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster):
        await catalog.add(store, definition("/gone", 2))
        await catalog.add(store, definition("/less", 2))
        await runs(cluster, "/gone", 2)
        await runs(cluster, "/less", 2)
    await catalog.remove(store, "/gone")
    await catalog.resize(store, "/less", 1)
    async with services(store, cluster):
        await runs(cluster, "/gone", 0)
        await runs(cluster, "/less", 1)


async def test_offers_that_are_gone(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"))
    cluster.losing_offers = 3
    cluster.limits["/web"] = 4
    async with services(store, cluster) as running:
        await catalog.add(store, definition(instances=4))
        await runs(cluster, "/web", 4)
        assert len(running.runs("/web")) == 4 and cluster.losing_offers == 0


async def test_rescinded_offers_are_not_used(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GATHER_S", 0.2)
    cluster = Cluster()
    async with services(store, cluster) as running:
        app = await catalog.add(store, definition())
        await until(lambda: running.waiting(app) != [])
        cluster.add_node(node("a"))
        cluster.rescind_all()
        cluster.add_node(node("b"))
        await runs(cluster, "/web", 1)


async def test_a_store_that_fails_is_asked_again(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "RETRY_S", 0.02)
    cluster = Cluster(node("a"))
    cluster.rejecting = StoreError("write store.db: disk full")
    async with services(store, cluster) as running:
        await catalog.add(store, definition(instances=2))
        await until(lambda: cluster.losing_offers == 0 and not running.runs("/web"))
        cluster.rejecting = None
        await runs(cluster, "/web", 2)


async def test_an_unreadable_app_loses_no_tasks(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster):
        await catalog.add(store, definition(instances=2))
        await runs(cluster, "/web", 2)
        await store.transaction(Put(key("/web"), b"{damaged"))
        await catalog.add(store, definition("/other"))
        await runs(cluster, "/other", 1)
    async with services(store, cluster):
        await catalog.resize(store, "/other", 2)
        await runs(cluster, "/other", 2)
    assert len(cluster.running("/web")) == 2 and not cluster.killed


async def test_the_examples_are_valid() -> None:
    for path in (Path(__file__).parents[2] / "examples").glob("*.json"):
        example = json.loads(path.read_text())
        if "run" in example:  # a job
            continue
        (PodDefinition if "containers" in example else Definition).model_validate(example)
    text = (Path(__file__).parents[2] / "examples" / "web.json").read_text()
    web = Definition.model_validate(json.loads(text))
    assert web.instances == 4 and web.task_ports[0].labels == (("VIP_0", "/web:80"),)


class Life(RuleBasedStateMachine):
    """Apps come, change and go, tasks start and die, nodes come and masters restart, in any order.

    Never more tasks of an app than it asks for, and none without its volumes (held by the cluster at every accept); in
    the end, with room for all, exactly as many as it asks for.
    """

    APPS = ("/a", "/b")
    RESIDENT = "/db"  # whose tasks go on where they were, and wait for that if they must

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.wanted: dict[str, int] = {}
        self.cluster = Cluster(node("n1", cpus=700), automatic=False)

    def do(self, verb: Any) -> Any:
        return self.loop.run_until_complete(verb)

    @initialize()
    def start(self) -> None:
        self.store = self.do(SqliteStore.open(Path(self.directory.name) / "store.db"))
        self._start_master()

    def _start_master(self) -> None:
        async def begin() -> None:
            self.services = Services(self.store, self.cluster.subscribe())
            self.master = asyncio.create_task(self.services.run())

        self.do(begin())

    @rule(app_id=st.sampled_from((*APPS, RESIDENT)), instances=st.integers(0, 5))
    def deploy(self, app_id: str, instances: int) -> None:
        async def change() -> None:
            # Until the framework has seen the change, it may still act on the last one, or on the one before a delete.
            self.cluster.limits[app_id] = max(instances, self.cluster.limits.get(app_id, 0))
            if app_id in self.wanted:
                app = await catalog.resize(self.store, app_id, instances)
            else:
                fields = {"container": {"volumes": [DATA]}} if app_id == self.RESIDENT else {}
                app = await catalog.add(self.store, definition(app_id, instances, backoffSeconds=0.0, **fields))
            await until(lambda: app.version in {each.version for each in self.services.apps()})
            self.cluster.limits[app_id] = self.wanted[app_id] = instances

        self.do(change())

    @rule(app_id=st.sampled_from((*APPS, RESIDENT)))
    def delete(self, app_id: str) -> None:
        if app_id in self.wanted:
            self.do(catalog.remove(self.store, app_id))
            del self.wanted[app_id]

    # What is drawn must not depend on how far the loops have come: that differs from run to run.
    @rule(which=st.integers(0, 9), state=st.sampled_from([TaskState.RUNNING, TaskState.FAILED, TaskState.LOST]))
    def task_changes(self, which: int, state: TaskState) -> None:
        tasks = self.cluster.active()
        if tasks and tasks[which % len(tasks)].status.state < state:
            self.cluster.advance(tasks[which % len(tasks)].spec.id, state)

    @rule()
    def kills_are_done(self) -> None:
        for view in self.cluster.active():
            if view.killing:
                self.cluster.advance(view.spec.id, TaskState.KILLED)

    @rule()
    def nodes_destroy_volumes(self) -> None:
        self.cluster.sweep()

    @rule()
    def offers_vanish(self) -> None:
        self.cluster.rescind_all()
        self.cluster.losing_offers = 1

    @rule(cpus=st.integers(100, 600))
    def node_joins(self, cpus: int) -> None:
        self.cluster.add_node(node(f"n{len(self.cluster.nodes) + 1}", cpus))

    @rule()
    def master_restarts(self) -> None:
        self._stop_master()
        self._start_master()

    @rule(steps=st.integers(1, 30))
    def time_passes(self, steps: int) -> None:
        async def pass_some() -> None:
            for _ in range(steps):
                await asyncio.sleep(0.0005)

        self.do(pass_some())

    @invariant()
    def the_master_lives(self) -> None:
        if hasattr(self, "master"):
            assert not self.master.done(), self.master.exception()

    def _stop_master(self) -> None:
        async def stop() -> None:
            self.master.cancel()
            with suppress(asyncio.CancelledError):
                await self.master

        self.do(stop())

    def teardown(self) -> None:
        if hasattr(self, "master"):
            self.do(self._settle())
            self._stop_master()
            self.do(self.store.close())
        self.loop.close()
        self.directory.cleanup()

    async def _settle(self) -> None:
        self.cluster.automatic = True
        for view in self.cluster.active():
            if view.killing:
                self.cluster.advance(view.spec.id, TaskState.KILLED)
            elif view.status.state < TaskState.RUNNING:
                self.cluster.advance(view.spec.id, TaskState.RUNNING)
        self.cluster.add_node(node("large", cpus=100_000))
        await until(lambda: self.master.done() or (self._is_right(self.cluster.running) and self._is_right(self._runs)))
        self.the_master_lives()

    def _runs(self, app_id: str) -> list[Run]:
        return self.services.runs(app_id)

    def _is_right(self, tasks: Callable[[str], Sequence[object]]) -> bool:
        return all(len(tasks(app_id)) == self.wanted.get(app_id, 0) for app_id in self.APPS)


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=25, suppress_health_check=list(HealthCheck))


@pytest.mark.usefixtures("no_gathering")
class TestLife(Life.TestCase):  # type: ignore[misc, valid-type]
    pass


@pytest.fixture
def no_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GATHER_S", 0.0)


def test_apps_compare_by_what_they_are() -> None:
    app = App(definition(), "v", "v", "v", "d")
    assert app == App(definition(), "v", "v", "v", "d") != App(definition(instances=2), "v", "v", "v", "d")
