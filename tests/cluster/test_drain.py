"""Nobody who is connected notices that a service changes: 200 new connections a second, and some that stay open."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lab.daemons import tepui
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, Tasks, eventually, stays
from tests.cluster.traffic import PYTHON, Client, steady

RATE = 100  # from each of two nodes, whose back ends differ
PORT = 8080
# Answers each line with the id of its task, and ends at once when it is told to.
ECHO = """
import os, signal, socketserver, sys
task = os.environ["MESOS_TASK_ID"].encode()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(task + b" " + line)
socketserver.ThreadingTCPServer.request_queue_size = 128
socketserver.ThreadingTCPServer(("", 8080), Lines).serve_forever()
"""
# A connection that stays open: says who is at the other end, then a line each 50 ms, until stdin ends or the other end
# is gone; then how often it was answered, and what went wrong.
STAY = """
import json, select, socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as connection:
    stream, count, wrong = connection.makefile("rwb"), 0, ""
    def ask():
        stream.write(b"?\\n")
        stream.flush()
        return stream.readline().decode().split()
    print(ask()[0], flush=True)
    try:
        while not select.select([0], [], [], 0.05)[0]:
            if not ask():
                wrong = "end of stream"
                break
            count += 1
    except OSError as error:
        wrong = repr(error)
    print(json.dumps([count, wrong, time.monotonic()]), flush=True)
