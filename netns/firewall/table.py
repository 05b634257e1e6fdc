"""What the firewall of a node is told. Networks, policies and members come from the master; guests are the containers
that are here, of which only the node knows in time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from model.network import Address, Network, Subnet
from model.policy import Policy
from model.task import Port
from model.task import Protocol as Transport


@dataclass(frozen=True, slots=True)
class Zone:
    """A network, and which of its addresses containers of this node have: blocks and single ones."""

    network: Network
    local: tuple[Subnet, ...] = ()
    dev: str = ""  # the VXLAN device by which its other nodes' containers come in


@dataclass(frozen=True, slots=True)
class Guest:
    """A container of this node: whose it is (`model.policy.app_of`), its addresses, and the ports that it publishes
    (those with a `host` port)."""

    container: str
    app: str
    addresses: tuple[Address, ...]
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True)
class Entrance:
    """A virtual address through which clients from outside of the cluster are let in."""

    address: Address
    port: int
    protocol: Transport


@dataclass(frozen=True, slots=True)
class Table:
    """All of it. `members` are the addresses of apps that policies name as sources; an app that is not there yet has
    none. `peers` are the underlay addresses of the other nodes: nobody else's VXLAN is let in. `entrances` of None:
    nobody comes in from outside through this node, but for its published ports."""

    zones: tuple[Zone, ...] = ()
    policies: tuple[Policy, ...] = ()
    members: Mapping[str, frozenset[Address]] = field(default_factory=dict)
    guests: tuple[Guest, ...] = ()
    peers: frozenset[Address] = frozenset()
    entrances: frozenset[Entrance] | None = None


class Firewall(Protocol):
    """All verbs make the kernel so before they return, in one transaction each, and raise NetworkError. What was there
    before stays if they fail."""

    async def configure(
        self,
        zones: tuple[Zone, ...],
        policies: tuple[Policy, ...],
        members: Mapping[str, frozenset[Address]],
        peers: frozenset[Address],
        entrances: frozenset[Entrance] | None = None,
    ) -> None:
        """What the master wants. Guests stay as they are."""

    async def admit(self, guest: Guest) -> None:
        """Before the guest's program runs: nothing that a policy forbids reaches it, and its ports lead to it. Raises
        NetworkError that names the other container when a port is published already. Admitted again, it is replaced."""

    async def dismiss(self, container: str) -> None:
        """Undoes `admit`; connections that were led to it are forgotten. Accepts one that was never admitted."""

    async def recover(self, guests: tuple[Guest, ...]) -> None:
        """After a restart of the agent: these are here, and no others."""

    async def mend(self) -> list[str]:
        """If the kernel has not all of it any more, put it back. Returns what was wrong, in words."""

    async def remove(self) -> None:
        """Everything of ours. Accepts that nothing is there."""
