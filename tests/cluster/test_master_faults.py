"""The master dies: what runs goes on and is served, and what was asked for is done by the next one."""

from __future__ import annotations

import signal
import time

import pytest

from lab.cluster import MASTER
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, eventually, same
from tests.cluster.traffic import steady

STUBBORN = "trap '' TERM; while :; do sleep 0.1; done"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to stop"])
def test_restarted_master_changes_nothing(cluster: Cluster, number: int) -> None:
    cluster.run(bed.web(4))
    before = cluster.await_running("/web", 4)
    address, port = cluster.await_served("/web", before)
    app = describe(cluster, "/web")
    with steady(cluster.lab, "n1", address, port) as client:
        restart(cluster, number)
        restarted = time.monotonic()
        eventually(lambda: client.served_by(restarted) == before.keys(), "all answer")
        client.stop()
        assert client.failures() == []
    assert same(before, cluster.running("/web"))
    assert describe(cluster, "/web") == app
    assert (cluster.vip("/web")["address"], cluster.vip("/web")["port"]) == (address, port)
    assert cluster.backends("/web") == before.keys()


def test_app_that_was_accepted_is_there_after_the_master_was_killed(cluster: Cluster) -> None:
    cluster.run(bed.command("/accepted", "exec sleep 3600", instances=3))
    cluster.lab.kill_daemon(MASTER, "master")
    cluster.await_running("/accepted", 3)


def test_scaling_that_was_accepted_is_done_by_the_next_master(cluster: Cluster) -> None:
    cluster.run(bed.command("/scaled", "exec sleep 3600", instances=2))
    before = cluster.await_running("/scaled", 2)
    cluster.scale("/scaled", 6)
    cluster.lab.kill_daemon(MASTER, "master")
    after = cluster.await_running("/scaled", 6)
    assert after.keys() > before.keys()
    for name in cluster.names:
        cluster.await_traces(name)


def test_killing_that_was_under_way_is_done_by_the_next_master(cluster: Cluster) -> None:
    cluster.run(bed.command("/stubborn", STUBBORN, instances=4, taskKillGracePeriodSeconds=2))
    before = cluster.await_running("/stubborn", 4)
    cluster.scale("/stubborn", 1)
    eventually(lambda: len(cluster.running("/stubborn")) == 1, "three are being killed")
    cluster.lab.kill_daemon(MASTER, "master")
    (kept,) = cluster.await_running("/stubborn", 1)
    assert kept in before
    for name in cluster.names:
        cluster.await_traces(name)


def test_removal_that_was_accepted_is_done_by_the_next_master(cluster: Cluster) -> None:
    cluster.run(bed.web(3))
    cluster.await_served("/web", cluster.await_running("/web", 3))
    cluster.remove("/web")
    cluster.lab.kill_daemon(MASTER, "master")
    eventually(lambda: not cluster.tasks() and not cluster.vip("/web"), "nothing is left")
    assert cluster.get("/v2/apps")["apps"] == []


def test_container_that_ends_while_the_master_is_down_is_replaced(cluster: Cluster) -> None:
    cluster.run(bed.command("/ends", "exec sleep 3600", instances=3))
    before = cluster.await_running("/ends", 3)
    victim = min(before.values(), key=lambda task: str(task["id"]))
    cluster.lab.hold(MASTER, "master", signal.SIGKILL)
    cluster.lab.exec(victim["node"], ["kill", "-9", str(victim["pid"])])
    cluster.lab.release(MASTER, "master")
    after = cluster.await_replaced("/ends", {victim["id"]}, 3)
    assert len(after.keys() & before.keys()) == 2


def restart(cluster: Cluster, number: int) -> None:
    """Returns when the next master has a session with every node."""
    before = cluster.lab.status(MASTER).daemons["master"].starts
    cluster.lab.kill_daemon(MASTER, "master", number)
    eventually(lambda: cluster.lab.status(MASTER).daemons["master"].starts > before, "the next master starts")
    eventually(lambda: cluster.connected() == set(cluster.names), "all nodes are connected again")


def describe(cluster: Cluster, app: str) -> Json:
    """The app as the API shows it, without its tasks, whose states are known a moment later."""
    shown = dict(cluster.get(f"/v2/apps{app}")["app"])
    return {key: value for key, value in shown.items() if key != "tasks"}
