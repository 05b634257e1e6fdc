"""Marathon's API over the services framework: the whole way from HTTP to tasks, with the cluster in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from frameworks.services.framework import Services
from frameworks.services.rest import ALIASES, PUBLIC, routers
from master.rest.app import create_app
from master.store.sqlite import SqliteStore
from model.task import TaskState
from tests.unit.cluster import DEADLINE_S, Cluster, node, until

pytestmark = pytest.mark.anyio
WEB: dict[str, Any] = {
    "id": "/group/web",
    "args": ["server"],
    "cpus": 0.5,
    "mem": 64,
    "instances": 2,
    "networks": [{"mode": "container", "name": "overlay"}],
    "container": {"portMappings": [{"containerPort": 80, "name": "http", "labels": {"VIP_0": "/web:80"}}]},
}
# What the strictest of the clients knows; it fails on any other key.
APP_KEYS = """
    acceptedResourceRoles args backoffFactor backoffSeconds cmd constraints container cpus dependencies deployments
    disk env executor fetch gpus healthChecks id instances ipAddress killSelection labels lastTaskFailure
    maxLaunchDelaySeconds mem networks portDefinitions ports readinessCheckResults readinessChecks requirePorts
    residency role secrets storeUrls taskKillGracePeriodSeconds taskRateLimit taskStats tasks tasksHealthy
    tasksRunning tasksStaged tasksUnhealthy unreachableStrategy upgradeStrategy uris user version versionInfo
"""
TASK_KEYS = """
    appId healthCheckResults host id ipAddresses localVolumes ports region role servicePorts slaveId stagedAt
    startedAt state version zone
"""
CONTAINER_KEYS = "docker portMappings type volumes"
MAPPING_KEYS = "containerPort hostPort labels name protocol servicePort"
FAILURE_KEYS = "appId host instanceId message slaveId state taskId timestamp version"
INFO_KEYS = """
    buildref elected eventSubscriber frameworkId httpConfig leader marathonConfig name version zookeeperConfig
