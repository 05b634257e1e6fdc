"""The node's side of networks, VIPs and names: collects the items of the desired state and makes the kernel follow.

Items come one by one; what they mean together is computed when `apply` is called, once for a whole Change: one
`NetworkSpec` for each network that was touched, one table of VIPs, one of names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address, ip_network

from model.names import NamedTask
from model.network import Address, Block, Share, Subnet, Vtep
from model.policy import Members, Policy
from model.vip import Vip
from netns.dns.table import NODE_ADDRESS, Names, NameTable, Scope, Thing
from netns.dns.zone import NamedVip
from netns.driver import Driver, NetworkError, NetworkSpec
from netns.firewall.table import Entrance, Firewall, Zone
from netns.link import vxlan_name
from netns.vip.backend import Backend, Table

VIPS, FIREWALL, NAMES = "vips", "firewall", "names"


class NodeNetwork:
    def __init__(
        self,
        node: str,
        driver: Driver,
        vips: Backend,
        firewall: Firewall,
        names: Names,
        pools: tuple[Subnet, ...],
        vacate: Callable[[str], Awaitable[None]],
        *,
        external: bool = False,
    ) -> None:
        """`vacate` is awaited before a network goes, or a block that this node has of it, and when one retires.
        `external`: clients from outside of the cluster come in through this node, to VIPs that are for them."""
        self._node = node
        self._driver = driver
        self._vacate = vacate
        self._blocks: dict[str, frozenset[Block]] = {}  # of which there may be spares
        self._backend = vips
        self._firewall = firewall
        self._names = names
        self._pools = pools
        self._external = external
        self._networks: dict[str, Share] = {}
        self._peers: dict[str, dict[str, Vtep]] = {}  # network -> node -> its end
        self._vips: dict[str, Vip] = {}
        self._things: dict[str, Thing] = {}  # that have names, by the item's key
        self._policies: dict[str, Policy] = {}
        self._members: dict[str, frozenset[Address]] = {}
        self._touched: set[str] = set()
        self._stale: set[str] = set()
        self._tables: set[str] = set()  # VIPS, FIREWALL and NAMES, when they are to be applied

    def put_network(self, share: Share) -> None:
        self._networks[share.network.name] = share
        self._touched.add(share.network.name)
        self._tables |= {VIPS, FIREWALL, NAMES}  # all know which subnets are the cluster's

    def put_peer(self, peer: Vtep) -> None:
        self._peers.setdefault(peer.network, {})[peer.node] = peer
        self._touched.add(peer.network)
        self._tables.add(FIREWALL)

    def put_vip(self, vip: Vip) -> None:
        known = self._vips.get(vip.key)
        self._vips[vip.key] = vip.seen_from(self._node)
        self._tables.add(VIPS)
        if vip.external != (known is not None and known.external):
            self._entrances_changed()
        self._put_thing(f"vip/{vip.key}", NamedVip(vip.name, vip.address))

    def put_name(self, task: NamedTask) -> None:
        self._put_thing(f"name/{task.id}", task)

    def _entrances_changed(self) -> None:
        if self._external:
            self._tables.add(FIREWALL)

    def _put_thing(self, key: str, thing: Thing) -> None:
        if self._things.get(key) != thing:
            self._things[key] = thing
            self._tables.add(NAMES)

    def put_policy(self, policy: Policy) -> None:
        self._policies[policy.name] = policy
        self._tables.add(FIREWALL)

    def put_members(self, members: Members) -> None:
        self._members[members.app] = frozenset(map(ip_address, members.addresses))
        self._tables.add(FIREWALL)

    def remove(self, key: str) -> None:
        """By the item's key. One that is not here is no error."""
        if self._things.pop(key, None) is not None:
            self._tables.add(NAMES)
        kind, _, rest = key.partition("/")
        match kind:
            case "network":
                if self._networks.pop(rest, None) is not None:
                    self._stale.add(rest)
                    self._tables |= {VIPS, FIREWALL, NAMES}
            case "peer":
                network, _, node = rest.partition("/")
                if self._peers.get(network, {}).pop(node, None) is not None:
                    self._touched.add(network)
                    self._tables.add(FIREWALL)
            case "policy":
                if self._policies.pop(rest, None) is not None:
                    self._tables.add(FIREWALL)
            case "members":
                if self._members.pop(rest, None) is not None:
                    self._tables.add(FIREWALL)
            case "vip":
                if (vip := self._vips.pop(rest, None)) is not None:
                    self._tables.add(VIPS)
                    if vip.external:
                        self._entrances_changed()

    def keep_only(self, keys: set[str]) -> None:
        """Remove every item whose key is not among `keys`."""
        held = {f"network/{name}" for name in self._networks} | {f"vip/{key}" for key in self._vips}
        held |= {f"policy/{name}" for name in self._policies} | {f"members/{app}" for app in self._members}
        held |= self._things.keys()
        held |= {f"peer/{network}/{node}" for network, peers in self._peers.items() for node in peers}
        for key in held - keys:
            self.remove(key)
        # Also those that only an earlier agent has heard of, which were removed while none was here.
        self._stale |= {name for name in self._driver.known() if f"network/{name}" not in keys}
        self._tables |= {VIPS, FIREWALL, NAMES}

    def released(self) -> frozenset[Block]:
        """Blocks that retire, of which nothing is in use any more. It may change when a container is gone."""
        return frozenset(self._driver.released())

    async def apply(self) -> list[str]:
        """Everything that was put or removed since the last time. Returns what could not be done, in words; that, and
        what a cancelled call had begun, is tried again the next time. Items may be put meanwhile. The firewall comes
        before what it guards: while it can not be as it should, no network comes up or changes."""
        errors = []
        for name in sorted(self._stale):
            errors += await self._attempt(self._stale, name, self._remove_network)
        unguarded = []
        for name in sorted(self._tables & {FIREWALL}):
            unguarded += await self._attempt(self._tables, name, self._guard)
        for name in sorted(self._touched) if not unguarded else ():
            errors += await self._attempt(self._touched, name, self._configure)
        for name in sorted(self._tables & {VIPS}):
            errors += await self._attempt(self._tables, name, self._translate)
        for name in sorted(self._tables & {NAMES}):
            errors += await self._attempt(self._tables, name, self._name)
        return unguarded + errors

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
            await self._withdraw(name)

    async def _withdraw(self, name: str) -> None:
        """Nothing of the network is on this node any more."""
        await self._vacate(name)
        self._blocks.pop(name, None)
        await self._driver.remove(name)

    async def _configure(self, name: str) -> None:
        if name in self._networks:
            spec = self._spec(name)
            if spec.network.subnets and not spec.blocks:
                await self._withdraw(name)
                return
            self._driver.validate(spec)
            here, retiring = frozenset(spec.blocks), frozenset(spec.retiring)
            before = self._blocks.get(name, frozenset())
            if before - here:
                await self._vacate(name)
            self._blocks[name] = before & here | here - retiring
            await self._driver.configure(spec)
            if before & retiring:  # from now on nothing is leased of them
                await self._vacate(name)
            self._blocks[name] = here - retiring

    def _spec(self, name: str) -> NetworkSpec:
        share = self._networks[name]
        peers = tuple(self._peers.get(name, {}).values())
        return NetworkSpec(share.network, share.blocks, peers, share.retiring, share.singles)

    async def _guard(self, _: str) -> None:
        await self._firewall.configure(
            tuple(_zone(share) for _, share in sorted(self._networks.items())),
            tuple(policy for _, policy in sorted(self._policies.items())),
            dict(self._members),
            frozenset(peer.underlay for peers in self._peers.values() for peer in peers.values()),
            self._entrances() if self._external else None,
        )

    def _entrances(self) -> frozenset[Entrance]:
        external = (vip for vip in self._vips.values() if vip.external)
        return frozenset(Entrance(vip.address, vip.port, vip.protocol) for vip in external)

    async def _translate(self, _: str) -> None:
        await self._backend.apply(self._table())

    async def _name(self, _: str) -> None:
        shares = self._networks.values()
        gateways = sorted({block.gateway for share in shares for block in share.blocks}, key=str)
        scopes = tuple(Scope(share.network.subnets, not share.network.internal) for share in shares)
        await self._names.apply(NameTable((NODE_ADDRESS, *gateways), scopes, dict(self._things)))

    def _table(self) -> Table:
        return Table(
            vips=dict(self._vips),
            pools=self._pools,
            local=_sorted(block.subnet for share in self._networks.values() for block in share.blocks),
            cluster=_sorted(subnet for share in self._networks.values() for subnet in share.network.subnets),
        )


def _zone(share: Share) -> Zone:
    network = share.network
    local = (*(block.subnet for block in share.blocks), *map(ip_network, share.singles))
    return Zone(network, local, vxlan_name(network.vni) if network.vni is not None else "")


def _sorted(subnets: Iterable[Subnet]) -> tuple[Subnet, ...]:
    return tuple(sorted(subnets, key=str))
