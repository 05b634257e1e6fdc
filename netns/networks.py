"""The networks of a node: the driver that the agent and its isolators use, over every kind of network there is.

It reads `<state>/leases` and `<state>/networks` and what the kernel has; it writes both, always the disk first when
something is made and the kernel first when something is removed. So whatever the kernel has of ours has a file or a
name that says whose it is, and after a crash between any two steps the next `configure`, `attach` or `gc` mends it.

Containers find links by name and leases by container, so `detach` needs nothing that a restart loses.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from model.network import NETWORK_NAME, Address, Block, Lease, NetworkKind, Subnet
from netns.container import Endpoint, Reach, connect, cut_off, loopback_only, vanish
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.durable import write_durably
from netns.gateway import gateway_state
from netns.ipam.leases import Leases
from netns.link import (
    INTERFACES,
    VETH_PREFIX,
    VXLAN_PREFIX,
    RemoveLink,
    gateway_name,
    read_names,
    veth_names,
    vxlan_name,
)
from netns.mend import mend_links
from netns.namespace import namespace_of
from netns.netlink import Netlink, link_exists
from netns.overlay.vxlan import overlay_mtu, overlay_state, peers_state
from netns.reconcile import State, diff, perform, reconcile
from netns.spec import NATIVE, first_block, mtu_of, refuse_bad, usable
from netns.sysctl import Sysctl, ipv6_router
from netns.underlay import Underlay, read_underlay
from netns.vip_route import reconcile_vip_routes

log = structlog.get_logger()

CONTAINER_VETH = re.compile(VETH_PREFIX + "[0-9a-f]{13}")
RECORDED_LINK = re.compile(VXLAN_PREFIX + "[0-9]{1,8}")


@dataclass(frozen=True, slots=True)
class Applied:
    """What the kernel was last made to have of a network, as far as we know."""

    spec: NetworkSpec
    underlay: Underlay


class Networks:
    """Implements `netns.driver.Driver` for the node whose namespace the event loop's thread is in. `underlay` is this
    node's address among nodes. Use as an asynchronous context manager: it keeps a netlink socket."""

    def __init__(self, state_dir: Path, node: str, boot_id: str, underlay: Address) -> None:
        self._records = state_dir / "networks"
        self._node = node
        self._underlay = underlay
        self._leases = Leases(state_dir / "leases", boot_id)
        self._host = Netlink()
        self._specs: dict[str, NetworkSpec] = {}
        self._applied: dict[str, Applied] = {}
        self._mtus: dict[str, int] = {}
        self._vip_pools: tuple[Subnet, ...] = ()
        self._configuring = asyncio.Lock()
        self._attaching: Counter[str] = Counter()  # by network
        self._vanishing: dict[str, asyncio.Task[None]] = {}  # by container

    async def __aenter__(self) -> Self:
        await self._host.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await asyncio.gather(*self._vanishing.values())
        finally:
            self._host.close()

    def validate(self, spec: NetworkSpec) -> None:
        refuse_bad(spec, self._node, self._underlay, self._specs.values())

    async def configure(self, spec: NetworkSpec) -> None:
        self.validate(spec)
        name = spec.network.name
        async with self._configuring:
            with _while(f'configure {spec.network.kind} "{name}"'):
                done = await self._configure_peers(spec)
                if done is None:
                    done = await self._configure_links(spec) if spec.network.kind not in NATIVE else []
                    self._specs[name] = spec
                    done += await self._reconcile_vip_routes()
                self._specs[name] = spec
        if done:
            log.info("network configured", network=name, operations=len(done))

    async def mend(self, network: str) -> list[str]:
        async with self._configuring:
            spec = self._specs.get(network)
            if spec is None or spec.network.kind in NATIVE:
                return []
            with _while(f'mend {spec.network.kind} "{network}"'):
                done = await self._configure_links(spec)
                done += await mend_links(self._host, list(self._endpoints(spec)))
                return done + await self._reconcile_vip_routes()

    def known(self) -> frozenset[str]:
        try:
            recorded = {path.name for path in self._records.iterdir() if NETWORK_NAME.fullmatch(path.name)}
        except FileNotFoundError:
            recorded = set()
        return frozenset(recorded | self._specs.keys())

    async def remove(self, network: str) -> None:
        async with self._configuring:
            with _while(f'remove network "{network}"'):
                self._specs.pop(network, None)
                self._applied.pop(network, None)
                links = [gateway_name(network), *self._recorded(network)]
                await self._host.apply([RemoveLink(name) for name in links if link_exists(name)])
                (self._records / network).unlink(missing_ok=True)
                await self._reconcile_vip_routes()

    async def configure_vip_route(self, pools: Sequence[Subnet]) -> None:
        """Give the node itself a way to virtual addresses in `pools`. It follows the networks as they come and go."""
        async with self._configuring:
            with _while("configure routes to virtual addresses"):
                self._vip_pools = tuple(pools)
                await self._reconcile_vip_routes()

    async def attach(self, attachment: Attachment) -> tuple[Address, ...]:
        spec = self._specs.get(attachment.network)
        kind = spec.network.kind if spec else "network"
        with _while(f'attach {attachment.container} to {kind} "{attachment.network}"'):
            if spec is None:
                raise NetworkError("not configured on this node")
            if spec.network.kind is NetworkKind.HOST:
                return ()
            with namespace_of(attachment.netns_pid) as namespace:
                if spec.network.kind is NetworkKind.NONE:
                    await loopback_only(namespace)
                    return ()
                return await self._attach(spec, attachment, namespace)

    async def detach(self, container: str) -> None:
        with _while(f"detach {container}"):
            links = await cut_off(self._host, container)
            if links and container not in self._vanishing:
                self._vanishing[container] = asyncio.create_task(self._vanish(container, links))
            if self._leases.of(container):
                await asyncio.to_thread(self._leases.release, container)

    async def gc(self, valid: frozenset[str]) -> None:
        owners = {lease.container for lease in self._leases.all()}
        errors: list[NetworkError] = []
        for container in sorted(owners - valid):
            log.info("releasing addresses of a container that is gone", container=container)
            try:
                await self.detach(container)
            except NetworkError as error:  # what the others have is given back all the same
                errors.append(error)
        await self._remove_strays(valid)
        if errors:
            raise NetworkError("; ".join(map(str, errors))) from ExceptionGroup("gc", errors)

    def addresses(self, container: str) -> tuple[Address, ...]:
        """What the container has leased: known after a restart too."""
        return tuple(address for lease in self._leases.of(container) for address in lease.addresses)

    def released(self) -> tuple[Block, ...]:
        leased = {(lease.network, address) for lease in self._leases.all() for address in lease.addresses}
        return tuple(
            block
            for spec in self._specs.values()
            if not self._attaching[spec.network.name]  # it may be about to lease one
            for block in spec.retiring
            if not any(network == block.network and address in block.subnet for network, address in leased)
        )

    async def _vanish(self, container: str, links: frozenset[str]) -> None:
        try:
            await vanish(self._host, links)
        except NetworkError as error:
            log.warning("links of a container stay until the next start", container=container, reason=str(error))
        finally:
            del self._vanishing[container]

    async def _remove_strays(self, valid: frozenset[str]) -> None:
        ours = {name for name in read_names(VETH_PREFIX) if CONTAINER_VETH.fullmatch(name)}
        strays = ours.difference(*map(veth_names, valid))
        with _while("remove links of containers that are gone"):
            await self._host.apply([RemoveLink(name) for name in sorted(strays)])

    async def _configure_peers(self, spec: NetworkSpec) -> list[str] | None:
        """When nothing but peers of an overlay has changed since the last time, change them and nothing else: there may
        be a thousand. None: it is not so, or the kernel does not have any more what it had."""
        before = self._applied.pop(spec.network.name, None)
        if before is None or replace(before.spec, peers=spec.peers, singles=spec.singles) != spec:
            return None
        if await read_underlay(self._host, self._underlay) != before.underlay:
            return None
        assert spec.network.vni is not None
        old, new = ({peer.node: peer for peer in peers} for peers in (before.spec.peers, spec.peers))
        gone, came = (
            peers_state(
                vxlan_name(spec.network.vni),
                [peer for node, peer in ours.items() if others.get(node) != peer],
                spec.blocks,
            )
            for ours, others in ((old, new), (new, old))
        )
        try:
            done = await perform(self._host, diff(came, gone))
        except NetworkError:
            return None
        self._applied[spec.network.name] = Applied(spec, before.underlay)
        return done

    async def _configure_links(self, spec: NetworkSpec) -> list[str]:
        self._applied.pop(spec.network.name, None)
        underlay = await read_underlay(self._host, self._underlay)
        desired = self._desired(spec, underlay)
        await self._record(spec.network.name, {link.name for link in desired.links if link.kind == "vxlan"})
        done = await reconcile(self._host, desired)
        self._mtus[spec.network.name] = min(link.mtu for link in desired.links)
        if spec.network.kind is NetworkKind.OVERLAY:
            self._applied[spec.network.name] = Applied(spec, underlay)
        return done

    def _desired(self, spec: NetworkSpec, underlay: Underlay) -> State:
        # What comes back from outside, to addresses that were masqueraded, comes in through the underlay.
        router = ipv6_router() if first_block(spec.blocks, 6) is not None else ()
        way_back = State(sysctls=(Sysctl(f"ipv4/conf/{underlay.name}/forwarding", "1"), *router))
        if spec.network.kind is NetworkKind.OVERLAY:
            mtu = mtu_of(spec, overlay_mtu(underlay.mtu, self._underlay))
            return way_back | overlay_state(spec, self._node, self._underlay, mtu)
        return way_back | gateway_state(spec.network.name, spec.blocks, mtu_of(spec, underlay.mtu))

    async def _reconcile_vip_routes(self) -> list[str]:
        return await reconcile_vip_routes(self._host, tuple(self._specs.values()), self._vip_pools)

    async def _attach(self, spec: NetworkSpec, attachment: Attachment, namespace: int) -> tuple[Address, ...]:
        if (going := self._vanishing.get(attachment.container)) is not None:
            await asyncio.wait([going])
        self._refuse_taken(attachment)
        self._attaching[attachment.network] += 1
        try:
            lease = await asyncio.to_thread(self._lease, spec, attachment)
        finally:
            self._attaching[attachment.network] -= 1
        await connect(self._host, namespace, self._endpoint(spec, lease))
        return lease.addresses

    def _refuse_taken(self, attachment: Attachment) -> None:
        if attachment.interface not in INTERFACES:
            known = f"{INTERFACES[0]} to {INTERFACES[-1]}"
            raise NetworkError(f'interface: "{attachment.interface}" is not one of {known}')
        for lease in self._leases.of(attachment.container):
            if (lease.network == attachment.network) != (lease.interface == attachment.interface):
                raise NetworkError(f'its {lease.interface} is attached to "{lease.network}"')

    def _lease(self, spec: NetworkSpec, attachment: Attachment) -> Lease:
        """With subnets of both versions, the IPv4 address is leased."""
        version = min(subnet.version for subnet in spec.network.subnets)
        companions = (*usable(spec, 6), first_block(spec.blocks, 6))
        return self._leases.acquire(
            attachment.container,
            spec.network.name,
            usable(spec, version),
            attachment.address,
            [single for single in spec.singles if single.version == version],
            attachment.interface,
            companions[0] if version == 4 else None,
        )

    def _endpoints(self, spec: NetworkSpec) -> Iterator[Endpoint]:
        """Of the containers that are attached to it and not about to be detached."""
        for lease in self._leases.all():
            if lease.network == spec.network.name and lease.container not in self._vanishing:
                endpoint = self._endpoint(spec, lease)
                if link_exists(endpoint.veth):
                    yield endpoint

    def _endpoint(self, spec: NetworkSpec, lease: Lease) -> Endpoint:
        return Endpoint(
            lease.container,
            lease.interface,
            tuple(Reach(address, _gateway(spec, address)) for address in lease.addresses),
            self._mtus[spec.network.name],
            spec.network.subnets,
        )

    async def _record(self, network: str, links: set[str]) -> None:
        """Remember the links of a network whose names do not follow from its own, and remove those it had before."""
        before = self._recorded(network)
        if before == links and (self._records / network).exists():
            return
        await self._host.apply([RemoveLink(name) for name in sorted(before - links) if link_exists(name)])
        write_durably(self._records / network, "\n".join(sorted(links)).encode())

    def _recorded(self, network: str) -> set[str]:
        try:
            return set(RECORDED_LINK.findall((self._records / network).read_text()))
        except FileNotFoundError:
            return set()


def _gateway(spec: NetworkSpec, address: Address) -> Address:
    """Of the block that `address` is in; of the first of its version, if it is a single one."""
    block = next((block for block in spec.blocks if address in block.subnet), None)
    if block is None and address in spec.singles:
        block = first_block(spec.blocks, address.version)
    if block is None:
        raise NetworkError(f"its address {address} is in no block that this node has now")
    return block.gateway


@contextmanager
def _while(operation: str) -> Iterator[None]:
    """Names the operation in whatever fails in it, with the first cause chained once."""
    try:
        yield
    except NetworkError as error:
        raise NetworkError(f"{operation}: {error}") from error.__cause__
    except OSError as error:
        raise NetworkError(f"{operation}: {error}") from error
