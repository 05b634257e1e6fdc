"""Which backends every VIP has, computed from the tasks: their states, health, drain and their nodes' reachability.

A VIP exists for as long as there is a task that asks for it; a named one keeps its address beyond that
(`vips/<framework>/<name>` in the store). A change of a task changes its VIPs in the desired state at once, before
anybody who waits for that change goes on: only the first address of a new name has to wait for the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import structlog

from master.desired import Desired
from master.nodes import Nodes, NodeView
from master.store.base import Put, Store, StoreError
from master.store.damaged import readable
from master.tasks import TaskRecord, Tasks
from model.network import Address, Subnet
from model.node import NodeState
from model.task import Protocol, TaskState
from model.vip import Backend, Vip, is_vip_label, parse_label
from wire import control_pb2 as pb
from wire.networks import vip_to_wire

log = structlog.get_logger()

PREFIX = "vips/"
STORE_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class VipRef:
    """A VIP as a label asks for it: `name` is `<framework>/<name>` and gets an address, or `address` is given."""

    name: str
    address: Address | None
    port: int
    protocol: Protocol


class Discovery:
    def __init__(self, store: Store, tasks: Tasks, nodes: Nodes, desired: Desired, pool: Subnet) -> None:
        self._store = store
        self._tasks = tasks
        self._nodes = nodes
        self._desired = desired
        self._pool = pool
        self._addresses: dict[str, Address] = {}  # by name
        self._members: dict[VipRef, dict[str, int]] = {}  # task id -> container port
        self._table: dict[VipRef, Vip] = {}
        self._naming: dict[str, tuple[Address, asyncio.Task[None]]] = {}  # on their way to the store
        self._reachable: dict[str, Address | None] = {}  # nodes that are, and where
        tasks.listen(self._task_changed)
        nodes.listen(self._node_changed)

    async def load(self) -> None:
        for key, address in await readable(self._store, PREFIX, lambda value: ip_address(value.decode())):
            self._addresses[key.removeprefix(PREFIX)] = address
        for view in self._nodes.all():
            self._reachable[view.node.id] = _where(view)
        for record in self._tasks.all():
            self._task_changed(None, record)

    def table(self) -> list[Vip]:
        return sorted(self._table.values(), key=lambda vip: vip.key)

    def _task_changed(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        record = after or before
        assert record is not None
        for ref, port in wanted(record):
            members = self._members.setdefault(ref, {})
            if after is None:
                members.pop(record.spec.id, None)
            else:
                members[record.spec.id] = port
            self._publish(ref)

    def _node_changed(self, view: NodeView) -> None:
        where = _where(view)
        if view.node.id in self._reachable and self._reachable[view.node.id] == where:
            return
        self._reachable[view.node.id] = where
        for ref in {ref for record in self._tasks.on(view.node.id) for ref, _ in wanted(record)}:
            self._publish(ref)

    def _publish(self, ref: VipRef) -> None:
        members = self._members.get(ref, {})
        known = self._table.get(ref)
        if not members:
            self._members.pop(ref, None)
            if known is not None:
                del self._table[ref]
                self._desired.unshare(f"vip/{known.key}")
            return
        address = ref.address or self._addresses.get(ref.name)
        if address is None:
            self._name(ref)
            return
        vip = Vip(address, ref.port, ref.protocol, ref.name, tuple(sorted(self._backends(members))))
        if vip != known:
            self._table[ref] = vip
            self._desired.share(pb.Item(key=f"vip/{vip.key}", vip=vip_to_wire(vip)))

    def _backends(self, members: dict[str, int]) -> Iterator[Backend]:
        for task_id, port in members.items():
            record = self._tasks.get(task_id)
            node = self._reachable.get(record.node) if record is not None else None
            if record is not None and serving(record) and node is not None:
                address = node if on_host(record) else ip_address(record.status.addresses[0])
                if address.version == self._pool.version:
                    yield Backend(task_id, record.node, address, port)

    def _name(self, ref: VipRef) -> None:
        """Give a new name its address, which stays its own, and publish its VIPs when that is on disk."""
        if ref.name in self._naming:
            return
        taken = {*self._addresses.values(), *(address for address, _ in self._naming.values())}
        taken |= {other.address for other in self._members if other.address is not None}
        address = next((host for host in self._pool.hosts() if host not in taken), None)
        if address is None:
            log.error("no VIP address left", pool=str(self._pool), name=ref.name)
            return
        self._naming[ref.name] = address, asyncio.create_task(self._store_name(ref.name, address))

    async def _store_name(self, name: str, address: Address) -> None:
        while name not in self._addresses:
            try:
                await self._store.transaction(Put(PREFIX + name, str(address).encode()))
                self._addresses[name] = address
            except StoreError as error:
                log.error("VIP name not stored, trying again", name=name, error=str(error))
                await asyncio.sleep(STORE_RETRY_S)
        del self._naming[name]
        for ref in [ref for ref in self._members if ref.name == name]:
            self._publish(ref)


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


def on_host(record: TaskRecord) -> bool:
    """Its address is that of its node, and its ports are the node's."""
    return record.spec.network == "host"


def _where(view: NodeView) -> Address | None:
    return view.node.address if view.state is NodeState.ONLINE else None


def wanted(record: TaskRecord) -> Iterator[tuple[VipRef, int]]:
    """The VIPs that a task's port labels ask for, with the port they lead to. Labels were checked at submission."""
    spec = record.spec
    for port in spec.ports:
        for key, value in port.labels:
            if not is_vip_label(key):
                continue
            label = parse_label(value)
            name = f"{spec.framework}/{label.name}" if label.name else ""
            for protocol in port.protocols:
                yield VipRef(name, label.address, label.port, protocol), port.number
