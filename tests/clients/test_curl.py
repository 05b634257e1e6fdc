"""curl in the shape of the public documents of Marathon's API, and of what clients were seen to send: with paths,
bodies and parameters written as they write them, and with what they need in the answers.
"""

from __future__ import annotations

import json
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import MASTER
from tests.clients.curl import Answer, Curl
from tests.cluster import bed
from tests.cluster.bed import Cluster, eventually

Json = dict[str, Any]
BELOW = ("", "/marathon", "/service/marathon")
ATTACHED_S = 5.0
EXAMPLES = sorted(
    path.stem for path in (bed.ROOT / "examples").glob("*.json") if "run" not in json.loads(path.read_text())
)
EMBEDDED = (
    "embed=apps.tasks&embed=apps.counts&embed=apps.deployments&embed=apps.readiness&embed=apps.lastTaskFailure"
    "&embed=apps.failures&embed=apps.taskStats"
)
# What is asked of a cluster where nothing runs: what the answer must have.
READS: dict[str, list[str]] = {
    "/v2/info": ["name", "version", "frameworkId", "leader", "elected", "marathonConfig", "httpConfig"],
    "/v2/leader": ["leader"],
    "/v2/plugins": ["plugins"],
    "/v2/tasks": ["tasks"],
    "/v2/tasks?status=running&status[]=staging": ["tasks"],
    "/v2/queue": ["queue"],
    "/v2/queue?embed=lastUnusedOffers": ["queue"],
    "/v2/apps": ["apps"],
    f"/v2/apps?{EMBEDDED}": ["apps"],
    "/v2/apps?label=a==b&cmd=sleep&id=x": ["apps"],
    "/v2/apps/": ["apps"],
    "//v2//apps": ["apps"],
    "/v2/groups": ["id", "apps", "groups", "pods", "dependencies", "version"],
    "/v2/groups?embed=group.groups&embed=group.apps&embed=group.apps.counts": ["id", "apps", "groups"],
    "/v2/groups//": ["id"],
}
LISTS = ("/v2/deployments", "/v2/pods", "/v2/pods::status", "/v2/pods/::status")
SLEEPER: Json = bed.command("/t/a", "exec sleep 3600")


@pytest.fixture(params=BELOW, ids=["bare", "marathon", "service"])
def curl(request: pytest.FixtureRequest, cluster: Cluster, authority: Path) -> Curl:
    return Curl(cluster, authority, request.param)


@pytest.fixture
def bare(cluster: Cluster, authority: Path) -> Curl:
    return Curl(cluster, authority)


def test_reads_of_an_empty_cluster(curl: Curl) -> None:
    for path, keys in READS.items():
        answer = curl("GET", path)
        assert answer.status == 200 and set(keys) <= answer.json.keys(), (path, answer)
    for path in LISTS:
        answer = curl("GET", path)
        assert (answer.status, answer.json) == (200, []), path
    assert curl("HEAD", "/v2/pods").status == 200
    ping = curl("GET", "/ping")
    assert (ping.status, ping.text, ping.headers["content-type"].split(";")[0]) == (200, "pong", "text/plain")
    metrics = curl("GET", "/metrics", "--header", "Accept: application/json").json
    assert metrics["gauges"]["tepui_sessions"] == {"value": 3}
    assert "# TYPE tepui_sessions gauge" in curl("GET", "/metrics").text


def test_app(curl: Curl, cluster: Cluster) -> None:
    """Chunked, without a type, with nulls for what is not set, and with the id doubled slashes."""
    definition = {**SLEEPER, "instances": 2, "user": None, "container": None, "env": {"A": "b"}, "labels": {"x": "y"}}
    created = curl("POST", "//v2/apps/", "--header", "Transfer-Encoding: chunked", data=definition)
    assert created.status == 201 and created.json["deployments"][0]["id"] == deployment(created)
    assert created.headers["location"].endswith("/v2/apps/t/a")
    assert {"id", "mem", "cpus", "instances", "tasksRunning", "deployments", "version"} <= created.json.keys()
    tasks = cluster.await_running("/t/a", 2)
    for path in "/v2/apps//t/a", "/v2/apps/t/a/", "/v2/apps///t//a//?embed=app.counts":
        app = settled(curl, path)
        assert app["tasksRunning"] == 2 and {task["id"] for task in app["tasks"]} == tasks.keys()
    assert curl("GET", "/v2/apps//t/a/tasks").json["tasks"][0]["appId"] == "/t/a"
    (version,) = curl("GET", "/v2/apps//t/a/versions").json["versions"]
    assert curl("GET", f"/v2/apps//t/a/versions/{version}").json["env"] == {"A": "b"}
    (listed,) = curl("GET", f"/v2/apps?label=x%3D%3Dy&{EMBEDDED}").json["apps"]
    assert len(listed["tasks"]) == listed["tasksRunning"] == 2
    again = curl("POST", "/v2/apps", data=definition)
    assert again.status == 409 and "already exists" in again.json["message"]


