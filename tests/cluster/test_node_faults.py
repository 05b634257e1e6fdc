"""A node dies, or its cable does: no VIP leads there any more, its tasks run elsewhere, and it comes back clean.

The delays of `master/nodes.py` are shortened, so that the tests need not wait for minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster import bed
from tests.cluster.bed import Cluster, Tasks, eventually
from tests.cluster.traffic import steady

UNREACHABLE_AFTER_S, LOST_AFTER_S = 1.0, 4.0
SILENCE_NOTICED_S = 6.0  # keepalive and its deadline (wire/tls.py)
MARGIN_S = 2.0
RATE = 200
NODE = "n3"

Served = tuple[Cluster, Tasks, tuple[str, int]]


@pytest.fixture(scope="module")
def impatient() -> Iterator[Cluster]:
    settings = {
        "TEPUI_MASTER_UNREACHABLE_AFTER_S": str(UNREACHABLE_AFTER_S),
        "TEPUI_MASTER_LOST_AFTER_S": str(LOST_AFTER_S),
    }
    with bed.started(3, settings) as cluster:
        yield cluster


@pytest.fixture
def served(impatient: Cluster) -> Iterator[Served]:
    """A cluster that runs /web, two tasks on each node, and where /web is served. It is whole again afterwards."""
    impatient.run(bed.checked(6))
    tasks = impatient.await_running("/web", 6)
    yield impatient, tasks, impatient.await_served("/web", tasks)
    impatient.await_empty()


def test_node_without_power_is_left_out_then_given_up_and_comes_back_clean(served: Served) -> None:
    cluster, before, (address, port) = served
    gone, others = on(NODE, before), [name for name in cluster.names if name != NODE]
    boot_id = cluster.nodes()[NODE]["boot_id"]
    with steady(cluster.lab, "n1", address, port, RATE) as client:
        cluster.lab.power_off(NODE)
        eventually(lambda: cluster.backends("/web") == before.keys() - gone, "its backends are out of the VIP")
        assert cluster.nodes()[NODE]["state"] == "unreachable" and gone <= cluster.running("/web").keys()
        after = cluster.await_replaced("/web", gone, 6)
        assert cluster.nodes()[NODE]["state"] == "lost"
        cluster.await_served("/web", after, others)
        whole = time.monotonic()
        eventually(lambda: client.served_by(whole) == after.keys(), "the replacements answer")
        client.stop()
        assert client.failures(whole) == []
        # Whoever was on the way to it got no answer. Nobody was sent away.
        said = {answer.error for answer in client.failures()}
        assert not [error for error in said if "Refused" in error or "Reset" in error]
    assert {task["node"] for task in after.values()} == set(others)
    cluster.lab.boot(NODE)
    eventually(lambda: NODE in cluster.connected(), "it is connected again")
    assert cluster.nodes()[NODE]["boot_id"] != boot_id
    assert cluster.running("/web").keys() == after.keys()
    for name in cluster.names:
        cluster.await_traces(name)


def test_node_that_is_back_before_it_was_given_up_has_lost_its_tasks_all_the_same(served: Served) -> None:
    cluster, before, _ = served
    gone = on(NODE, before)
    cluster.lab.power_off(NODE)
    cluster.lab.boot(NODE)
    after = cluster.await_replaced("/web", gone, 6)
    assert all(after[task]["pid"] == before[task]["pid"] for task in before.keys() - gone)
    cluster.await_served("/web", after)
    for name in cluster.names:
        cluster.await_traces(name)


def test_node_whose_cable_is_cut_for_a_moment_keeps_its_tasks(served: Served) -> None:
    cluster, before, _ = served
    cluster.lab.cut(NODE)
    cluster.lab.join(NODE)
    cluster.await_served("/web", before)
    assert bed.same(before, cluster.running("/web"))


def test_node_that_is_cut_off_is_given_up_and_stops_what_was_replaced(served: Served) -> None:
    cluster, before, _ = served
    gone, others = on(NODE, before), [name for name in cluster.names if name != NODE]
    cut = time.monotonic()
    cluster.lab.cut(NODE)
    try:
        eventually(lambda: not cluster.backends("/web") & gone, "its backends are out of the VIP")
        assert time.monotonic() - cut < SILENCE_NOTICED_S + UNREACHABLE_AFTER_S + MARGIN_S
        after = cluster.await_replaced("/web", gone, 6)
        cluster.await_served("/web", after, others)
        assert cluster.lab.exec(NODE, ["kill", "-0", *(str(before[task]["pid"]) for task in gone)]).returncode == 0
    finally:
        cluster.lab.join(NODE)
    eventually(lambda: NODE in cluster.connected(), "it is connected again")
    cluster.await_traces(NODE)
    cluster.await_served("/web", after)
    assert bed.same(after, cluster.running("/web"))


def test_another_one_is_started_elsewhere_before_what_is_away_is_given_up(impatient: Cluster) -> None:
    cluster = impatient
    strategy = {"inactiveAfterSeconds": 0, "expungeAfterSeconds": 1000}
    cluster.run(bed.command("/patient", "sleep 1000", 3, unreachableStrategy=strategy))
    before = cluster.await_running("/patient", 3)
    gone = on(NODE, before)
    cluster.lab.cut(NODE)
    try:
        eventually(lambda: len(cluster.running("/patient")) == 4, "there is one more elsewhere")
        eventually(lambda: cluster.nodes()[NODE]["state"] == "lost", "the node is given up, and the task is not")
        assert before.keys() <= cluster.running("/patient").keys()
        assert cluster.get("/v2/apps/patient")["app"]["deployments"] == []
    finally:
        cluster.lab.join(NODE)
    after = cluster.await_running("/patient", 3)
    assert len(after.keys() & before.keys()) >= 2
    assert on(NODE, after) == gone  # the youngest ended
    cluster.await_empty()


def on(node: str, tasks: Tasks) -> set[str]:
    return {name for name, task in tasks.items() if task["node"] == node}
