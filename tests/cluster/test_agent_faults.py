"""An agent dies: containers, addresses and virtual addresses stay, and whatever was under way is finished once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from agent.sandboxes import SPARES
from lab.record import Node
from tests.cluster import bed, traces
from tests.cluster.bed import Cluster, Tasks, eventually, same
from tests.cluster.conftest import IPTABLES
from tests.cluster.traffic import Client, steady

NOTICE_DEADLINE_S = 10.0
MOMENT_DEADLINE_S = 10.0
MOMENT_POLL_S = 0.0005
OTHERS = ("n2", "n3")
# Something of the launch, as it appears on the node: the earlier, the less of it is there when the agent dies.
MOMENTS: dict[str, Callable[[Node, Path], list[Path]]] = {
    "accepted": lambda node, bundles: list((node.state / "tasks").glob("launch*")),
    "prepared": lambda node, bundles: list(bundles.glob("*/config.json")),
    "more are made": lambda node, bundles: list(bundles.iterdir())[SPARES:],
    "more are leased": lambda node, bundles: leases(node)[SPARES:],
    "more are kept": lambda node, bundles: list(bundles.glob("*/keeper.json"))[SPARES:],
    "launched": lambda node, bundles: list((node.state / "logs").glob("launch*/stdout")),
}


def leases(node: Node) -> list[Path]:
    return [lease for lease in (node.state / "leases/overlay").glob("*") if lease.suffix != ".rested"]


def test_killed_agent_leaves_containers_and_connections_alone(cluster: Cluster) -> None:
    cluster.run(bed.web(4))
    before = cluster.await_running("/web", 4)
    address, port = cluster.await_served("/web", before)
    with steady(cluster.lab, "n1", address, port) as inside, steady(cluster.lab, "n2", address, port) as outside:
        for _ in range(2):
            restart(cluster, "n1")
        restarted = time.monotonic()
        for client in inside, outside:
            eventually(partial(answered, client, restarted, before), "all answer")
            client.stop()
            assert client.failures() == []
    assert same(before, cluster.running("/web"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_agent_killed_while_it_launches(cluster: Cluster, moment: str) -> None:
    """Six launches on one node, and the agent dies as the first of them gets so far."""
    node = cluster.lab.node("n1")
    bundles = traces.bundles(node, cluster.lab.status("n1").pid)
    with away(cluster, OTHERS):
        cluster.run(bed.command("/launch", "echo started; exec sleep 3600", instances=6))
        wait_for_moment(partial(MOMENTS[moment], node, bundles))
        cluster.lab.kill_daemon("n1", "agent")
        tasks = cluster.await_running("/launch", 6)
        cluster.await_traces("n1")
        for task in tasks:
            assert cluster.log_of(task) == "started\n"


@pytest.mark.parametrize("left", [6, 5, 1])
def test_agent_killed_while_it_clears_away(cluster: Cluster, left: int) -> None:
    """Six containers of one node are to end, and the agent dies when so many still write somewhere."""
    layers = cluster.lab.node("n1").state / "layers"
    with away(cluster, OTHERS):
        cluster.run(bed.command("/ending", "trap 'echo ended; exit' TERM; while :; do sleep 0.05; done", instances=6))
        cluster.await_running("/ending", 6)
        cluster.remove("/ending")
        wait_for_moment(lambda: len(list(layers.iterdir())) <= left + SPARES)
        cluster.lab.kill_daemon("n1", "agent")
        eventually(lambda: not cluster.tasks(), "all have ended")
        cluster.await_traces("n1")


def test_killed_launcher_takes_no_container_with_it_and_is_replaced(cluster: Cluster) -> None:
    cluster.run(bed.web(3))
    before = cluster.await_running("/web", 3)
    address, port = cluster.await_served("/web", before)
    with steady(cluster.lab, "n2", address, port) as client:
        kill_oldest(cluster, "n1", "agent/launcher/main.py")
        killed = time.monotonic()
        eventually(lambda: client.served_by(killed) == before.keys(), "all answer")
        client.stop()
        assert client.failures() == []
    cluster.scale("/web", 6)
    after = cluster.await_running("/web", 6)
    assert all(after[task]["pid"] == before[task]["pid"] for task in before)
    cluster.await_served("/web", after)


def test_killed_worker_of_the_vips_is_replaced(cluster: Cluster) -> None:
    cluster.run(bed.web(3))
    cluster.await_served("/web", cluster.await_running("/web", 3))
    kill_oldest(cluster, IPTABLES, "netns.iptables.worker")
    cluster.scale("/web", 6)
    cluster.await_served("/web", cluster.await_running("/web", 6))


def test_container_that_ends_while_the_agent_is_down(cluster: Cluster) -> None:
    cluster.run(bed.command("/ends", "trap 'exit 7' TERM; while :; do sleep 0.1; done", instances=3))
    before = cluster.await_running("/ends", 3)
    victim = next(task for task in before.values() if task["node"] == "n1")
    cluster.lab.hold("n1", "agent", signal.SIGKILL)
    eventually(lambda: "n1" not in cluster.connected(), "the master notices", NOTICE_DEADLINE_S)
    cluster.lab.exec("n1", ["kill", str(victim["pid"])])
    gone = ["test", "!", "-e", f"/proc/{victim['pid']}"]
    eventually(lambda: cluster.lab.exec("n1", gone).returncode == 0, "the container has ended")
    cluster.lab.release("n1", "agent")
    after = cluster.await_replaced("/ends", {victim["id"]}, 3)
    assert after.keys() >= before.keys() - {victim["id"]}
    assert "exited with 7" in cluster.get("/v2/apps/ends")["app"]["lastTaskFailure"]["message"]


def test_service_scaled_and_removed_while_an_agent_is_down(cluster: Cluster) -> None:
    cluster.run(bed.command("/shrinks", "exec sleep 3600", instances=3))
    cluster.await_running("/shrinks", 3)
    cluster.lab.hold("n1", "agent", signal.SIGKILL)
    eventually(lambda: "n1" not in cluster.connected(), "the master notices", NOTICE_DEADLINE_S)
    cluster.remove("/shrinks")
    eventually(lambda: {task["node"] for task in cluster.tasks().values()} == {"n1"}, "the other nodes are clear")
    cluster.lab.release("n1", "agent")
    eventually(lambda: not cluster.tasks(), "the agent has caught up")
    cluster.await_traces("n1")


def test_agent_told_to_stop_leaves_containers_alone(cluster: Cluster) -> None:
    cluster.run(bed.command("/stays", "exec sleep 3600", instances=3))
    before = cluster.await_running("/stays", 3)
    restart(cluster, "n1", signal.SIGTERM)
    assert same(before, cluster.running("/stays"))


def restart(cluster: Cluster, node: str, number: int = signal.SIGKILL) -> None:
    """Returns when the next agent has a session."""
    cluster.lab.hold(node, "agent", number)
    eventually(lambda: node not in cluster.connected(), "the master notices", NOTICE_DEADLINE_S)
    cluster.lab.release(node, "agent")
    eventually(lambda: node in cluster.connected(), f"{node} is connected again")


def kill_oldest(cluster: Cluster, node: str, program: str) -> None:
    assert cluster.lab.exec(node, ["pkill", "-KILL", "-o", "-f", program]).returncode == 0


def answered(client: Client, since: float, tasks: Tasks) -> bool:
    return client.served_by(since) == tasks.keys()


@contextmanager
def away(cluster: Cluster, nodes: Sequence[str]) -> Iterator[None]:
    """Nothing is placed on these nodes until the block ends: their agents are stopped."""
    for node in nodes:
        cluster.lab.hold(node, "agent", signal.SIGKILL)
    try:
        eventually(lambda: not cluster.connected() & set(nodes), "the master notices", NOTICE_DEADLINE_S)
        yield
    finally:
        for node in nodes:
            cluster.lab.release(node, "agent")


def wait_for_moment(come: Callable[[], object]) -> None:
    """Finer than `eventually`, for what is there for a few milliseconds."""
    end = time.monotonic() + MOMENT_DEADLINE_S
    while not come():
        assert time.monotonic() < end, "the moment has not come"
        time.sleep(MOMENT_POLL_S)