"""


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(node("n1"), node("n2"))


@pytest.fixture
async def client(cluster: Cluster, store: SqliteStore) -> AsyncIterator[httpx2.AsyncClient]:
    services = Services(store, cluster.subscribe())
    running = asyncio.create_task(services.run())
    cluster.deploying = services.deploying
    app = create_app(lambda token: token == "t", routers(store, services), PUBLIC)
    headers = {"Authorization": "token=t"}
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://master", headers=headers) as client:
        yield client
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def has_only(answer: dict[str, Any], keys: str) -> bool:
    return set(answer) <= set(keys.split())


async def running(cluster: Cluster, count: int) -> None:
    await until(lambda: len(cluster.running("/group/web")) == len(cluster.active("/group/web")) == count)


async def settled(cluster: Cluster, count: int) -> None:
    """And its deployment is over."""
    await running(cluster, count)
    await until(lambda: not cluster.deploying())


async def test_create(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    answer = await client.post("/v2/apps", json=WEB)
    app = answer.json()
    assert answer.status_code == 201 and answer.headers["Location"] == "/v2/apps/group/web"
    assert app["id"] == "/group/web" and app["deployments"][0]["id"] == answer.headers["Marathon-Deployment-Id"]
    assert app["tasksRunning"] == 0 and app["mem"] == 64 and app["cpus"] == 0.5
    await settled(cluster, 2)
    shown = (await client.get("/v2/apps/group/web")).json()["app"]
    assert shown["deployments"] == [] and shown["tasksRunning"] == 2 == len(shown["tasks"])


@pytest.mark.parametrize(("size", "status"), [(5 << 20, 413), (1 << 20, 422), (1 << 10, 201)])
async def test_labels_have_a_bound(client: httpx2.AsyncClient, cluster: Cluster, size: int, status: int) -> None:
    answer = await client.post("/v2/apps", json={**WEB, "instances": 0, "labels": {"a": "x" * size}})
    assert answer.status_code == status, answer.text
    assert status != 422 or answer.json()["details"][0]["path"] == "/labels"


async def test_a_vip_that_can_not_be_had_is_refused_by_its_label(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    cluster.vip_problems["10.1.2.3"] = "is in none of 100.127.0.0/16"

    def asking(app: str, *labels: dict[str, str]) -> dict[str, Any]:
        mappings = [{"containerPort": 80 + index, "labels": each} for index, each in enumerate(labels)]
        return {**WEB, "id": app, "container": {"type": "MESOS", "portMappings": mappings}, "healthChecks": []}

    async def refused(definition: dict[str, Any]) -> dict[str, str]:
        answer = await client.post("/v2/apps", json=definition)
        assert answer.status_code == 422, answer.text
        return {each["path"]: each["errors"][0] for each in answer.json()["details"]}

    assert await refused(asking("/a", {"VIP_0": "10.1.2.3:80"})) == {
        "/container/portMappings(0)/labels/VIP_0": "label VIP_0: 10.1.2.3:80 is in none of 100.127.0.0/16"
    }
    assert await refused(asking("/a", {"VIP_0": "/a:80"}, {"VIP_0": "/b:80", "vip_1": "/a:80"})) == {
        "/container/portMappings(1)/labels/vip_1": "label vip_1: /a:80 is asked for by another port too"
    }
    assert (await client.get("/v2/apps")).json()["apps"] == []
    taken = asking("/a", {"VIP_0": "/group/a:80", "VIP_1": "100.127.9.9:80"})
    assert (await client.post("/v2/apps", json=taken)).status_code == 201
    await until(lambda: len(cluster.running("/a")) == 2)
    assert await refused(asking("/b", {"VIP_0": "group/a:80", "VIP_1": "100.127.9.9:80", "VIP_2": "/group/a:81"})) == {
        "/container/portMappings(0)/labels/VIP_0": "label VIP_0: group/a:80 is that of /a",
        "/container/portMappings(0)/labels/VIP_1": "label VIP_1: 100.127.9.9:80 is that of /a",
    }
    pod = {
        "id": "/pod",
        "containers": [
            {
                "name": "web",
                "exec": {"command": {"shell": "true"}},
                "resources": {"cpus": 0.1, "mem": 32},
                "endpoints": [{"name": "http", "containerPort": 80, "labels": {"VIP_0": "/group/a:80"}}],
            }
        ],
        "networks": [{"mode": "container", "name": "overlay"}],
    }
    answer = await client.post("/v2/pods", json=pod)
    assert (answer.status_code, answer.json()["details"][0]["path"]) == (
        422,
        "/containers(0)/endpoints(0)/labels/VIP_0",
    )
    await client.delete("/v2/apps/a?force=true")
    await until(lambda: not cluster.active("/a"))
    assert (await client.post("/v2/pods", json=pod)).status_code == 201


async def test_default_answers_have_no_unknown_keys(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json=WEB)
    await settled(cluster, 2)
    app = (await client.get("/v2/apps/group/web")).json()["app"]
    assert has_only(app, APP_KEYS) and has_only(app["container"], CONTAINER_KEYS)
    assert has_only(app["container"]["portMappings"][0], MAPPING_KEYS)
    assert all(has_only(task, TASK_KEYS) for task in app["tasks"])
    assert has_only((await client.get("/v2/info")).json(), INFO_KEYS)


async def test_what_a_task_answers(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json=WEB)
    await settled(cluster, 2)
    tasks = (await client.get("/v2/apps/group/web/tasks")).json()["tasks"]
    assert tasks == (await client.get("/v2/tasks")).json()["tasks"]
    task = tasks[0]
    assert task["appId"] == "/group/web" and task["state"] == "TASK_RUNNING" and task["host"] in ("n1", "n2")
    assert task["ipAddresses"] == [{"ipAddress": "100.64.0.2", "protocol": "IPv4"}]
    assert task["startedAt"].startswith("20") and task["stagedAt"].endswith("Z")


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_a_change_may_have_ports_without_numbers_beside_them(client: httpx2.AsyncClient, method: str) -> None:
    """Of an app that has shown none."""
    await client.post("/v2/apps", json=WEB)
    named: dict[str, Any] = {"portDefinitions": [{"port": 80, "name": "web"}]}
    answer = await client.request(method, "/v2/apps/group/web?force=true", json=named)
    assert (answer.status_code, [each["path"] for each in answer.json()["details"]]) == (422, ["/portDefinitions"])
    plain = {"portDefinitions": [{"port": 10080}]}
    assert (await client.request(method, "/v2/apps/group/web?force=true", json=plain)).status_code == 200
    app = (await client.get("/v2/apps/group/web")).json()["app"]
    assert app["container"]["portMappings"][0]["servicePort"] == 10080


async def test_a_group_has_an_id_that_apps_can_have(client: httpx2.AsyncClient) -> None:
    for body in {"id": "/\N{SNOWMAN}", "apps": []}, {"id": "/\N{SNOWMAN}", "scaleBy": 0}, {"id": "/A b"}:
        answer = await client.post("/v2/groups", json=body)
        assert (answer.status_code, answer.json()["details"][0]["path"]) == (422, "/id"), body


async def test_tasks_as_text(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    """In columns, for scripts: the app, its service port, and where each of its tasks that run has it."""
    mappings = [{"containerPort": 80, "hostPort": 8080, "servicePort": 10080}, {"containerPort": 81}]
    published = {**WEB, "id": "/out", "instances": 1, "container": {"portMappings": mappings}}
    silent = {**WEB, "id": "/none", "container": {}, "cpus": 0.1}
    for definition in published, silent, {**silent, "id": "/too-large", "cpus": 1000}:
        await client.post("/v2/apps", json=definition)
    await until(lambda: len(cluster.running("/out")) == 1 and len(cluster.running("/none")) == 2)
    node = cluster.running("/out")[0].node
    answer = await client.get("/v2/tasks", headers={"Accept": "text/plain"})
    assert answer.headers["Content-Type"].startswith("text/plain")
    nodes = " ".join(sorted(view.node for view in cluster.running("/none")))
    lines = answer.text.splitlines()
    assert sorted(lines[0].rpartition("\t")[2].split()) == nodes.split() and lines[0].startswith("none\t \t")
    assert lines[1:] == [f"out\t10080\t{node}:8080\t", "out\t0\t100.64.0.2:81\t", "too-large\t \t"]
    alone = await client.get("/v2/apps/out/tasks", headers={"Accept": "text/plain"})
    assert alone.text.splitlines() == lines[1:3]
    (task,) = (await client.get("/v2/apps/out/tasks", headers={"Accept": "application/json"})).json()["tasks"]
    assert task["ports"] == [8080] and task["servicePorts"] == [10080, 0]


async def test_every_port_of_a_task_has_a_service_port(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    """The endpoints that clients make of tasks take the one from the place of the other."""
    mappings = [{"containerPort": 80, "hostPort": 8080}]
    await client.post("/v2/apps", json={**WEB, "instances": 1, "container": {"portMappings": mappings}})
    await settled(cluster, 1)
    (task,) = (await client.get("/v2/tasks")).json()["tasks"]
    assert (task["ports"], task["servicePorts"]) == ([8080], [0])


async def test_tasks_by_status(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    cluster.automatic = False
    await client.post("/v2/apps", json=WEB)
    await until(lambda: len(cluster.active("/group/web")) == 2)
    running, staging = (view.spec.id for view in cluster.active("/group/web"))
    cluster.advance(running, TaskState.RUNNING)
    await until(lambda: len(cluster.running("/group/web")) == 1)

    async def ids(query: str) -> list[str]:
        return sorted(task["id"] for task in (await client.get(f"/v2/tasks?{query}")).json()["tasks"])

    assert await ids("status=running") == [running] and await ids("status[]=staging") == [staging]
    assert await ids("status[]=staging&status=running") == sorted([running, staging])
    assert (await client.get("/v2/tasks?status=dead")).status_code == 422


async def test_the_only_master_does_not_step_down(client: httpx2.AsyncClient) -> None:
    answer = await client.delete("/v2/leader")
    assert answer.status_code == 409 and "no other" in answer.json()["message"]
    assert (await client.get("/v2/leader")).json() == {"leader": "master"}
    assert (await client.get("/v2/plugins")).json() == {"plugins": []}


async def test_last_failure(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json=WEB)
    await settled(cluster, 2)
    victim = cluster.accepted[0].id
    cluster.advance(victim, TaskState.FAILED, message="memory limit 64 MiB exceeded")
    await until(lambda: victim not in cluster.tasks)
    failure = (await client.get("/v2/apps/group/web")).json()["app"]["lastTaskFailure"]
    assert has_only(failure, FAILURE_KEYS) and failure["taskId"] == victim
    assert failure["message"] == "failed: memory limit 64 MiB exceeded" and failure["state"] == "TASK_FAILED"


async def test_list(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    assert (await client.get("/v2/apps")).json() == {"apps": []}
    await client.post("/v2/apps", json=WEB)
    await settled(cluster, 2)
    (plain,) = (await client.get("/v2/apps")).json()["apps"]
    (full,) = (await client.get("/v2/apps?embed=app.tasks&embed=apps.deployments")).json()["apps"]
    assert "tasks" not in plain and len(full["tasks"]) == 2


async def test_scale(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    created = (await client.post("/v2/apps", json=WEB)).json()
    answer = await client.put("/v2/apps//group/web?force=true", json={"instances": 3})
    assert answer.status_code == 200 and set(answer.json()) == {"version", "deploymentId"}
    assert answer.json()["deploymentId"] != created["deployments"][0]["id"]
    await settled(cluster, 3)
    app = (await client.get("/v2/apps/group/web")).json()["app"]
    assert app["version"] == answer.json()["version"] > app["versionInfo"]["lastConfigChangeAt"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"instances": 1, "colour": "red"}, "/colour"),
        ({"instances": "1"}, "/instances"),
        ({"cpus": -1}, "/cpus"),
        ({"instances": 1, "id": "/other"}, "/id"),
        ({"upgradeStrategy": {"minimumHealthCapacity": 1.5}}, "/upgradeStrategy/minimumHealthCapacity"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_a_bad_change_is_refused_by_its_field(
    client: httpx2.AsyncClient, method: str, body: object, path: str
) -> None:
    before = (await client.post("/v2/apps", json=WEB)).json()
    answer = await client.request(method, "/v2/apps/group/web", json=body)
    assert answer.status_code == 422 and answer.json()["details"][0]["path"] == path
    assert (await client.get("/v2/apps/group/web")).json()["app"]["version"] == before["version"]


async def test_what_a_change_does_not_say_stays(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    before = (await client.post("/v2/apps", json={**WEB, "env": {"A": "1"}, "labels": {"team": "web"}})).json()
    await settled(cluster, 2)
    answer = await client.put("/v2/apps/group/web", json={"cmd": "serve", "env": {"B": "2"}, "mem": None})
    assert answer.status_code == 200 and answer.headers["Marathon-Deployment-Id"] == answer.json()["deploymentId"]
    await until(lambda: {spec.argv[-1] for spec in [task.spec for task in cluster.active()]} == {"serve"})
    app = (await client.get("/v2/apps/group/web")).json()["app"]
    assert app["version"] == app["versionInfo"]["lastConfigChangeAt"] > before["version"]
    assert (app["cmd"], app.get("args"), app["env"], app["labels"]) == ("serve", None, {"B": "2"}, {"team": "web"})
    query = "partialUpdate=false&force=true"
    await client.put(f"/v2/apps/group/web?{query}", json={"cmd": "serve", "networks": WEB["networks"]})
    app = (await client.get("/v2/apps/group/web")).json()["app"]
    assert (app["env"], app["labels"], app["instances"], app["mem"]) == ({}, {}, 1, 128.0)


async def test_what_was_read_can_be_sent_back(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json=WEB)
    await settled(cluster, 2)
    app = (await client.get("/v2/apps/group/web")).json()["app"]
    answer = await client.put("/v2/apps/group/web", json=app)
    assert answer.status_code == 200
    after = (await client.get("/v2/apps/group/web")).json()["app"]
    assert after["versionInfo"]["lastConfigChangeAt"] == app["version"]  # nothing was changed
    assert len(cluster.accepted) == 2


async def test_an_app_that_is_not_there_is_made(client: httpx2.AsyncClient) -> None:
    answer = await client.put("/v2/apps/group/web", json={key: value for key, value in WEB.items() if key != "id"})
    assert answer.status_code == 201
    assert (await client.get("/v2/apps/group/web")).json()["app"]["version"] == answer.json()["version"]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_several_apps_are_changed_or_none(client: httpx2.AsyncClient, method: str) -> None:
    await client.post("/v2/apps", json={**WEB, "id": "/a"})
    other = {"id": "b", "cmd": "serve", "networks": WEB["networks"]}
    for bad in ([{"id": "/a", "cpus": 2}, {**other, "cpus": -1}], [{"id": "/a"}, {"id": "a"}], [{"cpus": 1}], []):
        assert (await client.request(method, "/v2/apps", json=bad)).status_code == 422
    apps = (await client.get("/v2/apps")).json()["apps"]
    assert [(app["id"], app["cpus"]) for app in apps] == [("/a", 0.5)]
    answer = await client.request(method, "/v2/apps?force=true", json=[{"id": "/a", "cpus": 2}, other])
    assert answer.status_code == 200 and set(answer.json()) == {"version", "deploymentId"}
    apps = (await client.get("/v2/apps")).json()["apps"]
    assert {(app["id"], app["cpus"]) for app in apps} == {("/a", 2.0), ("/b", 1.0)}


async def test_versions_can_be_read_and_gone_back_to(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    first = (await client.post("/v2/apps", json=WEB)).json()["version"]
    await settled(cluster, 2)
    second = (await client.put("/v2/apps/group/web", json={"cpus": 0.2})).json()["version"]
    await settled(cluster, 2)
    assert (await client.get("/v2/apps/group/web/versions")).json() == {"versions": [second, first]}
    shown = [(await client.get(f"/v2/apps/group/web/versions/{each}")).json() for each in (first, second)]
    assert [(each["version"], each["cpus"]) for each in shown] == [(first, 0.5), (second, 0.2)]
    third = (await client.put("/v2/apps/group/web?force=true", json={"version": first})).json()["version"]
    app = (await client.get("/v2/apps/group/web")).json()["app"]
    assert (app["cpus"], app["version"]) == (0.5, third)
    for path in ("/v2/apps/none/versions", "/v2/apps/group/web/versions/1"):
        assert (await client.get(path)).status_code == 404
    assert (await client.put("/v2/apps/group/web", json={"version": "1"})).status_code == 404


async def test_restart_replaces_every_task(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json=WEB)
    await settled(cluster, 2)
    before = {task.spec.id for task in cluster.active()}
    answer = await client.post("/v2/apps/group/web/restart")
    assert answer.status_code == 200 and set(answer.json()) == {"version", "deploymentId"}
    await until(lambda: not before & {task.spec.id for task in cluster.active()})
    await settled(cluster, 2)
    assert (await client.post("/v2/apps/none/restart")).status_code == 404


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("label=team==web", {"/a", "/b"}),
        ("label=team!=web", {"/c"}),
        ("label=team==web,canary", {"/b"}),
        ("label=tier in (one, two)", {"/a", "/c"}),
        ("label=tier notin (one)", {"/b", "/c"}),
        ("label=", {"/a", "/b", "/c"}),
        ("cmd=sleep", {"/a", "/c"}),
        ("id=b", {"/b"}),
    ],
)
async def test_apps_can_be_selected(client: httpx2.AsyncClient, query: str, found: set[str]) -> None:
    labels = {"/a": {"team": "web", "tier": "one"}, "/b": {"team": "web", "canary": ""}, "/c": {"tier": "two"}}
    for app, each in labels.items():
        cmd = "serve" if app == "/b" else "sleep 1"
        body = {"id": app, "cmd": cmd, "labels": each, "networks": WEB["networks"]}
        assert (await client.post("/v2/apps", json=body)).status_code == 201
    apps = (await client.get("/v2/apps?" + query.replace(" ", "%20"))).json()["apps"]
    assert {app["id"] for app in apps} == found


async def test_a_selector_that_can_not_be_read(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/v2/apps?label=a==b%20in(")
    assert answer.status_code == 400 and answer.json()["details"][0]["path"] == "label"


async def test_a_deployment_is_what_is_not_there_yet_and_can_be_gone_back_from(
    client: httpx2.AsyncClient, cluster: Cluster
) -> None:
    cluster.automatic = False
    made = (await client.post("/v2/apps", json=WEB)).json()
    (deployment,) = (await client.get("/v2/deployments")).json()
    assert deployment["id"] == made["deployments"][0]["id"] and deployment["affectedApps"] == ["/group/web"]
    assert deployment["currentActions"][0]["action"] == "ScaleApplication"
    await until(lambda: len(cluster.active()) == 2)
    for task in cluster.active():
        cluster.advance(task.spec.id, TaskState.RUNNING)
    await until(lambda: not cluster.deploying())
    changed = (await client.put("/v2/apps/group/web", json={"cmd": "bad"})).json()
    (deployment,) = (await client.get("/v2/deployments")).json()
    assert deployment["id"] == changed["deploymentId"]
    assert deployment["currentActions"][0]["action"] == "RestartApplication"
    back = await client.delete(f"/v2/deployments/{deployment['id']}")
    assert back.status_code == 200 and back.json()["deploymentId"] != deployment["id"]
    app = (await client.get("/v2/apps/group/web")).json()["app"]
    assert (app["args"], app.get("cmd")) == (["server"], None)
    assert (await client.delete("/v2/deployments/none")).status_code == 404


async def test_a_new_app_that_is_cancelled_is_gone(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    cluster.automatic = False
    await client.post("/v2/apps", json=WEB)
    (deployment,) = (await client.get("/v2/deployments")).json()
    gone = await client.delete(f"/v2/deployments/{deployment['id']}?force=true")
    assert (gone.status_code, gone.content) == (202, b"")
    assert (await client.get("/v2/apps/group/web")).status_code == 404


async def queued(client: httpx2.AsyncClient) -> dict[str, Any]:
    """The only item of the queue, when there is one."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(DEADLINE_S):
        while not found:
            await asyncio.sleep(0.01)
            found = (await client.get("/v2/queue")).json()["queue"]
    (item,) = found
    return item


