"""Connects a container to its network through the driver, and gives it the files that name resolution reads.

The addresses are only known once the container's namespaces exist, so /etc/hosts is written in `prepare` with what
is known and completed in `isolate`: it is a bind mount of the same file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from isolators.base import BundlePart, Container, Isolator, IsolatorError
from isolators.namespaces import hostname
from model.network import Address
from netns.driver import Attachment, Driver, NetworkError

Mount = dict[str, object]

UNCONNECTED = ("host", "none")
LOOPBACK = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"


class NetworkIsolator(Isolator):
    name = "network"

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        connected = frozenset(container.id for container in known if container.task.network not in UNCONNECTED)
        try:
            await self._driver.gc(connected)
        except NetworkError as error:
            raise IsolatorError(str(error)) from error

    async def prepare(self, container: Container) -> BundlePart:
        """With the host's network the node's own files are right."""
        files = {"/etc/hosts": container.directory / "hosts", "/etc/resolv.conf": container.directory / "resolv.conf"}
        if container.task.network == "host":
            return {"mounts": _node_files(files)}
        _write_hosts(container, ())
        files["/etc/resolv.conf"].write_bytes(_resolv_conf())
        return {"mounts": [_bind(source, path) for path, source in files.items()]}

    async def isolate(self, container: Container, pid: int) -> tuple[Address, ...]:
        if container.task.network in UNCONNECTED:
            return ()
        try:
            addresses = await self._driver.attach(Attachment(container.id, container.task.network, pid))
        except NetworkError as error:
            raise IsolatorError(str(error)) from error
        _write_hosts(container, addresses)
        return addresses

    async def cleanup(self, container: Container) -> None:
        if container.task.network in UNCONNECTED:
            return
        try:
            await self._driver.detach(container.id)
        except NetworkError as error:
            raise IsolatorError(str(error)) from error


def _write_hosts(container: Container, addresses: Iterable[Address]) -> None:
    """In place: a new file would not be the one that is mounted."""
    own = "".join(f"{address} {hostname(container.id)}\n" for address in addresses)
    (container.directory / "hosts").write_text(LOOPBACK + own, encoding="ascii")


def _resolv_conf() -> bytes:
    try:
        return Path("/etc/resolv.conf").read_bytes()
    except FileNotFoundError:
        return b""


def _node_files(paths: Iterable[str]) -> list[Mount]:
    return [_bind(Path(path), path) for path in paths if Path(path).exists()]


def _bind(source: Path, destination: str) -> Mount:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["bind", "ro"]}
