"""The names that the cluster itself answers for: which there are, and what each has.

Of a task `3f2a` of `/group/app` in the framework `services`, with the domain `tepui.internal`:

    app-group.services.containerip.tepui.internal         A, AAAA   its own address (its node's, on the node's network)
    app-group.services.agentip.tepui.internal             A, AAAA   its node's
    app-group.services.autoip.tepui.internal              A, AAAA   its node's where it is on the node's network or a
                                                                    port is mapped, else its own
    _http._tcp.app-group.services.autoip.tepui.internal   SRV       where its port `http` is; so for the other two
    _tcp.app-group.services.autoip.tepui.internal         SRV       where any port is
    3f2a.app-group.services.autoip.tepui.internal         A, AAAA   one task: what SRV names

and of a VIP `/group/app:80`: `groupapp.services.l4lb.tepui.internal`. Addresses have names too. DC/OS' names are other
words for these (`dcos.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from model.names import NamedTask, app_label, port_label, task_label, vip_name
from model.network import Address
from model.task import Port
from netns.dns.dcos import MASTER, Domains

Counted = TypeVar("Counted")
A, AAAA, PTR, SRV = "A", "AAAA", "PTR", "SRV"
KINDS = ("containerip", "agentip", "autoip")
REVERSE = ("in-addr.arpa", "ip6.arpa")


@dataclass(frozen=True, slots=True)
class NamedVip:
    """`name` is `<framework>/<name>`."""

    name: str
    address: Address


@dataclass(frozen=True, slots=True)
class Service:
    """RFC 2782, without priority and weight."""

    target: str
    port: int


Value = Address | Service | str


@dataclass(frozen=True, slots=True)
class Record:
    """`value` is an Address (A, AAAA), a Service (SRV) or a name (PTR)."""

    name: str
    type: str
    value: Value


class Zone:
    """Things are put and removed by key; what several of them have is there for as long as one of them is. Names are
    asked for in any of the cluster's domains."""

    def __init__(self, domains: Domains) -> None:
        self._domains = domains
        self._things: dict[str, tuple[Record, ...]] = {}
        self._records: dict[str, dict[Record, int]] = {}  # by name: how many things have each
        self._above: Counter[str] = Counter()  # names that others are below
        self._add(_addresses(f"{MASTER}.{domains.own}", domains.master))

    def put(self, key: str, thing: NamedTask | NamedVip) -> None:
        self.remove(key)
        self._things[key] = tuple(records(thing, self._domains.own))
        self._add(self._things[key])

    def remove(self, key: str) -> None:
        for record in self._things.pop(key, ()):
            _take_one(self._records[record.name], record)
            if not self._records[record.name]:
                del self._records[record.name]
                for name in _ancestors(record.name):
                    _take_one(self._above, name)

    def owns(self, name: str) -> bool:
        return any(name == apex or name.endswith(f".{apex}") for apex in self._domains.apexes)

    def apex(self, name: str) -> str:
        """Of the zone that `name` is in; its own parent for the name of an address."""
        found = [apex for apex in self._domains.apexes if name == apex or name.endswith(f".{apex}")]
        return found[0] if found else name.partition(".")[2]

    def exists(self, name: str) -> bool:
        """Also when it has no records of its own, but a name below it has: RFC 8020."""
        own = self._domains.canonical(name)
        return own in self._records or own in self._above or name in self._domains.apexes

    def find(self, name: str, kind: str) -> list[Value]:
        found = self._records.get(self._domains.canonical(name), ())
        return [record.value for record in found if record.type == kind]

    def keys(self) -> set[str]:
        return set(self._things)

    def _add(self, found: Iterable[Record]) -> None:
        for record in found:
            if record.name not in self._records:
                self._records[record.name] = {}
                self._above.update(_ancestors(record.name))
            of_name = self._records[record.name]
            of_name[record] = of_name.get(record, 0) + 1


def records(thing: NamedTask | NamedVip, domain: str) -> Iterator[Record]:
    return _of_vip(thing, domain) if isinstance(thing, NamedVip) else _of_task(thing, domain)


def _of_task(task: NamedTask, domain: str) -> Iterator[Record]:
    """In the order of the table above."""
    app, own = app_label(task.app), task_label(task.id)
    for kind in KINDS:
        everyone = f"{app}.{task.framework}.{kind}.{domain}"
        target = f"{own}.{everyone}"
        for name in (everyone, target):
            yield from _addresses(name, addresses_of(task, kind))
        for port, number, protocol in _ports(task, kind):
            service = Service(target, number)
            yield Record(f"_{protocol}.{everyone}", SRV, service)
            if port.name:
                yield Record(f"_{port_label(port.name)}._{protocol}.{everyone}", SRV, service)
    for address in task.addresses:
        yield Record(address.reverse_pointer, PTR, f"{own}.{app}.{task.framework}.containerip.{domain}")


def _of_vip(vip: NamedVip, domain: str) -> Iterator[Record]:
    if full := vip_name(vip.name, domain):
        yield from _addresses(full, (vip.address,))
        yield Record(vip.address.reverse_pointer, PTR, full)


def addresses_of(task: NamedTask, kind: str) -> tuple[Address, ...]:
    return task.node if _by_node(task, kind) else task.addresses


def _by_node(task: NamedTask, kind: str) -> bool:
    if kind == "containerip":
        return not task.addresses
    mapped = any(port.host is not None for port in task.ports)
    return kind == "agentip" or not task.addresses or mapped


def _ports(task: NamedTask, kind: str) -> Iterator[tuple[Port, int, str]]:
    """Those that can be reached there, each with its number there and one of its protocols."""
    for port in task.ports:
        number = port.host if task.addresses and _by_node(task, kind) else port.number
        if number is not None:
            for protocol in port.protocols:
                yield port, number, protocol.value


def _addresses(name: str, addresses: Iterable[Address]) -> Iterator[Record]:
    for address in addresses:
        yield Record(name, A if address.version == 4 else AAAA, address)


def _take_one(counter: dict[Counted, int], key: Counted) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _ancestors(name: str) -> list[str]:
    labels = name.split(".")
    return [".".join(labels[start:]) for start in range(1, len(labels))]
