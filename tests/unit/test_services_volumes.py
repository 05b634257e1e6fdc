"""Volumes of services: what a definition may ask for, and where tasks go whose app has left something behind."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from frameworks.services import catalog
from frameworks.services.app import Place, create, new_task
from frameworks.services.definition import Definition
from frameworks.services.framework import Services
from frameworks.services.instances import Instance, Waiting
from frameworks.services.revision import revised
from frameworks.services.volumes import RESIDENCY, UPGRADE
from master.rest.errors import json_path
from master.store.sqlite import SqliteStore
from model.task import TaskSpec, TaskState
from model.volume import WORKSPACE, Propagation, VolumeKind, VolumeMount, persistent
from tests.unit.cluster import Cluster, node, until
from tests.unit.test_services import definition, runs, services

LEAST: dict[str, Any] = {"id": "/db", "cmd": "true", "networks": [{"mode": "container", "name": "overlay"}]}
KEPT: dict[str, Any] = {"containerPath": "data", "mode": "RW", "persistent": {"size": 100}}


def spec(*volumes: dict[str, Any], instance: str = "db.1", **fields: Any) -> TaskSpec:
    body = {**LEAST, "container": {"volumes": list(volumes)}, **fields}
    read = Definition.model_validate_json(json.dumps(body))
    again = Definition.model_validate(read.model_dump(exclude_none=True))
    assert again == read, "as it is stored"
    return new_task(create(read, datetime.now(UTC)), datetime.now(UTC), Place(instance=instance))


def problems(*volumes: Any, **fields: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        Definition.model_validate_json(json.dumps({**LEAST, "container": {"volumes": list(volumes)}, **fields}))
    return {json_path(problem["loc"]): problem["msg"] for problem in caught.value.errors()}


def test_a_host_volume() -> None:
    task = spec({"containerPath": "/data", "hostPath": "/srv/data", "mode": "RO"})
    assert task.volumes == (VolumeMount("/data", VolumeKind.HOST, "/srv/data", read_only=True),)
    assert task.cwd == "/" and not task.needs_provision


def test_a_persistent_volume_is_in_the_workspace() -> None:
    task = spec(KEPT)
    assert task.volumes == (VolumeMount(f"{WORKSPACE}/data", VolumeKind.PERSISTENT, "db.1.data", size=100),)
    assert task.cwd == "" and task.needs_provision  # the node makes the workspace, and starts it there


def test_a_second_place_for_what_is_in_the_workspace() -> None:
    kept, again, scratch = spec(
        KEPT,
        {"containerPath": "/var/lib/db", "hostPath": "data", "mode": "RW"},
        {"containerPath": "/scratch", "hostPath": "scratch", "mode": "RW"},
    ).volumes
    assert again == VolumeMount("/var/lib/db", VolumeKind.PERSISTENT, kept.source, size=100)
    assert scratch == VolumeMount("/scratch", VolumeKind.EPHEMERAL, "scratch")


def test_an_absolute_path_gives_a_persistent_volume_its_name() -> None:
    task = spec({**KEPT, "containerPath": "/var/lib/db"})
    assert task.volumes == (VolumeMount("/var/lib/db", VolumeKind.PERSISTENT, "db.1.var-lib-db", size=100),)


def test_dockers_option() -> None:
    options = [{"key": "volume", "value": "/srv:/srv:ro,rslave"}, {"key": "volume", "value": "/opt:/opt"}]
    task = spec(container={"docker": {"parameters": options}})
    assert task.volumes == (
        VolumeMount("/srv", VolumeKind.HOST, "/srv", True, Propagation.SLAVE),
        VolumeMount("/opt", VolumeKind.HOST, "/opt"),
    )


def test_defaults_of_an_app_with_persistent_volumes_are_marathons() -> None:
    read = Definition.model_validate({**LEAST, "container": {"volumes": [KEPT]}})
    shown = read.model_dump(exclude_none=True)
    assert (shown["residency"], shown["upgradeStrategy"], shown["unreachableStrategy"]) == (
        RESIDENCY,
        UPGRADE,
        "disabled",
    )
    assert "residency" not in Definition.model_validate(LEAST).model_dump(exclude_none=True)


@pytest.mark.parametrize(
    ("volume", "place", "says"),
    [
        ({"containerPath": "/x"}, "", "exactly one of hostPath and persistent"),
        ({**KEPT, "hostPath": "/x"}, "", "exactly one of hostPath and persistent"),
        ({"containerPath": "/x", "external": {"name": "x"}}, "/external", "not supported"),
        ({"containerPath": "/x", "secret": "x"}, "/secret", "not supported"),
        ({"containerPath": "/x", "hostPath": "/x", "mode": "rw"}, "/mode", "'RO' or 'RW'"),
        ({"containerPath": "/x", "hostPath": "/x/../y"}, "", "without . and .."),
        ({"containerPath": "/x", "hostPath": "a/b"}, "", "no name of a volume"),
        ({"containerPath": "", "hostPath": "/x"}, "/containerPath", "at least 1"),
        ({"containerPath": "/", "hostPath": "/x"}, "", "root itself"),
        ({"containerPath": "/proc/sys", "hostPath": "/x"}, "", "nothing may be mounted over /proc"),
        ({"containerPath": "/sys", "hostPath": "/x"}, "", "nothing may be mounted over /sys"),
        ({"containerPath": "/dev/shm", "hostPath": "/x"}, "", "nothing may be mounted over /dev"),
        ({"containerPath": "../../../proc", "hostPath": "/x"}, "", "without . and .."),
        ({**KEPT, "containerPath": "a/b"}, "", "must be one name"),
        ({**KEPT, "containerPath": "/proc"}, "", "nothing may be mounted over /proc"),
        ({**KEPT, "containerPath": "a" * 41}, "", "at most 40"),
        ({**KEPT, "containerPath": ".."}, "", "a volume's name"),
        ({**KEPT, "persistent": {"size": 0}}, "/persistent/size", "greater than or equal to 1"),
        ({**KEPT, "persistent": {"size": 1.5}}, "/persistent/size", "integer"),
        ({**KEPT, "persistent": {}}, "/persistent/size", "required"),
        ({**KEPT, "persistent": {"size": 1, "type": "mount"}}, "/persistent/type", "root is"),
        ({**KEPT, "persistent": {"size": 1, "type": "path"}}, "/persistent/type", "root is"),
        ({**KEPT, "persistent": {"size": 1, "maxSize": 2}}, "/persistent/maxSize", "not supported"),
        ({**KEPT, "persistent": {"size": 1, "constraints": [["path", "LIKE", "x"]]}}, "/persistent/constraints", "not"),
    ],
)
def test_refused_with_the_fields_path(volume: dict[str, Any], place: str, says: str) -> None:
    found = problems(volume)
    assert list(found) == [f"/container/volumes(0){place}"] and says in found[f"/container/volumes(0){place}"]


@pytest.mark.parametrize(
    ("fields", "path", "says"),
    [
        ({"residency": {"taskLostBehavior": "MAYBE"}}, "/residency/taskLostBehavior", "WAIT_FOREVER"),
        ({"upgradeStrategy": {"maximumOverCapacity": 0.5}}, "/upgradeStrategy/maximumOverCapacity", "must be 0"),
        ({"upgradeStrategy": {"minimumHealthCapacity": 1}}, "/upgradeStrategy/minimumHealthCapacity", "at most 0.5"),
        ({"unreachableStrategy": {"expungeAfterSeconds": 1}}, "/unreachableStrategy", "disabled"),
    ],
)
def test_what_does_not_go_with_persistent_volumes(fields: dict[str, Any], path: str, says: str) -> None:
    found = problems(KEPT, **fields)
    assert list(found) == [path] and says in found[path]


def test_residency_without_persistent_volumes_is_refused() -> None:
    assert list(problems(residency=RESIDENCY)) == ["/residency"]


def test_one_place_and_one_name_are_for_one_volume() -> None:
    here = {"containerPath": "/x", "hostPath": "/a"}
    assert "mounted at /x" in problems(here, {"containerPath": "/x", "hostPath": "/b"})["/container/volumes"]
    found = problems({**KEPT, "containerPath": "/a/b"}, {**KEPT, "containerPath": "/a-b"})
    assert list(found) == [f"/container/volumes({index})/containerPath" for index in (0, 1)]


@pytest.mark.parametrize(
    "value", ["/srv", "data:/data", "/srv:data", "/srv:/data:z", "/srv:/proc", "/srv:/data:shared"]
)
def test_dockers_option_refused(value: str) -> None:
    body = {**LEAST, "container": {"docker": {"parameters": [{"key": "volume", "value": value}]}}}
    with pytest.raises(ValidationError):
        Definition.model_validate(body)


def app(app_id: str = "/db", instances: int = 1, **fields: Any) -> Definition:
    return definition(app_id, instances, container={"volumes": [KEPT]}, **fields)


def places(cluster: Cluster) -> dict[str, str]:
    """Where the volumes are that somebody uses."""
    return {name: view.node for name, view in sorted((view.volume.id, view) for view in cluster.views()) if view.task}


@pytest.mark.anyio
async def test_a_replacement_goes_on_with_the_volume(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"), node("c"))
    async with services(store, cluster):
        await catalog.add(store, app(instances=2))
        await runs(cluster, "/db", 2)
        before = places(cluster)
        for task in cluster.active("/db"):
            cluster.advance(task.spec.id, TaskState.FAILED)
        await until(lambda: len(cluster.accepted) == 4)
        await runs(cluster, "/db", 2)
    assert len(before) == 2 and places(cluster) == before and len(cluster.volumes) == 2


@pytest.mark.anyio
async def test_it_waits_for_the_node_of_its_volume_and_says_so(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"))
    async with services(store, cluster) as framework:
        added = await catalog.add(store, app())
        await runs(cluster, "/db", 1)
        (home,) = places(cluster).values()
        away = cluster.remove_node(home)
        cluster.advance(cluster.accepted[0].id, TaskState.LOST)
        await until(lambda: framework.waiting(added) == [f"its volume is on node {home}"])
        assert any(f"has its volume on node {home}" in declined.reason for declined in cluster.declined)
        assert not cluster.active("/db")
        cluster.add_node(away)
        await runs(cluster, "/db", 1)
    assert list(places(cluster).values()) == [home]


@pytest.mark.anyio
async def test_it_begins_anew_elsewhere_when_it_may(store: SqliteStore) -> None:
    residency = {"taskLostBehavior": "RELAUNCH_AFTER_TIMEOUT", "relaunchEscalationTimeoutSeconds": 0}
    cluster = Cluster(node("a"), node("b"))
    async with services(store, cluster):
        await catalog.add(store, app(residency=residency))
        await runs(cluster, "/db", 1)
        (home,) = places(cluster).values()
        cluster.remove_node(home)
        cluster.advance(cluster.accepted[0].id, TaskState.LOST)
        await runs(cluster, "/db", 1)
    assert home not in places(cluster).values() and len(cluster.volumes) == 2


@pytest.mark.anyio
async def test_scaling_down_keeps_volumes_for_scaling_up(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), node("b"))
    async with services(store, cluster):
        await catalog.add(store, app(instances=3))
        await runs(cluster, "/db", 3)
        before = places(cluster)
        await catalog.resize(store, "/db", 1)
        await runs(cluster, "/db", 1)
        assert len(cluster.volumes) == 3
        kept = places(cluster)
        cluster.advance(cluster.active("/db")[0].spec.id, TaskState.FAILED)
        await until(lambda: len(cluster.accepted) == 4)
        await runs(cluster, "/db", 1)
        assert places(cluster) == kept  # and not one of those that are left over
        await catalog.resize(store, "/db", 3)
        await runs(cluster, "/db", 3)
    assert places(cluster) == before


@pytest.mark.anyio
async def test_volumes_hold_their_disk(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    big = {**KEPT, "persistent": {"size": 6000}}
    async with services(store, cluster) as framework:
        added = await catalog.add(store, definition("/db", 2, container={"volumes": [big]}))
        await until(lambda: bool(framework.waiting(added)) and "disk" in framework.waiting(added)[0])
        await until(lambda: len(cluster.active("/db")) == 1)


@pytest.mark.anyio
async def test_removing_the_app_destroys_its_volumes(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with services(store, cluster):
        await catalog.add(store, app())
        await catalog.add(store, app("/other"))
        await until(lambda: len(cluster.active()) == 2)
        await catalog.remove(store, "/db")
        await catalog.add(store, app())  # another one of this name must not find them
        await until(lambda: any(view.destroying for view in cluster.views()))
        (going,) = [view for view in cluster.views() if view.destroying]
        cluster.advance(going.task, TaskState.KILLED)
        cluster.sweep()
        await until(lambda: len(cluster.accepted) == 3)
    assert going.volume.owner == "/db" and going.volume.id not in cluster.volumes
    assert {view.volume.owner for view in cluster.views()} == {"/db", "/other"}


@pytest.mark.anyio
async def test_what_an_app_left_that_went_while_the_master_was_down(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster):
        await catalog.add(store, app())
        await runs(cluster, "/db", 1)
    await catalog.remove(store, "/db")
    async with services(store, cluster):
        await until(lambda: all(view.destroying for view in cluster.views()))


@pytest.mark.anyio
async def test_wiped_tasks_begin_anew(store: SqliteStore) -> None:
    cluster = Cluster(node("a"))
    async with services(store, cluster) as framework:
        await catalog.add(store, app())
        await runs(cluster, "/db", 1)
        (first,) = cluster.volumes
        (run,) = framework.runs("/db")
        await wiped(framework, run)
        await until(lambda: len(cluster.accepted) == 2)
        await runs(cluster, "/db", 1)
        assert cluster.volumes[first].destroying and first not in places(cluster)


async def wiped(framework: Services, run: Any) -> None:
    await framework.kill(run)
    await framework.wipe(run)


@pytest.mark.anyio
async def test_a_volume_that_is_given_up_takes_its_instance_with_it(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    two = [KEPT, {**KEPT, "containerPath": "log"}]
    async with services(store, cluster):
        await catalog.add(store, definition("/db", container={"volumes": two}))
        await until(lambda: len(cluster.volumes) == 2)
        (one, other) = cluster.volumes
        cluster.destroy(one)
        cluster.advance(cluster.accepted[0].id, TaskState.FAILED)
        await until(lambda: cluster.volumes[other].destroying)
        await until(lambda: len(cluster.accepted) == 2)
    assert not set(persistent(cluster.accepted[1].volumes)) & {one, other}


def test_those_that_are_left_over_come_last_and_waiting_has_an_end() -> None:
    first, second = (Instance(name, "a", frozenset({f"{name}.data"})) for name in ("x", "y"))
    waiting = Waiting(left={"x.data"})
    assert waiting.choose([first, second], 1, 10.0, now=0.0) == [second]
    assert waiting.choose([first, second], 1, 10.0, now=9.0) == [second]
    assert waiting.choose([first, second], 1, 10.0, now=10.0) == []
    waiting.launched("y", ["y.data"])
    assert waiting.choose([first], 1, 10.0, now=20.0) == [first]


@pytest.mark.parametrize("change", [{}, {"instances": 0}, {"labels": {"a": "b"}}])
def test_a_change_of_something_else_leaves_an_app_where_its_volumes_are(change: dict[str, Any]) -> None:
    """Otherwise it would begin anew elsewhere, without them."""
    before = Definition.model_validate({**LEAST, "container": {"volumes": [KEPT]}})
    after = revised(before.id, before, change, partial=True)
    assert after == before.model_copy(update=change) and after.residency is not None
    assert after.upgradeStrategy == before.upgradeStrategy
