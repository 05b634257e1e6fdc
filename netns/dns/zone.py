"""The names that the cluster itself answers for: which there are, and what each has.

Of a task `3f2a` of `/group/app` in the framework `services`, with the domain `tepui.internal`:

    app-group.services.containerip.tepui.internal         A, AAAA   its own address (its node's, on the node's network)
    app-group.services.agentip.tepui.internal             A, AAAA   its node's
    app-group.services.autoip.tepui.internal              A, AAAA   its node's where it is on the node's network or a
                                                                    port is mapped, else its own
    _http._tcp.app-group.services.autoip.tepui.internal   SRV       where its port `http` is; so for the other two
    3f2a.app-group.services.autoip.tepui.internal         A, AAAA   one task: what SRV names

and of a VIP `/group/app:80`: `groupapp.services.l4lb.tepui.internal`. With `compat` DC/OS' names mean the same, with
`marathon` for `services`: below `dcos.thisdcos.directory`, `l4lb.thisdcos.directory` and `mesos`, where SRV is
`_http._app-group._tcp.marathon.mesos` or, of all ports, `_app-group._tcp.marathon.mesos`. Addresses have names too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from model.names import NamedTask, app_label, port_label, task_label, vip_labels
from model.network import Address
from model.task import Port

Counted = TypeVar("Counted")
A, AAAA, PTR, SRV = "A", "AAAA", "PTR", "SRV"
KINDS = ("containerip", "agentip", "autoip")
DCOS, MESOS = "thisdcos.directory", "mesos"
DCOS_FRAMEWORKS = {"services": "marathon", "jobs": "metronome"}
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


@dataclass(frozen=True, slots=True)
class Record:
    """`value` is an Address (A, AAAA), a Service (SRV) or a name (PTR)."""

    name: str
    type: str
    value: Address | Service | str


@dataclass(frozen=True, slots=True)
class Domains:
    """`master` are the addresses of the cluster's master, if they are known."""

    own: str
    compat: bool = True
    master: tuple[Address, ...] = ()

    @property
    def apexes(self) -> tuple[str, ...]:
        """All below these is the cluster's to answer, and nobody else's."""
        return (self.own, DCOS, MESOS) if self.compat else (self.own,)


@dataclass(slots=True)
class Zone:
    """Things are put and removed by key; what several of them have is there for as long as one of them is."""

    domains: Domains
    _things: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    _records: dict[str, dict[str, Counter[Address | Service | str]]] = field(default_factory=dict)
    _above: Counter[str] = field(default_factory=Counter)  # names that others are below

    def __post_init__(self) -> None:
        masters = [f"master.{self.domains.own}"]
        if self.domains.compat:
            masters += [f"{name}.{MESOS}" for name in ("leader", "master", "marathon", "metronome")]
        self._add(record for name in masters for record in _addresses(name, self.domains.master))

    def put(self, key: str, thing: NamedTask | NamedVip) -> None:
        self.remove(key)
        found = tuple(vip_records(thing, self.domains) if isinstance(thing, NamedVip) else records(thing, self.domains))
        self._things[key] = found
        self._add(found)

    def remove(self, key: str) -> None:
        for record in self._things.pop(key, ()):
            of_name = self._records[record.name]
            _take_one(of_name[record.type], record.value)
            if not of_name[record.type]:
                del of_name[record.type]
            if not of_name:
                del self._records[record.name]
            for name in _ancestors(record.name):
                _take_one(self._above, name)

    def owns(self, name: str) -> bool:
        return any(name == apex or name.endswith(f".{apex}") for apex in self.domains.apexes)

    def apex(self, name: str) -> str:
        """Of the zone that `name` is in; its own parent for the name of an address."""
        found = [apex for apex in self.domains.apexes if name == apex or name.endswith(f".{apex}")]
        return found[0] if found else name.partition(".")[2]

    def exists(self, name: str) -> bool:
        """Also when it has no records of its own, but a name below it has: RFC 8020."""
        return name in self._records or name in self._above or name in self.domains.apexes

    def find(self, name: str, kind: str) -> list[Address | Service | str]:
        return list(self._records.get(name, {}).get(kind, ()))

    def keys(self) -> set[str]:
        return set(self._things)

    def _add(self, found: Iterable[Record]) -> None:
        for record in found:
            self._records.setdefault(record.name, {}).setdefault(record.type, Counter())[record.value] += 1
            self._above.update(_ancestors(record.name))


def records(task: NamedTask, domains: Domains) -> Iterator[Record]:
    """In the order of the table above."""
    app, own = app_label(task.app), task_label(task.id)
    for framework, suffix in _suffixes(task.framework, domains):
        for kind in KINDS:
            everyone = f"{app}.{framework}.{kind}.{suffix}"
            for name in (everyone, f"{own}.{everyone}"):
                yield from _addresses(name, addresses_of(task, kind))
            for port, number, protocol in _ports(task, kind):
                if port.name:
                    service = Service(f"{own}.{everyone}", number)
                    yield Record(f"_{port_label(port.name)}._{protocol}.{everyone}", SRV, service)
    if domains.compat:
        yield from _mesos(task, app, own)
    for address in task.addresses:
        yield Record(address.reverse_pointer, PTR, f"{own}.{app}.{task.framework}.containerip.{domains.own}")


def vip_records(vip: NamedVip, domains: Domains) -> Iterator[Record]:
    framework, _, name = vip.name.partition("/")
    if not name:  # its label has an address and no name
        return
    full = f"{vip_labels(name)}.{framework}.l4lb.{domains.own}"
    yield from _addresses(full, (vip.address,))
    yield Record(vip.address.reverse_pointer, PTR, full)
    if domains.compat:
        yield from _addresses(f"{vip_labels(name)}.{_dcos_framework(framework)}.l4lb.{DCOS}", (vip.address,))


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


def _mesos(task: NamedTask, app: str, own: str) -> Iterator[Record]:
    framework = _dcos_framework(task.framework)
    yield from _addresses(f"{app}.{framework}.{MESOS}", addresses_of(task, "autoip"))
    yield from _addresses(f"{app}.{framework}.slave.{MESOS}", task.node)
    for port, number, protocol in _ports(task, "autoip"):
        service = Service(f"{own}.{app}.{framework}.autoip.dcos.{DCOS}", number)
        yield Record(f"_{app}._{protocol}.{framework}.{MESOS}", SRV, service)
        if port.name:
            yield Record(f"_{port_label(port.name)}._{app}._{protocol}.{framework}.{MESOS}", SRV, service)


def _suffixes(framework: str, domains: Domains) -> Iterator[tuple[str, str]]:
    yield framework, domains.own
    if domains.compat:
        yield _dcos_framework(framework), f"dcos.{DCOS}"


def _dcos_framework(framework: str) -> str:
    return DCOS_FRAMEWORKS.get(framework, framework)


def _addresses(name: str, addresses: Iterable[Address]) -> Iterator[Record]:
    for address in addresses:
        yield Record(name, A if address.version == 4 else AAAA, address)


def _take_one(counter: Counter[Counted], key: Counted) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _ancestors(name: str) -> list[str]:
    labels = name.split(".")
    return [".".join(labels[start:]) for start in range(1, len(labels))]
