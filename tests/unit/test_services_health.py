"""Apps with checks: which definitions are taken, who is replaced for its health, and what clients read of it."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from frameworks.services import catalog
from frameworks.services.app import create, new_task, parse_time
from frameworks.services.definition import Definition
from frameworks.services.wanted import Run, settled, surplus
from master.rest.errors import json_path
from master.store.sqlite import SqliteStore
from model.health import Health, HealthCheck, ProbeKind, Readiness, ReadinessCheck
from model.task import TaskState
from tests.unit.cluster import Cluster, node, until
from tests.unit.test_services import definition, services
from tests.unit.test_services_rest import WEB, client, cluster, running
from tests.unit.test_services_rest import settled as deployed

__all__ = ["client", "cluster"]
pytestmark = pytest.mark.anyio
NOW = parse_time("2026-01-01T00:00:00.000000Z")
PORTS = {"portMappings": [{"containerPort": 8080, "name": "http-api"}, {"containerPort": 9090, "name": "admin"}]}
LEAST = {"id": "/web", "cmd": "true", "networks": [{"mode": "container", "name": "overlay"}], "container": PORTS}
WELL = (Health(1.0, 1.0),)
ILL = (Health(1.0, 1.0, 2.0, 3, "HTTP status 503"),)
KILLED_FOR = "unhealthy: http :8080/: 3 failures in a row, the last: HTTP status 503"


def problems(**fields: Any) -> dict[str, str]:
    try:
        Definition.model_validate({**LEAST, **fields})
    except ValidationError as error:
        return {json_path(problem["loc"]): problem["msg"] for problem in error.errors()}
    return {}


def checks(*given: dict[str, Any]) -> tuple[HealthCheck, ...]:
    app = create(Definition.model_validate({**LEAST, "healthChecks": list(given)}), NOW)
    return new_task(app, NOW).health_checks


def test_defaults_are_marathons() -> None:
    """What Marathon asks for by itself, it asks five seconds after the start, at the address of the task."""
    (plain,) = checks({})
    assert plain == HealthCheck(ProbeKind.HTTP, 8080, "/", own_address=True, delay_s=5.0)
    assert (plain.grace_s, plain.interval_s, plain.timeout_s, plain.max_failures) == (300.0, 60.0, 20.0, 3)
    (by_node,) = checks({"protocol": "MESOS_TCP", "portIndex": 1})
    assert by_node == HealthCheck(ProbeKind.TCP, 9090, own_address=False, delay_s=15.0)


def test_every_field_has_its_meaning() -> None:
    given = {
        "protocol": "MESOS_HTTPS", "path": "health?deep=1", "portIndex": "admin", "ipProtocol": "IPv6",
        "ignoreHttp1xx": True, "gracePeriodSeconds": 1, "intervalSeconds": 2, "timeoutSeconds": 3,
        "maxConsecutiveFailures": 0, "delaySeconds": 4, "port": None,
    }  # fmt: skip
    kind, path = ProbeKind.HTTPS, "/health?deep=1"
    assert checks(given) == (HealthCheck(kind, 9090, path, (), False, True, True, 1.0, 2.0, 3.0, 4.0, 0),)
    command, tcp = checks(
        {"protocol": "COMMAND", "command": {"value": "test -e /well"}}, {"protocol": "TCP", "port": 1}
    )
    assert command.argv == ("/bin/sh", "-c", "test -e /well") and (tcp.kind, tcp.port) == (ProbeKind.TCP, 1)


def test_readiness() -> None:
    given = {"httpStatusCodesForReady": [503, 200, 503], "path": "/ready", "preserveLastResponse": True}
    app = create(Definition.model_validate({**LEAST, "readinessChecks": [given]}), NOW)
    assert new_task(app, NOW).readiness_checks == (
        ReadinessCheck("readinessCheck", ProbeKind.HTTP, 8080, "/ready", 30.0, 10.0, (200, 503), True),
    )


@pytest.mark.parametrize(
    ("check", "field", "says"),
    [
        ({"port": 80, "portIndex": 0}, "/portIndex", "together with port"),
        ({"portIndex": 2}, "/portIndex", "there are 2 ports"),
        ({"portIndex": "web"}, "/portIndex", "no port has the name 'web'"),
        ({"port": 0}, "/port", "greater"),
        ({"protocol": "UDP"}, "/protocol", "MESOS_HTTP"),
        ({"protocol": "COMMAND"}, "/command", "must be given with protocol COMMAND"),
        ({"protocol": "TCP", "command": {"value": "true"}}, "/command", "with no other"),
        ({"protocol": "COMMAND", "command": {"value": "a\x00b"}}, "/command/value", "NUL"),
        ({"path": "/a b"}, "/path", "printable ASCII"),
        ({"path": "/a\r\nHost: b"}, "/path", "printable ASCII"),
        ({"gracePeriodSeconds": -1}, "/gracePeriodSeconds", "greater than or equal to 0"),
        ({"timeoutSeconds": 0}, "/timeoutSeconds", "greater than 0"),
        ({"maxConsecutiveFailures": "3"}, "/maxConsecutiveFailures", "integer"),
        ({"colour": "red"}, "/colour", "Extra"),
    ],
)
def test_refused_with_the_fields_path(check: dict[str, Any], field: str, says: str) -> None:
    found = problems(healthChecks=[{}, check])
    assert list(found) == [f"/healthChecks(1){field}"] and says in found[f"/healthChecks(1){field}"]


def test_readiness_refused() -> None:
    assert list(problems(readinessChecks=[{"portName": "x"}])) == ["/readinessChecks(0)/portName"]
    assert list(problems(readinessChecks=[{"timeoutSeconds": 30}])) == ["/readinessChecks(0)/timeoutSeconds"]
    assert list(problems(readinessChecks=[{"httpStatusCodesForReady": []}])) == [
        "/readinessChecks(0)/httpStatusCodesForReady"
    ]
    assert list(problems(readinessChecks=[{}, {"name": "b"}])) == ["/readinessChecks"]


async def test_who_is_given_up_is_replaced_after_its_end(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    cluster.limits["/web"] = 2
    async with services(store, cluster) as framework:
        app = await catalog.add(store, definition(instances=2, container=PORTS, healthChecks=[{}]))
        await until(lambda: len(cluster.active("/web")) == 2)
        well, ill = sorted(cluster.tasks)
        for name in well, ill:
            cluster.advance(name, TaskState.RUNNING, healthy=True, health=WELL)
        await until(lambda: settled(app, framework.runs("/web")))
        almost = (Health(1.0, 1.0, 2.0, 2, "HTTP status 503"),)
        cluster.advance(ill, TaskState.RUNNING, healthy=False, health=almost)
        await until(lambda: not settled(app, framework.runs("/web")))
        assert cluster.killed == []
        cluster.advance(ill, TaskState.RUNNING, healthy=False, health=ILL)
        await until(lambda: cluster.killed == [ill])
        assert len(cluster.accepted) == 2
        cluster.advance(ill, TaskState.KILLED, healthy=False, health=ILL, reason="exited with 0")
        await until(lambda: len(cluster.accepted) == 3)
        failure = framework.last_failure("/web")
        assert failure is not None and failure.view.spec.id == ill and cluster.killed == [ill]


async def test_an_app_that_is_always_ill_is_started_less_and_less_often(store: SqliteStore) -> None:
    cluster = Cluster(node("a"), automatic=False)
    async with services(store, cluster) as framework:
        slow: dict[str, Any] = {"backoffSeconds": 3600, "maxLaunchDelaySeconds": 3600}
        app = await catalog.add(store, definition(container=PORTS, healthChecks=[{}], **slow))
        await until(lambda: len(cluster.active("/web")) == 1)
        (ill,) = cluster.tasks
        cluster.advance(ill, TaskState.RUNNING, healthy=False, health=ILL)
        await until(lambda: cluster.killed == [ill])
        cluster.advance(ill, TaskState.KILLED, healthy=False, health=ILL)
        await until(lambda: "1 start failed" in framework.waiting(app)[0])
        assert KILLED_FOR in framework.waiting(app)[0] and len(cluster.accepted) == 1


def test_a_deployment_ends_when_all_are_well_and_ready(cluster: Cluster) -> None:
    fields = {"instances": 1, "healthChecks": [{}], "readinessChecks": [{}]}
    app = create(Definition.model_validate({**LEAST, **fields}), NOW)
    spec = new_task(app, NOW)
    cluster.subscribe()
    cluster.accept(next(iter(cluster._outstanding)), [spec], [])

    def done(**attributes: Any) -> bool:
        cluster.advance(spec.id, TaskState.RUNNING, **attributes)
        run = Run(cluster.tasks[spec.id])
        assert surplus(app, [run]) == []
        return settled(app, [run])

    ready, not_ready = (Readiness(True, 200),), (Readiness(False, 503),)
    assert not done(healthy=None) and not done(healthy=True) and not done(healthy=True, readiness=not_ready)
    assert not done(healthy=False, readiness=ready) and done(healthy=True, readiness=ready)


async def test_what_clients_read_of_it(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    web = {**WEB, "healthChecks": [{}], "readinessChecks": [{"portName": "http", "preserveLastResponse": True}]}
    assert (await client.post("/v2/apps", json=web)).status_code == 201
    await running(cluster, 2)
    well, ill = sorted(cluster.tasks)
    cluster.advance(well, TaskState.RUNNING, healthy=True, health=WELL, readiness=(Readiness(True, 200, "a/b", "ok"),))
    cluster.advance(ill, TaskState.RUNNING, healthy=False, health=(Health(None, None, 2.0, 1, "refused"),))

    async def shown() -> dict[str, Any]:
        return dict((await client.get("/v2/apps/group/web?embed=app.readiness")).json()["app"])

    app = await shown()
    while app["tasksUnhealthy"] == 0:
        app = await shown()
    assert (app["tasksHealthy"], app["tasksUnhealthy"], app["tasksRunning"]) == (1, 1, 2) and app["deployments"]
    results = {task["id"]: task["healthCheckResults"] for task in app["tasks"]}
    (good,), (bad,) = results[well], results[ill]
    assert good["alive"] and good["firstSuccess"] == good["lastSuccess"] == "1970-01-01T00:00:01.000000Z"
    assert (bad["alive"], bad["consecutiveFailures"], bad["lastFailureCause"]) == (False, 1, "refused")
    assert bad["taskId"] == bad["instanceId"] == ill and bad["firstSuccess"] is None
    last = {"status": 200, "contentType": "a/b", "body": "ok"}
    result = {"name": "readinessCheck", "taskId": well, "ready": True, "lastResponse": last}
    assert app["readinessCheckResults"] == [result]


@pytest.mark.parametrize("scale", ["", "?scale=false", "?scale=True", "?scale"])
async def test_kill_one(client: httpx2.AsyncClient, cluster: Cluster, scale: str) -> None:
    await client.post("/v2/apps", json=WEB)
    await deployed(cluster, 2)
    victim = cluster.accepted[0].id
    answer = await client.delete(f"/v2/apps/group/web/tasks/{victim}{scale}")
    assert answer.status_code == 200 and set(cluster.killed) == {victim}
    if scale in ("", "?scale=false"):
        assert answer.json()["task"]["id"] == victim
        await until(lambda: len(cluster.accepted) == 3)
    else:
        assert set(answer.json()) == {"version", "deploymentId"}
        await running(cluster, 1)
        assert (await client.get("/v2/apps/group/web")).json()["app"]["instances"] == 1
        assert len(cluster.accepted) == 2 and set(cluster.killed) == {victim}


async def test_kill_what_does_not_exist(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json=WEB)
    await running(cluster, 2)
    for path in "/v2/apps/group/web/tasks/other", "/v2/apps/other/tasks/x", "/v2/apps/other/tasks":
        assert (await client.delete(path)).status_code == 404
    assert (await client.post("/v2/tasks/delete", json={"ids": ["other"]})).json() == {"tasks": []}
    assert (await client.post("/v2/tasks/delete", json={"id": "x"})).status_code == 422
    assert cluster.killed == []


async def test_kill_by_node_and_by_ids(client: httpx2.AsyncClient, cluster: Cluster) -> None:
    await client.post("/v2/apps", json=WEB)
    await running(cluster, 2)
    there = [task.spec.id for task in cluster.active() if task.node == "n1"]
    answer = await client.delete("/v2/apps/group/web/tasks?host=n1&wipe=true")
    assert [task["id"] for task in answer.json()["tasks"]] == there and set(there) == set(cluster.killed)
    await deployed(cluster, 2)
    both = sorted(task.spec.id for task in cluster.active())
    answer = await client.post("/v2/tasks/delete?scale=true", json={"ids": both})
    assert set(answer.json()) == {"version", "deploymentId"}
    await running(cluster, 0)
