"""Which backends every VIP has, computed from the tasks: their states, health, drain and their nodes' reachability.

A VIP exists for as long as there is a task that asks for it; what a name has is kept beyond that (`vip_names.py`). A
change of a task changes its VIPs in the desired state at once, before anybody who waits for that change goes on: only
the first address of a new name has to wait for the store. It costs a look at that task alone; the whole VIP is put
together when a node has to be told of it.

Tasks on nodes that can not be reached are no backends, unless all are on such nodes: then it may as well be the master
that is cut off, and the last that was known to be good goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

from master.desired import Desired
from master.networks import Networks
from master.nodes import Nodes, NodeView
from master.tasks import TaskRecord, Tasks
from master.vip_names import VipNames
from model.network import Address, NetworkKind, Subnet
from model.node import NodeState
from model.task import Port, Protocol, TaskState
from model.vip import Backend, Vip, VipLabel, is_vip_label, parse_label, parse_options, vip_key
from wire import control_pb2 as pb
from wire.networks import backend_part, vip_to_wire


@dataclass(frozen=True, slots=True)
class VipRef:
    """A VIP as a label asks for it: `name` is `<framework>/<name>` and gets addresses, or `address` is given."""

    name: str
    address: Address | None
    port: int
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class _Member:
    """What a task is to a VIP: a backend for each version of IP by which it can be reached now, each with its part of
    the message to nodes, and what it says of how the VIP chooses."""

    backends: tuple[tuple[Backend, bytes], ...]
    options: tuple[int, bool, bool]


class Discovery:
    def __init__(
        self,
        tasks: Tasks,
        nodes: Nodes,
        networks: Networks,
        desired: Desired,
        names: VipNames,
        ranges: tuple[Subnet, ...] = (),
    ) -> None:
        """In `ranges` labels may name addresses outright, and in the pools of `names`."""
        self._tasks = tasks
        self._nodes = nodes
        self._networks = networks
        self._desired = desired
        self._names = names
        self._ranges = ranges
        self._members: dict[VipRef, dict[str, _Member]] = {}  # by task
        self._given: Counter[Address] = Counter()  # that labels name outright
        self._named: dict[str, set[VipRef]] = {}
        self._table: dict[VipRef, tuple[Address, ...]] = {}  # that nodes know; at most one of each version of IP
        self._away: set[str] = set()  # nodes that can not be reached
        self._where: dict[str, Address] = {}
        tasks.listen(self._task_changed)
        nodes.listen(self._node_changed)

    async def load(self) -> None:
        await self._names.load()
        for view in self._nodes.all():
            self._note(view)
        for record in self._tasks.all():
            self._task_changed(None, record)

    def table(self) -> list[Vip]:
        shared = ((ref, address) for ref, addresses in self._table.items() for address in addresses)
        return sorted((self._whole(ref, address) for ref, address in shared), key=lambda vip: vip.key)

    def _whole(self, ref: VipRef, address: Address) -> Vip:
        return self._vip(ref, address, tuple(backend for backend, _ in self._backends(ref, address)))

    def problem(self, label: VipLabel) -> str:
        """Why nobody can have it; empty when one can."""
        if label.address is None:
            return ""
        allowed = (*self._names.pools, *self._ranges)
        if not any(label.address in each for each in allowed):
            return f"is in none of {', '.join(map(str, allowed))} (vip_ranges in master.toml allows more)"
        if label.address.is_loopback or label.address.is_multicast:
            return "is an address of no service"
        if network := self._network_of(label.address):
            return f'is within network "{network}", whose containers and name servers have these'
        if name := self._names.holder(label.address):
            return f"is the address of {name}"
        node = next((node for node, address in self._where.items() if address == label.address), "")
        return f"is the address of node {node}" if node else ""

    def _network_of(self, address: Address) -> str:
        networks = self._networks.all()
        return next((each.name for each in networks if any(address in subnet for subnet in each.subnets)), "")

    def owners(self, framework: str) -> set[str]:
        """Of the framework's, those that have names of VIPs."""
        return self._names.owners(framework)

    async def forget(self, framework: str, owner: str) -> None:
        """Names that only this owner has are free again. Raises StoreError."""
        await self._names.forget(framework, owner, self._heir)

    def _heir(self, name: str) -> str:
        """An owner of tasks that ask for the name; empty when there is none."""
        members = (task_id for ref in self._named.get(name, ()) for task_id in self._members[ref])
        return next((record.spec.owner for task_id in members if (record := self._tasks.get(task_id))), "")

    def _task_changed(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        record = after or before
        assert record is not None
        if before is not None and after is not None and _does_not_serve_yet(before, after):
            return
        for ref, port in wanted(record):
            if ref not in self._members:
                self._begin(ref)
            members = self._members[ref]
            known = members.pop(record.spec.id, None)
            if after is not None:
                members[record.spec.id] = self._member(after, port)
            if _matters(known, members.get(record.spec.id), members):
                self._publish(ref)

    def _node_changed(self, view: NodeView) -> None:
        if self._note(view):
            refs = set()
            for record in self._tasks.on(view.node.id):
                for ref, port in wanted(record):
                    if ref in self._members:
                        self._members[ref][record.spec.id] = self._member(record, port)
                        refs.add(ref)
            for ref in refs:
                self._publish(ref)

    def _note(self, view: NodeView) -> bool:
        """Whether it is news."""
        name, before = view.node.id, (self._where.get(view.node.id), view.node.id in self._away)
        self._where[name] = view.node.address
        (self._away.discard if view.state is NodeState.ONLINE else self._away.add)(name)
        return before != (self._where[name], name in self._away)

    def _begin(self, ref: VipRef) -> None:
        self._members[ref] = {}
        if ref.address is None:
            self._named.setdefault(ref.name, set()).add(ref)
        else:
            self._given[ref.address] += 1

    def _end(self, ref: VipRef) -> None:
        del self._members[ref]
        if ref.address is not None:
            self._given -= Counter((ref.address,))
            return
        self._named[ref.name].discard(ref)
        if not self._named[ref.name]:
            del self._named[ref.name]

    def _publish(self, ref: VipRef) -> None:
        known, addresses = self._table.pop(ref, ()), self._addresses(ref)
        if addresses:
            self._table[ref] = addresses
        if not self._members[ref]:
            self._end(ref)
        for address in known:
            if address not in addresses:
                self._desired.unshare(f"vip/{vip_key(address, ref.port, ref.protocol)}")
        for address in addresses:
            key = f"vip/{vip_key(address, ref.port, ref.protocol)}"
            self._desired.share_made(key, partial(self._fill, key, ref, address))

    def _addresses(self, ref: VipRef) -> tuple[Address, ...]:
        """Of a name, the first address is there always, and one of another version with the first backend that has it:
        who is told of it goes there."""
        members = self._members[ref]
        if not members or ref.address is not None:
            return (ref.address,) if members and ref.address is not None else ()
        if not self._names.complete(ref.name):
            self._names.give(ref.name, self._heir(ref.name), self._given, partial(self._republish, ref.name))
        first, *others = self._names.get(ref.name) or (None,)
        versions = {backend.address.version for member in members.values() for backend, _ in member.backends}
        return (first, *(each for each in others if each.version in versions)) if first is not None else ()

    def _fill(self, key: str, ref: VipRef, address: Address, item: pb.Item) -> None:
        parts = b"".join(part for _, part in self._backends(ref, address))
        item.key = key
        item.vip.MergeFromString(vip_to_wire(self._vip(ref, address, ())).SerializeToString() + parts)

    def _vip(self, ref: VipRef, address: Address, backends: tuple[Backend, ...]) -> Vip:
        options = _together(member.options for member in self._members[ref].values())
        return Vip(address, ref.port, ref.protocol, ref.name, backends, *options)

    def _backends(self, ref: VipRef, address: Address) -> list[tuple[Backend, bytes]]:
        """In order, each with its part of the message."""
        version = address.version
        all_of_it = [
            each
            for member in self._members[ref].values()
            for each in member.backends
            if each[0].address.version == version
        ]
        near = [each for each in all_of_it if each[0].node not in self._away] if self._away else all_of_it
        return sorted(near or all_of_it, key=_task)

    def _republish(self, name: str) -> None:
        for ref in tuple(self._named.get(name, ())):
            self._publish(ref)

    def _member(self, record: TaskRecord, port: Port) -> _Member:
        backends = tuple((backend, backend_part(backend)) for backend in self._backends_of(record, port))
        return _Member(backends, parse_options(dict(port.labels)))

    def _backends_of(self, record: TaskRecord, port: Port) -> Iterator[Backend]:
        for version in (4, 6) if serving(record) else ():
            if (address := self._address(record, version)) is not None:
                outside = self._outside(record, port, version)
                yield Backend(record.spec.id, record.node, address, port.number, outside=outside)

    def _outside(self, record: TaskRecord, port: Port, version: int) -> tuple[Address, int] | None:
        """Where no other node has a way into the task's network: where its node publishes the port."""
        network, where = self._networks.get(record.spec.network), self._where.get(record.node)
        if network is None or network.kind is not NetworkKind.BRIDGE or where is None:
            return None
        return where, (port.host or 0) if where.version == version else 0

    def _address(self, record: TaskRecord, version: int) -> Address | None:
        if on_host(record):
            where = self._where.get(record.node)
            return where if where is not None and where.version == version else None
        return first_of(record, version)


def _task(backend: tuple[Backend, bytes]) -> str:
    return backend[0].task_id


def _together(options: Iterable[tuple[int, bool, bool]]) -> tuple[int, bool, bool]:
    """While an app changes, its tasks may say different things: what any asks for holds for all."""
    seconds, local, external = zip(*options, strict=True)
    return max(seconds), any(local), any(external)


def serving(record: TaskRecord) -> bool:
    """Whether requests may go to it: running, not about to be stopped, not paused, not ill; with checks, known to be
    well."""
    status = record.status
    return (
        status.state is TaskState.RUNNING
        and (status.healthy is True if record.spec.health_checks else status.healthy is not False)
        and not record.killing
        and not record.paused
        and (bool(status.addresses) or on_host(record))
    )


def _matters(before: _Member | None, after: _Member | None, members: Mapping[str, _Member]) -> bool:
    """Whether the VIP is another one with this member as it is now. One that comes or goes without backends makes no
    difference if another says the same of how the VIP chooses."""
    if before is not None and after is not None:
        return before != after
    one, first = before or after, next(iter(members.values()), None)
    return one is None or first is None or first is one or bool(one.backends) or first.options != one.options


def _does_not_serve_yet(before: TaskRecord, after: TaskRecord) -> bool:
    """No VIP is any different."""
    return before.spec is after.spec and not serving(before) and not serving(after)


def on_host(record: TaskRecord) -> bool:
    """Its address is that of its node, and its ports are the node's."""
    return record.spec.network == "host"


def first_of(record: TaskRecord, version: int) -> Address | None:
    """The task's address of this version of IP on its first network. Where one network gives it both, the one has the
    other in its last 32 bits; with one network there is no doubt."""
    addresses = [ip_address(text) for text in record.status.addresses]
    if not addresses or addresses[0].version == version:
        return addresses[0] if addresses else None
    for address in addresses:
        if address.version == version and (
            not record.spec.interfaces or int(address) & 0xFFFFFFFF == int(addresses[0]) & 0xFFFFFFFF
        ):
            return address
    return None


def wanted(record: TaskRecord) -> Iterator[tuple[VipRef, Port]]:
    """The VIPs that a task's port labels ask for, with the port they lead to. Labels were checked at submission."""
    spec = record.spec
    for port in spec.ports:
        for key, value in port.labels:
            if not is_vip_label(key):
                continue
            label = parse_label(value)
            name = f"{spec.framework}/{label.name}" if label.name else ""
            for protocol in port.protocols:
                yield VipRef(name, label.address, label.port, protocol), port
