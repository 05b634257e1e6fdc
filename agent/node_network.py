"""The node's side of networks and VIPs: collects the items of the desired state and makes the kernel follow.

Items come one by one; what they mean together is computed when `apply` is called, once for a whole Change: one
`NetworkSpec` for each network that was touched, one table of VIPs.
"""

from __future__ import annotations

from collections.abc import Iterable

from model.network import Block, Network, Subnet, Vtep
from model.vip import Vip
from netns.driver import Driver, NetworkError, NetworkSpec
from netns.vip.backend import Backend, Table


class NodeNetwork:
    def __init__(self, driver: Driver, vips: Backend, pools: tuple[Subnet, ...]) -> None:
        self._driver = driver
        self._backend = vips
        self._pools = pools
        self._networks: dict[str, tuple[Network, tuple[Block, ...]]] = {}
        self._peers: dict[str, dict[str, Vtep]] = {}  # network -> node -> its end
        self._vips: dict[str, Vip] = {}
        self._touched: set[str] = set()
        self._stale: set[str] = set()
        self._vips_touched = False

    def put_network(self, network: Network, blocks: tuple[Block, ...]) -> None:
        self._networks[network.name] = network, blocks
        self._touched.add(network.name)
        self._vips_touched = True  # the table knows which subnets are the cluster's

    def put_peer(self, peer: Vtep) -> None:
        self._peers.setdefault(peer.block.network, {})[peer.block.node] = peer
        self._touched.add(peer.block.network)

    def put_vip(self, vip: Vip) -> None:
        self._vips[vip.key] = vip
        self._vips_touched = True

    def remove(self, key: str) -> None:
        """By the item's key. One that is not here is no error."""
        kind, _, rest = key.partition("/")
        match kind:
            case "network":
                if self._networks.pop(rest, None) is not None:
                    self._stale.add(rest)
                    self._vips_touched = True
            case "peer":
                network, _, node = rest.partition("/")
                if self._peers.get(network, {}).pop(node, None) is not None:
                    self._touched.add(network)
            case "vip":
                if self._vips.pop(rest, None) is not None:
                    self._vips_touched = True

    def keep_only(self, keys: set[str]) -> None:
        """Remove every item whose key is not among `keys`."""
        held = {f"network/{name}" for name in self._networks} | {f"vip/{key}" for key in self._vips}
        held |= {f"peer/{network}/{node}" for network, peers in self._peers.items() for node in peers}
        for key in held - keys:
            self.remove(key)
        self._vips_touched = True

    async def apply(self) -> list[str]:
        """Everything that was put or removed since the last time. Returns what could not be done, in words; that is
        tried again the next time. Items may be put meanwhile: they are for the next time."""
        touched, self._touched = self._touched, set()
        stale, self._stale = self._stale, set()
        specs = [self._spec(name) for name in sorted(touched) if name in self._networks]
        errors = []
        for name in sorted(stale):
            errors += await self._try_remove(name)
        for spec in specs:
            errors += await self._try_configure(spec)
        if self._vips_touched:
            errors += await self._try_vips()
        return errors

    async def _try_remove(self, name: str) -> list[str]:
        try:
            await self._driver.remove(name)
        except NetworkError as error:
            self._stale.add(name)
            return [str(error)]
        return []

    async def _try_configure(self, spec: NetworkSpec) -> list[str]:
        try:
            self._driver.validate(spec)
            await self._driver.configure(spec)
        except NetworkError as error:
            self._touched.add(spec.network.name)
            return [str(error)]
        return []

    async def _try_vips(self) -> list[str]:
        self._vips_touched = False
        try:
            await self._backend.apply(self._table())
        except NetworkError as error:
            self._vips_touched = True
            return [str(error)]
        return []

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
