"""Containers on networks: who has which address, and the links by which they have it.

The disk comes first when something is made, and the kernel when something is removed: an address is leased before
there is a link that has it, and nothing passes the link any more when it is given back. Links are found by the
container's name and leases by the container, so detaching needs nothing that a restart loses.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from weakref import WeakValueDictionary

import structlog

from model.network import Address, Block, Lease
from netns.container import Endpoint, Reach, connect, cut_off, forget_rules, lacking_inside, vanish
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.ipam.leases import Leases
from netns.link import INTERFACES, VETH_PREFIX, RemoveLink, read_names, veth_name, veth_names
from netns.namespace import NoNamespace, namespace_of
from netns.netlink import Netlink, link_exists
from netns.node_end import lacking_links, mend_links
from netns.spec import first_block, usable

log = structlog.get_logger()

CONTAINER_VETH = re.compile(VETH_PREFIX + "[0-9a-f]{13}")


class Endpoints:
    """Of one node. Of one container one thing is done at a time."""

    def __init__(self, host: Netlink, leases: Leases) -> None:
        self._host = host
        self._leases = leases
        self._leasing: Counter[str] = Counter()  # by network
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by container
        self._vanishing: dict[str, asyncio.Task[None]] = {}  # by container
        # How each endpoint was attached by this agent, and the inode of the container's network namespace.
        self._inside: dict[tuple[str, str], tuple[Attachment, int]] = {}

    async def settle(self) -> None:
        """Returns when the links of all that were detached are gone."""
        await asyncio.gather(*self._vanishing.values())

    async def attach(self, spec: NetworkSpec, mtu: int, attachment: Attachment, namespace: int) -> tuple[Address, ...]:
        """`namespace` is a descriptor of the container's network namespace. Returns its addresses on this network."""
        async with self._lock(attachment.container):
            if (going := self._vanishing.get(attachment.container)) is not None:
                await asyncio.wait([going])
            self._refuse_taken(attachment)
            lease = await self._lease(spec, attachment)
            await connect(self._host, namespace, _endpoint(spec, mtu, lease))
            self._note(attachment, namespace)
            return lease.addresses

    async def detach(self, container: str) -> None:
        async with self._lock(container):
            known = [self._inside.pop((container, interface), None) for interface in INTERFACES]
            links = await cut_off(self._host, container)
            for attachment, inode in filter(None, known):
                if attachment.netns_path:
                    links -= await self._take_out(attachment, inode)
            if links and container not in self._vanishing:
                self._vanishing[container] = asyncio.create_task(self._vanish(container, links))
            if self._leases.of(container):
                await asyncio.to_thread(self._leases.release, container)

    def owners(self) -> set[str]:
        return {lease.container for lease in self._leases.all()}

    async def remove_strays(self, valid: frozenset[str]) -> None:
        """Links of containers that are not in `valid`."""
        ours = {name for name in read_names(VETH_PREFIX) if CONTAINER_VETH.fullmatch(name)}
        strays = ours.difference(*map(veth_names, valid))
        await self._host.apply([RemoveLink(name) for name in sorted(strays)])

    def recall(self, attachments: Iterable[Attachment]) -> None:
        """These were attached by an earlier agent."""
        for attachment in attachments:
            with (
                suppress(NetworkError),
                namespace_of(attachment.netns_pid, attachment.netns_path) as namespace,
            ):
                self._note(attachment, namespace)

    async def mend(self, spec: NetworkSpec, mtu: int, links: frozenset[str] | None = None) -> list[str]:
        """Make the links (None: all) of the network's containers what `attach` made them. Returns what was done, in
        words."""
        endpoints = [end for end in self._endpoints(spec, mtu) if links is None or end.veth in links]
        done = await mend_links(self._host, [endpoint for endpoint in endpoints if link_exists(endpoint.veth)])
        for endpoint in endpoints:
            done += await self._reconnect(endpoint)
        return done

    def addresses(self, container: str) -> tuple[Address, ...]:
        """What the container has leased: known after a restart too."""
        return tuple(address for lease in self._leases.of(container) for address in lease.addresses)

    def of(self, container: str, specs: Mapping[str, NetworkSpec], mtus: Mapping[str, int]) -> tuple[Endpoint, ...]:
        """What `attach` made for the container, as long as its networks are configured. Raises NetworkError when an
        address is in none of the node's blocks any more."""
        leases = [lease for lease in self._leases.of(container) if lease.network in mtus and lease.network in specs]
        return tuple(_endpoint(specs[lease.network], mtus[lease.network], lease) for lease in leases)

    async def wrong(self, endpoint: Endpoint) -> list[str]:
        """What somebody changed of what `attach` made, on the node and inside, in words. Nothing is mended."""
        if not link_exists(endpoint.veth):
            return [f"link {endpoint.veth} is gone"]
        attachment, inode = self._inside.get((endpoint.container, endpoint.interface), (None, 0))
        if attachment is None:
            return [f"{endpoint.interface} was not attached"]
        with namespace_of(attachment.netns_pid, attachment.netns_path) as namespace:
            if os.fstat(namespace).st_ino != inode:
                return ["its network namespace is another one"]
            inside = await lacking_inside(namespace, endpoint)
        return [*await lacking_links(self._host, [endpoint]), *inside]

    def unused(self, blocks: Iterable[Block]) -> tuple[Block, ...]:
        """Those of `blocks` of which nothing is leased, nor about to be."""
        leased = [(lease.network, address) for lease in self._leases.all() for address in lease.addresses]
        return tuple(
            block
            for block in blocks
            if not self._leasing[block.network]
            and not any(network == block.network and address in block.subnet for network, address in leased)
        )

    def _lock(self, container: str) -> asyncio.Lock:
        return self._locks.setdefault(container, asyncio.Lock())

    def _busy(self, container: str) -> bool:
        lock = self._locks.get(container)
        return container in self._vanishing or (lock is not None and lock.locked())

    def _refuse_taken(self, attachment: Attachment) -> None:
        if attachment.interface not in INTERFACES:
            known = f"{INTERFACES[0]} to {INTERFACES[-1]}"
            raise NetworkError(f'interface: "{attachment.interface}" is not one of {known}')
        for lease in self._leases.of(attachment.container):
            if (lease.network == attachment.network) != (lease.interface == attachment.interface):
                raise NetworkError(f'its {lease.interface} is attached to "{lease.network}"')

    async def _lease(self, spec: NetworkSpec, attachment: Attachment) -> Lease:
        """With subnets of both versions, the IPv4 address is leased."""
        version = min(subnet.version for subnet in spec.network.subnets)
        companions = (*usable(spec, 6), first_block(spec.blocks, 6))
        self._leasing[spec.network.name] += 1
        try:
            return await asyncio.to_thread(
                self._leases.acquire,
                attachment.container,
                spec.network.name,
                usable(spec, version),
                attachment.address,
                [single for single in spec.singles if single.version == version],
                attachment.interface,
                companions[0] if version == 4 else None,
            )
        finally:
            self._leasing[spec.network.name] -= 1

    def _endpoints(self, spec: NetworkSpec, mtu: int) -> Iterator[Endpoint]:
        """Of containers that are not being attached or detached just now."""
        for lease in self._leases.all():
            if lease.network == spec.network.name and not self._busy(lease.container):
                try:
                    yield _endpoint(spec, mtu, lease)
                except NetworkError:  # it outlived its block, and nothing leads to it any more
                    continue

    async def _reconnect(self, endpoint: Endpoint) -> list[str]:
        """A link that somebody removed is made again, unless it is gone because the container's namespace is."""
        async with self._lock(endpoint.container):
            attachment, inode = self._inside.get((endpoint.container, endpoint.interface), (None, 0))
            if attachment is None or link_exists(endpoint.veth):
                return []
            try:
                with namespace_of(attachment.netns_pid, attachment.netns_path) as namespace:
                    if os.fstat(namespace).st_ino != inode:
                        return []
                    await connect(self._host, namespace, endpoint)
            except NoNamespace:
                return []
            return [f"create veth {endpoint.veth} to {endpoint.interface}"]

    def _note(self, attachment: Attachment, namespace: int) -> None:
        self._inside[attachment.container, attachment.interface] = attachment, os.fstat(namespace).st_ino

    async def _take_out(self, attachment: Attachment, inode: int) -> frozenset[str]:
        """Of a namespace that goes on without the container: the link, and what does not go with it."""
        link = veth_name(attachment.container, attachment.interface)
        with suppress(NoNamespace), namespace_of(0, attachment.netns_path) as namespace:
            if os.fstat(namespace).st_ino == inode:
                await forget_rules(namespace, attachment.interface)
        if link_exists(link):
            await self._host.apply([RemoveLink(link)])
        return frozenset({link})

    async def _vanish(self, container: str, links: frozenset[str]) -> None:
        try:
            await vanish(self._host, links)
        except NetworkError as error:
            log.warning("links of a container stay until the next start", container=container, reason=str(error))
        finally:
            del self._vanishing[container]


def _endpoint(spec: NetworkSpec, mtu: int, lease: Lease) -> Endpoint:
    reaches = tuple(Reach(address, _gateway(spec, address)) for address in lease.addresses)
    return Endpoint(lease.container, lease.interface, reaches, mtu, spec.network.subnets)


def _gateway(spec: NetworkSpec, address: Address) -> Address:
    """Of the block that `address` is in; of the first of its version, if it is a single one."""
    block = next((block for block in spec.blocks if address in block.subnet), None)
    if block is None and address in spec.singles:
        block = first_block(spec.blocks, address.version)
    if block is None:
        raise NetworkError(f"its address {address} is in no block that this node has now")
    return block.gateway