def test_changes_of_an_app(curl: Curl, cluster: Cluster) -> None:
    curl("POST", "/v2/apps", data=SLEEPER)
    cluster.await_running("/t/a", 1)
    settled(curl, "/v2/apps/t/a")
    scaled = curl("PUT", "/v2/apps//t/a?force=True", data={"instances": 2})
    assert scaled.status == 200 and scaled.json.keys() == {"version", "deploymentId"}
    assert scaled.json["deploymentId"] == deployment(scaled)
    before = set(cluster.await_running("/t/a", 2))
    restarted = curl("POST", "/v2/apps//t/a/restart?force=true")
    assert restarted.status == 200 and restarted.json["deploymentId"] == deployment(restarted)
    after = cluster.await_replaced("/t/a", before, 2)
    victim, other = sorted(after)
    assert curl("DELETE", f"/v2/apps//t/a/tasks/{victim}?scale=False&wipe=False").json["task"]["id"] == victim
    after = cluster.await_replaced("/t/a", {victim}, 2)
    assert other in after
    settled(curl, "/v2/apps/t/a")
    killed = curl("POST", "/v2/tasks/delete?scale=true", data={"ids": [other]})
    assert killed.status == 200 and killed.json["deploymentId"] == deployment(killed)
    (left,) = cluster.await_running("/t/a", 1)
    assert left != other
    where = cluster.running("/t/a")[left]["node"]
    assert curl("DELETE", "/v2/apps/t/a/tasks?host=nowhere").json == {"tasks": []}
    assert [task["id"] for task in curl("DELETE", f"/v2/apps/t/a/tasks?host={where}").json["tasks"]] == [left]
    cluster.await_replaced("/t/a", {left}, 1)
    settled(curl, "/v2/apps/t/a")
    listed = curl("PUT", "/v2/apps", data=[{"id": "/t/a", "labels": {"many": "yes"}}, {**SLEEPER, "id": "/t/b"}])
    assert listed.status == 200 and listed.json["deploymentId"] == deployment(listed)
    cluster.await_running("/t/b", 1)
    gone = curl("DELETE", "/v2/apps//t/a?force=true")
    assert gone.status == 200 and gone.json["deploymentId"] == deployment(gone)
    missing = curl("DELETE", "/v2/apps/t/a")
    assert missing.status == 404 and missing.json["message"] == "App '/t/a' does not exist"


def test_answers_without_a_body_have_no_type(bare: Curl, cluster: Cluster) -> None:
    created = bare("POST", "/v2/apps", data={**SLEEPER, "cpus": 64})
    (listed,) = bare("GET", "/v2/deployments").json
    assert listed["id"] == deployment(created) and listed["affectedApps"] == ["/t/a"]
    assert {"currentActions", "currentStep", "totalSteps", "version"} <= listed.keys()
    assert listed["currentActions"][0] | {"action": "ScaleApplication", "app": "/t/a"} == listed["currentActions"][0]
    cancelled = bare("DELETE", f"/v2/deployments/{listed['id']}?force=true")
    assert (cancelled.status, cancelled.text) == (202, "") and "content-type" not in cancelled.headers
    bare("POST", "/v2/apps", data={**SLEEPER, "id": "/crash", "cmd": "exit 1", "backoffSeconds": 3600})
    held_back = eventually(lambda: delayed(bare, "/crash"), "the app is held back") or {}
    assert held_back["delay"]["overdue"] is False
    reset = bare("DELETE", "/v2/queue//crash/delay")
    assert (reset.status, reset.text) == (204, "") and "content-type" not in reset.headers
    head = bare("HEAD", "/v2/pods")
    assert (head.status, head.text) == (200, "") and "content-type" not in head.headers


def test_queue_says_why(bare: Curl, cluster: Cluster) -> None:
    bare("POST", "/v2/apps", data={**SLEEPER, "cpus": 64})

    def refused() -> list[str]:
        summary = queued(bare, "/t/a", "?embed=lastUnusedOffers")["processedOffersSummary"]
        return [each["reason"] for each in summary["rejectSummaryLastOffers"] if each["declined"]]

    assert eventually(refused, "offers are refused") == ["InsufficientCpus"]
    (offer, *_) = queued(bare, "/t/a", "?embed=lastUnusedOffers")["lastUnusedOffers"]
    assert offer["reason"] == ["InsufficientCpus"] and "CPU" in offer["message"]
    assert queued(bare, "/t/a")["delay"]["overdue"] is True and "lastUnusedOffers" not in queued(bare, "/t/a")


