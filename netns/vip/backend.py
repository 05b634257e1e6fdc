"""The contract of a VIP back end. There are two, nftables and iptables; each programs one table by its own means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from model.network import Subnet
from model.vip import Vip


@dataclass(frozen=True, slots=True)
class Table:
    """Everything a node translates: VIPs by `Vip.key`, and the container subnets of this node whose traffic to
    anywhere outside of `cluster` leaves with the node's own address (masquerade)."""

    vips: Mapping[str, Vip]
    pools: tuple[Subnet, ...]  # where VIPs may lie: the roots of the tree of chains
    local: tuple[Subnet, ...] = ()
    cluster: tuple[Subnet, ...] = ()


class Backend(Protocol):
    async def apply(self, table: Table) -> None:
        """Make the kernel translate as `table` says, in one atomic change. Established connections stay."""

    async def installed(self) -> str | None:
        """The digest of what the kernel has now; None when nothing of ours is there. Equal tables, equal digests."""

    async def mend(self) -> list[str]:
        """If the kernel has not all of the table that was applied last, put it back. Returns what was wrong, in words.
        Nothing is wrong before the first `apply`."""

    async def remove(self) -> None:
        """Remove everything of ours. Accepts that nothing is there."""
