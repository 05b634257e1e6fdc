"""What a node's name server is told, and the contract of who tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Protocol

from model.names import NamedTask
from model.network import Address, Subnet
from model.task import Port
from model.task import Protocol as Transport
from netns.dns.zone import NamedVip

Thing = NamedTask | NamedVip
# Where the node itself asks, and its tasks that have its network: on loopback, and nobody else's.
NODE_ADDRESS = ip_address("127.0.0.84")


@dataclass(frozen=True, slots=True)
class Scope:
    """A network: its addresses, and whether its containers may ask for names that are not the cluster's."""

    subnets: tuple[Subnet, ...]
    forwards: bool


@dataclass(frozen=True, slots=True)
class NameTable:
    """`listen` are addresses of the node within its networks. `things` are what has names, by key."""

    listen: tuple[Address, ...]
    scopes: tuple[Scope, ...]
    things: Mapping[str, Thing]


class Names(Protocol):
    async def apply(self, table: NameTable) -> None:
        """Returns when all that is asked from now on is answered by `table`. Raises NetworkError; then answers are as
        they were before."""


def to_wire(thing: Thing) -> dict[str, Any]:
    if isinstance(thing, NamedVip):
        return {"vip": thing.name, "address": str(thing.address)}
    return {
        "task": thing.id,
        "framework": thing.framework,
        "app": thing.app,
        "addresses": [str(address) for address in thing.addresses],
        "node": [str(address) for address in thing.node],
        "ports": [[port.number, port.name, list(port.protocols), port.host] for port in thing.ports],
    }


def from_wire(said: Mapping[str, Any]) -> Thing:
    if "vip" in said:
        return NamedVip(said["vip"], ip_address(said["address"]))
    return NamedTask(
        said["task"],
        said["framework"],
        said["app"],
        tuple(map(ip_address, said["addresses"])),
        tuple(map(ip_address, said["node"])),
        tuple(
            Port(number, name, tuple(map(Transport, protocols)), host=host)
            for number, name, protocols, host in said["ports"]
        ),
    )


def scope_to_wire(scope: Scope) -> dict[str, Any]:
    return {"subnets": [str(subnet) for subnet in scope.subnets], "forwards": scope.forwards}


def scope_from_wire(said: Mapping[str, Any]) -> Scope:
    return Scope(tuple(map(ip_network, said["subnets"])), said["forwards"])
