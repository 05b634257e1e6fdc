"""A container dies: it is replaced, nobody is sent to it any more, and the others do not notice."""

from __future__ import annotations

import time

from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, eventually
from tests.cluster.traffic import steady

OUT_OF_VIP_S = 1.0
OTHER_NODE = {"n1": "n2", "n2": "n3", "n3": "n1"}


def test_killed_container_leaves_the_vip_within_a_second_and_is_replaced(cluster: Cluster) -> None:
    cluster.run(bed.web(4, backoffSeconds=3))  # time to look at the service without its replacement
    before = cluster.await_running("/web", 4)
    address, port = cluster.await_served("/web", before)
    victim = min(before.values(), key=lambda task: str(task["id"]))
    with steady(cluster.lab, OTHER_NODE[victim["node"]], address, port) as client:
        eventually(lambda: client.served_by() == before.keys(), "all answer")
        killed = time.monotonic()
        kill(cluster, victim)
        after = cluster.await_replaced("/web", {victim["id"]}, 4)
        cluster.await_served("/web", after)
        whole = time.monotonic()
        eventually(lambda: client.served_by(whole) == after.keys(), "the replacement answers too")
        client.stop()
        # Once it is out, the next failures may come only from the replacement, before it listens.
        (replacement,) = (task for name, task in after.items() if name not in before)
        late = [answer for answer in client.failures(killed + OUT_OF_VIP_S) if answer.sent < started(replacement)]
        assert late == []
    assert after.keys() & before.keys() == before.keys() - {victim["id"]}
    assert all(after[name]["pid"] == before[name]["pid"] for name in after.keys() & before.keys())


def test_exit_code_of_a_container_is_told(cluster: Cluster) -> None:
    cluster.run(bed.command("/fails", "exit 7"))
    failure = eventually(lambda: cluster.get("/v2/apps/fails")["app"].get("lastTaskFailure"), "a failure is told")
    assert failure["state"] == "TASK_FAILED" and "exited with 7" in failure["message"]
    (why,) = eventually(lambda: cluster.get("/api/v1/services/fails")["waiting"], "it waits before it starts again")
    assert "exited with 7" in why


def test_container_that_takes_too_much_memory_is_ended_and_the_limit_told(cluster: Cluster) -> None:
    greedy = "exec /usr/bin/python3 -c 'x = bytearray(200 << 20)'"
    cluster.run(bed.command("/greedy", greedy))
    failure = eventually(lambda: cluster.get("/v2/apps/greedy")["app"].get("lastTaskFailure"), "a failure is told")
    assert "memory limit 32 MiB exceeded" in failure["message"]


def kill(cluster: Cluster, task: Json) -> None:
    assert cluster.lab.exec(task["node"], ["kill", "-9", str(task["pid"])]).returncode == 0


def started(task: Json) -> float:
    """When it was seen running, on the monotonic clock."""
    return float(task["since"]) - time.time() + time.monotonic()
