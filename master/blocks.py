"""Which part of each network every node has: its blocks (`blocks/<network>/<subnet>` in the store).

A node gets the first one of each network when it comes, or when the network does, and more when its tasks need them. It
keeps them when it is away: addresses of its containers stay valid for as long as the containers do. It gives one back
when it has that many addresses too many, or when it has none in use while others have none left: the block *retires*,
the node leases nothing of it any more, and says when nothing of it is in use (`released`). Blocks of a node that is
gone are free at once.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address

import structlog

from master.networks import Networks
from master.nodes import Nodes
from master.store.base import Delete, Put, Store, StoreError
from master.store.damaged import readable
from master.tasks import TaskRecord, Tasks, active
from model.codec import Codec
from model.network import Address, Block, Network, Share, Subnet, Vtep, free_subnet, leasable, vtep_mac
from model.node import Node, NodeState
from model.task import TaskSpec

log = structlog.get_logger()

BLOCKS = "blocks/"
BLOCK_CODEC = Codec(Block)

# What a node has of this network is not what it was.
Listener = Callable[[str, str], None]  # network, node


class NetworkFull(Exception):
    """No block is left for a node that needs one."""


class Blocks:
    def __init__(self, store: Store, networks: Networks, tasks: Tasks, nodes: Nodes) -> None:
        self._store = store
        self._networks = networks
        self._tasks = tasks
        self._nodes = nodes
        self._keys: dict[Block, str] = {}  # in the store
        self._owned: dict[tuple[str, str], list[Block]] = {}  # by network and node, in order
        self._cut: dict[tuple[str, int], dict[Subnet, Block]] = {}  # by network and version of IP
        self._retiring: set[Block] = set()
        self._listeners: list[Listener] = []
        self._cutting = asyncio.Lock()
        tasks.listen(self._task_changed)

    async def load(self) -> None:
        for key, block in await readable(self._store, BLOCKS, BLOCK_CODEC.decode):
            self._keep(block, key)

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def of(self, network: str, node: str = "") -> list[Block]:
        """All of the network's, or those that the node has."""
        if node:
            return list(self._owned.get((network, node), ()))
        return [block for version in (4, 6) for block in self._cut.get((network, version), {}).values()]

    def retires(self, block: Block) -> bool:
        return block in self._retiring

    def share(self, network: Network, node: str) -> Share:
        blocks = tuple(self.of(network.name, node))
        retiring = tuple(block for block in blocks if block in self._retiring)
        return Share(network, blocks, retiring, self._singles(network.name, node) if blocks else ())

    def vtep(self, network: Network, node: Node) -> Vtep | None:
        """The node's end of an overlay, for its peers; None when it has none."""
        share = self.share(network, node.id)
        if network.vni is None or not share.blocks:
            return None
        mac = vtep_mac(node.id, network.vni)
        return Vtep(network.name, node.id, node.address, mac, share.blocks, share.singles)

    async def admit(self, node: str) -> None:
        """The node has a block of every network afterwards of which there is one for it."""
        for network in self._networks.all():
            try:
                await self._provide(network, node, 0)
            except NetworkFull as error:
                log.warning("node begins without a block", node=node, network=network.name, reason=str(error))
                self._reclaim(network)

    async def provide(self, network: Network) -> None:
        """As `admit`, for a network that is new."""
        for view in self._nodes.all():
            try:
                await self._provide(network, view.node.id, 0)
            except NetworkFull as error:
                log.warning("network begins without a block", node=view.node.id, reason=str(error))
                return

    async def ensure(self, node: str, specs: Sequence[TaskSpec], arriving: Sequence[TaskSpec] = ()) -> None:
        """There is an address on the node for each of `specs`, beside its tasks and what is `arriving`. Raises
        NetworkFull, and ValueError when a network is not there any more."""
        used = self._used(node) + _demand(arriving) + _demand(specs)
        for name, task_id in {each.network: spec.id for spec in specs for each in spec.attachments}.items():
            network = self._networks.get(name)
            if network is None:
                raise ValueError(f"task {task_id}: network {name!r} does not exist")
            await self._provide(network, node, used[name])

    def room(self, node: str, arriving: Sequence[TaskSpec] = ()) -> dict[str, int]:
        """How many more tasks can have an address on the node, by network: what its blocks have left, and what others
        can be cut for it."""
        used = self._used(node) + _demand(arriving)
        return {
            network.name: self._room(network, node, used[network.name])
            for network in self._networks.all()
            if network.subnets
        }

    def used(self, network: str, node: str) -> int:
        """Addresses that tasks of the node have of its blocks."""
        return self._used(node)[network]

    def capacity(self, network: Network, node: str) -> int:
        """Addresses for tasks in the node's blocks."""
        return sum(len(block.leasable()) for block in self._leased(network, node))

    def left(self, network: Network) -> int:
        """Addresses in blocks that no node has."""
        version = network.versions[0]
        return self._left(network, version) * len(leasable(_prefix_of(network, version), version))

    async def released(self, block: Block) -> None:
        """Its node says that nothing of it is in use any more. Old news, and what it was not asked for, change
        nothing."""
        async with self._cutting:
            if block in self._retiring:
                await self._drop([block])
                self._changed(block.network, block.node)

    async def forget_node(self, node: str) -> int:
        """It will not come back: what it had is free. Returns how many blocks that were."""
        async with self._cutting:
            had = [block for (_, owner), owned in self._owned.items() if owner == node for block in owned]
            await self._drop(had)
            return len(had)

    async def forget_network(self, name: str) -> None:
        async with self._cutting:
            await self._drop(self.of(name))

    async def _provide(self, network: Network, node: str, count: int) -> None:
        """Blocks on `node` with `count` addresses, one of each version of IP at least. Raises NetworkFull."""
        if self._suffices(network, node, count):
            return
        async with self._cutting:
            changed = False
            try:
                while not self._suffices(network, node, count):
                    changed = True
                    await self._add(network, node, count)
            finally:
                if changed:
                    self._changed(network.name, node)

    def _suffices(self, network: Network, node: str, count: int) -> bool:
        living = {block.subnet.version for block in self.of(network.name, node) if block not in self._retiring}
        return living.issuperset(network.versions) and (not network.subnets or self.capacity(network, node) >= count)

    async def _add(self, network: Network, node: str, count: int) -> None:
        living = [block for block in self.of(network.name, node) if block not in self._retiring]
        lacking = set(network.versions) - {block.subnet.version for block in living} or {network.versions[0]}
        for version in sorted(lacking):
            retiring = [block for block in self.of(network.name, node) if block in self._retiring]
            again = next((block for block in retiring if block.subnet.version == version), None)
            if again is not None:
                self._retiring.discard(again)
            else:
                await self._give(network, node, version)

    async def _give(self, network: Network, node: str, version: int) -> None:
        block = self._free(network, node, version)
        key = f"{BLOCKS}{network.name}/{block.subnet}"
        self._keep(block, key)  # before the store is asked: two nodes that arrive together must not get the same one
        try:
            await self._store.transaction(Put(key, BLOCK_CODEC.encode(block)))
        except StoreError:
            # Only then: when a caller is cancelled, the write goes on without it.
            self._lose(block)
            raise
        log.info("block", network=network.name, node=node, subnet=str(block.subnet))

    def _free(self, network: Network, node: str, version: int) -> Block:
        taken = [*self._cut.get((network.name, version), ()), *network.static]
        for subnet in network.subnets:
            if subnet.version == version:
                free = free_subnet(subnet, network.prefix_of(subnet), taken)
                if free is not None:
                    return Block(network.name, node, free)
        prefix = _prefix_of(network, version)
        raise NetworkFull(f"network {network.name}: all its /{prefix} blocks are taken, none for {node}")

    def _room(self, network: Network, node: str, used: int) -> int:
        versions = {block.subnet.version for block in self.of(network.name, node)}
        if not all(self._left(network, version) for version in set(network.versions) - versions):
            return 0
        reviving = sum(len(block.leasable()) for block in self._leased(network, node, self._retiring))
        return max(0, self.capacity(network, node) + reviving + self.left(network) - used)

    def _left(self, network: Network, version: int) -> int:
        """Blocks that no node has."""
        subnets, static = (
            sum(1 << network.prefix_of(each) - each.prefixlen for each in parts if each.version == version)
            for parts in (network.subnets, network.static)
        )
        return subnets - static - len(self._cut.get((network.name, version), ()))

    def _leased(self, network: Network, node: str, of: set[Block] | None = None) -> list[Block]:
        """The node's blocks of the version whose addresses are leased: those that live, or those of the ones given."""
        return [
            block
            for block in self.of(network.name, node)
            if block.subnet.version == network.versions[0]
            and (block not in self._retiring if of is None else block in of)
        ]

    def _used(self, node: str) -> Counter[str]:
        return _demand(record.spec for record in active(self._tasks.on(node)))

    def _singles(self, network: str, node: str) -> tuple[Address, ...]:
        """Addresses that tasks of the node asked for."""
        asked = {
            ip_address(each.address)
            for record in active(self._tasks.on(node))
            for each in record.spec.attachments
            if each.address and each.network == network
        }
        return tuple(sorted(asked, key=int))

    def _task_changed(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        began = before is None and after is not None and not after.over
        ended = before is not None and not before.over and (after is None or after.over)
        record = after or before
        if record is None or not (began or ended):
            return
        for each in record.spec.attachments:
            network = self._networks.get(each.network)
            if network is None or not network.subnets:
                continue
            if each.address:
                self._changed(network.name, record.node)
            if ended:
                self._trim(network, record.node)
            self._reclaim(network)

    def _trim(self, network: Network, node: str) -> None:
        """A block of which nothing is in use goes back, if the others have half as many addresses again as are used."""
        owned = self._leased(network, node)
        if len(owned) < 2:
            return
        in_use = {ip_address(text) for record in active(self._tasks.on(node)) for text in record.status.addresses}
        used, capacity = self.used(network.name, node), self.capacity(network, node)
        for block in reversed(owned):
            size = len(block.leasable())
            if capacity - size >= used + size // 2 and not any(address in block.subnet for address in in_use):
                self._retire(network.name, node, [block])
                return

    def _reclaim(self, network: Network) -> None:
        """When no block is left for a node that has no address left: from one that has no use for its own."""
        if self.left(network) or any(block.network == network.name for block in self._retiring):
            return
        online = [view.node.id for view in self._nodes.all() if view.connected and view.state is NodeState.ONLINE]
        if not any(self._room(network, node, self.used(network.name, node)) == 0 for node in online):
            return
        for node in online:
            blocks = self.of(network.name, node)
            if blocks and not any(
                each.network == network.name
                for record in active(self._tasks.on(node))
                for each in record.spec.attachments
            ):
                self._retire(network.name, node, blocks)
                return

    def _retire(self, network: str, node: str, blocks: Sequence[Block]) -> None:
        log.info("blocks retire", network=network, node=node, subnets=[str(block.subnet) for block in blocks])
        self._retiring.update(blocks)
        self._changed(network, node)

    async def _drop(self, blocks: Sequence[Block]) -> None:
        if blocks:
            await self._store.transaction(*(Delete(self._keys[block]) for block in blocks))
        for block in blocks:
            self._lose(block)
            log.info("block is free", network=block.network, node=block.node, subnet=str(block.subnet))

    def _keep(self, block: Block, key: str) -> None:
        self._keys[block] = key
        self._cut.setdefault((block.network, block.subnet.version), {})[block.subnet] = block
        bisect.insort(self._owned.setdefault((block.network, block.node), []), block, key=_place)

    def _lose(self, block: Block) -> None:
        del self._keys[block]
        del self._cut[block.network, block.subnet.version][block.subnet]
        self._owned[block.network, block.node].remove(block)
        self._retiring.discard(block)

    def _changed(self, network: str, node: str) -> None:
        for listener in self._listeners:
            listener(network, node)


def _demand(specs: Iterable[TaskSpec]) -> Counter[str]:
    """Addresses that they need of a node's blocks, by network."""
    return Counter(_networks(specs))


def _networks(specs: Iterable[TaskSpec]) -> Iterator[str]:
    for spec in specs:
        for each in spec.attachments:
            if not each.address:
                yield each.network


def _prefix_of(network: Network, version: int) -> int:
    return network.block_prefix if version == 4 else network.block_prefix6


def _place(block: Block) -> tuple[int, int]:
    return block.subnet.version, int(block.subnet.network_address)
