"""Connects a container to its networks through the driver, has the firewall guard it before its program runs, and gives
it the files that name resolution reads.

A sandbox is connected when it is made; who its guest is, is known when it gets its task. A pod is connected once, by
its holder: its containers have the addresses of that, and each is a guest with them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import structlog

from isolators.base import BundlePart, Container, Isolator, IsolatorError, Sandbox, Unsupported
from isolators.namespaces import hostname
from isolators.resolv_conf import resolv_conf
from model.names import DEFAULT_DOMAIN
from model.network import Address
from model.policy import app_of
from model.task import Bandwidth, Usage
from netns.connections import Connections
from netns.dns.table import NODE_ADDRESS
from netns.driver import Attachment, Driver, NetworkError
from netns.firewall.table import Firewall, Guest
from netns.link import VETH_PREFIX, veth_name, veth_names
from netns.traffic import Traffic, read_traffic

log = structlog.get_logger()

Mount = dict[str, object]

UNCONNECTED = ("host", "none")
RESOLV_CONF = "/etc/resolv.conf"
# What the directories of containers are mounted with has to be said: a runtime in a user namespace may not lift it.
OPTIONS = ("bind", "ro", "nosuid", "nodev")
FRESH_S = 0.2
LOOPBACK = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"


class NetworkIsolator(Isolator):
    name = "network"

    def __init__(
        self,
        driver: Driver,
        firewall: Firewall,
        others: Callable[[], tuple[Guest, ...]] = tuple,
        domain: str = DEFAULT_DOMAIN,
    ) -> None:
        """`others` are guests that are no tasks' containers: after a restart they are here too. `domain` is that of the
        cluster's names."""
        self._driver = driver
        self._firewall = firewall
        self._domain = domain
        self._others = others
        self._connections = Connections()
        self._traffic: dict[str, Traffic] = {}  # by link, of the last look
        self._looked_at = -FRESH_S

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        others = self._others()
        connected = frozenset(guest.container for guest in others) | frozenset(
            container.id
            for container in known
            if container.task.network not in UNCONNECTED and container.sandbox.holder is None
        )
        guests = (*filter(None, map(self._guest, known)), *others)
        await _all([partial(self._firewall.recover, guests), partial(self._driver.gc, connected)])
        limits = {_connected(each.sandbox): limit for each in known if (limit := each.task.bandwidth) is not None}
        for container, limit in limits.items():  # every task of a pod says what is its pod's
            await self._recall_limit(container, limit)

    async def isolate(self, sandbox: Sandbox, pid: int) -> tuple[Address, ...]:
        if sandbox.network in UNCONNECTED:
            return ()
        if sandbox.holder is not None:
            return self._driver.addresses(sandbox.holder.id)
        addresses: tuple[Address, ...] = ()
        try:
            for attachment in _attachments(sandbox, pid):
                addresses += await self._driver.attach(attachment)
        except NetworkError as error:
            raise IsolatorError(str(error)) from error
        return addresses

    async def prepare(self, container: Container) -> BundlePart:
        """With the host's network names are those of the node, and the cluster's."""
        if container.task.network == "host":
            asked = _bind(_written(container, RESOLV_CONF, self._resolv_conf(container)), RESOLV_CONF)
            return {"mounts": [*_node_files(("/etc/hosts",)), asked]}
        await self._guard(container)
        files = {
            "/etc/hosts": _hosts(container, self._driver.addresses(_connected(container.sandbox))),
            RESOLV_CONF: self._resolv_conf(container),
        }
        return {"mounts": [_bind(_written(container, path, text), path) for path, text in files.items()]}

    async def usage(self, container: Container, usage: Usage) -> Usage:
        """Of all its links. One look at all of the node's serves all containers that are asked about at about the same
        time. A link goes with the container's last process: what it counted until the last look remains. A pod's counts
        for its first task."""
        if container.task.network in UNCONNECTED or not _speaks_for_all(container):
            return usage
        if (now := time.monotonic()) - self._looked_at >= FRESH_S:
            self._traffic |= _read_traffic()
            self._looked_at = now
        links = _links(_connected(container.sandbox), len(container.task.interfaces))
        return _counted(usage, [self._traffic[name] for name in links if name in self._traffic])

    async def connections(self, container: Container, ports: Collection[int]) -> int:
        own = self._driver.addresses(_connected(container.sandbox))
        addresses = (self._driver.underlay,) if container.task.network == "host" else own
        try:
            return await self._connections.open_to((address, port) for address in addresses for port in ports)
        except NetworkError as error:
            raise IsolatorError(str(error)) from error

    async def cleanup(self, sandbox: Sandbox) -> None:
        if sandbox.network in UNCONNECTED:
            return
        undone = [partial(self._firewall.dismiss, sandbox.id)]
        if sandbox.holder is None:
            for name in veth_names(sandbox.id):
                self._traffic.pop(name, None)
            undone.append(partial(self._driver.detach, sandbox.id))
        await _all(undone)

    async def _guard(self, container: Container) -> None:
        """Nothing reaches the program, or is led to it, but what may; and its links are as fast as they are to be."""
        try:
            if (guest := self._guest(container)) is not None:
                await self._firewall.admit(guest)
            if container.task.bandwidth is not None and _speaks_for_all(container):
                await self._driver.limit(_connected(container.sandbox), container.task.bandwidth)
        except NetworkError as error:
            raise IsolatorError(str(error)) from error

    def _resolv_conf(self, container: Container) -> bytes:
        """On a network whose containers do not reach the node's name server, the node's own file."""
        task, node = container.task, _node_resolv_conf()
        if task.network == "none":
            return b""
        try:
            servers = (NODE_ADDRESS,) if task.network == "host" else self._gateways(container)
        except NetworkError as error:
            raise IsolatorError(str(error)) from error
        return (resolv_conf(servers, task.framework, self._domain, node) if servers else node).encode()

    def _gateways(self, container: Container) -> tuple[Address, ...]:
        return self._driver.gateways(_connected(container.sandbox))

    async def _recall_limit(self, container: str, limit: Bandwidth) -> None:
        """It holds still, and is to be known, so that it is put back should somebody take it away."""
        try:
            await self._driver.limit(container, limit)
        except NetworkError as error:  # its links are gone with its last process, as a rule
            log.info("bandwidth not looked after", container=container, reason=str(error))

    def _guest(self, container: Container) -> Guest | None:
        """None: it is on no network of ours."""
        if container.task.network in UNCONNECTED:
            return None
        task, addresses = container.task, self._driver.addresses(_connected(container.sandbox))
        published = tuple(port for port in task.ports if port.host is not None)
        return Guest(container.id, app_of(task.framework, task.owner), addresses, published) if addresses else None


