"""What the kernel counts on links, and what of it is a container's."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from isolators.base import Container, Sandbox
from isolators.network import NetworkIsolator
from model.resources import Resources
from model.task import Interface, TaskSpec, Usage
from netns.firewall.nftables import NftFirewall
from netns.link import veth_name
from netns.traffic import read_traffic
from tests.kernel.namespaces import NetnsProcess, ip, run

pytestmark = pytest.mark.anyio

PACKETS = 50
SLACK = 10  # what a link says by itself is smaller, and counts too
DEADLINE_S = 20.0
LINKS = 300  # more than one packet of answers


def pair(process: NetnsProcess, name: str, number: int = 0) -> None:
    inside = f"eth{number}"
    run("ip", "link", "add", name, "type", "veth", "peer", "name", inside, "netns", str(process.pid))
    run("ip", "addr", "add", f"192.0.{2 + number}.1/24", "dev", name)
    run("ip", "link", "set", name, "up")
    process.run("ip", "addr", "add", f"192.0.{2 + number}.2/24", "dev", inside)
    process.run("ip", "link", "set", inside, "up")


def send(link: str, address: str, size: int) -> None:
    """To nobody: what comes back is smaller. The first ones may be lost, while the neighbour is looked for."""
    deadline = time.monotonic() + DEADLINE_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while read_traffic()[link].sent_packets < PACKETS + SLACK:
            assert time.monotonic() < deadline, "the link carries nothing"
            sender.sendto(bytes(size), (address, 9))


def test_counts_are_those_of_the_kernel(spawn: Callable[..., NetnsProcess]) -> None:
    pair(spawn(), "tv0")
    send("tv0", "192.0.2.2", size=100)
    seen, links, after = read_traffic(), ip("-s", "link"), read_traffic()  # a link says a word of its own now and then
    for link in links:
        name, rx, tx = link["ifname"], link["stats64"]["rx"], link["stats64"]["tx"]
        assert seen[name].received_packets <= rx["packets"] <= after[name].received_packets
        assert seen[name].received_bytes <= rx["bytes"] <= after[name].received_bytes
        assert seen[name].sent_packets <= tx["packets"] <= after[name].sent_packets
        assert seen[name].sent_bytes <= tx["bytes"] <= after[name].sent_bytes
    assert seen["tv0"].sent_packets >= PACKETS and seen["tv0"].sent_bytes >= 100 * PACKETS


def test_all_links_are_in_one_look() -> None:
    names = [f"tv{number}" for number in range(LINKS)]
    batch = "".join(f"link add {name} type ifb\n" for name in names)
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    assert {*names} <= read_traffic().keys()


def sandbox(id: str) -> Sandbox:
    return Sandbox(id, Path("/nowhere"), Path("/nowhere"), 0, "overlay")


async def test_a_container_received_what_its_node_sent(spawn: Callable[..., NetnsProcess]) -> None:
    task = TaskSpec("web.1", "services", "/web", ("true",), Resources(), "overlay")
    container = Container(task, sandbox("web.1"))
    isolator = NetworkIsolator(driver=None, firewall=NftFirewall())  # type: ignore[arg-type]
    process = spawn()
    pair(process, veth_name("web.1"))
    send(veth_name("web.1"), "192.0.2.2", size=1000)
    usage = await isolator.usage(container, Usage(pids=7))
    assert usage.pids == 7 and usage.net_received_packets >= PACKETS
    assert usage.net_received_bytes >= 1000 * PACKETS > usage.net_sent_bytes > 0
    process.stop()
    isolator._looked_at = 0.0
    after = await isolator.usage(container, Usage(pids=7))  # what is gone has counted
    assert after.net_received_packets >= usage.net_received_packets and after.net_sent_bytes >= usage.net_sent_bytes
    assert await isolator.usage(Container(task, sandbox("other")), Usage()) == Usage()


async def test_all_of_a_containers_links_count(spawn: Callable[..., NetnsProcess]) -> None:
    task = TaskSpec("web.1", "services", "/web", ("true",), Resources(), "overlay", interfaces=(Interface("front"),))
    isolator = NetworkIsolator(driver=None, firewall=NftFirewall())  # type: ignore[arg-type]
    process = spawn()
    for number in range(2):
        link = veth_name("web.1", f"eth{number}")
        pair(process, link, number)
        send(link, f"192.0.{2 + number}.2", size=1000)
    usage = await isolator.usage(Container(task, sandbox("web.1")), Usage())
    assert usage.net_received_bytes >= 2 * 1000 * PACKETS
