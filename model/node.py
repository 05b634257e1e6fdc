"""A node as its agent describes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from model.network import Address
from model.resources import Resources

UNREACHABLE_AFTER_S = 10.0
LOST_AFTER_S = 75.0
HOST_PORTS = (31000, 32000)


class NodeState(StrEnum):
    ONLINE = "online"
    UNREACHABLE = "unreachable"  # away for long enough that nothing new goes there
    LOST = "lost"  # away for so long that its tasks were given up


@dataclass(frozen=True, slots=True)
class Node:
    """`id` is what the node's certificate says. `address` is where other nodes reach it (the underlay).
    `rights` is what its configuration permits tasks beyond the defaults (`model.rights`). `ports` are the first and the
    last of those that are chosen for tasks which ask for any port of the node."""

    id: str
    hostname: str
    boot_id: str
    address: Address
    resources: Resources
    attributes: tuple[tuple[str, str], ...] = ()
    version: str = ""
    rights: frozenset[str] = frozenset()
    ports: tuple[int, int] = HOST_PORTS