async def test_the_queue_says_why_and_for_how_long(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json={**WEB, "cpus": 1000})
    await until(lambda: bool(cluster.declined))
    async with asyncio.timeout(DEADLINE_S):
        while not (item := await queued(client))["processedOffersSummary"]["processedOffersCount"]:
            continue
    assert (item["app"]["id"], item["count"], item["delay"]["overdue"]) == ("/group/web", 2, True)
    sieve = {each.pop("reason"): each for each in item["processedOffersSummary"]["rejectSummaryLastOffers"]}
    assert sieve["UnfulfilledConstraint"] == {"declined": 0, "processed": 2}
    assert sieve["InsufficientCpus"] == {"declined": 2, "processed": 2}
    assert sieve["InsufficientPorts"] == {"declined": 0, "processed": 0}
    (shown,) = (await client.get("/v2/queue?embed=lastUnusedOffers")).json()["queue"]
    assert "lastUnusedOffers" not in item and len(shown["lastUnusedOffers"]) == 2
    offer = shown["lastUnusedOffers"][0]
    assert (offer["reason"], offer["message"]) == (["InsufficientCpus"], "/group/web lacks CPU")
    assert (await client.delete("/v2/queue/group/web/delay")).status_code == 404


async def test_a_delay_can_be_ended(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json={**WEB, "instances": 1, "backoffSeconds": 1000})
    await settled(cluster, 1)
    (task,) = cluster.active()
    cluster.advance(task.spec.id, TaskState.FAILED)
    item = await queued(client)
    assert not item["delay"]["overdue"] and item["delay"]["timeLeftSeconds"] > 200
    assert (await client.delete("/v2/queue/group/web/delay")).status_code == 204
    await settled(cluster, 1)