"""


def echo(instances: int, **labels: str) -> Json:
    mapping = {"containerPort": PORT, "name": "echo", "labels": {"VIP_0": "/echo:7", **labels}}
    argv = ["/usr/bin/python3", "-I", "-S", "-c", ECHO]
    container = {"type": "MESOS", "portMappings": [mapping]}
    return bed.app_json("/echo", args=argv, instances=instances, container=container, cpus=0.05, mem=48)


@contextmanager
def under_load(cluster: Cluster, address: str, port: int) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        clients = [stack.enter_context(steady(cluster.lab, node, address, port, RATE)) for node in ("n1", "n2")]
        yield clients
        for each in clients:
            each.stop()
            assert each.failures() == []


def all_answer(clients: list[Client], tasks: set[str]) -> None:
    since = time.monotonic()
    for each in clients:
        eventually(lambda each=each: each.served_by(since) >= tasks, "all answer")  # type: ignore[misc]


def test_scaling_and_a_rolling_restart_lose_no_connection(cluster: Cluster) -> None:
    cluster.run(bed.checked(4))
    address, port = cluster.await_served("/web", cluster.await_running("/web", 4))
    with under_load(cluster, address, port) as clients:
        for instances in (7, 2, 4):
            cluster.scale("/web", instances)
            tasks = cluster.await_running("/web", instances)
            eventually(lambda tasks=tasks: cluster.backends("/web") == tasks.keys(), "all are well")  # type: ignore[misc]
            all_answer(clients, set(tasks))
        for task in tasks:
            cluster.call("DELETE", f"/v2/apps/web/tasks/{task}")
            now = cluster.await_replaced("/web", {task}, 4)
            eventually(lambda now=now: cluster.backends("/web") == now.keys(), "the next one is well")  # type: ignore[misc]
        assert not now.keys() & tasks.keys()
        all_answer(clients, set(now))


def test_a_change_of_version_loses_no_connection_and_can_be_gone_back_from(cluster: Cluster) -> None:
    cluster.run(bed.checked(4))
    before = cluster.await_running("/web", 4)
    address, port = cluster.await_served("/web", before)
    cluster.await_deployed("/web")
    with under_load(cluster, address, port) as clients:
        cluster.call("PUT", "/v2/apps/web", json={"env": {"VERSION": "2"}})
        second = cluster.await_replaced("/web", set(before), 4)
        all_answer(clients, set(second))
        cluster.await_deployed("/web")
        cluster.call("PUT", "/v2/apps/web", json={"args": None, "cmd": "exit 1", "backoffSeconds": 0.1})
        eventually(lambda: len(failed(cluster)) > 1, "it does not come to run")
        assert second.keys() <= cluster.running("/web").keys()  # and replaces nobody
        (deployment,) = tepui(cluster.lab, "service", "deployments")
        tepui(cluster.lab, "service", "cancel", deployment["id"])
        cluster.await_deployed("/web")
        assert cluster.await_running("/web", 4).keys() == second.keys()  # they were right all the time
        tepui(cluster.lab, "service", "restart", "/web")
        all_answer(clients, set(cluster.await_replaced("/web", set(second), 4)))
        cluster.await_deployed("/web")
    app = cluster.get("/v2/apps/web")["app"]
    assert app["env"] == {"VERSION": "2"} and app["deployments"] == [] and len(app["args"]) > 1


def failed(cluster: Cluster) -> str:
    """What became of its last task that did."""
    failure = cluster.get("/v2/apps/web")["app"].get("lastTaskFailure") or {}
    return str(failure.get("message", ""))


def test_a_node_is_emptied_without_a_connection_lost(cluster: Cluster) -> None:
    cluster.run(bed.checked(6))
    before = cluster.await_running("/web", 6)
    address, port = cluster.await_served("/web", before)
    with under_load(cluster, address, port) as clients:
        drained = tepui(cluster.lab, "node", "drain", "n3", "--wait")
        try:
            assert drained == {"node": "n3", "draining": True}
            assert cluster.nodes()["n3"]["draining"] and not on("n3", cluster.tasks())
            now = cluster.await_running("/web", 6)
            assert before.keys() - on("n3", before) <= now.keys()  # the others were left alone
            all_answer(clients, set(now))
            cluster.scale("/web", 8)
            assert not on("n3", cluster.await_running("/web", 8))
        finally:
            tepui(cluster.lab, "node", "undrain", "n3")
        cluster.scale("/web", 12)
        assert on("n3", cluster.await_running("/web", 12))


def on(node: str, tasks: Tasks) -> set[str]:
    return {name for name, task in tasks.items() if task["node"] == node}


def test_a_task_goes_on_while_a_client_is_connected(cluster: Cluster) -> None:
    cluster.run(echo(3, **{"tepui/drain": "30"}))
    address, port = serve(cluster, 3)
    with connected(cluster, address, port, "n1") as one, connected(cluster, address, port, "n2") as other:
        held = {one.at, other.at}
        cluster.scale("/echo", 0)
        eventually(lambda: cluster.backends("/echo") == set(), "nobody is behind the VIP")
        eventually(lambda: cluster.tasks().keys() == held, "who has no client has ended")
        stays(lambda: cluster.tasks().keys() == held, "the others go on", 1.0)
        for task in held:
            shown = cluster.tasks()[task]
            assert shown["state"] == "KILLING" and "open connection" in shown["message"], shown
        for each in (one, other):
            count, wrong, _ = each.leave()
            assert count > 10 and wrong == ""
    began = time.monotonic()
    eventually(lambda: not cluster.tasks(), "now they end")
    assert time.monotonic() - began < 15  # not for the whole time that they might have waited


def test_who_stays_connected_for_longer_than_that_is_cut_off(cluster: Cluster) -> None:
    cluster.run(echo(1, **{"tepui/drain": "2"}))
    address, port = serve(cluster, 1)
    with connected(cluster, address, port, "n2") as stayer:
        began = time.monotonic()
        cluster.remove("/echo")
        eventually(lambda: not cluster.tasks(), "it ends")
        eventually(stayer.is_cut_off, "who is connected hears of it")
        count, wrong, at = stayer.leave()
        assert wrong and count > 0
        assert at - began > 2


def test_what_is_open_stays_open_whatever_becomes_of_the_others(cluster: Cluster) -> None:
    cluster.run(echo(4))
    address, port = serve(cluster, 4)
    with connected(cluster, address, port, "n1") as one, connected(cluster, address, port, "n2") as other:
        held = {one.at, other.at}
        for task in cluster.running("/echo").keys() - held:
            cluster.call("DELETE", f"/v2/apps/echo/tasks/{task}")
        cluster.scale("/echo", 6)
        cluster.await_running("/echo", 6)
        for each in (one, other):
            count, wrong, _ = each.leave()
            assert count > 10 and wrong == ""


class Stayer:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process = process
        self.at = process.stdout.readline().strip()

    def is_cut_off(self) -> bool:
        return self._process.poll() is not None

    def leave(self) -> tuple[int, str, float]:
        """How often it was answered, what went wrong, and when it was over."""
        output, _ = self._process.communicate("", timeout=30)
        count, wrong, at = json.loads(output or '[0, "not connected", 0]')
        return count, wrong, at


@contextmanager
def connected(cluster: Cluster, address: str, port: int, node: str) -> Iterator[Stayer]:
    argv = cluster.lab.command(node, [PYTHON, "-I", "-S", "-c", STAY, address, str(port)])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Stayer(process)
        finally:
            process.kill()


def serve(cluster: Cluster, instances: int) -> tuple[str, int]:
    tasks = cluster.await_running("/echo", instances)
    eventually(lambda: cluster.backends("/echo") == tasks.keys(), "all are behind the VIP")
    vip = cluster.vip("/echo")
    seen: set[str] = set()

    def all_listen() -> bool:
        for node in ("n1", "n2"):
            with connected(cluster, vip["address"], vip["port"], node) as stayer:
                seen.add(stayer.at)
                stayer.leave()
        return seen >= tasks.keys()

    eventually(all_listen, "all listen")
    return vip["address"], vip["port"]
