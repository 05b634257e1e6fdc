"""The main job, end to end: a service with limits and a virtual address, its output, scaling, and its end."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections import Counter

from lab import daemons
from lab.cluster import MASTER
from lab.demo import CLIENT
from tests.cluster import bed, traces
from tests.cluster.bed import Cluster, eventually
from tests.cluster.traffic import PYTHON, steady

REQUESTS = 200
STOP_DEADLINE_S = 10.0

# Whether it gets as far as a TLS handshake with the master, whether that then greets it, and what keys it can read.
KNOCK = """
import json, os, socket, ssl, sys
context = ssl._create_unverified_context()
context.set_alpn_protocols(["h2"])
shaken = greeted = False
try:
    with context.wrap_socket(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)) as connection:
        shaken = True
        greeted = connection.recv(1) != b""
except OSError:
    pass
keys = [key for key in sys.argv[3:] if os.access(key, os.R_OK)]
print(json.dumps({"shaken": shaken, "keys": keys, "greeted": greeted}), flush=True)
"""

ASK_ALL = """
import json, sys, urllib.request
def ask(address):
    return urllib.request.urlopen(f"http://{address}:8080/", timeout=5).read().decode()
print(json.dumps({address: ask(address) for address in sys.argv[1:]}), flush=True)
"""


def test_example_runs_spread_over_all_nodes(cluster: Cluster) -> None:
    cluster.run(json.loads(bed.WEB.read_text()))
    tasks = cluster.await_running("/web", 4)
    cluster.await_served("/web", tasks)
    spread = Counter(task["node"] for task in tasks.values())
    assert sorted(spread.values()) == [1, 1, 2] and spread.keys() == set(cluster.names)
    app = cluster.get("/v2/apps/web")["app"]
    assert (app["tasksRunning"], app["tasksStaged"], app["deployments"]) == (4, 0, [])
    assert len({address for task in tasks.values() for address in task["addresses"]}) == 8  # of both versions


def test_limits_are_the_kernels_and_what_was_asked_for(cluster: Cluster) -> None:
    cluster.run(bed.web(2, cpus=0.25, mem=48))
    for task in cluster.await_running("/web", 2).values():
        seen = traces.limits(cluster.lab.node(task["node"]), task["id"])
        assert math.isclose(seen["cpu_quota_us"] / seen["cpu_period_us"], 0.25)
        assert seen["mem_bytes"] == 48 * 2**20
        wanted = {"cpus": 0.25, "mem_bytes": 48 * 2**20, "disk_bytes": None, "pids": seen["pids"]}
        assert task["limits"] == wanted


def test_every_backend_answers_a_node_and_a_container(cluster: Cluster) -> None:
    cluster.run(bed.web(4))
    tasks = cluster.await_running("/web", 4)
    address, port = cluster.await_served("/web", tasks)
    arguments = [address, str(port), str(REQUESTS)]
    from_node = json.loads(cluster.lab.exec("n1", [PYTHON, "-c", CLIENT, *arguments]).stdout)
    from_container = cluster.ask_in_container(CLIENT, *arguments)
    for answer in from_node, from_container:
        assert answer["failures"] == 0
        assert sum(answer["counts"].values()) == REQUESTS
        assert answer["counts"].keys() == tasks.keys()


def test_a_container_reaches_the_virtual_address_that_leads_to_itself(cluster: Cluster) -> None:
    cluster.run(bed.web(1))
    tasks = cluster.await_running("/web", 1)
    address, port = cluster.await_served("/web", tasks)
    (task,) = tasks.values()
    ask = f"import urllib.request; print(urllib.request.urlopen('http://{address}:{port}/', timeout=5).read().decode())"
    inside = ["nsenter", "-t", str(task["pid"]), "-n", PYTHON, "-c", ask]
    assert cluster.lab.exec(task["node"], inside).stdout.strip() == task["id"]


def test_containers_of_different_nodes_reach_each_other_by_overlay_address(cluster: Cluster) -> None:
    cluster.run(bed.web(3))
    tasks = cluster.await_running("/web", 3)
    assert {task["node"] for task in tasks.values()} == set(cluster.names)
    cluster.await_served("/web", tasks)
    expected = {task["addresses"][0]: task["id"] for task in tasks.values()}
    assert cluster.ask_in_container(ASK_ALL, *expected) == expected


def test_container_of_the_cluster_is_no_member_of_it(cluster: Cluster) -> None:
    """It can reach the master, as anybody on the network can, but has nothing to prove itself with."""
    keys = [str(cluster.lab.node(name).state / "pki/cert.key") for name in cluster.names]
    master = str(cluster.lab.node(MASTER).address)
    assert cluster.ask_in_container(KNOCK, master, "8444", *keys) == {"shaken": True, "keys": [], "greeted": False}


def test_output_of_a_container_comes_through_the_master(cluster: Cluster) -> None:
    cluster.run(bed.command("/noisy", "echo to stdout; echo to stderr >&2; exec sleep 3600"))
    (task,) = cluster.await_running("/noisy", 1)
    eventually(lambda: cluster.log_of(task) == "to stdout\n", "its stdout is there")
    eventually(lambda: cluster.log_of(task, "stderr") == "to stderr\n", "its stderr is there")


def test_followed_output_comes_as_it_is_written_and_ends_with_the_task(cluster: Cluster) -> None:
    lines = "trap 'echo goodbye; exit' TERM; n=0; while :; do n=$((n+1)); echo line $n; sleep 0.1; done"
    cluster.run(bed.command("/noisy", lines))
    (task,) = cluster.await_running("/noisy", 1)
    argv = daemons.command(cluster.lab, MASTER, ["tepui", "task", "log", "-f", task])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert [follower.stdout.readline() for _ in range(30)] == [f"line {n}\n" for n in range(1, 31)]
        cluster.remove("/noisy")
        rest, _ = follower.communicate(timeout=STOP_DEADLINE_S)
    assert rest.endswith("goodbye\n") and follower.returncode == 0


def test_scaling_down_under_load_fails_no_request(cluster: Cluster) -> None:
    """Law 6: a backend is out of every node's table before its task gets a signal."""
    cluster.run(bed.web(4))
    address, port = cluster.await_served("/web", cluster.await_running("/web", 4))
    with steady(cluster.lab, "n2", address, port) as client:
        cluster.scale("/web", 6)
        six = cluster.await_running("/web", 6)
        cluster.await_served("/web", six)
        began = time.monotonic()
        eventually(lambda: client.served_by(began) == six.keys(), "all six answer")
        cluster.scale("/web", 2)
        two = cluster.await_running("/web", 2)
        settled = time.monotonic()
        eventually(lambda: client.served_by(settled) == two.keys(), "the two that are left answer")
        client.stop()
        assert client.failures(began) == []
        assert client.served_by(settled) == two.keys() < six.keys()


def test_removing_a_service_leaves_nothing_of_it(cluster: Cluster) -> None:
    cluster.run(bed.web(4))
    address, port = cluster.await_served("/web", cluster.await_running("/web", 4))
    cluster.remove("/web")
    eventually(lambda: not cluster.tasks(), "no task is left")
    assert not cluster.vip("/web") and cluster.get("/v2/apps")["apps"] == []
    connect = f"import socket; socket.create_connection(('{address}', {port}), timeout=5)"
    for node in cluster.names:
        cluster.await_traces(node)
        refused = cluster.lab.exec(node, [PYTHON, "-c", connect]).stderr
        assert "ConnectionRefusedError" in refused
        assert "DNAT" not in cluster.lab.exec(node, ["iptables-legacy-save", "-t", "nat"]).stdout
        assert "goto of_" not in cluster.lab.exec(node, ["nft", "list", "table", "inet", "tepui-vips"]).stdout