async def test_delete(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json=WEB)
    await settled(cluster, 2)
    answer = await client.delete("/v2/apps/group/web?force=true")
    assert answer.status_code == 200 and set(answer.json()) == {"version", "deploymentId"}
    assert (await client.get("/v2/apps/group/web")).status_code == 404
    await settled(cluster, 0)


@pytest.mark.parametrize("path", ["/v2/apps/none", "/v2/apps/none/tasks", "/api/v1/services/none"])
async def test_unknown_apps(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404 and answer.json() == {"message": "App '/none' does not exist"}


async def test_unknown_apps_can_not_be_changed(client: httpx2.AsyncClient) -> None:
    assert (await client.put("/v2/apps/none", json={"instances": 1})).status_code == 422  # it says not what to execute
    assert (await client.delete("/v2/apps/none")).status_code == 404


async def test_an_id_in_use(client: httpx2.AsyncClient) -> None:
    await client.post("/v2/apps", json=WEB)
    answer = await client.post("/v2/apps", json={**WEB, "instances": 9})
    assert answer.status_code == 409 and answer.json() == {"message": "An app with id [/group/web] already exists."}
    assert (await client.get("/v2/apps/group/web")).json()["app"]["instances"] == 2


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_hostile_ids(client: httpx2.AsyncClient, method: str) -> None:
    for app_id in ("..%2f..%2fetc", "%00", "%ff", "a" * 5000, "%F0%9F%92%A9"):
        answer = await client.request(method, f"/v2/apps/{app_id}", json={"instances": 1})
        assert 400 <= answer.status_code < 500


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"cpus": -1}, "/cpus"),
        ({"id": "/a/../b"}, "/id"),
        ({"instances": "two"}, "/instances"),
        ({"networks": None}, "/container/portMappings"),
        ({"unheardOf": 1}, "/unheardOf"),
        ({"container": {"portMappings": [{"containerPort": 70000}]}}, "/container/portMappings(0)/containerPort"),
    ],
)
async def test_bad_input_is_named_and_not_stored(
    client: httpx2.AsyncClient, store: SqliteStore, fields: dict[str, Any], path: str
) -> None:
    answer = await client.post("/v2/apps", json={**WEB, **fields})
    assert answer.status_code == 422 and answer.json()["details"][0]["path"] == path
    assert await store.range("") == []


