"""The node's side of networks and VIPs: collects the items of the desired state and makes the kernel follow.

Items come one by one; what they mean together is computed when `apply` is called, once for a whole Change: one
`NetworkSpec` for each network that was touched, one table of VIPs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from model.network import Block, Network, Subnet, Vtep
from model.vip import Vip
from netns.driver import Driver, NetworkError, NetworkSpec
from netns.vip.backend import Backend, Table

VIPS = "vips"


class NodeNetwork:
    def __init__(
        self, driver: Driver, vips: Backend, pools: tuple[Subnet, ...], vacate: Callable[[str], Awaitable[None]]
    ) -> None:
        """`vacate` is awaited before a network goes, or this node's blocks of it change."""
        self._driver = driver
        self._vacate = vacate
        self._blocks: dict[str, tuple[Block, ...]] = {}  # as configured
        self._backend = vips
        self._pools = pools
        self._networks: dict[str, tuple[Network, tuple[Block, ...]]] = {}
        self._peers: dict[str, dict[str, Vtep]] = {}  # network -> node -> its end
        self._vips: dict[str, Vip] = {}
        self._touched: set[str] = set()
        self._stale: set[str] = set()
        self._tables: set[str] = set()  # VIPS, when the table is to be applied

    def put_network(self, network: Network, blocks: tuple[Block, ...]) -> None:
        self._networks[network.name] = network, blocks
        self._touched.add(network.name)
        self._tables.add(VIPS)  # the table knows which subnets are the cluster's

    def put_peer(self, peer: Vtep) -> None:
        self._peers.setdefault(peer.block.network, {})[peer.block.node] = peer
        self._touched.add(peer.block.network)

    def put_vip(self, vip: Vip) -> None:
        self._vips[vip.key] = vip
        self._tables.add(VIPS)

    def remove(self, key: str) -> None:
        """By the item's key. One that is not here is no error."""
        kind, _, rest = key.partition("/")
        match kind:
            case "network":
                if self._networks.pop(rest, None) is not None:
                    self._stale.add(rest)
                    self._tables.add(VIPS)
            case "peer":
                network, _, node = rest.partition("/")
                if self._peers.get(network, {}).pop(node, None) is not None:
                    self._touched.add(network)
            case "vip":
                if self._vips.pop(rest, None) is not None:
                    self._tables.add(VIPS)

    def keep_only(self, keys: set[str]) -> None:
        """Remove every item whose key is not among `keys`."""
        held = {f"network/{name}" for name in self._networks} | {f"vip/{key}" for key in self._vips}
        held |= {f"peer/{network}/{node}" for network, peers in self._peers.items() for node in peers}
        for key in held - keys:
            self.remove(key)
        # Also those that only an earlier agent has heard of, which were removed while none was here.
        self._stale |= {name for name in self._driver.known() if f"network/{name}" not in keys}
        self._tables.add(VIPS)

    async def apply(self) -> list[str]:
        """Everything that was put or removed since the last time. Returns what could not be done, in words; that, and
        what a cancelled call had begun, is tried again the next time. Items may be put meanwhile."""
        errors = []
        for name in sorted(self._stale):
            errors += await self._attempt(self._stale, name, self._remove_network)
        for name in sorted(self._touched):
            errors += await self._attempt(self._touched, name, self._configure)
        for name in sorted(self._tables):
            errors += await self._attempt(self._tables, name, self._translate)
        return errors

    async def _attempt(self, due: set[str], name: str, work: Callable[[str], Awaitable[None]]) -> list[str]:
        """`name` is no longer due, unless it failed or was put again during the work."""
        due.discard(name)
        try:
            await work(name)
        except NetworkError as error:
            due.add(name)
            return [str(error)]
        except asyncio.CancelledError:
            due.add(name)
            raise
        return []

    async def _remove_network(self, name: str) -> None:
        if name not in self._networks:  # else it was put again
            await self._vacate(name)
            self._blocks.pop(name, None)
            await self._driver.remove(name)

    async def _configure(self, name: str) -> None:
        if name in self._networks:
            spec = self._spec(name)
            self._driver.validate(spec)
            if self._blocks.get(name, spec.blocks) != spec.blocks:
                await self._vacate(name)
            self._blocks[name] = spec.blocks
            await self._driver.configure(spec)

    async def _translate(self, _: str) -> None:
        await self._backend.apply(self._table())

    def _spec(self, name: str) -> NetworkSpec:
        network, blocks = self._networks[name]
        return NetworkSpec(network, blocks, tuple(self._peers.get(name, {}).values()))

    def _table(self) -> Table:
        return Table(
            vips=dict(self._vips),
            pools=self._pools,
            local=_sorted(block.subnet for _, blocks in self._networks.values() for block in blocks),
            cluster=_sorted(subnet for network, _ in self._networks.values() for subnet in network.subnets),
        )


def _sorted(subnets: Iterable[Subnet]) -> tuple[Subnet, ...]:
    return tuple(sorted(subnets, key=str))
