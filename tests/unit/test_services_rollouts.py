"""Deployments from beginning to end: locks, deadlines, canaries, dependencies; system services; nodes that are away."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frameworks.services import catalog
from frameworks.services.app import SUCCEEDED
from frameworks.services.catalog import Locked
from frameworks.services.dependencies import absolute, cycle
from master.offers import Update
from master.store.sqlite import SqliteStore
from model.node import Node
from model.task import TaskState
from tests.unit.cluster import Cluster, node, until
from tests.unit.test_services import definition, runs, services, versions
from tests.unit.test_services_rest import WEB, client, cluster, settled

pytestmark = pytest.mark.anyio
__all__ = ["client", "cluster"]
Json = dict[str, Any]


async def outcome(store: SqliteStore, app_id: str = "/web") -> str:
    return (await catalog.read(store, app_id)).outcome


async def over(store: SqliteStore, app_id: str = "/web") -> str:
    async with asyncio.timeout(10):
        while not (said := await outcome(store, app_id)):
            continue
    return said


async def test_a_deployment_ends_once_whatever_happens_to_its_tasks_later(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster):
        app = await catalog.add(store, definition(instances=2))
        with pytest.raises(Locked) as caught:
            await catalog.resize(store, "/web", 3, force=False)
        assert caught.value.deployment == app.deployment
        await runs(cluster, "/web", 2)
        assert await over(store) == SUCCEEDED
        cluster.automatic = False
        cluster.advance(cluster.accepted[0].id, TaskState.FAILED)
        await until(lambda: len(cluster.accepted) == 3)
        assert await outcome(store) == SUCCEEDED
        assert await catalog.resize(store, "/web", 3, force=False)


async def test_a_restart_of_the_master_goes_on_with_a_deployment(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with services(store, cluster):
        await catalog.add(store, definition(instances=2))
        await until(lambda: len(cluster.active("/web")) == 2)
    assert not await outcome(store)
    async with services(store, cluster) as again:
        await until(lambda: again.deploying() == 1)
        for task in cluster.active("/web"):
            cluster.advance(task.spec.id, TaskState.RUNNING)
        assert await over(store) == SUCCEEDED and len(cluster.accepted) == 2
    async with services(store, cluster) as third:
        await until(lambda: len(third.runs("/web")) == 2)
        assert third.deploying() == 0


async def test_what_is_late_goes_back(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with services(store, cluster) as running:
        before = await catalog.add(store, definition(instances=2, cmd="good"))
        await until(lambda: len(cluster.active("/web")) == 2)
        kept = {task.spec.id for task in cluster.active("/web")}
        for each in kept:
            cluster.advance(each, TaskState.RUNNING)
        await over(store)
        bad = await catalog.replace(store, definition(instances=2, cmd="bad", labels={"tepui/deadline": "1"}))
        await until(lambda: versions(cluster)["bad"] > 0)
        await until(lambda: running.apps()[0].version > bad.version)
        cluster.automatic = True
        for task in cluster.active("/web"):
            if task.killing:
                cluster.advance(task.spec.id, TaskState.KILLED)
        await until(lambda: versions(cluster) == {"good": 2})
        assert await over(store) == SUCCEEDED
        ended = running.rollouts.ended(bad.deployment)
        assert ended and (ended.state, ended.reason) == ("failed", "it did not succeed within 1 s")
        (app,) = running.apps()
        assert (app.definition, app.config_version) == (before.definition, before.config_version)
        assert {task.spec.id for task in cluster.active("/web")} == kept  # who was right stays


async def test_a_new_app_that_is_late_goes_on_trying_and_is_locked_no_more(store: SqliteStore) -> None:
    cluster = Cluster(node("a", cpus=100))
    async with services(store, cluster):
        await catalog.add(store, definition(instances=2, labels={"tepui/deadline": "1"}))
        assert await over(store) == "it did not succeed within 1 s"
        assert await catalog.resize(store, "/web", 1, force=False)
        assert await over(store) == SUCCEEDED
        cluster.add_node(node("b"))
        await runs(cluster, "/web", 1)


async def test_a_canary_is_promoted(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"))
    async with services(store, cluster) as running:
        await catalog.add(store, definition(instances=4, cmd="old"))
        await over(store)
        await catalog.begin_canary(store, definition(instances=4, cmd="new"), 1)
        await until(lambda: versions(cluster) == {"old": 3, "new": 1})
        (app,) = running.apps()
        said = "1 instance of the new version serves: promote it, or cancel the deployment"
        await until(lambda: running.waiting(app) == [said])
        assert not await outcome(store)
        for victim in ("old", "new"):  # each is replaced by one of its own kind
            ended = next(task for task in cluster.active("/web") if task.spec.argv[-1] == victim)
            cluster.advance(ended.spec.id, TaskState.LOST)
            await until(lambda: versions(cluster) == {"old": 3, "new": 1})
        await catalog.resize(store, "/web", 6)
        await until(lambda: versions(cluster) == {"old": 5, "new": 1})
        kept = next(task.spec.id for task in cluster.active("/web") if task.spec.argv[-1] == "new")
        await catalog.end_canary(store, "/web")
        await until(lambda: versions(cluster) == {"new": 6})
        assert await over(store) == SUCCEEDED and kept in {task.spec.id for task in cluster.active("/web")}
        with pytest.raises(ValueError, match="no canary"):
            await catalog.end_canary(store, "/web")


async def test_a_canary_is_taken_back(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster) as running:
        await catalog.add(store, definition(instances=3, cmd="old"))
        await over(store)
        await catalog.begin_canary(store, definition(instances=3, cmd="new"), 2)
        await until(lambda: versions(cluster) == {"old": 1, "new": 2})
        old = {task.spec.id for task in cluster.active("/web") if task.spec.argv[-1] == "old"}
        (app,) = running.apps()
        assert await catalog.go_back(store, app, "was cancelled")
        await until(lambda: versions(cluster) == {"old": 3})
        assert await over(store) == SUCCEEDED and old <= {task.spec.id for task in cluster.active("/web")}


async def test_health_is_never_undershot_while_a_canary_comes(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with services(store, cluster):
        await catalog.add(store, definition(instances=2, cmd="old"))
        await until(lambda: len(cluster.active("/web")) == 2)
        for task in cluster.active("/web"):
            cluster.advance(task.spec.id, TaskState.RUNNING)
        await over(store)
        await catalog.begin_canary(store, definition(instances=2, cmd="new"), 1)
        await until(lambda: versions(cluster)["new"] == 1)
        await asyncio.sleep(0.05)
        assert not cluster.killed and versions(cluster) == {"old": 2, "new": 1}
        new = next(task for task in cluster.active("/web") if task.spec.argv[-1] == "new")
        cluster.advance(new.spec.id, TaskState.RUNNING)
        await until(lambda: len(cluster.killed) == 1)


async def test_dependencies_come_first(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with services(store, cluster) as running:
        await catalog.add(store, definition("/shop/front", dependencies=["/shop/data"]))
        await until(lambda: len(cluster.active("/shop/front")) == 1)  # what does not exist holds nobody
        await catalog.add(store, definition("/shop/data/db"))
        await until(lambda: len(cluster.active("/shop/data/db")) == 1)
        front = await catalog.resize(store, "/shop/front", 2)
        await until(lambda: running.waiting(front) == ["waits for /shop/data/db, on which it depends"])
        await asyncio.sleep(0.05)
        assert len(cluster.active("/shop/front")) == 1
        cluster.advance(cluster.active("/shop/data/db")[0].spec.id, TaskState.RUNNING)
        await until(lambda: len(cluster.active("/shop/front")) == 2)


EVERYWHERE = {"tepui/system": "true"}


def at(name: str, **attributes: str) -> Node:
    return replace(node(name), attributes=tuple(attributes.items()))


async def test_a_system_service_is_on_every_node_that_it_may_be_on(store: SqliteStore) -> None:
    cluster = Cluster(at("a", disk="ssd"), at("b", disk="ssd"), at("c", disk="hdd"))
    async with services(store, cluster) as running:
        await catalog.add(store, definition(labels=EVERYWHERE, constraints=[["disk", "LIKE", "ssd"]]))
        await until(lambda: cluster.spread("/web") == {"a": 1, "b": 1})
        assert await over(store) == SUCCEEDED
        cluster.add_node(at("d", disk="ssd"))
        await until(lambda: cluster.spread("/web") == {"a": 1, "b": 1, "d": 1})
        (app,) = running.apps()
        await until(lambda: running.sized(app).instances == 3 and not running.waiting(app))
        cluster.drain("a")
        await until(lambda: cluster.spread("/web") == {"b": 1, "d": 1})
        kept = {task.spec.id for task in cluster.active("/web")}
        cluster.nodes["b"] = at("b", disk="hdd")  # it is no longer a place for it
        cluster.add_node(at("e", disk="hdd"))
        await until(lambda: cluster.spread("/web") == {"d": 1})
        assert {task.spec.id for task in cluster.active("/web")} < kept


async def test_a_system_service_follows_nodes_that_change_places(store: SqliteStore) -> None:
    cluster = Cluster(at("a", disk="ssd"), at("b", disk="ssd"))
    async with services(store, cluster):
        await catalog.add(store, definition(labels=EVERYWHERE, constraints=[["disk", "LIKE", "ssd"]]))
        await until(lambda: cluster.spread("/web") == {"a": 1, "b": 1})
        cluster.nodes["b"] = at("b", disk="hdd")
        cluster.add_node(at("c", disk="ssd"))
        await until(lambda: cluster.spread("/web") == {"a": 1, "c": 1})


async def test_a_node_that_is_away_for_a_while_costs_a_system_service_nothing(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"))
    async with services(store, cluster):
        await catalog.add(store, definition(labels=EVERYWHERE))
        await runs(cluster, "/web", 2)
        gone = cluster.remove_node("a")
        await asyncio.sleep(0.05)
        cluster.add_node(gone)
        await asyncio.sleep(0.05)
        assert not cluster.killed and len(cluster.accepted) == 2


async def test_a_new_version_of_a_system_service_goes_from_node_to_node(store: SqliteStore) -> None:
    cluster = Cluster(*(node(name) for name in "abcd"))
    async with services(store, cluster):
        await catalog.add(store, definition(labels=EVERYWHERE, cmd="old"))
        await runs(cluster, "/web", 4)
        await over(store)
        await catalog.replace(store, definition(labels=EVERYWHERE, cmd="new"))
        seen: list[Counter[str]] = []
        while versions(cluster) != {"new": 4}:
            seen.append(cluster.spread("/web"))
            await asyncio.sleep(0)
        assert all(set(spread) == set("abcd") for spread in seen)  # no node was ever without
        assert cluster.spread("/web") == dict.fromkeys("abcd", 1)


async def test_the_oldest_go_first_if_that_is_wanted(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster):
        await catalog.add(store, definition(instances=1, killSelection="OLDEST_FIRST"))
        await runs(cluster, "/web", 1)
        await catalog.resize(store, "/web", 2)
        await runs(cluster, "/web", 2)
        await catalog.resize(store, "/web", 1)
        await until(lambda: cluster.killed == [cluster.accepted[0].id])


def away(cluster: Cluster, name: str, since: float | None) -> None:
    """The node can not be reached, or can again."""
    for view in [view for view in cluster.active() if view.node == name]:
        cluster.tasks[view.spec.id] = replace(view, unreachable=since)
        cluster._tell(Update(cluster.tasks[view.spec.id]))


async def test_another_one_is_started_before_what_is_away_is_given_up(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"))
    strategy = {"inactiveAfterSeconds": 0, "expungeAfterSeconds": 1000}
    async with services(store, cluster) as running:
        await catalog.add(store, definition(instances=2, unreachableStrategy=strategy))
        await runs(cluster, "/web", 2)
        assert all(spec.patient for spec in cluster.accepted)
        gone = cluster.remove_node("a")
        away(cluster, "a", time.monotonic())
        await until(lambda: cluster.spread("/web") == {"a": 1, "b": 2})
        assert not cluster.killed
        cluster.add_node(gone)
        away(cluster, "a", None)
        await until(lambda: len(cluster.active("/web")) == 2)
        assert len(cluster.killed) == 1
        assert not running.waiting(running.apps()[0])


async def test_what_is_away_for_too_long_is_given_up(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"))
    strategy = {"inactiveAfterSeconds": 1, "expungeAfterSeconds": 2}
    async with services(store, cluster):
        await catalog.add(store, definition(instances=2, unreachableStrategy=strategy))
        await runs(cluster, "/web", 2)
        (there,) = [task.spec.id for task in cluster.active("/web") if task.node == "a"]
        cluster.remove_node("a")
        away(cluster, "a", time.monotonic() - 0.9)
        await until(lambda: cluster.spread("/web")["b"] == 2)
        assert not cluster.killed
        await until(lambda: cluster.killed == [there])


async def test_what_finished_is_started_again_after_the_same_time(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster) as running:
        await catalog.add(store, definition(backoffSeconds=0.01, backoffFactor=1000.0))
        for count in range(1, 5):
            await until(lambda: len(cluster.accepted) == count)  # noqa: B023 - used at once
            await runs(cluster, "/web", 1)
            cluster.advance(cluster.accepted[-1].id, TaskState.FINISHED)
        await runs(cluster, "/web", 1)
        assert running.last_failure("/web") is None


# Over REST.


async def test_of_two_changes_one_wins(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json=WEB)
    await settled(cluster, 2)
    cluster.automatic = False
    answers = await asyncio.gather(*(client.put("/v2/apps/group/web", json={"cpus": cpus}) for cpus in (0.2, 0.3)))
    won, lost = sorted(answers, key=lambda answer: answer.status_code)
    assert (won.status_code, lost.status_code) == (200, 409)
    assert lost.json()["deployments"] == [{"id": won.json()["deploymentId"]}]
    assert lost.json()["message"].startswith("App is locked by one or more deployments.")
    for method, path in (("DELETE", ""), ("POST", "/restart"), ("DELETE", "/tasks?scale=true")):
        answer = await client.request(method, f"/v2/apps/group/web{path}")
        assert (answer.status_code, answer.json()["deployments"]) == (409, lost.json()["deployments"]), path
    other = {"id": "/other", "cmd": "true", "networks": WEB["networks"]}
    assert (await client.post("/v2/apps", json=other)).status_code == 201  # no other one is locked
    forced = await client.put("/v2/apps/group/web?force=true", json={"cpus": 0.4})
    assert forced.status_code == 200
    shown = (await client.get(f"/api/v1/deployments/{won.json()['deploymentId']}")).json()
    assert (shown["state"], shown["reason"]) == ("cancelled", "another change took its place")


async def test_how_far_a_deployment_has_come(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    cluster.automatic = False
    made = (await client.post("/v2/apps", json={**WEB, "labels": {"tepui/deadline": "600"}})).json()
    path = f"/api/v1/deployments/{made['deployments'][0]['id']}"
    await until(lambda: len(cluster.active()) == 2)
    shown = (await client.get(path)).json()
    assert (shown["app"], shown["state"], shown["wanted"], shown["serving"]) == ("/group/web", "running", 2, 0)
    assert shown["waiting"] == ["waits for 2 tasks to start"] and shown["deadline"] > shown["since"]
    for task in cluster.active():
        cluster.advance(task.spec.id, TaskState.RUNNING)
    await until(lambda: not cluster.deploying())
    assert (await client.get(path)).json()["state"] == "succeeded"
    assert (await client.get("/api/v1/deployments/none")).status_code == 404


async def test_a_canary_over_rest(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json={**WEB, "instances": 3})
    await settled(cluster, 3)
    for count in (0, 3):
        answer = await client.put(f"/v2/apps/group/web?canary={count}", json={"cpus": 0.2})
        assert (answer.status_code, answer.json()["details"][0]["path"]) == (422, "/canary")
    assert (await client.put("/v2/apps/none?canary=1", json={"cmd": "true"})).status_code == 404
    assert (await client.post("/api/v1/services/group/web/promote")).status_code == 409
    began = (await client.put("/v2/apps/group/web?canary=1", json={"cpus": 0.2})).json()
    sizes = {0.5: 2, 0.2: 1}
    await until(lambda: Counter(task.spec.resources.cpus / 1000 for task in cluster.active()) == sizes)
    shown = (await client.get(f"/api/v1/deployments/{began['deploymentId']}")).json()
    assert (shown["canary"], shown["old"]) == (1, 2)
    promoted = await client.post("/api/v1/services/group/web/promote")
    assert promoted.status_code == 200 and promoted.json()["deploymentId"] != began["deploymentId"]
    await until(lambda: all(task.spec.resources.cpus == 200 for task in cluster.active()))
    await settled(cluster, 3)


async def test_one_deployment_for_all_that_is_changed_together(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    cluster.automatic = False
    small = {"cmd": "serve", "cpus": 0.1, "networks": WEB["networks"]}
    group = {"id": "/g", "apps": [{"id": "a", **small}, {"id": "b", **small, "dependencies": ["../a"]}]}
    made = (await client.post("/v2/groups", json=group)).json()
    (deployment,) = (await client.get("/v2/deployments")).json()
    assert deployment["id"] == made["deploymentId"] and set(deployment["affectedApps"]) == {"/g/a", "/g/b"}
    await until(lambda: len(cluster.active("/g/a")) == 1)
    shown = (await client.get(f"/api/v1/deployments/{made['deploymentId']}")).json()
    assert "/g/b: waits for /g/a, on which it depends" in shown["waiting"]
    cluster.advance(cluster.active("/g/a")[0].spec.id, TaskState.RUNNING)
    await until(lambda: len(cluster.active("/g/b")) == 1)
    assert (await client.delete("/v2/groups/g")).status_code == 409
    assert (await client.delete("/v2/groups/g?force=true")).status_code == 200


async def test_a_group_goes_back_to_what_it_was(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    small = {"cmd": "serve", "cpus": 0.1, "networks": WEB["networks"]}
    await client.post("/v2/groups", json={"id": "/g", "apps": [{"id": "a", **small}, {"id": "b", **small}]})
    await until(lambda: len(cluster.active()) == 2 and not cluster.deploying())
    versions = (await client.get("/v2/groups/g/versions")).json()
    await client.put("/v2/apps/g/b", json={"instances": 3})
    await until(lambda: len(cluster.active()) == 4 and not cluster.deploying())
    then = (await client.get(f"/v2/groups/g/versions/{versions[0]}")).json()
    assert [(app["id"], app["instances"]) for app in then["apps"]] == [("/g/a", 1), ("/g/b", 1)]
    assert (await client.put("/v2/groups/g", json={"version": versions[0]})).status_code == 200
    await until(lambda: len(cluster.active()) == 2)
    assert (await client.put("/v2/groups/g?force=true", json={"version": "none"})).status_code == 404


# Pure.


@pytest.mark.parametrize(
    ("given_", "path"),
    [("../db", "/g/db"), ("/other/db", "/other/db"), ("../../x/y", "/x/y"), ("below", "/g/web/below"), ("..", "/g")],
)
def test_dependencies_are_relative_to_the_app(given_: str, path: str) -> None:
    assert absolute({"id": "g/web", "dependencies": [given_]})["dependencies"] == [path]


NAMES = [f"/{group}/{app}" for group in "xy" for app in "abc"]


PATHS = [*NAMES, "/x", "/y", "/z"]


@given(st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(PATHS), max_size=3)))
def test_a_cycle_is_found_when_there_is_one(paths: dict[str, list[str]]) -> None:
    graph = {app: {each for path in paths[app] for each in paths if f"{each}/".startswith(f"{path}/")} for app in paths}
    left = dict(graph)
    while free := [app for app, others in left.items() if not others & left.keys()]:
        for app in free:
            del left[app]
    found = cycle(paths, {})
    assert bool(found) is bool(left)
    assert all(after in graph[before] for before, after in pairwise(found)) and found[:1] == found[-1:]


def test_a_long_chain_is_no_cycle() -> None:
    chain = {f"/a{number}": [f"/a{number + 1}"] for number in range(2000)}
    assert cycle(chain, {}) == []
    assert len(cycle({**chain, "/a2000": ["/a0"]}, {})) == 2002
