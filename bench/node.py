"""A node for benches: the network namespace of this process, with driver and firewall as an agent has them.

As a program it reads one line of JSON (its number, its peer's, a directory, whether it is guarded), connects one
container, says who that is (a process in it, and its address), and stays until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import structlog

from model.network import Block, Network, NetworkKind, Vtep, vtep_mac
from netns.driver import Attachment, NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.firewall.table import Guest, Zone
from netns.link import vxlan_name
from netns.networks import Networks

VNI = 1024
OVERLAY = Network("overlay", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"),), vni=VNI)
READY = 'echo ready; exec "$@"'


@dataclass(frozen=True, slots=True)
class Node:
    """Without a firewall nobody is guarded."""

    networks: Networks
    firewall: NftFirewall | None

    async def connect(self, container: str, pid: int) -> str:
        """As an agent does for a task. Returns the address."""
        addresses = await self.networks.attach(Attachment(container, OVERLAY.name, pid))
        if self.firewall is not None:
            await self.firewall.admit(Guest(container, "services/bench", addresses))
        return str(addresses[0])

    async def disconnect(self, container: str) -> None:
        if self.firewall is not None:
            await self.firewall.dismiss(container)
        await self.networks.detach(container)


def block(number: int, prefix: int = 24) -> Block:
    first = int(OVERLAY.subnets[0].network_address) + (number << 32 - prefix)
    return Block(OVERLAY.name, f"n{number}", ip_network(f"{ip_address(first)}/{prefix}"))


def vtep(number: int) -> Vtep:
    name, underlay = f"n{number}", ip_address("192.0.2.0") + number
    return Vtep(OVERLAY.name, name, underlay, vtep_mac(name, VNI), (block(number),))


@asynccontextmanager
async def node(number: int, state: Path, peers: tuple[Vtep, ...] = (), guarded: bool = True) -> AsyncIterator[Node]:
    """In the network namespace of this process, whose link `card` has the address 192.0.2.`number`."""
    firewall = NftFirewall() if guarded else None
    async with Networks(state, f"n{number}", "boot", ip_address(f"192.0.2.{number}")) as networks:
        zone = Zone(OVERLAY, (block(number).subnet,), vxlan_name(VNI))
        if firewall is not None:
            await firewall.configure((zone,), (), {}, frozenset(peer.underlay for peer in peers))
        await networks.configure(NetworkSpec(OVERLAY, (block(number),), peers))
        yield Node(networks, firewall)


@contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Ends, by SIGKILL, with the block."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def apart(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """The same in a network namespace of its own, which is there when the block begins."""
    with running(["unshare", "--net", "sh", "-c", READY, "sh", *argv]) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process


async def _stay(number: int, peer: int, state: Path, guarded: bool) -> None:
    with apart("cat") as container:
        async with node(number, state, (vtep(peer),), guarded) as made:
            address = await made.connect("bench", container.pid)
            print(json.dumps({"pid": container.pid, "address": address}), flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    told = json.loads(sys.stdin.readline())
    asyncio.run(_stay(told["number"], told["peer"], Path(told["state"]), told["guarded"]))
