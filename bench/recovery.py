"""Recovery: from the start of an agent's process until its node, with 100 containers, is reconciled.

The agent of a lab's node is killed with SIGKILL and started again, some times. It tells itself how long it took from
the start of its process until it had its books, all containers, a session, and all that the master wants applied; and
how much CPU time that took, which depends less on what else the machine does. Meanwhile a TCP connection through a
virtual address, to one of the containers, is in use all the time: it must not break, and the row is its slowest answer.
The peers are what is promised.
"""

from __future__ import annotations

import json
import secrets
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.report import Report, Row
from lab.cluster import Lab
from lab.daemons import connected, start_cluster, tepui, wait_until
from lab.record import Node

NODE = "n1"
CONTAINERS = 100
RESTARTS = 7
PROMISED_S = 2.0
STALL_S = 1.0  # after which an answer counts as lost
DEADLINE_S = 120.0
PORT, VIP_PORT = 8080, 7000
PAUSE_S = 0.01
ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(64):
            self.request.sendall(data)
socketserver.ThreadingTCPServer(("", 8080), Echo).serve_forever()
"""
SMALL = {"cpus": 0.01, "mem": 16, "networks": [{"mode": "container", "name": "overlay"}]}


def run() -> Report:
    lab = Lab(f"bench-{secrets.token_hex(4)}")
    try:
        start_cluster(lab, 1)
        return measure(lab)
    finally:
        lab.down()


def measure(lab: Lab) -> Report:
    address = _services(lab)
    with _conversation(lab, address) as stalls:
        events = [_restarted(lab) for _ in range(RESTARTS)]
    return Report(
        "recovery",
        (
            Row("reconciled_100_s", "s", _median(events, "after_s"), PROMISED_S, "promised"),
            Row("reconciled_100_cpu", "s", _median(events, "cpu_s"), PROMISED_S, "promised"),
            Row("longest_stall", "s", max(stalls), STALL_S, "promised"),
        ),
    )


def _median(events: list[dict[str, Any]], field: str) -> float:
    return statistics.median(float(event[field]) for event in events)


def _services(lab: Lab) -> str:
    """All that runs. Returns the virtual address of the one that answers."""
    ports = [{"containerPort": PORT, "labels": {"VIP_0": f"/echo:{VIP_PORT}"}}]
    container = {"type": "MESOS", "portMappings": ports}
    _run(lab, {"id": "/echo", "args": ["/usr/bin/python3", "-c", ECHO], "container": container, "mem": 64})
    _run(lab, {"id": "/idle", "args": ["/bin/sleep", "infinity"], "instances": CONTAINERS - 1})
    wait_until(lambda: len(_running(lab)) == CONTAINERS, f"{CONTAINERS} containers run", DEADLINE_S)
    (vip,) = tepui(lab, "vip", "list")
    return str(vip["address"])


def _run(lab: Lab, definition: dict[str, Any]) -> None:
    file = lab.node(NODE).state.with_name("service.json")
    file.write_text(json.dumps({**SMALL, **definition}))
    tepui(lab, "service", "run", str(file))
    file.unlink()


def _running(lab: Lab) -> list[dict[str, Any]]:
    return [task for task in tepui(lab, "task", "list") if task["state"] == "RUNNING"]


def _restarted(lab: Lab) -> dict[str, Any]:
    """What the agent told."""
    before = {task["id"]: task["pid"] for task in _running(lab)}
    told = len(_told(lab.node(NODE)))
    lab.hold(NODE, "agent", signal.SIGKILL)
    wait_until(lambda: not connected(lab), "the master has noticed", DEADLINE_S)
    lab.release(NODE, "agent")
    wait_until(lambda: len(_told(lab.node(NODE))) > told, "it is reconciled", DEADLINE_S)
    assert {task["id"]: task["pid"] for task in _running(lab)} == before
    event = _told(lab.node(NODE))[-1]
    assert event["tasks"] == CONTAINERS
    return event


def _told(node: Node) -> list[dict[str, Any]]:
    lines = Path(node.log("agent")).read_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return [event for event in events if event["event"] == "reconciled"]


@contextmanager
def _conversation(lab: Lab, address: str) -> Iterator[list[float]]:
    """Over one connection, until the block ends. How long each answer took; raises OSError when it breaks."""
    seconds: list[float] = []
    ended = threading.Event()
    failures: list[OSError] = []
    connection = lab.within(NODE, lambda: socket.create_connection((address, VIP_PORT), DEADLINE_S))

    def converse() -> None:
        try:
            while not ended.wait(PAUSE_S):
                began = time.monotonic()
                connection.sendall(b"anybody there?")
                if not connection.recv(64):
                    raise ConnectionResetError("the other end has closed")
                seconds.append(time.monotonic() - began)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=converse)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()
        connection.close()
    if failures:
        raise failures[0]
