"""Health, end to end: who is ill gets no traffic, and is replaced; an absent master or agent kills nobody."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lab import daemons
from lab.cluster import MASTER
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, eventually, same, stays
from tests.cluster.test_agent_faults import restart
from tests.cluster.traffic import steady

RATE = 200
AWAY_S = 30.0
COMMAND_DEADLINE_S = 30.0
CHECK = {"path": "/health", "gracePeriodSeconds": 60, "intervalSeconds": 1, "timeoutSeconds": 5}

# As the example, and /health answers 503 from SIGUSR1 until SIGUSR2. Requests that came before SIGTERM are answered.
SERVER = """
import os, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
TASK, state = os.environ["MESOS_TASK_ID"].encode(), {"/health": 200}
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(state.get(self.path, 200))
        self.send_header("Content-Length", str(len(TASK)))
        self.end_headers()
        self.wfile.write(TASK)
    def log_message(self, *_):
        pass
signal.signal(signal.SIGUSR1, lambda *_: state.update({"/health": 503}))
signal.signal(signal.SIGUSR2, lambda *_: state.update({"/health": 200}))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("", 8080), Answer).serve_forever()
"""


def checked(instances: int, **check: Any) -> Json:
    return bed.web(instances, args=["/usr/bin/python3", "-c", SERVER], healthChecks=[{**CHECK, **check}])


def turn(cluster: Cluster, task: Json, number: int) -> None:
    assert cluster.lab.exec(task["node"], ["kill", f"-{number}", str(task["pid"])]).returncode == 0


def failures(cluster: Cluster, task: str) -> int:
    seen = cluster.tasks().get(task)
    return int(seen["health"][0]["failures"]) if seen and seen["health"] else 0


def test_who_is_ill_leaves_the_virtual_address_before_it_is_killed(cluster: Cluster) -> None:
    cluster.run(checked(3, maxConsecutiveFailures=4))
    before = cluster.await_running("/web", 3)
    address, port = cluster.await_served("/web", before)
    ill = next(iter(before.values()))
    with steady(cluster.lab, "n1", address, port, RATE) as client:
        turn(cluster, ill, signal.SIGUSR1)
        eventually(lambda: ill["id"] not in cluster.backends("/web"), "it is out")
        seen = cluster.tasks()[ill["id"]]
        assert (seen["state"], seen["killing"], seen["healthy"], seen["pid"]) == ("RUNNING", False, False, ill["pid"])
        app = cluster.get("/v2/apps/web")["app"]
        assert (app["tasksHealthy"], app["tasksUnhealthy"], app["tasksRunning"]) == (2, 1, 3)
        after = cluster.await_replaced("/web", {ill["id"]}, 3)
        cluster.await_served("/web", after)
        client.stop()
        assert client.failures() == []
    assert before.keys() - after.keys() == {ill["id"]}
    failure = cluster.get("/v2/apps/web")["app"]["lastTaskFailure"]
    assert failure["taskId"] == ill["id"] and "failures in a row, the last: HTTP status 503" in failure["message"]


def test_who_was_never_well_is_no_backend_and_is_not_killed_in_its_grace_period(cluster: Cluster) -> None:
    cluster.run(checked(2, port=9, maxConsecutiveFailures=1))
    tasks = cluster.await_running("/web", 2)
    for task in tasks:
        eventually(partial(refused, cluster, task), "it was checked")
    stays(lambda: same(tasks, cluster.running("/web")) and not cluster.backends("/web"), "nothing happens", 3.0)
    assert cluster.get("/v2/apps/web")["app"]["deployments"]


def test_a_command_decides(cluster: Cluster) -> None:
    command = {"protocol": "COMMAND", "command": {"value": "test $(($(date +%s) % 2)) -lt 2"}, "delaySeconds": 0}
    cluster.run(bed.command("/checked", "exec sleep 3600", healthChecks=[{**command, "intervalSeconds": 1}]))
    (task,) = cluster.await_running("/checked", 1)
    eventually(lambda: cluster.tasks()[task]["healthy"], "it is well")
    assert cluster.get("/v2/apps/checked")["app"]["tasksHealthy"] == 1


def test_killed_agent_keeps_what_its_checks_found(cluster: Cluster) -> None:
    cluster.run(checked(3, maxConsecutiveFailures=0))
    before = cluster.await_running("/web", 3)
    cluster.await_served("/web", before)
    ill = next(task for task in before.values() if task["node"] == "n1")
    turn(cluster, ill, signal.SIGUSR1)
    eventually(lambda: failures(cluster, ill["id"]) >= 3, "it has failed three times")
    count, healthy = failures(cluster, ill["id"]), before.keys() - {ill["id"]}
    seen: list[tuple[int, set[str]]] = []
    watched(cluster, lambda: seen.append((failures(cluster, ill["id"]), cluster.backends("/web"))), ill["id"])
    assert all(number >= count and backends == healthy for number, backends in seen)
    eventually(lambda: failures(cluster, ill["id"]) > seen[-1][0], "it is checked again")
    turn(cluster, ill, signal.SIGUSR2)
    eventually(lambda: cluster.backends("/web") == before.keys(), "it is well again")
    assert same(before, cluster.running("/web"))


def test_absent_master_kills_nobody(cluster: Cluster) -> None:
    cluster.run(checked(3, maxConsecutiveFailures=3))
    before = cluster.await_running("/web", 3)
    address, port = cluster.await_served("/web", before)
    ill, *others = before.values()
    cluster.lab.hold(MASTER, "master", signal.SIGKILL)
    try:
        turn(cluster, ill, signal.SIGUSR1)
        with steady(cluster.lab, "n2", address, port) as client:
            stays(lambda: all(alive(cluster, task) for task in before.values()), "all live", AWAY_S)
            client.stop()
            assert client.failures() == [] and client.served_by() >= {task["id"] for task in others}
    finally:
        cluster.lab.release(MASTER, "master")
    after = cluster.await_replaced("/web", {ill["id"]}, 3)
    assert before.keys() - after.keys() == {ill["id"]}


def test_ending_one_of_four_under_load_fails_no_request(cluster: Cluster) -> None:
    """It is out of the tables before its signal, and its replacement is in them when it listens."""
    cluster.run(checked(4))
    before = cluster.await_running("/web", 4)
    address, port = cluster.await_served("/web", before)
    victim = min(before)
    with steady(cluster.lab, "n1", address, port, RATE) as client:
        began = time.monotonic()
        eventually(lambda: client.served_by(began) == before.keys(), "all four answer")
        cluster.call("DELETE", f"/v2/apps/web/tasks/{victim}")
        after = cluster.await_replaced("/web", {victim}, 4)
        cluster.await_served("/web", after)
        replaced = time.monotonic()
        eventually(lambda: client.served_by(replaced) == after.keys(), "the new four answer")
        client.stop()
        assert client.failures(began) == []
    assert len(before.keys() & after.keys()) == 3


def test_a_task_ended_by_hand_says_how_far_it_is(cluster: Cluster) -> None:
    stubborn = "trap '' TERM; while :; do sleep 0.1; done"
    cluster.run(bed.command("/stubborn", stubborn, taskKillGracePeriodSeconds=3))
    (task,) = cluster.await_running("/stubborn", 1)
    assert "3 s of grace" in tepui(cluster, "task", "kill", task)
    eventually(lambda: "SIGTERM sent, 3 s of grace" in tepui(cluster, "task", "show", task), "it says so")
    cluster.await_replaced("/stubborn", {task}, 1)


def watched(cluster: Cluster, look: Callable[[], None], task: str) -> None:
    """Look again and again while the agent of n1 is killed and comes back."""
    restart(cluster, "n1")
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        look()


def refused(cluster: Cluster, task: str) -> bool:
    health = cluster.tasks()[task]["health"]
    return bool(health) and "refused" in health[0]["cause"]


def alive(cluster: Cluster, task: Json) -> bool:
    return cluster.lab.exec(task["node"], ["test", "-e", f"/proc/{task['pid']}"]).returncode == 0


def tepui(cluster: Cluster, *arguments: str) -> str:
    argv = daemons.command(cluster.lab, MASTER, ["tepui", *arguments])
    return subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S).stdout
