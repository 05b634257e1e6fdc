"""Container networks, and which block of each a node owns (`blocks/<network>/<node>` in the store).

A node gets its blocks when it first connects and keeps them: addresses of its containers stay valid for as long as the
containers do, whatever happens to the master.
"""

from __future__ import annotations

from ipaddress import ip_network

from master.store.base import Conflict, Put, Store, StoreError
from master.store.damaged import readable
from model.codec import Codec
from model.network import Block, Network, NetworkKind, Share, Vtep, free_subnet, vtep_mac
from model.node import Node

NETWORKS = "networks/"
BLOCKS = "blocks/"
NETWORK_CODEC = Codec(Network)
BLOCK_CODEC = Codec(Block)

DEFAULTS = (
    Network("overlay", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"),), 24, vni=1024),
    Network("host", NetworkKind.HOST),
    Network("none", NetworkKind.NONE),
)


class NetworkFull(Exception):
    """No block is left for another node."""


class Networks:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._networks: dict[str, Network] = {}
        self._blocks: dict[str, dict[str, Block]] = {}  # network -> node -> block

    async def load(self) -> None:
        """Reads what is there, and makes the default networks of a new cluster."""
        for network in DEFAULTS:
            try:
                await self._store.transaction(Put(NETWORKS + network.name, NETWORK_CODEC.encode(network), expected=0))
            except Conflict:
                continue
        for _, network in await readable(self._store, NETWORKS, NETWORK_CODEC.decode):
            self._networks[network.name] = network
        for _, block in await readable(self._store, BLOCKS, BLOCK_CODEC.decode):
            self._blocks.setdefault(block.network, {})[block.node] = block

    def all(self) -> list[Network]:
        return list(self._networks.values())

    def block(self, network: str, node: str) -> Block | None:
        return self._blocks.get(network, {}).get(node)

    async def admit(self, node: Node) -> list[Share]:
        """Every network with the node's blocks of it, cut now if it has none. Raises NetworkFull."""
        admitted: list[Share] = []
        for network in self._networks.values():
            blocks = (await self._block(network, node.id),) if network.subnets else ()
            admitted.append(Share(network, blocks))
        return admitted

    def vteps(self, node: Node) -> list[Vtep]:
        """The node's ends of all overlays, for its peers."""
        return [
            Vtep(network.name, node.id, node.address, vtep_mac(node.id, network.vni), (block,))
            for network in self._networks.values()
            if network.vni is not None and (block := self.block(network.name, node.id)) is not None
        ]

    async def _block(self, network: Network, node: str) -> Block:
        owned = self._blocks.setdefault(network.name, {})
        if node not in owned:
            block = self._cut(network, node)
            owned[node] = block  # before the store is asked: two nodes that arrive together must not get the same one
            try:
                await self._store.transaction(Put(f"{BLOCKS}{network.name}/{node}", BLOCK_CODEC.encode(block)))
            except StoreError:
                # Only then: when a caller is cancelled, the write goes on without it.
                del owned[node]
                raise
        return owned[node]

    def _cut(self, network: Network, node: str) -> Block:
        taken = {block.subnet for block in self._blocks[network.name].values()}
        for subnet in network.subnets:
            free = free_subnet(subnet, network.block_prefix, taken)
            if free is not None:
                return Block(network.name, node, free)
        raise NetworkFull(f"network {network.name}: all its /{network.block_prefix} blocks are taken, none for {node}")
