"""What the API refuses, over the wire: one clear error that names the field, and nothing stored."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from lab.cluster import MASTER
from tests.cluster import bed
from tests.cluster.bed import Cluster, eventually

AT_ONCE_S = 2.0
RIVALS = 8
GOOD = bed.command("/bad", "exec sleep 3600")


def port(**fields: object) -> dict[str, Any]:
    return {"container": {"type": "MESOS", "portMappings": [{"containerPort": 80, **fields}]}}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"colour": "red"}, "/colour"),
    "unknown field inside": (port(colour="red"), "/container/portMappings(0)/colour"),
    "wrong type": ({"instances": "two"}, "/instances"),
    "text for a number": ({"cpus": "1"}, "/cpus"),
    "negative cpus": ({"cpus": -1}, "/cpus"),
    "no cpus": ({"cpus": 0}, "/cpus"),
    "negative memory": ({"mem": -5}, "/mem"),
    "negative instances": ({"instances": -1}, "/instances"),
    "huge": ({"cpus": 1e300}, "/cpus"),
    "dots in the id": ({"id": "/a/../b"}, "/id"),
    "dots as the id": ({"id": ".."}, "/id"),
    "capitals in the id": ({"id": "/Web"}, "/id"),
    "VIP without port": (port(labels={"VIP_0": "/web"}), "/container/portMappings(0)/labels"),
    "VIP with a bad port": (port(labels={"VIP_0": "/web:99999"}), "/container/portMappings(0)/labels"),
    "port out of range": (port(containerPort=70000), "/container/portMappings(0)/containerPort"),
    "field that is not supported": ({"gpus": 1}, "/gpus"),
    "NUL in an argument": ({"cmd": "echo \0"}, "/cmd"),
}


def body(field: bytes) -> bytes:
    return b'{"id": "/bad", "cmd": "true", ' + field + b"}"


MORE_BODIES: dict[str, tuple[bytes, int]] = {
    "5 MB of labels": (body(b'"labels": {"x": "' + b"y" * (5 << 20) + b'"}'), 413),
    "1 MB of labels": (body(b'"labels": {"x": "' + b"y" * (1 << 20) + b'"}'), 422),
    "not UTF-8 inside": (body(b'"user": "\xff\xfe"'), 400),
    "half a surrogate": (body(b'"labels": {"x": "\\ud800"}'), 422),
    "a number of a thousand digits": (body(b'"instances": ' + b"9" * 1000), 422),
    "a number of ten thousand digits": (body(b'"instances": ' + b"9" * 10_000), 400),
    "larger than a number can be": (body(b'"cpus": 1e999'), 422),
    "no number": (body(b'"cpus": NaN'), 422),
    "the same key twice": (body(b'"cpus": 1, "cpus": "one"'), 422),
    "deep inside": (body(b'"env": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000), 400),
    "NUL in a key": (body(b'"env": {"a\\u0000b": "c"}'), 422),
    "NUL in a label": (
        body(b'"container": {"volumes": [{"containerPath": "a\\u0000", "persistent": {"size": 1}}]}'),
        422,
    ),
    "text around it": (b"x" + body(b'"cpus": 1'), 400),
    "two of them": (body(b'"cpus": 1') * 2, 400),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_definition_names_its_field(cluster: Cluster, case: str) -> None:
    change, path = REFUSED[case]
    response = cluster.request("POST", "/v2/apps", json={**GOOD, **change})
    assert response.status_code == 422
    refusal = response.json()
    assert refusal["message"] == "Object is not valid"
    (detail,) = refusal["details"]
    assert detail["path"] == path and all(isinstance(error, str) and error for error in detail["errors"])
    nothing_stored(cluster)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"id": "/bad", "cmd": ', 400),
        (b"\xff\xfe", 400),
        (b"", 422),
        (b"[]", 422),
        (b"null", 422),
        (b"[" * 100_000, 400),
        (b'{"id": "/bad", "cmd": "' + b"x" * (10 << 20) + b'"}', 413),
        *MORE_BODIES.values(),
    ],
    ids=["cut short", "no text", "empty", "a list", "null", "nested", "10 MB", *MORE_BODIES],
)
def test_bad_body(cluster: Cluster, content: bytes, status: int) -> None:
    response = cluster.request("POST", "/v2/apps", content=content)
    assert (response.status_code, "message" in response.json()) == (status, True)
    nothing_stored(cluster)


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic YWRtaW46YWRtaW4=", "Bearer"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/v2/apps"), ("POST", "/v2/apps"), ("POST", "/api/v1/tokens")])
def test_no_token_or_a_wrong_one(cluster: Cluster, method: str, path: str, header: str | None) -> None:
    body = None if method == "GET" else GOOD
    request = cluster.api.build_request(method, path, json=body, extensions={"sni_hostname": cluster.server_name})
    del request.headers["Authorization"]
    if header is not None:
        request.headers["Authorization"] = header
    response = cluster.lab.within("master", lambda: cluster.api.send(request))
    assert response.status_code == 401 and "Bearer" in response.headers["WWW-Authenticate"]
    assert "token" in response.json()["message"] or "Authorization" in response.json()["message"]
    nothing_stored(cluster)


def test_bad_change_of_a_service_leaves_it_as_it_was(cluster: Cluster) -> None:
    cluster.run(bed.command("/good", "exec sleep 3600"))
    before = cluster.await_running("/good", 1)
    for body in {"instances": -1}, {"instances": "2"}, {"instances": 1, "colour": "red"}, {"cpus": 0}:
        assert cluster.request("PUT", "/v2/apps/good", json=body).status_code == 422
    assert cluster.request("PUT", "/v2/apps/none", json={"instances": 1}).status_code == 422
    assert cluster.request("DELETE", "/v2/apps/none").status_code == 404
    assert cluster.request("POST", "/v2/apps", json={**GOOD, "id": "/good"}).status_code == 409
    assert bed.same(before, cluster.running("/good"))


def test_cve_2020_8554_an_app_has_no_address_that_is_anothers(cluster: Cluster) -> None:
    """Whatever a VIP has, comes to whoever asked for it: from every node and every container."""
    cluster.run(bed.web(1))
    cluster.await_running("/web", 1)
    node = next(iter(cluster.nodes().values()))["address"]
    taken = [
        node,
        str(cluster.lab.node(MASTER).address),
        "127.0.0.1",
        "127.0.0.84",  # name servers
        "100.64.0.1",
        "8.8.8.8",
        cluster.vip("/web")["address"],
        "/web",
    ]
    for host in taken:
        labels = {"labels": {"VIP_0": f"{host}:80"}}
        response = cluster.request("POST", "/v2/apps", json={**GOOD, **port(**labels)})
        details = response.json().get("details", [])
        assert (response.status_code, [each["path"] for each in details]) == (
            422,
            ["/container/portMappings(0)/labels/VIP_0"],
        ), host
    assert [app["id"] for app in cluster.get("/v2/apps")["apps"]] == ["/web"]


def test_more_than_there_is_room_for(cluster: Cluster) -> None:
    """What fits runs, the rest says why it does not; the master answers meanwhile, and all of it ends again."""
    app = bed.command("/many", "exec sleep 3600", 10_000, cpus=0.5, mem=256)
    began = time.monotonic()
    assert cluster.request("POST", "/v2/apps", json=app).status_code == 201
    assert time.monotonic() - began < AT_ONCE_S
    room = int(sum(node["resources"]["cpus"] for node in cluster.nodes().values()) / 0.5)
    eventually(lambda: len(cluster.running("/many")) == room, f"{room} tasks run")
    waiting = cluster.get("/api/v1/services/many")["waiting"]
    assert waiting and "CPU" in waiting[0], waiting
    (queued,) = cluster.get("/v2/queue")["queue"]
    assert queued["count"] == 10_000 - room
    for path in "/v2/apps", "/v2/apps/many", "/v2/deployments", "/v2/tasks", "/v2/groups", "/api/v1/tasks":
        began = time.monotonic()
        cluster.get(path)
        assert time.monotonic() - began < AT_ONCE_S, path
    cluster.call("PUT", "/v2/apps/many?force=true", json={"instances": 1})
    cluster.await_running("/many", 1)
    assert cluster.get("/v2/queue")["queue"] == [] and cluster.get("/v2/deployments") == []


def test_of_changes_at_one_moment_one_wins(cluster: Cluster) -> None:
    """The others hear which deployment is in their way."""
    cluster.run(bed.command("/wanted", "exec sleep 3600", labels={"of": "nobody"}))
    cluster.await_running("/wanted", 1)
    eventually(lambda: not cluster.get("/v2/deployments"), "it is deployed")

    def change(number: int) -> httpx2.Response:
        # Nowhere is there room for it: the deployment goes on.
        return cluster.request("PUT", "/v2/apps/wanted", json={"cpus": 64, "labels": {"of": str(number)}})

    with ThreadPoolExecutor(RIVALS) as threads:
        answers = list(threads.map(change, range(RIVALS)))
    (winner,) = [number for number, answer in enumerate(answers) if answer.is_success]
    deployment = answers[winner].json()["deploymentId"]
    for answer in answers[:winner] + answers[winner + 1 :]:
        refusal = answer.json()
        assert answer.status_code == 409 and refusal["deployments"] == [{"id": deployment}], refusal
        assert "locked by one or more deployments" in refusal["message"] and deployment in refusal["message"]
    assert cluster.get("/v2/apps/wanted")["app"]["labels"] == {"of": str(winner)}
    assert [each["id"] for each in cluster.get("/v2/deployments")] == [deployment]
    assert cluster.request("DELETE", "/v2/apps/wanted").status_code == 409


def test_dependencies_that_go_round(cluster: Cluster) -> None:
    small = bed.command("/ring/a", "exec sleep 3600")
    apps = [{**small, "id": "a", "dependencies": ["/ring/b"]}, {**small, "id": "b", "dependencies": ["/ring/a"]}]
    for path, ring in (
        ("/v2/groups", {"id": "/ring", "apps": apps}),
        (
            "/v2/groups",
            {
                "id": "/ring",
                "groups": [
                    {"id": "x", "dependencies": ["/ring/y"], "apps": [apps[0]]},
                    {"id": "y", "dependencies": ["/ring/x"], "apps": [apps[1]]},
                ],
            },
        ),
        ("/v2/apps", {**small, "dependencies": ["/ring/a"]}),
    ):
        response = cluster.request("POST", path, json=ring)
        assert response.status_code == 422 and "cyclic" in response.text, (ring, response.text)
    nothing_stored(cluster)


def nothing_stored(cluster: Cluster) -> None:
    assert cluster.get("/v2/apps")["apps"] == [] and cluster.tasks() == {}
