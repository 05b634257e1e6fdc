"""Pods in the services framework: what a definition may say, what becomes of it, and Marathon's API for it."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from frameworks.services import catalog
from frameworks.services.app import CODEC, PREFIX
from frameworks.services.framework import Services
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.pods.tasks import new_instance
from frameworks.services.rest import ALIASES, PUBLIC, routers
from master.rest.app import create_app
from master.rest.errors import json_path
from master.store.sqlite import SqliteStore
from model.fetch import Fetch
from model.health import ProbeKind
from model.image import ImageSpec, Rules
from model.resources import Resources
from model.task import Protocol, TaskSpec, TaskState
from model.volume import WORKSPACE, VolumeKind, VolumeMount
from tests.cluster.bed import ROOT
from tests.unit.cluster import Cluster, node, until

pytestmark = pytest.mark.anyio
Json = dict[str, Any]
AMOUNTS = {"cpus": 0.5, "mem": 64}
IMAGE = {"kind": "DOCKER", "id": "nginx:1.25"}
POD: Json = {
    "id": "/group/web",
    "containers": [
        {
            "name": "web",
            "exec": {"command": {"argv": ["server"]}},
            "resources": {**AMOUNTS, "disk": 10},
            "endpoints": [{"name": "http", "containerPort": 80, "labels": {"VIP_0": "/web:80"}}],
            "healthCheck": {"http": {"endpoint": "http", "path": "/ping"}, "intervalSeconds": 5},
            "environment": {"COLOUR": "red"},
            "lifecycle": {"killGracePeriodSeconds": 7.5},
        },
        {
            "name": "side",
            "exec": {"command": {"shell": "log"}},
            "resources": AMOUNTS,
            "user": "1000",
            "linuxInfo": {"ipcInfo": {"mode": "SHARE_PARENT", "shmSize": 8}, "pidInfo": {"mode": "SHARE_PARENT"}},
            "labels": {"tier": "side"},
        },
    ],
    "environment": {"COLOUR": "blue", "SIZE": "large"},
    "labels": {"tier": "front"},
    "networks": [{"mode": "container", "name": "overlay"}],
    "scaling": {"kind": "fixed", "instances": 2},
    "scheduling": {
        "backoff": {"backoff": 0.01, "maxLaunchDelay": 0.05},
        "placement": {"constraints": [], "acceptedResourceRoles": ["*"]},
    },
    "executorResources": {"cpus": 0.1, "mem": 16},
    "user": "nobody",
    "volumes": [],
}


def changed(path: str, value: object) -> Json:
    """`containers.0.name`: the pod with another value there."""
    definition = copy.deepcopy(POD)
    *above, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = definition
    for step in above:
        place = place[step]
    place[last] = value
    return definition


def test_what_a_definition_becomes() -> None:
    definition = PodDefinition.model_validate(POD)
    assert (definition.instances, definition.network) == (2, "overlay")
    assert definition.resources == Resources(1100, 144, 10)
    assert (definition.backoffSeconds, definition.maxLaunchDelaySeconds) == (0.01, 0.05)
    assert definition.scaled(5).instances == 5


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("containers", [], "/containers"),
        ("containers.0.name", "side", "/containers"),
        ("containers.0.name", "a/b", "/containers(0)/name"),
        ("containers.0.exec", {"command": {}}, "/containers(0)/exec/command"),
        ("containers.0.exec", {"command": {"shell": "a", "argv": ["a"]}}, "/containers(0)/exec/command"),
        ("containers.0.resources", {"cpus": 0.1}, "/containers(0)/resources/mem"),
        ("containers.0.resources", {**AMOUNTS, "gpus": 1}, "/containers(0)/resources/gpus"),
        ("containers.0.exec", None, "/containers(0)"),
        (
            "containers.0.exec",
            {"command": {"shell": "a"}, "overrideEntrypoint": False},
            "/containers(0)/exec",
        ),
        ("containers.0.labels", {"tepui/system": "true"}, "/containers(0)/labels"),
        ("containers.0.image", {"kind": "APPC", "id": "nginx"}, "/containers(0)/image/kind"),
        ("containers.0.image", {"kind": "DOCKER", "id": "two words"}, "/containers(0)/image/id"),
        ("containers.0.image", {**IMAGE, "labels": {"version": "1"}}, "/containers(0)/image/labels"),
        (
            "containers.0.image",
            {**IMAGE, "pullConfig": {"secret": "none"}},
            "/containers(0)/image/pullConfig/secret",
        ),
        ("containers.0.artifacts", [{"uri": "ftp://192.0.2.1/a"}], "/containers(0)/artifacts(0)"),
        ("containers.0.artifacts", [{"uri": "http://192.0.2.1/a", "destPath": "../a"}], "/containers(0)/artifacts(0)"),
        ("containers.0.volumeMounts", [{"name": "v", "mountPath": "/v"}], "/containers(0)/volumeMounts(0)/name"),
        ("containers.0.volumeMounts", [{"name": "v", "mountPath": "/proc"}], "/containers(0)/volumeMounts(0)"),
        ("containers.0.tty", True, "/containers(0)/tty"),
        ("containers.0.colour", "red", "/containers(0)/colour"),
        ("containers.0.endpoints.0.hostPort", 70000, "/containers(0)/endpoints(0)/hostPort"),
        ("containers.0.endpoints.0.labels", {"VIP_0": "web"}, "/containers(0)/endpoints(0)/labels"),
        ("containers.1.endpoints", [{"name": "more", "containerPort": 80}], "/containers(1)/endpoints"),
        ("containers.1.endpoints", [{"name": "http", "containerPort": 81}], "/containers(1)/endpoints"),
        ("containers.0.healthCheck", {"http": {"endpoint": "none"}}, "/containers(0)/healthCheck"),
        ("containers.0.healthCheck", {}, "/containers(0)/healthCheck"),
        ("containers.0.resourceLimits", {"mem": 1}, "/containers(0)/resourceLimits/mem"),
        ("containers.0.environment", {"KEY": {"secret": "key"}}, "/containers(0)/environment/KEY"),
        ("containers.0.user", "70000", "/containers(0)/user"),
        ("networks", [], "/containers(0)/endpoints(0)/containerPort"),
        ("networks", [{"mode": "host", "name": "x"}], "/networks(0)"),
        ("containers.0.endpoints", [{"name": "http"}], "/containers(0)/endpoints(0)/containerPort"),
        ("containers.0.check", {"tcp": {"endpoint": "http"}}, "/containers(0)/check"),
        ("role", "prod", "/role"),
        ("linuxInfo", {"ipcInfo": {"mode": "SHARE_PARENT"}}, "/linuxInfo/ipcInfo"),
        ("legacySharedCgroups", True, "/legacySharedCgroups"),
        ("volumes", [{"name": "data"}], "/volumes(0)/name"),
        ("volumes", [{"name": "../data"}], "/volumes(0)/name"),
        ("volumes", [{"name": "data", "host": "srv/data"}], "/volumes(0)"),
        ("volumes", [{"name": "data", "persistent": {"size": 10}}], "/volumes(0)/persistent"),
        ("volumes", [{"name": "data", "secret": "key"}], "/volumes(0)/secret"),
        ("secrets", {"key": {"source": "/key"}}, "/secrets/key/source"),
        ("scaling", {"kind": "free"}, "/scaling/kind"),
        (
            "scheduling.placement",
            {"constraints": [{"fieldName": "hostname", "operator": "NEAR"}]},
            "/scheduling/placement/constraints(0)",
        ),
        ("scheduling.placement", {"acceptedResourceRoles": ["r"]}, "/scheduling/placement/acceptedResourceRoles"),
        ("scheduling.upgrade", {"minimumHealthCapacity": 2}, "/scheduling/upgrade/minimumHealthCapacity"),
        ("id", "/" + "a" * 90, "/id"),
        ("id", "/web::status", "/id"),
    ],
)
def test_what_can_not_be_is_refused_with_its_place(path: str, value: object, complaint: str) -> None:
    with pytest.raises(ValidationError) as refused:
        PodDefinition.model_validate(changed(path, value))
    assert complaint in [json_path(problem["loc"]) for problem in refused.value.errors()]


def made_of(containers: Sequence[Json], **changes: Any) -> PodDefinition:
    plain = {"resources": AMOUNTS, "exec": {"command": {"argv": ["run"]}}}
    named = [{"name": f"c{number}", **plain, **container} for number, container in enumerate(containers)]
    return PodDefinition.model_validate({"id": "/web", "containers": named, "networks": POD["networks"], **changes})


def tasks_of(containers: Sequence[Json], **changes: Any) -> tuple[TaskSpec, ...]:
    return new_instance(made_of(containers, **changes), "services", "1", {})


def problems(containers: Sequence[Json], **changes: Any) -> set[str]:
    with pytest.raises(ValidationError) as refused:
        made_of(containers, **changes)
    return {json_path(problem["loc"]) for problem in refused.value.errors()}


def test_volumes_of_its_tasks() -> None:
    shared = {"name": "shared", "mountPath": "/shared"}
    web, side, other = tasks_of(
        [
            {"volumeMounts": [shared, {"name": "conf", "mountPath": "conf", "readOnly": True}]},
            {"volumeMounts": [{**shared, "readOnly": True}, {**shared, "mountPath": "/again"}]},
            {},
        ],
        volumes=[{"name": "shared"}, {"name": "conf", "host": "/etc/conf"}],
    )
    assert web.volumes == (
        VolumeMount("/shared", VolumeKind.POD, "shared"),
        VolumeMount(f"{WORKSPACE}/conf", VolumeKind.HOST, "/etc/conf", read_only=True),
    )
    assert [(mount.destination, mount.read_only) for mount in side.volumes] == [("/shared", True), ("/again", False)]
    # One with a volume in its workspace starts there.
    assert (web.cwd, side.cwd, other.cwd, other.volumes) == ("", "/", "/", ())


def test_all_that_is_wrong_with_volumes_is_told() -> None:
    mount = {"name": "a", "mountPath": "/a"}
    assert problems([{"volumeMounts": [mount, {**mount, "name": "b"}]}], volumes=[{"name": "a"}] * 2) == {
        "/volumes(1)/name",
        "/containers(0)/volumeMounts(1)/name",
        "/containers(0)/volumeMounts(1)/mountPath",
    }


def test_images_and_artifacts_of_its_tasks() -> None:
    artifact = {"uri": "https://192.0.2.1/a.tgz", "extract": False, "destPath": "below/a"}
    arguments, all_of_it, shell, nothing, plain = tasks_of(
        [
            {"image": {**IMAGE, "forcePull": True, "pullConfig": {"secret": "pull"}}, "user": "web"},
            {"image": IMAGE, "exec": {"command": {"argv": ["run"]}, "overrideEntrypoint": True}},
            {"image": IMAGE, "exec": {"command": {"shell": "run"}}},
            {"image": IMAGE, "exec": None},
            {"artifacts": [artifact]},
        ],
        secrets={"pull": {"source": "web/registry"}},
    )
    assert arguments.image == ImageSpec("nginx:1.25", True, Rules.MESOS, arguments=True, pull_secret="web/registry")
    assert [task.image and task.image.arguments for task in (all_of_it, shell, nothing, plain)] == [False] * 3 + [None]
    assert (arguments.argv, all_of_it.argv, shell.argv[0], nothing.argv) == (("run",), ("run",), "/bin/sh", ())
    assert [(task.user, task.cwd) for task in (arguments, nothing, plain)] == [("web", ""), ("", ""), ("0:0", "")]
    assert plain.fetch == (Fetch("https://192.0.2.1/a.tgz", "below/a", extract=False),)


def test_a_pods_user_is_its_containers_whatever_their_images_say() -> None:
    (task,) = tasks_of([{"image": IMAGE}], user="nobody")
    assert task.user == "nobody"


def test_credentials_of_others_are_refused() -> None:
    image = {**IMAGE, "pullConfig": {"secret": "pull"}}
    assert problems([{"image": image}], secrets={"pull": {"source": "other/registry"}}) == {"/secrets/pull/source"}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(node("n1"), node("n2"))


@pytest.fixture
async def client(cluster: Cluster, store: SqliteStore) -> AsyncIterator[httpx2.AsyncClient]:
    services = Services(store, cluster.subscribe())
    running = asyncio.create_task(services.run())
    cluster.deploying = services.deploying
    app = create_app(lambda token: token == "t", routers(store, services), PUBLIC)
    transport = httpx2.ASGITransport(app)
    headers = {"Authorization": "token=t"}
    async with httpx2.AsyncClient(transport=transport, base_url="https://master", headers=headers) as client:
        yield client
    assert not running.done(), running.exception()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def run(client: httpx2.AsyncClient, cluster: Cluster, definition: Json = POD) -> Json:
    """Returns the pod, when its tasks run."""
    answer = await client.post("/v2/pods", json=definition)
    assert answer.status_code == 201, answer.text
    await runs(cluster, 2)
    return dict(answer.json())


async def runs(cluster: Cluster, instances: int, pod: str = "/group/web") -> None:
    await until(lambda: len(cluster.running(pod)) == len(cluster.active(pod)) == 2 * instances)


def pods(cluster: Cluster) -> dict[str, list[str]]:
    """Tasks of each instance."""
    found: dict[str, list[str]] = {}
    for view in cluster.active("/group/web"):
        assert view.spec.pod is not None
        found.setdefault(view.spec.pod.id, []).append(view.spec.id)
    return found


async def test_its_tasks(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    pod = await run(client, cluster)
    web, side = cluster.accepted[:2]
    assert web.pod is not None and side.pod is not None
    assert web.pod.members == side.pod.members == (web.id, side.id)
    assert web.id == f"{web.pod.id}.web" and web.pod.id.startswith("group_web.instance-")
    assert (web.pod.resources, web.held, side.held) == (Resources(100, 16), Resources(600, 80, 10), Resources(500, 64))
    assert (web.argv, side.argv) == (("server",), ("/bin/sh", "-c", "log"))
    assert (web.user, side.user, web.kill_grace_s, side.kill_grace_s) == ("nobody", "1000", 7.5, 3.0)
    assert (web.pod.share_ipc, web.pod.share_pid, side.pod.share_ipc, side.pod.share_pid) == (False, False, True, True)
    assert (web.shm, side.shm, dict(side.labels)["tier"], dict(web.labels)["tier"]) == (64, 8, "side", "front")
    (port,) = web.ports
    assert (port.number, port.name, port.protocols, port.labels) == (
        80,
        "http",
        (Protocol.TCP,),
        (("VIP_0", "/web:80"),),
    )
    (check,) = web.health_checks
    assert (check.kind, check.port, check.path, check.own_address) == (ProbeKind.HTTP, 80, "/ping", False)
    told = dict(side.env)
    assert told["ENDPOINT_HTTP"] == "80" and told["MARATHON_APP_VERSION"] == pod["version"]
    assert (told["COLOUR"], dict(web.env)["COLOUR"], told["MESOS_TASK_ID"]) == ("blue", "red", side.id)


async def test_instances_are_spread_and_each_is_on_one_node(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await run(client, cluster)
    assert cluster.spread("/group/web") == {"n1": 2, "n2": 2}
    assert all(len({cluster.tasks[each].node for each in tasks}) == 1 for tasks in pods(cluster).values())


async def test_instances_are_where_constraints_let_them_be(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    constraints = {"constraints": [{"fieldName": "hostname", "operator": "MAX_PER", "value": "1"}]}
    body = changed("scheduling.placement", constraints)
    body["scaling"] = {"kind": "fixed", "instances": 3}
    assert (await client.post("/v2/pods", json=body)).status_code == 201
    await runs(cluster, 2)
    assert {task.node for task in cluster.active()} == {"n1", "n2"} and len(pods(cluster)) == 2
    shown = (await client.get("/v2/pods/group/web")).json()
    assert shown["scheduling"]["placement"]["constraints"] == constraints["constraints"]


async def test_an_instance_of_which_one_task_ends_is_replaced(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await run(client, cluster)
    before = pods(cluster)
    victim, other = sorted(before)
    cluster.advance(before[victim][1], TaskState.FAILED, reason="exited with 1", exit_code=1)
    await until(lambda: victim not in pods(cluster) and len(pods(cluster)) == 2)
    await runs(cluster, 2)
    assert other in pods(cluster)
    status = (await client.get("/v2/pods/group/web::status")).json()
    (ended,) = status["terminationHistory"]
    assert ended["instanceID"] == victim and ended["message"] == "side: failed: exited with 1"
    assert ended["containers"][0]["termination"]["exitCode"] == 1


async def test_an_instance_that_is_not_whole_any_more_is_killed(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    cluster.automatic = False
    await client.post("/v2/pods", json=changed("scaling.instances", 1))
    await until(lambda: len(cluster.active()) == 2)
    lost, left = sorted(cluster.tasks)
    for task in (lost, left):
        cluster.advance(task, TaskState.RUNNING)
    # Its node says nothing of the other one.
    together, cluster._together = cluster._together, lambda task_id: []  # type: ignore[method-assign]
    cluster.advance(lost, TaskState.LOST)
    cluster._together = together  # type: ignore[method-assign]
    await until(lambda: left in cluster.killed)


async def test_it_is_listed_shown_and_not_taken_for_an_app(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    pod = await run(client, cluster)
    assert (await client.head("/v2/pods")).status_code == 200
    assert (await client.get("/v2/pods")).json() == [pod] == [(await client.get("/v2/pods/group/web")).json()]
    assert PodDefinition.model_validate(pod) == PodDefinition.model_validate(POD | {"version": pod["version"]})
    assert (await client.get("/v2/apps")).json() == {"apps": []}
    for verb, path in (("GET", "/v2/apps/group/web"), ("DELETE", "/v2/apps/group/web"), ("GET", "/v2/pods/other")):
        assert (await client.request(verb, path)).status_code == 404
    for alias in ALIASES:
        assert (await client.get(alias + "/v2/pods/group/web")).json() == pod
    view = (await client.get("/api/v1/pods/group/web")).json()
    assert (
        len(view["tasks"]) == 4
        and view["waiting"] == ["waits for 2 tasks to be healthy"]
        and view["tasks"][0]["pod"] in pods(cluster)
    )


async def test_an_id_is_an_apps_or_a_pods(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await run(client, cluster)
    app = {"id": "/group/web", "cmd": "true", "networks": POD["networks"]}
    assert (await client.post("/v2/apps", json=app)).status_code == 409
    assert (await client.post("/v2/apps", json=app | {"id": "/app"})).status_code == 201
    for _ in range(2):
        assert (await client.post("/v2/pods", json=POD | {"id": "/app"})).status_code == 409


async def test_a_status_in_marathons_shape(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    cluster.automatic = False
    await client.post("/v2/pods", json=changed("scaling.instances", 1))
    await until(lambda: len(cluster.active()) == 2)
    web, side = (spec.id for spec in cluster.accepted)

    async def seen(instance: str, pod: str) -> Json:
        async def status() -> Json:
            return dict((await client.get("/v2/pods/group/web::status")).json())

        async with asyncio.timeout(5):
            while (now := await status())["instances"][0]["status"] != instance:  # noqa: ASYNC110 - it is asked over HTTP
                await asyncio.sleep(0.01)
        assert now["status"] == pod and (await client.get("/v2/pods/::status")).json()[0]["id"] == now["id"]
        return now

    await seen("STAGING", "DEGRADED")
    cluster.advance(web, TaskState.RUNNING)
    cluster.advance(side, TaskState.RUNNING)
    await seen("DEGRADED", "DEGRADED")
    cluster.advance(web, TaskState.RUNNING, healthy=True)
    status = await seen("STABLE", "STABLE")
    (instance,) = status["instances"]
    assert instance["networks"] == [{"name": "overlay", "addresses": ["100.64.0.2"]}]
    assert instance["resources"] == {"cpus": 1.1, "mem": 144, "disk": 10, "gpus": 0}
    assert instance["specReference"] == f"/v2/pods/group/web::versions/{status['spec']['version']}"
    first, second = instance["containers"]
    assert (first["name"], first["status"], first["containerId"]) == ("web", "TASK_RUNNING", web)
    assert first["endpoints"] == [{"name": "http", "healthy": True}] and first["conditions"][0]["value"] == "true"
    assert second["conditions"] == []
    cluster.kill(side)
    await seen("TERMINAL", "DEGRADED")


async def test_a_change_replaces_the_instances_and_scaling_does_not(
    client: httpx2.AsyncClient, cluster: Cluster
) -> None:
    pod = await run(client, cluster)
    before = set(pods(cluster))
    scaled = {**pod, "scaling": {"kind": "fixed", "instances": 3}}
    answer = await client.put("/v2/pods/group/web", json=scaled)
    assert answer.status_code == 409 and answer.json()["deployments"]
    answer = await client.put("/v2/pods/group/web?force=true", json=scaled)
    assert answer.status_code == 200 and answer.headers["Marathon-Deployment-Id"]
    await runs(cluster, 3)
    assert before < set(pods(cluster))
    small = changed("environment", {"SIZE": "small"})
    assert (await client.put("/v2/pods/group/web?force=true", json=small)).status_code == 200
    await until(lambda: not before & set(pods(cluster)))
    await runs(cluster, 2)
    assert {dict(view.spec.env)["SIZE"] for view in cluster.active()} == {"small"}
    assert (await client.put("/v2/pods/other", json=POD)).status_code == 422
    assert (await client.put("/v2/pods/other", json=POD | {"id": "/other"})).status_code == 404


async def test_versions_are_kept_to_a_bound(
    client: httpx2.AsyncClient, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "VERSIONS_KEPT", 3)
    await client.post("/v2/pods", json=POD)
    await client.post("/v2/pods", json=changed("containers.0.endpoints.0.labels", {}) | {"id": "/group/web/below"})
    for size in "abcd":
        answer = await client.put("/v2/pods/group/web?force=true", json=changed("environment.SIZE", size))
        assert answer.is_success
    versions = (await client.get("/v2/pods/group/web::versions")).json()
    assert len(versions) == 3 and versions == sorted(versions, reverse=True)
    found = [(await client.get(f"/v2/pods/group/web::versions/{version}")).json() for version in versions]
    assert [each["environment"]["SIZE"] for each in found] == ["d", "c", "b"]
    assert [each["version"] for each in found] == versions
    assert (await client.get("/v2/pods/group/web::versions/none")).status_code == 404
    assert (await client.get("/v2/pods/other::versions")).status_code == 404
    await client.delete("/v2/pods/group/web?force=true")
    left = [entry.key for entry in await store.range("services/")]
    assert len(left) == 2 and all("/group/web/below" in each for each in left)


async def test_instances_are_killed_one_by_one_and_replaced(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await run(client, cluster)
    victim, other = sorted(pods(cluster))
    killed = (await client.delete(f"/v2/pods/group/web::instances/{victim}")).json()
    assert killed["id"] == victim and len(killed["containers"]) == 2
    await until(lambda: victim not in pods(cluster) and len(pods(cluster)) == 2)
    await runs(cluster, 2)
    assert (await client.delete(f"/v2/pods/group/web::instances/{victim}")).status_code == 404
    answer = await client.request("DELETE", "/v2/pods/group/web::instances", json=[other, victim])
    assert [each["id"] for each in answer.json()] == [other]


async def test_removing_it_ends_all(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await run(client, cluster)
    answer = await client.delete("/v2/pods/group/web?force=true")
    assert answer.status_code == 202 and answer.json()["deploymentId"] == answer.headers["Marathon-Deployment-Id"]
    await runs(cluster, 0)
    assert (await client.get("/v2/pods")).json() == []
    assert (await client.delete("/v2/pods/group/web")).status_code == 404


async def test_a_pod_that_fits_nowhere_says_why(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/pods", json=changed("containers.1.resources", {"cpus": 3.6, "mem": 64}))
    await until(lambda: any("/group/web" in declined.reason for declined in cluster.declined))
    status = (await client.get("/v2/pods/group/web::status")).json()
    assert status["status"] == "DEGRADED" and status["instances"] == []
    assert status["message"] == "needs 4.2 CPU: 2 of 2 nodes have too little (most free: 4 CPU)"


async def test_the_example_is_a_good_one_and_what_is_stored_can_be_read(store: SqliteStore) -> None:
    example = PodDefinition.model_validate(json.loads((ROOT / "examples/pod.json").read_text()))
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    other = made_of([{"image": IMAGE, "exec": None, "volumeMounts": mounts}], volumes=[{"name": "shared"}])
    pods = [await catalog.add(store, definition) for definition in (example, other)]
    assert [CODEC.decode(entry.value) for entry in await store.range(PREFIX)] == pods
