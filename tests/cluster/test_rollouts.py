"""How services change on real nodes: tried out, taken back, in order, on every node, and across the master's end."""

from __future__ import annotations

from collections import Counter

from lab.cluster import MASTER
from lab.daemons import join, start_agent, tepui
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, eventually, stays
from tests.cluster.traffic import steady

BAD = {"args": None, "cmd": "exit 1", "backoffSeconds": 0.1, "maxLaunchDelaySeconds": 1}


def versions(cluster: Cluster, app: str) -> Counter[str]:
    tasks = cluster.get(f"/v2/apps{app}/tasks")["tasks"]
    return Counter(task["version"] for task in tasks if task["state"] == "TASK_RUNNING")


def deployment(cluster: Cluster, answer: Json) -> Json:
    return dict(cluster.get(f"/api/v1/deployments/{answer['deploymentId']}"))


def test_a_canary_is_tried_and_promoted_without_a_connection_lost(cluster: Cluster) -> None:
    cluster.run(bed.checked(4))
    address, port = cluster.await_served("/web", cluster.await_running("/web", 4))
    cluster.await_deployed("/web")
    first = cluster.get("/v2/apps/web")["app"]["version"]
    with steady(cluster.lab, "n1", address, port, 100) as client:
        began = cluster.call("PUT", "/v2/apps/web?canary=1", json={"env": {"VERSION": "2"}})
        second = began["version"]
        eventually(lambda: versions(cluster, "/web") == {first: 3, second: 1}, "one is of the new version")
        eventually(lambda: "promote it" in "".join(deployment(cluster, began)["waiting"]), "it asks for a decision")
        locked = cluster.request("PUT", "/v2/apps/web", json={"instances": 5})
        assert (locked.status_code, locked.json()["deployments"]) == (409, [{"id": began["deploymentId"]}])
        tepui(cluster.lab, "service", "cancel", began["deploymentId"])
        eventually(lambda: versions(cluster, "/web") == {first: 4}, "all are as they were")
        cluster.await_deployed("/web")
        again = cluster.call("PUT", "/v2/apps/web?canary=2", json={"env": {"VERSION": "3"}})
        eventually(lambda: versions(cluster, "/web") == {first: 2, again["version"]: 2}, "two are of the new version")
        cluster.call("POST", "/api/v1/services/web/promote")
        eventually(lambda: versions(cluster, "/web") == {again["version"]: 4}, "all are of the new version")
        cluster.await_deployed("/web")
        client.stop()
        assert client.failures() == []


def test_a_bad_version_is_taken_back_when_it_is_late(cluster: Cluster) -> None:
    cluster.run(bed.checked(2))
    before = cluster.await_running("/web", 2)
    cluster.await_deployed("/web")
    bad = cluster.call("PUT", "/v2/apps/web", json={**BAD, "labels": {"tepui/deadline": "4"}})
    eventually(lambda: "failed" in "".join(deployment(cluster, bad)["waiting"]), "it says that starts fail")
    eventually(lambda: deployment(cluster, bad)["state"] == "failed", "it was taken back")
    assert deployment(cluster, bad)["reason"] == "it did not succeed within 4 s"
    cluster.await_deployed("/web")
    assert bed.same(before, cluster.await_running("/web", 2))


def test_a_deployment_goes_on_when_the_master_ends_in_the_middle_of_it(cluster: Cluster) -> None:
    cluster.run(bed.checked(6))
    before = cluster.await_running("/web", 6)
    cluster.await_deployed("/web")
    began = cluster.call("PUT", "/v2/apps/web", json={"env": {"VERSION": "2"}})
    eventually(lambda: versions(cluster, "/web")[began["version"]] > 0, "it has begun")
    cluster.lab.kill_daemon(MASTER, "master")
    cluster.await_replaced("/web", set(before), 6)
    cluster.await_deployed("/web")
    assert versions(cluster, "/web") == {began["version"]: 6}


def test_apps_of_a_group_start_in_the_order_in_which_they_depend_on_each_other(cluster: Cluster) -> None:
    check = {"protocol": "COMMAND", "command": {"value": "test -e /tmp/ready"}, "intervalSeconds": 1}
    data = bed.command("data", "sleep 3; touch /tmp/ready; sleep 1000", healthChecks=[check])
    front = bed.command("front", "sleep 1000", dependencies=["../data"])
    made = cluster.call("POST", "/v2/groups", json={"id": "/shop", "apps": [front, data]})
    waits = "/shop/front: waits for /shop/data, on which it depends"
    eventually(lambda: waits in deployment(cluster, made)["waiting"], "it says what it waits for")
    stays(lambda: not cluster.running("/shop/front"), "it does not start", 1)
    cluster.await_running("/shop/front", 1)
    (data_task,) = cluster.get("/v2/apps/shop/data/tasks")["tasks"]
    assert data_task["healthCheckResults"][0]["alive"]
    eventually(lambda: deployment(cluster, made)["state"] == "succeeded", "both are there")
    cluster.call("DELETE", "/v2/groups/shop")


def test_a_system_service_is_on_every_node_new_ones_too() -> None:
    with bed.without_agents(3, 3) as (cluster, token):
        first, second, third = [node for node in cluster.lab.nodes() if node.name != MASTER]
        for node in (first, second):
            join(cluster.lab, node, token)
            start_agent(cluster.lab, node)
        cluster.run(bed.command("/log", "sleep 1000", labels={"tepui/system": "true"}))
        eventually(lambda: spread(cluster) == Counter({first.name: 1, second.name: 1}), "it is on both nodes")
        cluster.await_deployed("/log")
        kept = cluster.running("/log")
        join(cluster.lab, third, token)
        start_agent(cluster.lab, third)
        eventually(lambda: len(spread(cluster)) == 3, "it is on the new one too")
        tepui(cluster.lab, "node", "drain", second.name, "--wait")
        assert set(spread(cluster)) == {first.name, third.name}
        tepui(cluster.lab, "node", "undrain", second.name)
        eventually(lambda: len(spread(cluster)) == 3, "it is there again")
        assert [task for task in kept if task in cluster.running("/log")]  # who was on the first node stayed
        app = cluster.get("/v2/apps/log")["app"]
        assert (app["instances"], app["tasksRunning"]) == (3, 3)


def spread(cluster: Cluster) -> Counter[str]:
    return Counter(task["node"] for task in cluster.running("/log").values())
