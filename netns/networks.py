"""The networks of a node: the driver that the agent and its isolators use, over every kind of network there is.

It reads `<state>/leases` and `<state>/networks` and what the kernel has; it writes both, always the disk first when
something is made and the kernel first when something is removed. So whatever the kernel has of ours has a file or a
name that says whose it is, and after a crash between any two steps the next `configure`, `attach` or `gc` mends it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from model.network import NETWORK_NAME, Address, Block, NetworkKind, Subnet
from model.task import Bandwidth
from netns.bandwidth import limit, remove_strays, unlimit
from netns.cni.driver import CniDriver
from netns.container import Endpoint, loopback_only
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.durable import write_durably
from netns.endpoints import Endpoints
from netns.gateway import gateway_state
from netns.ipam.leases import Leases
from netns.link import INTERFACES, VXLAN_PREFIX, RemoveLink, gateway_name, veth_names, vxlan_name
from netns.namespace import namespace_of
from netns.netlink import Netlink, link_exists
from netns.overlay.offload import reconcile_offload
from netns.overlay.vxlan import overlay_mtu, overlay_state, peers_state
from netns.reconcile import State, diff, perform, reconcile
from netns.route import read_foreign_routes
from netns.spec import KERNEL_IPV6, NATIVE, first_block, mtu_of, refuse_bad, refuse_routes, without_ipv6
from netns.sysctl import Sysctl, ipv6_router
from netns.underlay import Underlay, read_underlay
from netns.vip_route import reconcile_vip_routes

log = structlog.get_logger()

RECORDED_LINK = re.compile(VXLAN_PREFIX + "[0-9]{1,8}")


@dataclass(frozen=True, slots=True)
class Applied:
    """What the kernel was last made to have of a network, as far as we know."""

    spec: NetworkSpec
    underlay: Underlay


class Networks:
    """Implements `netns.driver.Driver` for the node whose namespace the event loop's thread is in. `underlay` is this
    node's address among nodes. Use as an asynchronous context manager: it keeps a netlink socket."""

    def __init__(
        self,
        state_dir: Path,
        node: str,
        boot_id: str,
        underlay: Address,
        *,
        cni_path: Sequence[Path] = (),
        checksum_offload: bool = True,
    ) -> None:
        self._cni = CniDriver(state_dir / "cni", cni_path)
        self._records = state_dir / "networks"
        self._node = node
        self._underlay = underlay
        self._checksum_offload = checksum_offload
        self._host = Netlink()
        self._endpoints = Endpoints(self._host, Leases(state_dir / "leases", boot_id))
        self._specs: dict[str, NetworkSpec] = {}
        self._applied: dict[str, Applied] = {}
        self._mtus: dict[str, int] = {}
        self._vip_pools: tuple[Subnet, ...] = ()
        self._configuring = asyncio.Lock()
        self._limits: dict[str, Bandwidth] = {}  # of containers that were limited

    async def __aenter__(self) -> Self:
        await self._host.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._endpoints.settle()
        finally:
            self._host.close()

    @property
    def underlay(self) -> Address:
        return self._underlay

    def validate(self, spec: NetworkSpec) -> None:
        if spec.network.kind is NetworkKind.CNI:
            return self._cni.validate(spec)
        refuse_bad(spec, self._node, self._underlay, self._specs.values())

    async def configure(self, spec: NetworkSpec) -> None:
        if spec.network.kind is NetworkKind.CNI:
            return await self._cni.configure(spec)
        self.validate(spec)
        if not KERNEL_IPV6.exists():
            spec = without_ipv6(spec)
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
                done += await self._endpoints.mend(spec, self._mtus[network])
                return done + await self._reconcile_vip_routes()

    async def restore(self, links: frozenset[str] | None = None) -> list[str]:
        """Connect containers again whose link is gone while they are not, and put right what the node's end of `links`
        (None: of all) has lost, limits included. Returns what was done, in words."""
        done: list[str] = []
        for spec in tuple(self._specs.values()):
            if spec.network.kind not in NATIVE:
                with _while(f'mend links of containers on "{spec.network.name}"'):
                    done += await self._endpoints.mend(spec, self._mtus[spec.network.name], links)
        for container, bandwidth in tuple(self._limits.items()):
            if there := _links_of(container):
                with _while(f"limit bandwidth of {container}"):
                    done += await limit(self._host, container, there, bandwidth)
        return done

    def recall(self, attachments: Iterable[Attachment]) -> None:
        """Say which containers are attached, after a restart: should one lose its link, it gets it back."""
        self._endpoints.recall(attachments)

    @property
    def names(self) -> tuple[str, ...]:
        """The networks that are configured."""
        return tuple(sorted(self._specs))

    @property
    def linked(self) -> tuple[str, ...]:
        """Those of them that give a container a link."""
        return tuple(name for name in self.names if self._specs[name].network.kind not in NATIVE)

    @property
    def port(self) -> int:
        """Of the netlink socket through which this node's own links are changed."""
        return self._host.port

    def known(self) -> frozenset[str]:
        return self._of_own() | self._specs.keys() | self._cni.known()

    async def remove(self, network: str) -> None:
        await self._cni.remove(network)
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
        if attachment.network in self._cni.known():
            if attachment.netns_path:
                raise NetworkError(f'cni "{attachment.network}": other runtimes execute its plug-ins themselves')
            return await self._cni.attach(attachment)
        spec = self._specs.get(attachment.network)
        kind = spec.network.kind if spec else "network"
        with _while(f'attach {attachment.container} to {kind} "{attachment.network}"'):
            if spec is None:
                raise NetworkError("not configured on this node")
            if attachment.netns_path and spec.network.kind in NATIVE:
                raise NetworkError("it gives containers of other runtimes no link")
            if spec.network.kind is NetworkKind.HOST:
                return ()
            with namespace_of(attachment.netns_pid, attachment.netns_path) as namespace:
                if spec.network.kind is NetworkKind.NONE:
                    await loopback_only(namespace)
                    return ()
                return await self._endpoints.attach(spec, self._mtus[attachment.network], attachment, namespace)

    def endpoints(self, container: str) -> tuple[Endpoint, ...]:
        """What `attach` made for the container, as long as its networks are configured."""
        with _while(f"endpoints of {container}"):
            return self._endpoints.of(container, self._specs, self._mtus)

    def gateways(self, container: str) -> tuple[Address, ...]:
        return tuple(
            reach.gateway
            for endpoint in self.endpoints(container)
            if endpoint.interface == INTERFACES[0]
            for reach in endpoint.reaches
        )

    async def check(self, container: str) -> None:
        """Raises NetworkError when what `attach` made is not as it was. Nothing is changed."""
        await self._cni.check(container)
        with _while(f"check {container}"):
            wrong = [words for endpoint in self.endpoints(container) for words in await self._endpoints.wrong(endpoint)]
            if wrong:
                raise NetworkError("; ".join(wrong))

    def plugged(self) -> list[str]:
        """Containers that plug-ins have connected."""
        return self._cni.containers()

    async def detach(self, container: str) -> None:
        try:
            await self._cni.detach(container)
        finally:
            await self._detach(container)

    async def _detach(self, container: str) -> None:
        self._limits.pop(container, None)
        with _while(f"detach {container}"):
            await self._endpoints.detach(container)
            await unlimit(self._host, container)

    async def limit(self, container: str, bandwidth: Bandwidth | None) -> None:
        with _while(f"limit bandwidth of {container}"):
            if not (links := _links_of(container)):
                raise NetworkError("it is not attached")
            await limit(self._host, container, links, bandwidth)
        self._limits.pop(container, None)
        if bandwidth is not None:
            self._limits[container] = bandwidth

    async def gc(self, valid: frozenset[str]) -> None:
        errors: list[NetworkError] = []
        try:
            await self._cni.gc(valid)
        except NetworkError as error:
            errors.append(error)
        for container in sorted(self._endpoints.owners() - valid):
            log.info("releasing addresses of a container that is gone", container=container)
            try:
                await self.detach(container)
            except NetworkError as error:  # what the others have is given back all the same
                errors.append(error)
        with _while("remove links of containers that are gone"):
            await self._endpoints.remove_strays(valid)
            await remove_strays(self._host, valid)
        if errors:
            raise NetworkError("; ".join(map(str, errors))) from ExceptionGroup("gc", errors)

    def addresses(self, container: str) -> tuple[Address, ...]:
        return (*self._endpoints.addresses(container), *self._cni.addresses(container))

    def released(self) -> tuple[Block, ...]:
        retiring = tuple(block for spec in self._specs.values() for block in spec.retiring)
        return self._endpoints.unused(retiring) if retiring else ()

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
        if spec.network.name not in self._specs and not link_exists(gateway_name(spec.network.name)):
            refuse_routes(spec, await read_foreign_routes(self._host))
        desired = self._desired(spec, underlay)
        await self._record(spec.network.name, {link.name for link in desired.links if link.kind == "vxlan"})
        done = await reconcile(self._host, desired)
        self._mtus[spec.network.name] = min(link.mtu for link in desired.links)
        if spec.network.vni is not None:
            done += reconcile_offload(vxlan_name(spec.network.vni), self._checksum_offload)
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
        awaited = self._of_own() - self._specs.keys()
        return await reconcile_vip_routes(self._host, tuple(self._specs.values()), self._vip_pools, awaited)

    async def _record(self, network: str, links: set[str]) -> None:
        """Remember the links of a network whose names do not follow from its own, and remove those it had before."""
        before = self._recorded(network)
        if before == links and (self._records / network).exists():
            return
        await self._host.apply([RemoveLink(name) for name in sorted(before - links) if link_exists(name)])
        write_durably(self._records / network, "\n".join(sorted(links)).encode())

    def _of_own(self) -> frozenset[str]:
        """Networks whose links are this driver's, since it or one before it configured them."""
        try:
            return frozenset(path.name for path in self._records.iterdir() if NETWORK_NAME.fullmatch(path.name))
        except FileNotFoundError:
            return frozenset()

    def _recorded(self, network: str) -> set[str]:
        try:
            return set(RECORDED_LINK.findall((self._records / network).read_text()))
        except FileNotFoundError:
            return set()


def _links_of(container: str) -> list[str]:
    return sorted(name for name in veth_names(container) if link_exists(name))


@contextmanager
def _while(operation: str) -> Iterator[None]:
    """Names the operation in whatever fails in it, with the first cause chained once."""
    try:
        yield
    except NetworkError as error:
        raise NetworkError(f"{operation}: {error}") from error.__cause__
    except OSError as error:
        raise NetworkError(f"{operation}: {error}") from error
