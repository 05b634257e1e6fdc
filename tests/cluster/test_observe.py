"""What a person, or Prometheus, sees of a cluster from outside."""

from __future__ import annotations

import json
import re
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any

from lab import daemons
from lab.cluster import MASTER
from tests.cluster import bed
from tests.cluster.bed import DEADLINE_S, Cluster, Json, eventually

BUSY = "while :; do :; done"
SERVED = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
PYTHON = "/usr/bin/python3"
COMMAND_DEADLINE_S = 30.0


def test_events_tell_of_a_task_from_beginning_to_end(cluster: Cluster) -> None:
    began = time.time()
    cluster.run(bed.command("/short-lived", "exec sleep 3600"))
    (task,) = cluster.await_running("/short-lived", 1).values()
    cluster.remove("/short-lived")
    eventually(lambda: not cluster.tasks(), "it is gone")
    cluster.lab.kill_daemon(task["node"], "agent")
    eventually(lambda: connections(cluster, task["node"])[-2:] == [False, True], "the node was away, and is back")
    seen = events(cluster)
    assert [event["errors"] for event in seen if event["at"] > began and event.get("errors")] == []
    states = [event["state"] for event in seen if event.get("task") == task["id"]]
    assert [state for state in states if state in ("ASSIGNED", "RUNNING", "KILLED")] == sorted(
        ["ASSIGNED", *["RUNNING"] * states.count("RUNNING"), "KILLED"], key=["ASSIGNED", "RUNNING", "KILLED"].index
    )


def test_what_a_task_takes_is_told_while_it_runs(cluster: Cluster) -> None:
    cluster.run(bed.command("/busy", BUSY, cpus=0.1))
    (task,) = cluster.await_running("/busy", 1).values()

    def busy() -> dict[str, float] | None:
        usage: dict[str, float] = cluster.get(f"/api/v1/tasks/{task['id']}")["task"]["usage"]
        return usage if usage["cpu_s"] > 0.3 and usage["cpu_throttled_s"] > 0 else None

    usage = eventually(busy, "its use of CPU time is told")
    assert usage and usage["mem_bytes"] > 0 and usage["pids"] >= 1
    metrics = cluster.request("GET", "/metrics").text
    assert value(metrics, "container_cpu_usage_seconds_total", task["id"]) >= 0.3
    own = cluster.lab.exec(task["node"], [PYTHON, "-c", SERVED]).stdout
    assert value(own, "container_cpu_usage_seconds_total", task["id"]) >= 0.3
    assert f'tepui_nodes{{state="online"}} {len(cluster.names):.1f}\n' in metrics
    shown = tepui(cluster, "task", "usage", task["id"])
    assert re.search(r"CPUs +0\.\d+ +0\.1 ", shown)


def events(cluster: Cluster) -> list[dict[str, Any]]:
    return [json.loads(line) for line in tepui(cluster, "events", "--json").splitlines()]


def connections(cluster: Cluster, node: str) -> list[bool]:
    """Whether it was connected, as told whenever that changed."""
    told = [event["connected"] for event in events(cluster) if event["kind"] == "node" and event["node"] == node]
    return [connected for connected, _ in groupby(told)]


def tepui(cluster: Cluster, *words: str) -> str:
    argv = daemons.command(cluster.lab, MASTER, ["tepui", *words])
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=COMMAND_DEADLINE_S).stdout


def value(metrics: str, name: str, task: str) -> float:
    found = re.search(rf'^{name}{{task="{re.escape(task)}".*}} (\S+)$', metrics, re.MULTILINE)
    assert found is not None, f"{name} of {task} in {metrics[:2000]}"
    return float(found[1])


def test_services_are_told_of_as_marathon_does(cluster: Cluster) -> None:
    """A reader that goes away goes on where it was."""
    seen: list[Json] = []

    def read(last: str, until: str) -> str:
        headers = {"Last-Event-ID": last} if last else {}
        number = last
        extensions = {"sni_hostname": cluster.server_name}
        query = {"event_type": ["status_update_event", "deployment_success", "api_post_event"]}
        with cluster.api.stream("GET", "/v2/events", params=query, headers=headers, extensions=extensions) as answer:
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    number = line.removeprefix("id: ")
                if line.startswith("data: "):
                    seen.append(json.loads(line.removeprefix("data: ")))
                    if seen[-1]["eventType"] == until:
                        return number
        raise AssertionError("the stream has ended")

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(cluster.lab.within, MASTER, lambda: read("", "api_post_event"))
        app = bed.command("/told", "exec sleep 3600")
        eventually(lambda: asked_again(cluster, app, reading), "somebody reads")
        last = reading.result(DEADLINE_S)
    cluster.await_running("/told", 1)
    cluster.lab.within(MASTER, lambda: read(last, "deployment_success"))
    kinds = [event["eventType"] for event in seen]
    (posted, *_) = [event for event in seen if event["eventType"] == "api_post_event"]
    assert posted["appDefinition"]["id"] == "/told"
    running = [event for event in seen if event.get("taskStatus") == "TASK_RUNNING"]
    assert {event["appId"] for event in running} == {"/told"}
    assert kinds[-1] == "deployment_success"


def asked_again(cluster: Cluster, app: Json, reading: Future[str]) -> bool:
    """Whether the reader has heard of it: it may not have been there yet the first time."""
    cluster.call("PUT", "/v2/apps/told?force=true", json=app)
    return reading.done()
