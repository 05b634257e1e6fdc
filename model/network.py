"""Networks, the part of one that a node owns (`Block`), a node's end of an overlay (`Vtep`), and leased addresses.

What every node must agree on is computed here from names and numbers alone, so it is never exchanged: the gateway and
the VTEP's address from the block, the VTEP's MAC address from the node and the VNI.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network

# A network's name is part of no link name (15 bytes): links are named after the VNI or a hash.
NETWORK_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
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
    """A named address space. `subnets` is cut into blocks of `block_prefix` bits, one or more a node."""

    name: str
    kind: NetworkKind
    subnets: tuple[Subnet, ...] = ()
    block_prefix: int = 24
    vni: int | None = None


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
        return range(2, self.subnet.num_addresses - 1)


@dataclass(frozen=True, slots=True)
class Vtep:
    """How to reach `block` on another node: through the VTEP with this MAC address, at this underlay address."""

    block: Block
    underlay: Address
    mac: str


@dataclass(frozen=True, slots=True)
class Lease:
    """An address in use. The owner is a container of one boot of one node: after a reboot no lease is valid."""

    address: Address
    network: str
    container: str
    boot_id: str


def vtep_mac(node: str, vni: int) -> str:
    """A locally administered unicast address (IEEE 802, bit 1 of the first octet), the same for a node and a VNI."""
    octets = bytearray(hashlib.sha256(f"{node}/{vni}".encode()).digest()[:6])
    octets[0] = octets[0] & 0xFE | 0x02
    return octets.hex(":")


def free_subnet(subnet: Subnet, prefix: int, taken: set[Subnet]) -> Subnet | None:
    """The lowest block of `prefix` bits in `subnet` that is not in `taken`; None when all are."""
    return next((block for block in subnet.subnets(new_prefix=prefix) if block not in taken), None)