def test_tasks_as_text(curl: Curl, cluster: Cluster) -> None:
    mapping = {"containerPort": 8080, "hostPort": 0, "servicePort": 10080}
    curl("POST", "/v2/apps", data=bed.web(2, "/t/web", container={"type": "MESOS", "portMappings": [mapping]}))
    tasks = cluster.await_running("/t/web", 2)
    for path in "/v2/tasks", "/v2/apps/t/web/tasks":
        answer = curl("GET", path, "--header", "Accept: text/plain")
        name, port, *places, _ = answer.text.rstrip("\n").split("\t")
        assert answer.headers["content-type"].startswith("text/plain") and (name, port) == ("t_web", "10080")
        assert sorted(place.partition(":")[0] for place in places) == sorted(task["node"] for task in tasks.values())
        assert all(int(place.partition(":")[2]) > 1024 for place in places)


def test_groups(curl: Curl, cluster: Cluster) -> None:
    group = {"id": "/t", "apps": [{**SLEEPER, "id": "a"}], "groups": [{"id": "in", "apps": [{**SLEEPER, "id": "b"}]}]}
    created = curl("POST", "/v2/groups", data=group)
    assert created.status == 201 and created.json["deploymentId"] == deployment(created)
    cluster.await_running("/t/a", 1)
    cluster.await_running("/t/in/b", 1)
    settled(curl, "/v2/apps/t/in/b")
    read = curl("GET", "/v2/groups//t").json
    assert [app["id"] for app in read["apps"]] == ["/t/a"] and read["groups"][0]["id"] == "/t/in"
    assert {"id", "apps", "groups", "pods", "dependencies", "version"} == read.keys()
    scaled = curl("PUT", "/v2/groups//t?force=True", data={"scaleBy": 2})
    assert scaled.status == 200 and scaled.json["deploymentId"] == deployment(scaled)
    cluster.await_running("/t/a", 2)
    assert curl("POST", "/v2/groups", data=group).status == 409
    assert curl("GET", "/v2/groups/none").status == 404
    assert curl("PUT", "/v2/groups/t?dryRun=true", data={"id": "/t", "apps": []}).json["steps"][0]["actions"]
    gone = curl("DELETE", "/v2/groups//t?force=true")
    assert gone.status == 200 and gone.json["deploymentId"] == deployment(gone)


def test_everything_goes_with_the_root_group(bare: Curl, cluster: Cluster) -> None:
    bare("POST", "/v2/apps", data=SLEEPER)
    bare("POST", "/v2/apps", data={**SLEEPER, "id": "/alone"})
    assert bare("DELETE", "/v2/groups/?force=true").status == 200
    assert bare("GET", "/v2/apps").json == {"apps": []}


def test_pods(curl: Curl, cluster: Cluster) -> None:
    pod = json.loads((bed.ROOT / "examples/pod.json").read_text())
    created = curl("POST", "/v2/pods", data=pod)
    assert created.status == 201 and deployment(created) and created.json["id"] == "/pod"
    assert created.headers["location"].endswith("/v2/pods/pod")
    status = eventually(partial(stable, curl, 2), "the pod is stable") or {}
    for path in "/v2/pods::status", "/v2/pods/::status":
        assert [each["id"] for each in curl("GET", path).json] == ["/pod"]
    assert {"id", "status", "instances", "spec", "statusSince"} <= status.keys()
    read = curl("GET", "/v2/pods//pod").json
    changed = curl("PUT", "/v2/pods//pod?force=true", data={**read, "labels": {"colour": "blue"}})
    assert changed.status == 200 and deployment(changed) and changed.json["labels"] == {"colour": "blue"}
    status = eventually(partial(stable, curl, 2), "the pod is stable again") or {}
    victims = [instance["id"] for instance in status["instances"]][:1]
    killed = curl("DELETE", "/v2/pods//pod::instances", data=victims)
    assert killed.status == 200 and [each["id"] for each in killed.json] == victims
    eventually(lambda: victims[0] not in str(stable(curl, 2)), "another one is there instead")
    gone = curl("DELETE", "/v2/pods//pod?force=true")
    assert gone.status == 202 and deployment(gone)
    assert curl("GET", "/v2/pods//pod::status").status == 404


