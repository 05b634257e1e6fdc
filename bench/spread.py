"""A change of the cluster: how long until the last of three nodes has it, in its kernel and in its names.

A whole cluster in a lab: a master and three agents over mutual TLS. One task of a service is paused, and goes on again.
From the request on, `vip` is the time until all nodes have said that their kernel has the change, as `tepui vip show`
tells it, and `name` until the name server of each answers by it.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from dnslib import DNSRecord

from bench.report import Report, Row, percentile
from cli.client import Admin, Client
from lab.cluster import MASTER, Lab
from lab.daemons import admin_file, start_cluster
from netns.dns.table import NODE_ADDRESS

NODES, TASKS = 3, 3
CHANGES = 40
PROMISED_VIP_MS, PROMISED_NAME_MS = 250.0, 100.0
DEADLINE_S = 30.0
NAME = "web.services.containerip.tepui.internal"
WEB = Path(__file__).resolve().parents[1] / "examples/web.json"


def run() -> Report:
    lab = Lab(f"b-{uuid4().hex[:8]}")
    try:
        start_cluster(lab, NODES)
        return _measure(lab)
    finally:
        lab.down()


def _measure(lab: Lab) -> Report:
    cluster = Cluster(lab)
    cluster.ask(lambda client: client.post("/v2/apps", {**json.loads(WEB.read_text()), "instances": TASKS}))
    _until(lambda: len(cluster.vip()["backends"]) == TASKS and all(map(_names, cluster.sockets)))
    backends = sorted((each["task_id"], each["address"]) for each in cluster.vip()["backends"])
    times = [cluster.change(*backends[number % TASKS], there) for number in range(CHANGES) for there in (False, True)]
    cluster.close()
    rows = []
    for place, (name, promised) in enumerate((("name", PROMISED_NAME_MS), ("vip", PROMISED_VIP_MS))):
        values = [each[place] for each in times]
        for percent in (50, 99):
            rows.append(Row(f"{name}_on_3_nodes_p{percent}", "ms", percentile(values, percent), promised, "promised"))
    return Report("spread", tuple(rows))


class Cluster:
    """Two clients on the master's node, each with one connection, and one of each node's name server."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._act, self._watch = (Client(Admin(**json.loads(admin_file(lab).read_text()))) for _ in range(2))
        self.sockets = [lab.within(node.name, _name_client) for node in lab.nodes() if node.name != MASTER]

    def ask(self, request: Callable[[Client], Any]) -> Any:
        return self._lab.within(MASTER, lambda: request(self._act))

    def vip(self) -> dict[str, Any]:
        found = self._lab.within(MASTER, lambda: self._watch.get("/api/v1/vips"))["vips"]
        vip = next((each for each in found if each["name"] == "services/web" and ":" not in each["address"]), None)
        return vip or {"backends": [], "behind": []}

    def change(self, task: str, address: str, there: bool) -> tuple[float, float]:
        """Milliseconds until every name server, and every kernel, has it."""
        path = f"/api/v1/tasks/{task}/{'resume' if there else 'pause'}"
        acting = threading.Thread(target=self.ask, args=(lambda client: client.post(path),))
        began = time.monotonic()
        acting.start()
        _until(lambda: all((address in _names(each)) is there for each in self.sockets))
        named = time.monotonic()
        _until(lambda: _everywhere(self.vip(), task, there))
        done = time.monotonic()
        acting.join()
        return 1000 * (named - began), 1000 * (done - began)

    def close(self) -> None:
        for each in self.sockets:
            each.close()


def _everywhere(vip: dict[str, Any], task: str, there: bool) -> bool:
    return (task in {each["task_id"] for each in vip["backends"]}) is there and not vip["behind"]


def _name_client() -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.settimeout(1.0)
    sock.connect((str(NODE_ADDRESS), 53))
    return sock


def _names(sock: socket.socket) -> set[str]:
    sock.send(bytes(DNSRecord.question(NAME).pack()))
    return {str(rr.rdata) for rr in DNSRecord.parse(sock.recv(2048)).rr}


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {DEADLINE_S:g} s")