async def test_other_bad_bodies(client: httpx2.AsyncClient, store: SqliteStore) -> None:
    deep = b'{"env": ' + b"[" * 900 + b"]" * 900 + b"}"
    nan = json.dumps({**WEB, "cpus": float("nan")}).encode()
    for body in (b"{", b"", b"null", b"[]", b"7", deep, b"[" * 10**6, nan, b'{"id": "\\ud800"}'):
        answer = await client.post("/v2/apps", content=body)
        assert 400 <= answer.status_code < 500 and answer.json()["message"], body[:20]
    assert await store.range("") == []


async def test_it_answers_where_dcos_has_it(client: httpx2.AsyncClient) -> None:
    await client.post("/service/marathon/v2/apps", json=WEB)
    for prefix in ("", *ALIASES):
        assert len((await client.get(f"{prefix}/v2/apps/")).json()["apps"]) == 1
        assert (await client.get(f"{prefix}/ping", headers={"Authorization": ""})).text == "pong"
    assert (await client.get("/v2/apps", headers={"Authorization": ""})).status_code == 401


async def test_our_own_view_says_why_it_waits(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json={**WEB, "cpus": 8})
    await until(lambda: sum("lacks CPU" in declined.reason for declined in cluster.declined) == 2)
    view = (await client.get("/api/v1/services/group/web")).json()
    assert view["waiting"] == ["needs 8 CPU: 2 of 2 nodes have too little (most free: 4 CPU)"]
    assert view["tasks"] == [] and view["app"]["deployments"]


