"""Networks, the part of one that a node owns (`Block`), a node's end of an overlay (`Vtep`), and leased addresses.

What every node must agree on is computed here from names and numbers alone, so it is never exchanged: the gateway and
the VTEP's address from the block, the VTEP's MAC address from the node and the VNI.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network

# A network's name is part of no link name (15 bytes): links are named after the VNI or a hash.
NETWORK_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
MOST_ADDRESSES = 1 << 16  # that are leased of one block, as large as IPv6 may make it
LONGEST_BLOCK = {4: 30, 6: 96}  # prefix; a /30 leaves one address for a container, a /96 has room for any IPv4 address
VXLAN_PORT = 4789  # RFC 7348 section 5
VXLAN_OVERHEAD = {4: 50, 6: 70}  # outer Ethernet, IP, UDP and VXLAN headers, by the version of the underlay


class NetworkKind(StrEnum):
    HOST = "host"
    NONE = "none"
    BRIDGE = "bridge"
    OVERLAY = "overlay"
    CNI = "cni"


@dataclass(frozen=True, slots=True)
class Network:
    """A named address space. `subnets`, of IPv4, IPv6 or both, are cut into blocks of `block_prefix` bits
    (`block_prefix6` for IPv6), one or more a node. What is `static` is cut into no block: its addresses are for tasks
    that ask for one. `mtu` of None: what the underlay carries. From an `internal` network nothing leads out of the
    cluster. `cni` is the configuration list (JSON) of a network of that kind."""

    name: str
    kind: NetworkKind
    subnets: tuple[Subnet, ...] = ()
    block_prefix: int = 24
    vni: int | None = None
    block_prefix6: int = 80
    mtu: int | None = None
    internal: bool = False
    cni: str = ""
    static: tuple[Subnet, ...] = ()

    @property
    def versions(self) -> tuple[int, ...]:
        """Of IP, the one whose addresses are leased first: in a network of both, IPv4 (`Lease`)."""
        return tuple(sorted({subnet.version for subnet in self.subnets}))

    def prefix_of(self, subnet: Subnet) -> int:
        """How long the prefix of a block of `subnet` is."""
        return self.block_prefix if subnet.version == 4 else self.block_prefix6


@dataclass(frozen=True, slots=True)
class Block:
    """The addresses of `network` that `node` may lease to its containers."""

    network: str
    node: str
    subnet: Subnet

    @property
    def vtep_address(self) -> Address:
        """The node's own address in the overlay: the block's first, never leased."""
        return self.subnet.network_address

    @property
    def gateway(self) -> Address:
        """What containers use as their next hop: the second address, on the node's bridge."""
        return self.subnet.network_address + 1

    def leasable(self) -> range:
        """Host numbers within the block that containers can get: not the VTEP, the gateway or the broadcast address."""
        return leasable(self.subnet.prefixlen, self.subnet.version)


def leasable(prefix: int, version: int) -> range:
    """Of a block with this prefix."""
    bits = (32 if version == 4 else 128) - prefix
    return range(2, min((1 << bits) - 1, MOST_ADDRESSES))


@dataclass(frozen=True, slots=True)
class Share:
    """What one node has of a network: `blocks`, those of them that are `retiring` (nothing is leased from them any
    more, but what was is still in use), and `singles`, addresses outside of any block that its tasks have."""

    network: Network
    blocks: tuple[Block, ...] = ()
    retiring: tuple[Block, ...] = ()
    singles: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Vtep:
    """How to reach the `blocks` that `node` has of `network`, and `singles`, addresses outside of any block that
    containers there have: through the VTEP with this MAC address, at this underlay address."""

    network: str
    node: str
    underlay: Address
    mac: str
    blocks: tuple[Block, ...]
    singles: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """An address in use. The owner is a container of one boot of one node: after a reboot no lease is valid. In a
    network of both versions it is the IPv4 address that is leased; `companion` is the IPv6 address that comes with it
    (`paired`). `interface` is the container's link that has them."""

    address: Address
    network: str
    container: str
    boot_id: str
    interface: str = "eth0"
    companion: Address | None = None

    @property
    def addresses(self) -> tuple[Address, ...]:
        return (self.address,) if self.companion is None else (self.address, self.companion)


def vtep_mac(node: str, vni: int) -> str:
    """A locally administered unicast address (IEEE 802, bit 1 of the first octet), the same for a node and a VNI."""
    octets = bytearray(hashlib.sha256(f"{node}/{vni}".encode()).digest()[:6])
    octets[0] = octets[0] & 0xFE | 0x02
    return octets.hex(":")


def paired(block: Block, address: Address) -> Address:
    """The IPv6 address of `block` that whoever has the IPv4 `address` has: the IPv4 address in its last 32 bits, so
    that one lease is enough for both. A block of IPv6 is at most a /96."""
    return block.subnet.network_address + int(address)


def free_subnet(subnet: Subnet, prefix: int, taken: Iterable[Subnet]) -> Subnet | None:
    """The lowest block of `prefix` bits in `subnet` that has nothing in common with what is `taken`; None when there is
    none."""
    size = 1 << subnet.max_prefixlen - prefix
    start, end = int(subnet.network_address), int(subnet.broadcast_address) + 1
    for other in sorted((other for other in taken if other.version == subnet.version), key=_first):
        if start + size <= _first(other):
            break
        start = max(start, -(-(int(other.broadcast_address) + 1) // size) * size)
    return type(subnet)((start, prefix)) if start + size <= end else None


def overlap(one: Subnet, other: Subnet) -> bool:
    return (
        one.version == other.version
        and _first(one) <= int(other.broadcast_address)
        and _first(other) <= int(one.broadcast_address)
    )


def _first(subnet: Subnet) -> int:
    return int(subnet.network_address)
