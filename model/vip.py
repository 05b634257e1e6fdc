"""Virtual addresses: what a port's label asks for, and the table entry that every node programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from model.network import Address
from model.task import Protocol

AFFINITY, PREFER_LOCAL = "tepui/affinity", "tepui/prefer-local"
DRAIN, EXTERNAL = "tepui/drain", "tepui/external"
LONGEST_AFFINITY_S, LONGEST_DRAIN_S, DEFAULT_DRAIN_S = 86_400, 3600, 5
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
    """One row of the table. `backends` is sorted, so equal tables compare equal. `name` is for people.

    `affinity_s`: a client's connections go where its last one went, unless that is longer ago; 0: anywhere.
    `prefer_local`: to backends on the client's node, if there are any. `external`: also for clients from outside of the
    cluster, by nodes that let them in."""

    address: Address
    port: int
    protocol: Protocol
    name: str
    backends: tuple[Backend, ...] = ()
    affinity_s: int = 0
    prefer_local: bool = False
    external: bool = False

    @property
    def key(self) -> str:
        return vip_key(self.address, self.port, self.protocol)

    def seen_from(self, node: str) -> Vip:
        """With the backends to which that node's clients go, as it reaches them."""
        near = tuple(backend for backend in self.backends if backend.node == node and backend.weight > 0)
        chosen = near if self.prefer_local and near else self.backends
        if chosen == self.backends and all(backend.outside is None for backend in chosen):
            return self
        return replace(self, backends=tuple(_seen_from(node, chosen)))


def vip_key(address: Address, port: int, protocol: Protocol) -> str:
    host = f"[{address}]" if address.version == 6 else f"{address}"
    return f"{host}:{port}/{protocol}"


def _seen_from(node: str, backends: Iterable[Backend]) -> Iterator[Backend]:
    for backend in backends:
        if backend.outside is None or backend.node == node:
            yield replace(backend, outside=None)
        elif backend.outside[1]:
            yield replace(backend, address=backend.outside[0], port=backend.outside[1], outside=None)


def parse_options(labels: Mapping[str, str]) -> tuple[int, bool, bool]:
    """Of a port's labels, what they say of its VIPs: `affinity_s`, `prefer_local`, `external`. Raises ValueError that
    names the label."""
    seconds = _seconds(labels, AFFINITY, LONGEST_AFFINITY_S, 0)
    return seconds, _truth(labels, PREFER_LOCAL), _truth(labels, EXTERNAL)


def parse_drain(labels: Mapping[str, str]) -> int:
    """For how many seconds a task that has left its VIPs goes on while clients are connected to this port. Raises
    ValueError that names the label."""
    return _seconds(labels, DRAIN, LONGEST_DRAIN_S, DEFAULT_DRAIN_S)


def _truth(labels: Mapping[str, str], label: str) -> bool:
    value = labels.get(label, "false")
    if value not in ("true", "false"):
        raise ValueError(f"label {label}: {value!r} must be true or false")
    return value == "true"


def _seconds(labels: Mapping[str, str], label: str, most: int, default: int) -> int:
    seconds = labels.get(label, str(default))
    if not (seconds.isascii() and seconds.isdigit() and int(seconds) <= most):
        raise ValueError(f"label {label}: {seconds!r} must be seconds, from 0 to {most}")
    return int(seconds)


def is_vip_label(key: str) -> bool:
    """DC/OS takes any label whose key starts with VIP, in any case (`VIP_0`, `vip1`)."""
    return key.upper().startswith("VIP")


def parse_label(value: str) -> VipLabel:
    """`/web:80` or `10.1.2.3:80` or `[fd01:c::1]:80`. Names that are one in DNS, where there are no slashes, are one
    here. Raises ValueError that says what is wrong with the value."""
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
    return VipLabel(int(port_text), name=match[1].replace("/", "").lower())