def test_events(curl: Curl, cluster: Cluster) -> None:
    """As lines: `event: NAME`, then `data: {...}`, of the types that were asked for."""
    path = "/v2/events?event_type=status_update_event&event_type=deployment_success&plan-format=light"
    argv = [*curl.command(path), "--no-buffer", "--include", "--header", "Accept: text/event-stream"]
    begun = time.monotonic()
    with subprocess.Popen(cluster.lab.command(MASTER, argv), stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        try:
            head = list(iter(lambda: reader.stdout.readline().strip(), ""))  # type: ignore[union-attr]
            assert head[0].split()[1] == "200" and any("text/event-stream" in line for line in head)
            assert time.monotonic() - begun < ATTACHED_S, "who attaches hears of it at once"
            curl("POST", "/v2/apps", data=SLEEPER)
            events = [event(reader)]
            while events[-1]["eventType"] != "deployment_success":
                events.append(event(reader))
        finally:
            reader.kill()
    assert {each["eventType"] for each in events} == {"status_update_event", "deployment_success"}
    assert events[0]["appId"] == "/t/a" and events[-1]["plan"].keys() == {
        "id",
        "version",
        "steps",
        "original",
        "target",
    }


def event(reader: subprocess.Popen[str]) -> Json:
    assert reader.stdout is not None
    while not (line := reader.stdout.readline()).startswith("event: "):
        assert line, "the stream has ended"
    name, data = line.removeprefix("event: ").strip(), reader.stdout.readline()
    assert data.startswith("data: {")
    found: Json = json.loads(data.removeprefix("data: "))
    assert found["eventType"] == name and found["timestamp"].endswith("Z")
    return found


def test_who_may_ask(bare: Curl, cluster: Cluster, authority: Path) -> None:
    token = bed.admin(cluster.lab)["token"]
    for header in f"token={token}", f"Bearer {token}", f"bearer   {token}":
        assert Curl(cluster, authority, token=header)("GET", "/v2/apps").status == 200, header
    for header in "", "token=wrong", f"Basic {token}", "token=", "Bearer":
        refused = Curl(cluster, authority, token=header)("GET", "/v2/apps")
        assert (
            refused.status == 401
            and refused.json["message"]
            and "bearer" in refused.headers["www-authenticate"].lower()
        )
    for below in BELOW:
        assert Curl(cluster, authority, below, token="")("GET", "/ping").text == "pong"


def test_leader_stays(bare: Curl) -> None:
    refused = bare("DELETE", "/v2/leader")
    assert refused.status == 409 and "no other" in refused.json["message"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(bare: Curl, cluster: Cluster, name: str) -> None:
    """Made, awaited, read, sent back as it was read, and removed."""
    definition = json.loads((bed.ROOT / f"examples/{name}.json").read_text())
    kind = "pods" if "containers" in definition else "apps"
    path = f"/v2/{kind}/{definition['id']}"
    assert bare("POST", f"/v2/{kind}", data=definition).status == 201
    await_all(bare, definition)
    tasks = set(cluster.tasks())
    read = bare("GET", path).json
    read = read.get("app", read)
    assert subset(definition, read), read
    assert bare("PUT", path, data=read).status == 200
    await_all(bare, definition)
    assert set(cluster.tasks()) == tasks, "nothing was to change"
    assert bare("DELETE", path).status in (200, 202)
    assert bare("GET", path).status == 404


def await_all(curl: Curl, definition: Json) -> None:
    if "containers" in definition:
        eventually(partial(stable, curl, definition["scaling"]["instances"]), "the pod is stable")
    else:
        assert settled(curl, f"/v2/apps/{definition['id']}")["tasksRunning"] == definition["instances"]


def subset(said: object, read: object) -> bool:
    """Whether all that was said is in what was read."""
    if isinstance(said, dict) and isinstance(read, dict):
        return all(key in read and subset(value, read[key]) for key, value in said.items())
    if isinstance(said, list) and isinstance(read, list):
        return len(said) == len(read) and all(map(subset, said, read))
    return said == read


def settled(curl: Curl, path: str) -> Json:
    """The app, when nothing is left of its deployment."""

    def app() -> Json | None:
        found: Json = curl("GET", path).json["app"]
        return None if found["deployments"] else found

    return eventually(app, f"{path} is as it was asked to be") or {}


def stable(curl: Curl, instances: int) -> Json | None:
    status: Json = curl("GET", "/v2/pods//pod::status").json
    running = [each for each in status["instances"] if each["status"] == "STABLE"]
    return status if status["status"] == "STABLE" and len(running) == len(status["instances"]) == instances else None


def queued(curl: Curl, app_id: str, query: str = "") -> Json:
    (item,) = [item for item in curl("GET", f"/v2/queue{query}").json["queue"] if item["app"]["id"] == app_id]
    found: Json = item
    return found


def delayed(curl: Curl, app_id: str) -> Json | None:
    items = [item for item in curl("GET", "/v2/queue").json["queue"] if item["delay"]["timeLeftSeconds"]]
    return next((item for item in items if item["app"]["id"] == app_id), None)


def deployment(answer: Answer) -> str:
    return answer.headers["marathon-deployment-id"]
