"""Virtual addresses: what a port's label asks for, and the table entry that every node programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

from model.network import Address
from model.task import Protocol

VIP_NAME = re.compile(r"/?([A-Za-z0-9][A-Za-z0-9/_.-]{0,200})")


@dataclass(frozen=True, slots=True)
class VipLabel:
    """What a label asks for: a `name` to be given an address from the pool, or an `address` outright; never both."""

    port: int
    name: str = ""
    address: Address | None = None


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    """`outside` is where other nodes than its own reach it, if that is not its own address; port 0: they do not."""

    task_id: str
    node: str
    address: Address
    port: int
    weight: int = 1
    outside: tuple[Address, int] | None = None


@dataclass(frozen=True, slots=True)
class Vip:
    """One row of the table. `backends` is sorted, so equal tables compare equal. `name` is for people."""

    address: Address
    port: int
    protocol: Protocol
    name: str
    backends: tuple[Backend, ...] = ()

    @property
    def key(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else f"{self.address}"
        return f"{host}:{self.port}/{self.protocol}"

    def seen_from(self, node: str) -> Vip:
        """With the backends as that node reaches them."""
        if all(backend.outside is None for backend in self.backends):
            return self
        return replace(self, backends=tuple(_seen_from(node, self.backends)))


def _seen_from(node: str, backends: Iterable[Backend]) -> Iterator[Backend]:
    for backend in backends:
        if backend.outside is None or backend.node == node:
            yield replace(backend, outside=None)
        elif backend.outside[1]:
            yield replace(backend, address=backend.outside[0], port=backend.outside[1], outside=None)


def is_vip_label(key: str) -> bool:
    """DC/OS takes any label whose key starts with VIP, in any case (`VIP_0`, `vip1`)."""
    return key.upper().startswith("VIP")


def parse_label(value: str) -> VipLabel:
    """`/web:80` or `10.1.2.3:80` or `[fd01:c::1]:80`. Raises ValueError that says what is wrong with the value."""
    host, colon, port_text = value.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit() or not 1 <= int(port_text) <= 65535:
        raise ValueError(f"{value!r} must end in :port with a port from 1 to 65535")
    try:
        return VipLabel(int(port_text), address=ip_address(host.strip("[]")))
    except ValueError:
        pass
    match = VIP_NAME.fullmatch(host)
    if not match:
        raise ValueError(f"{value!r} must be /name:port or address:port")
    return VipLabel(int(port_text), name=match[1].strip("/"))