async def _all(works: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """One after the other, also when one before has failed."""
    errors = []
    for work in works:
        try:
            await work()
        except NetworkError as error:
            errors.append(error)
    if errors:
        raise IsolatorError("; ".join(map(str, errors))) from errors[0]


def _attachments(sandbox: Sandbox, pid: int) -> Iterator[Attachment]:
    wanted = [(sandbox.network, sandbox.address), *((each.network, each.address) for each in sandbox.interfaces)]
    for number, (network, address) in enumerate(wanted):
        yield Attachment(sandbox.id, network, pid, f"eth{number}", _address(network, address))


def _address(network: str, text: str) -> Address | None:
    try:
        return ip_address(text) if text else None
    except ValueError:
        raise Unsupported(f'network "{network}": {text!r} is no address') from None


def _speaks_for_all(container: Container) -> bool:
    """What is done once for a pod is done with its first task."""
    pod = container.task.pod
    return pod is None or pod.members[0] == container.task.id


def _connected(sandbox: Sandbox) -> str:
    """Whose link it uses."""
    return sandbox.id if sandbox.holder is None else sandbox.holder.id


def _hosts(container: Container, addresses: Iterable[Address]) -> bytes:
    own = "".join(f"{address} {hostname(container.task.id)}\n" for address in addresses)
    return (LOOPBACK + own).encode("ascii")


def _written(container: Container, path: str, content: bytes) -> Path:
    source = container.directory / Path(path).name
    try:
        source.write_bytes(content)
        source.chmod(0o644)  # whatever the agent's umask: all in the container read it
    except OSError as error:
        raise IsolatorError(f"write {source}: {error.strerror}") from error
    return source


def _read_traffic() -> dict[str, Traffic]:
    try:
        return {name: traffic for name, traffic in read_traffic().items() if name.startswith(VETH_PREFIX)}
    except NetworkError as error:
        raise IsolatorError(str(error)) from error


def _links(container: str, more: int) -> list[str]:
    return [veth_name(container, f"eth{number}") for number in range(1 + more)]


def _counted(usage: Usage, links: Sequence[Traffic]) -> Usage:
    """Of the container's ends of its links; nothing is known of one that has none."""
    if not links:
        return usage
    return replace(
        usage,
        net_received_bytes=sum(link.sent_bytes for link in links),
        net_sent_bytes=sum(link.received_bytes for link in links),
        net_received_packets=sum(link.sent_packets for link in links),
        net_sent_packets=sum(link.received_packets for link in links),
        net_received_dropped=sum(link.sent_dropped for link in links),
        net_sent_dropped=sum(link.received_dropped for link in links),
    )


def _node_resolv_conf() -> str:
    try:
        return Path(RESOLV_CONF).read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _node_files(paths: Iterable[str]) -> list[Mount]:
    return [_bind(Path(path), path) for path in paths if Path(path).exists()]


def _bind(source: Path, destination: str) -> Mount:
    return {"destination": destination, "type": "bind", "source": str(source), "options": list(OPTIONS)}
