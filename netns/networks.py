"""The networks of a node: the driver that the agent and its isolators use, over every kind of network there is.

It reads `<state>/leases` and `<state>/networks` and what the kernel has; it writes both, always the disk first when
something is made and the kernel first when something is removed. So whatever the kernel has of ours has a file or a
name that says whose it is, and after a crash between any two steps the next `configure`, `attach` or `gc` mends it.

Containers find links by name and leases by container, so `detach` needs nothing that a restart loses.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from model.network import NETWORK_NAME, Address, Block, NetworkKind, Subnet
from model.task import Bandwidth
from netns.address import link_with
from netns.attachments import Attachments
from netns.bandwidth import limit, remove_strays, unlimit
from netns.container import Endpoint, connect, loopback_only, mend_outside, vanish
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.durable import write_durably
from netns.gateway import gateway_state
from netns.ipam.leases import Leases
from netns.link import VETH_PREFIX, VXLAN_PREFIX, RemoveLink, gateway_name, read_link, read_names, veth_name
from netns.namespace import namespace_of
from netns.netlink import Netlink, link_exists
from netns.overlay.vxlan import overlay_state
from netns.reconcile import State, diff_routes, reconcile
from netns.route import VIP_PROTOCOL, Route, read_routes
from netns.spec import NATIVE, refuse_bad
from netns.sysctl import Sysctl

log = structlog.get_logger()

CONTAINER_VETH = re.compile(VETH_PREFIX + "[0-9a-f]{13}")
RECORDED_LINK = re.compile(VXLAN_PREFIX + "[0-9]{1,8}")
MAX_MTU = 65535  # of a veth; lo has more


@dataclass(frozen=True, slots=True)
class Underlay:
    """The link that has the node's address among nodes."""

    name: str
    mtu: int


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
        self._mtus: dict[str, int] = {}
        self._vip_pools: tuple[Subnet, ...] = ()
        self._configuring = asyncio.Lock()
        self._attachments = Attachments()
        self._restoring = asyncio.Lock()
        self._limits: dict[str, Bandwidth] = {}  # of containers that were limited

    async def __aenter__(self) -> Self:
        await self._host.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.close()

    def validate(self, spec: NetworkSpec) -> None:
        refuse_bad(spec, self._node, self._underlay, self._specs.values())

    async def configure(self, spec: NetworkSpec) -> None:
        self.validate(spec)
        name = spec.network.name
        async with self._configuring:
            with _while(f'configure {spec.network.kind} "{name}"'):
                if spec.network.kind not in NATIVE:
                    await self._configure_links(spec)
                self._specs[name] = spec
                await self._reconcile_vip_routes()

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
                links = [gateway_name(network), *self._recorded(network)]
                await self._host.apply([RemoveLink(name) for name in links if link_exists(name)])
                (self._records / network).unlink(missing_ok=True)
                await self._reconcile_vip_routes()

    async def mend(self, network: str) -> list[str]:
        """Put back what the kernel has lost of a network that is configured. Returns what was done, in words."""
        async with self._configuring:
            spec = self._specs.get(network)
            if spec is None or spec.network.kind in NATIVE:
                return []
            with _while(f'mend {spec.network.kind} "{network}"'):
                return [*await self._configure_links(spec), *await self._reconcile_vip_routes()]

    async def restore(self, links: frozenset[str] | None = None) -> list[str]:
        """Connect containers again whose link somebody removed, with the addresses that they have, and put back what
        the node's end of `links` (None: of all) has lost. Returns what was done, in words."""
        done, errors = [], []
        for attachment in {*self._attachments.broken(), *self._attachments.on(links)}:
            try:
                async with self._restoring:
                    done += await self._restore(attachment)
            except NetworkError as error:
                # A container may have ended meanwhile.
                if self._attachments.is_broken(attachment) or link_exists(veth_name(attachment.container)):
                    errors.append(error)
        if errors:
            raise NetworkError("; ".join(map(str, errors))) from ExceptionGroup("restore", errors)
        return done

    def recall(self, attachments: Iterable[Attachment]) -> None:
        """Say which containers are attached, after a restart: from now on `restore` has an eye on them."""
        for attachment in attachments:
            self._attachments.remember(attachment)

    @property
    def names(self) -> tuple[str, ...]:
        """The networks that are configured."""
        return tuple(sorted(self._specs))

    @property
    def port(self) -> int:
        """Of the netlink socket through which this node's own links are changed."""
        return self._host.port

    async def configure_vip_route(self, pools: Sequence[Subnet]) -> None:
        """Give the node itself a way to virtual addresses in `pools`, so that its own connections get as far as the
        translation. What is not translated ends at the gateway's link. The route follows the networks as they come and
        go; the node talks to VIPs with the gateway's address of its first overlay."""
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
            self._attachments.forget(attachment.container, attachment.interface)  # nobody mends what is being made
            with namespace_of(attachment.netns_pid) as namespace:
                if spec.network.kind is NetworkKind.NONE:
                    await loopback_only(namespace)
                    return ()
                addresses = await self._attach(spec, attachment, namespace)
            self._attachments.remember(attachment)
            return addresses

    async def detach(self, container: str) -> None:
        async with self._restoring:  # what is being connected again is undone afterwards
            self._attachments.forget(container)
        self._limits.pop(container, None)
        with _while(f"detach {container}"):
            await vanish(self._host, container)
            await unlimit(self._host, container)
            if self._leases.of(container):
                await asyncio.to_thread(self._leases.release, container)

    async def limit(self, container: str, bandwidth: Bandwidth | None) -> None:
        with _while(f"limit bandwidth of {container}"):
            await limit(self._host, container, [veth_name(container)], bandwidth)
        self._limits.pop(container, None)
        if bandwidth is not None:
            self._limits[container] = bandwidth

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
        return tuple(lease.address for lease in self._leases.of(container))

    def released(self) -> tuple[Block, ...]:
        leased = [lease.address for lease in self._leases.all()]
        retiring = [block for spec in self._specs.values() for block in spec.retiring]
        return tuple(block for block in retiring if not any(address in block.subnet for address in leased))

    async def _remove_strays(self, valid: frozenset[str]) -> None:
        ours = {name for name in read_names(VETH_PREFIX) if CONTAINER_VETH.fullmatch(name)}
        strays = ours - {veth_name(container) for container in valid}
        with _while("remove links of containers that are gone"):
            await self._host.apply([RemoveLink(name) for name in sorted(strays)])
            await remove_strays(self._host, valid)

    async def _restore(self, attachment: Attachment) -> list[str]:
        container, done = attachment.container, []
        if not self._attachments.holds(attachment):
            return []
        if self._attachments.is_broken(attachment):
            done.append(f'connect {container} to "{attachment.network}" again')
            with _while(done[-1]), namespace_of(attachment.netns_pid) as namespace:
                if (spec := self._specs.get(attachment.network)) is None:
                    raise NetworkError("not configured on this node")
                await self._attach(spec, attachment, namespace)
        elif (endpoint := self._known_endpoint(attachment)) is not None:
            with _while(f"mend the link of {container}"):
                done += await mend_outside(self._host, endpoint)
        limits = self._limits.get(container)
        if limits is not None and link_exists(veth_name(container)):
            with _while(f"limit bandwidth of {container}"):
                done += await limit(self._host, container, [veth_name(container)], limits)
        return done

    async def _configure_links(self, spec: NetworkSpec) -> list[str]:
        underlay = await self._read_underlay()
        desired = self._desired(spec, underlay)
        await self._record(spec.network.name, {link.name for link in desired.links if link.kind == "vxlan"})
        done = await reconcile(self._host, desired)
        self._mtus[spec.network.name] = min(link.mtu for link in desired.links)
        if done:
            log.info("network configured", network=spec.network.name, operations=len(done))
        return done

    def _desired(self, spec: NetworkSpec, underlay: Underlay) -> State:
        # What comes back from outside, to addresses that were masqueraded, comes in through the underlay.
        way_back = State(sysctls=(Sysctl(f"ipv4/conf/{underlay.name}/forwarding", "1"),))
        if spec.network.kind is NetworkKind.OVERLAY:
            return way_back | overlay_state(spec, self._node, self._underlay, underlay.mtu)
        return way_back | gateway_state(spec.network.name, spec.blocks, underlay.mtu)

    async def _read_underlay(self) -> Underlay:
        index = await link_with(self._host, self._underlay)
        if index is None:
            raise NetworkError(f"no link of this node has the underlay address {self._underlay}")
        link = await read_link(self._host, socket.if_indextoname(index))
        if link is None:
            raise NetworkError(f"the link with the underlay address {self._underlay} is gone")
        return Underlay(link.name, min(link.mtu, MAX_MTU))

    async def _reconcile_vip_routes(self) -> list[str]:
        done = []
        home = self._vip_home()
        # A destination has one route: the home gets it when nobody else has it any more.
        for spec in sorted(self._specs.values(), key=lambda spec: spec is home):
            dev = gateway_name(spec.network.name)
            if link_exists(dev):
                pools = self._vip_pools if spec is home else ()
                desired = {Route(dev, pool, source=spec.blocks[0].gateway, protocol=VIP_PROTOCOL) for pool in pools}
                withdrawn, added = diff_routes(frozenset(desired), await read_routes(self._host, dev, VIP_PROTOCOL))
                await self._host.apply([*withdrawn, *added])
                done += [operation.describe() for operation in (*withdrawn, *added)]
        return done

    def _vip_home(self) -> NetworkSpec | None:
        """The network over which the node reaches VIPs: an overlay, since backends may be on other nodes."""
        candidates = [spec for spec in self._specs.values() if spec.network.kind not in NATIVE]
        order = sorted(candidates, key=lambda spec: (spec.network.kind is not NetworkKind.OVERLAY, spec.network.name))
        return order[0] if order else None

    async def _attach(self, spec: NetworkSpec, attachment: Attachment, namespace: int) -> tuple[Address, ...]:
        for lease in self._leases.of(attachment.container):
            if lease.network != spec.network.name:
                raise NetworkError(f'is attached to "{lease.network}"')
        lease = await asyncio.to_thread(self._leases.acquire, attachment.container, spec.network.name, spec.blocks)
        block = next((block for block in spec.blocks if lease.address in block.subnet), None)
        if block is None:
            raise NetworkError(f"its address {lease.address} is in no block that this node has now")
        await connect(self._host, namespace, self._endpoint(attachment, lease.address, block))
        return (lease.address,)

    def _endpoint(self, attachment: Attachment, address: Address, block: Block) -> Endpoint:
        return Endpoint(
            attachment.container,
            attachment.interface,
            address,
            block.gateway,
            self._mtus[block.network],
        )

    def _known_endpoint(self, attachment: Attachment) -> Endpoint | None:
        """With the address that it has; None when it has none any more."""
        spec = self._specs.get(attachment.network)
        for lease in self._leases.of(attachment.container):
            for block in (*spec.blocks, *spec.retiring) if spec and lease.network == attachment.network else ():
                if lease.address in block.subnet:
                    return self._endpoint(attachment, lease.address, block)
        return None

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


@contextmanager
def _while(operation: str) -> Iterator[None]:
    """Names the operation in whatever fails in it, with the first cause chained once."""
    try:
        yield
    except NetworkError as error:
        raise NetworkError(f"{operation}: {error}") from error.__cause__
    except OSError as error:
        raise NetworkError(f"{operation}: {error}") from error