async def test_our_own_view_of_tasks(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json=WEB)
    await settled(cluster, 2)
    view = (await client.get("/api/v1/services//group/web")).json()
    task = view["tasks"][0]
    assert view["waiting"] == [] and task["pid"] == 4711 and task["node"] in ("n1", "n2")
    assert task["addresses"] == ["100.64.0.2"] and task["limits"]["cpus"] == 0.1


async def test_every_operation_is_described(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert {"/v2/apps", "/v2/apps/{app_id}", "/v2/apps/{app_id}/tasks", "/v2/info", "/ping"} <= set(paths)


async def test_ports_of_the_node_are_shown(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    mappings = [{"containerPort": 80, "hostPort": 8080, "servicePort": 10080}, {"containerPort": 81, "hostPort": 0}]
    await client.post("/v2/apps", json={**WEB, "instances": 1, "container": {"portMappings": mappings}})
    await settled(cluster, 1)
    app = (await client.get("/v2/apps/group/web")).json()["app"]
    (task,) = app["tasks"]
    assert task["ports"][0] == 8080 and 31000 <= task["ports"][1] <= 32000 and task["servicePorts"] == [10080, 0]
    shown = app["container"]["portMappings"]
    assert [(each["hostPort"], each.get("servicePort")) for each in shown] == [(8080, 10080), (0, None)]
    assert all(has_only(each, MAPPING_KEYS) for each in shown) and has_only(app, APP_KEYS) and has_only(task, TASK_KEYS)


async def test_in_the_nodes_network_it_waits_for_a_node_that_permits_it(
    client: httpx2.AsyncClient, cluster: Cluster
) -> None:
    cluster.networks |= {"host"}
    body = {"id": "/group/web", "args": ["server"], "instances": 1, "ports": [8080]}
    created = (await client.post("/v2/apps", json=body)).json()
    assert created["ports"] == [8080] and created["portDefinitions"][0]["port"] == 8080 and has_only(created, APP_KEYS)
    assert created["requirePorts"] is False
    waiting: list[str] = []
    async with asyncio.timeout(DEADLINE_S):  # offers may be under way in which the network is not yet
        while waiting != ["needs network host: no node permits it, in its agent.toml"]:
            await asyncio.sleep(0.01)
            waiting = (await client.get("/api/v1/services/group/web")).json()["waiting"]
    cluster.add_node(replace(node("n3"), rights=frozenset({"network host"})))
    await settled(cluster, 1)
    (task,) = (await client.get("/v2/apps/group/web/tasks")).json()["tasks"]
    assert task["host"] == "n3" and 31000 <= task["ports"][0] <= 32000 and task["servicePorts"] == [8080]


async def test_there_are_not_more_instances_than_addresses(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    network = {"mode": "container", "name": "overlay", "labels": {"tepui/address": "100.64.9.1,100.64.9.2"}}
    await client.post("/v2/apps", json={**WEB, "networks": [network]})
    await settled(cluster, 2)
    assert {task.spec.address for task in cluster.active()} == {"100.64.9.1", "100.64.9.2"}
    answer = await client.put("/v2/apps/group/web", json={"instances": 3})
    assert answer.status_code == 422 and answer.json()["details"][0]["path"] == "/instances"
    assert "one for each of the 3 instances, not 2" in answer.json()["details"][0]["errors"][0]


async def both(client: httpx2.AsyncClient, cluster: Cluster) -> str:
    """The deployment of a change of two apps, of which nothing has come to run yet."""
    for name in ("/a", "/b"):
        assert (await client.post("/v2/apps", json=WEB | {"id": name, "container": {}})).is_success
    await until(lambda: len(cluster.tasks) == 4 and not cluster.deploying())
    cluster.automatic = False
    change = await client.put("/v2/apps", json=[{"id": "/a", "instances": 3}, {"id": "/b", "instances": 3}])
    await until(lambda: len(cluster.tasks) == 6)
    return str(change.json()["deploymentId"])


async def test_a_deployment_of_several_apps_is_over_when_it_is_for_all(
    client: httpx2.AsyncClient, cluster: Cluster
) -> None:
    path = f"/api/v1/deployments/{await both(client, cluster)}"
    for name, state in (("/a", "running"), ("/b", "succeeded")):
        (new,) = (task for task in cluster.active(name) if task.status.state < TaskState.RUNNING)
        cluster.advance(new.spec.id, TaskState.RUNNING)
        await until(lambda name=name: len(cluster.running(name)) == 3)  # type: ignore[misc]
        await until(lambda left=2 if name == "/a" else 1: cluster.deploying() < left)  # type: ignore[misc]
        assert (await client.get(path)).json()["state"] == state
    over = (await client.get(path)).json()
    assert (over["apps"], over["wanted"], over["serving"]) == (["/a", "/b"], 6, 6)


async def test_several_apps_go_back_in_one_deployment(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    cancelled = await both(client, cluster)
    back = (await client.delete(f"/v2/deployments/{cancelled}")).json()["deploymentId"]
    apps = [(await client.get(f"/v2/apps/{name}")).json()["app"] for name in "ab"]
    assert [(app["instances"], app["deployments"]) for app in apps] == [(2, [{"id": back}])] * 2
    seen = (await client.get(f"/api/v1/deployments/{cancelled}")).json()
    assert (seen["state"], seen["apps"]) == ("failed", ["/a", "/b"])


async def test_flags_without_a_value(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    cluster.automatic = False
    assert (await client.post("/v2/groups", json={"id": "/g", "apps": [WEB | {"id": "/g/web"}]})).is_success
    dry = await client.put("/v2/groups/g?dryRun&force", json={"apps": []})
    assert dry.status_code == 200 and (await client.get("/v2/apps/g/web")).is_success
    (deployment,) = (await client.get("/v2/deployments")).json()
    assert (await client.delete(f"/v2/deployments/{deployment['id']}?force")).status_code == 202


async def test_a_system_service_has_no_canary(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    assert (await client.post("/v2/apps", json=WEB | {"labels": {"tepui/system": "true"}})).is_success
    await settled(cluster, 2)
    refused = await client.put("/v2/apps/group/web?canary=1", json={"mem": 32})
    assert refused.status_code == 422 and "a system service has no place" in refused.text
