"""The VIPs of a node, by the back end that suits it.

Both may be there for a moment: when an agent finds what one of another setting has left, the new rules come before the
old ones go, so there is no moment without. What is connected stays connected: the kernel remembers where to.

A flow of UDP has no end, so one whose backend is gone would be led there for as long as its client sends. It is
forgotten with the backend, and its next packet finds another.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import structlog

from model.network import Address, Subnet
from model.task import Protocol
from model.vip import Vip
from netns.driver import NetworkError
from netns.nft.netfilter import Flow, Netfilter
from netns.nft.own import NftSession
from netns.vip.backend import Table
from netns.vip.iptables import IptablesVips
from netns.vip.nftables import NftVips

log = structlog.get_logger()

Choice = Literal["auto", "iptables", "nftables"]
End = tuple[Address, int]
LOADED = Path("/proc/net/ip_tables_names")  # of the network namespace


class NodeVips:
    """Implements `netns.vip.backend.Backend`. `choice` is of IPv4: IPv6 is always nftables'."""

    def __init__(self, session: NftSession, choice: Choice) -> None:
        self._choice = choice
        self._iptables = IptablesVips()
        self._nft = NftVips(session)
        self._chosen: Choice = "auto"  # until it is known
        self._applied: Table | None = None

    async def apply(self, table: Table) -> None:
        """Raises NetworkError. Then flows may be led to backends that are gone until the next time."""
        if self._chosen == "auto":
            self._chosen = await self._probed() if self._choice == "auto" else self._choice
            log.info("virtual addresses", back_end=self._chosen)
        if self._chosen == "iptables":
            await self._iptables.apply(_of(table, 4))
            await self._nft.apply(_of(table, 6))
        else:
            await self._nft.apply(table)
            if self._applied is None and _legacy_nat():
                await self._iptables.remove()
        if _lost_some(self._applied, table):
            gone = dict.fromkeys(_udp(self._applied) if self._applied else (), frozenset[End]())
            ends = gone | _udp(table)
            await asyncio.to_thread(_forget, Netfilter(), ends, table.pools)
        self._applied = table

    async def installed(self) -> str | None:
        digests = [await self._nft.installed()]
        if self._chosen == "iptables" or _legacy_nat():
            digests.append(await self._iptables.installed())
        return " ".join(filter(None, digests)) or None

    async def mend(self) -> list[str]:
        wrong = await self._iptables.mend() if self._chosen == "iptables" else []
        return wrong + await self._nft.mend()

    async def remove(self) -> None:
        await self._nft.remove()
        if _legacy_nat():
            await self._iptables.remove()

    async def close(self) -> None:
        await self._iptables.close()

    async def _probed(self) -> Choice:
        """What the node's other programs translate with: who looks at it looks there."""
        return "iptables" if _legacy_nat() and await self._iptables.others() else "nftables"


def _legacy_nat() -> bool:
    """Nothing is in a table that is not there, and to ask for it would make it."""
    try:
        return "nat" in LOADED.read_text().split()
    except FileNotFoundError:
        return False


def _of(table: Table, version: int) -> Table:
    def own(subnets: tuple[Subnet, ...]) -> tuple[Subnet, ...]:
        return tuple(subnet for subnet in subnets if subnet.version == version)

    vips = {key: vip for key, vip in table.vips.items() if vip.address.version == version}
    return replace(table, vips=vips, pools=own(table.pools), local=own(table.local), cluster=own(table.cluster))


def _lost_some(before: Table | None, after: Table) -> bool:
    """Whether a VIP of UDP has lost a backend. After a restart nobody knows."""
    if before is None:
        return any(vip.protocol is Protocol.UDP for vip in after.vips.values())
    return any(
        vip.protocol is Protocol.UDP and _ends(vip) - _ends(after.vips.get(key))
        for key, vip in before.vips.items()
        if vip is not after.vips.get(key)
    )


def _udp(table: Table) -> dict[End, frozenset[End]]:
    return {(vip.address, vip.port): _ends(vip) for vip in table.vips.values() if vip.protocol is Protocol.UDP}


def _ends(vip: Vip | None) -> frozenset[End]:
    return frozenset((backend.address, backend.port) for backend in vip.backends) if vip else frozenset()


def _forget(netfilter: Netfilter, backends: Mapping[End, frozenset[End]], pools: tuple[Subnet, ...]) -> None:
    """Flows to one of these VIPs, or to what may have been one, that are led to none of its backends. The socket is
    closed by who uses it: the caller may be cancelled before the end."""

    def stale(flow: Flow) -> bool:
        if flow.to == flow.by:  # it was never translated
            return False
        ends = backends.get(flow.to)
        return flow.by not in ends if ends is not None else any(flow.to[0] in pool for pool in pools)

    with closing(netfilter):
        try:
            forgotten = netfilter.forget((4, 6), (socket.IPPROTO_UDP,), stale)
        except OSError as error:
            raise NetworkError(f"forget flows to backends that are gone: {error}") from error
    if forgotten:
        log.info("flows of UDP balanced again", flows=forgotten)
