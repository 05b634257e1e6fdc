"""Not enough resources: the app waits and says what is missing, and starts as soon as there is room."""

from __future__ import annotations

from lab.daemons import CPUS_PER_NODE, MEM_PER_NODE_MIB
from tests.cluster import bed
from tests.cluster.bed import Cluster, eventually

CPUS = CPUS_PER_NODE / 1000


def test_waits_for_what_is_missing_and_says_on_how_many_nodes(cluster: Cluster) -> None:
    cluster.run(bed.command("/filler", "exec sleep 3600", instances=3, cpus=CPUS - 0.5))
    cluster.await_running("/filler", 3)
    cluster.run(bed.command("/large", "exec sleep 3600", instances=2, cpus=1))
    (why,) = eventually(lambda: waiting(cluster, "/large"), "it says why it waits")
    assert why == "needs 1 CPU: 3 of 3 nodes have too little (most free: 0.5 CPU)"
    assert cluster.running("/large") == {}
    cluster.remove("/filler")
    cluster.await_running("/large", 2)
    eventually(lambda: not cluster.get("/api/v1/services/large")["waiting"], "it waits no more")


def test_part_of_an_app_runs_and_the_rest_waits(cluster: Cluster) -> None:
    cluster.run(bed.command("/half", "exec sleep 3600", instances=4, mem=MEM_PER_NODE_MIB - 100))
    eventually(lambda: len(cluster.running("/half")) == 3, "three run")
    assert {task["node"] for task in cluster.running("/half").values()} == set(cluster.names)
    (why,) = eventually(lambda: waiting(cluster, "/half"), "it says why the fourth waits")
    needed = f"{MEM_PER_NODE_MIB - 100} MiB memory"
    assert why == f"needs {needed}: 3 of 3 nodes have too little (most free: 100 MiB memory)"
    app = cluster.get("/v2/apps/half")["app"]
    assert app["tasksRunning"] == 3 and len(app["deployments"]) == 1


def test_a_constraint_holds_when_a_task_is_replaced_and_says_who_waits(cluster: Cluster) -> None:
    cluster.run(bed.command("/apart", "exec sleep 3600", instances=4, constraints=[["hostname", "UNIQUE"]]))
    for _ in range(2):
        eventually(lambda: len(cluster.running("/apart")) == 3, "three run")
        running = cluster.running("/apart")
        assert {task["node"] for task in running.values()} == set(cluster.names)
        (why,) = eventually(lambda: waiting(cluster, "/apart"), "it says why the fourth waits")
        assert why == "constraint hostname UNIQUE: not met on 3 of 3 nodes"
        cluster.call("DELETE", f"/v2/apps/apart/tasks/{min(running)}")
        eventually(lambda running=running: min(running) not in cluster.running("/apart"), "it ends")  # type: ignore[misc]
    cluster.call("PUT", "/v2/apps/apart?force=true", json={"constraints": []})
    cluster.await_running("/apart", 4)


def test_an_app_that_waits_holds_up_nobody(cluster: Cluster) -> None:
    cluster.run(bed.command("/large", "exec sleep 3600", cpus=CPUS + 1))
    eventually(lambda: waiting(cluster, "/large"), "it says why it waits")
    cluster.run(bed.command("/small", "exec sleep 3600", instances=3))
    cluster.await_running("/small", 3)
    cluster.remove("/large")
    assert cluster.request("GET", "/v2/apps/large").status_code == 404


def waiting(cluster: Cluster, app: str) -> list[str]:
    """Once it has heard of all nodes."""
    return [why for why in cluster.get(f"/api/v1/services{app}")["waiting"] if "of 3 nodes" in why]
