"""Nodes for tests of networks, each a network namespace: their names, blocks and addresses by number, for every mix of
versions of IP inside and below the overlay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from model.network import Address, Block, Network, NetworkKind, Subnet, Vtep, vtep_mac
from netns.driver import Attachment, NetworkSpec
from netns.networks import Networks
from tests.kernel.namespaces import NetnsProcess, network_of

VNI = 1024
SUBNETS = {4: ip_network("100.64.0.0/11"), 6: ip_network("fd01:b::/64")}
VERSIONS = {"v4": (4,), "v6": (6,), "dual": (4, 6)}


def network(versions: tuple[int, ...], kind: NetworkKind = NetworkKind.OVERLAY, name: str = "prod") -> Network:
    vni = VNI if kind is NetworkKind.OVERLAY else None
    return Network(name, kind, tuple(SUBNETS[version] for version in versions), vni=vni)


def block_subnet(version: int, number: int) -> Subnet:
    """The block with that number: a /24 or a /80."""
    step = 1 << (8 if version == 4 else 48)
    first = ip_address(int(SUBNETS[version].network_address) + number * step)
    return ip_network(f"{first}/{24 if version == 4 else 80}")


@dataclass(frozen=True, slots=True)
class Host:
    """Node `n<number>`, with a block of each version of the network."""

    number: int
    process: NetnsProcess
    underlay: Address
    network: Network
    state: Path

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(self.block(subnet.version, self.number) for subnet in self.network.subnets)

    def block(self, version: int, number: int) -> Block:
        return Block(self.network.name, self.name, block_subnet(version, number))

    @property
    def vtep(self) -> Vtep:
        return Vtep(self.network.name, self.name, self.underlay, vtep_mac(self.name, VNI), self.blocks)

    def spec(self, *peers: Host) -> NetworkSpec:
        return NetworkSpec(self.network, self.blocks, tuple(peer.vtep for peer in peers))

    @contextmanager
    def inside(self) -> Iterator[None]:
        with network_of(self.process.pid):
            yield

    @asynccontextmanager
    async def driver(self, spec: NetworkSpec | None = None) -> AsyncIterator[Networks]:
        """As an agent has it that has just started. The test is in the node's namespace meanwhile."""
        with self.inside():
            async with Networks(self.state, self.name, "boot-1", self.underlay) as driver:
                if spec is not None:
                    await driver.configure(spec)
                yield driver

    async def attach(self, name: str, container: NetnsProcess, spec: NetworkSpec) -> tuple[Address, ...]:
        async with self.driver(spec) as driver:
            return await driver.attach(Attachment(name, self.network.name, container.pid))


def joined(one: NetnsProcess, two: NetnsProcess, underlay: int) -> tuple[Address, Address]:
    """Two nodes with a cable between them. Returns their addresses, of that version of IP."""
    one.run("ip", "link", "add", "card", "type", "veth", "peer", "card", "netns", str(two.pid))
    addresses = []
    for number, process in enumerate((one, two), start=1):
        address = ip_address(f"192.0.2.{number}" if underlay == 4 else f"2001:db8::{number}")
        options = ["nodad"] if underlay == 6 else []
        process.run("ip", "addr", "add", f"{address}/{24 if underlay == 4 else 64}", "dev", "card", *options)
        process.run("ip", "link", "set", "card", "up")
        process.run("ip", "link", "set", "lo", "up")
        addresses.append(address)
    return addresses[0], addresses[1]
