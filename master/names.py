"""Which tasks are found by name: those that serve, as for VIPs (`discovery.py`). Every node gets all of them
(`name/<task>`), and answers for them by itself.

Of an app whose tasks are in part on nodes that can not be reached only the others are named; if there are no others, it
may as well be the master that is cut off, and all are.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from master.desired import Desired
from master.discovery import on_host, serving
from master.nodes import Nodes, NodeView
from master.tasks import TaskRecord, Tasks
from model.names import NamedTask
from model.network import Address
from model.node import NodeState
from wire import control_pb2 as pb
from wire.networks import named_task_to_wire

App = tuple[str, str]  # framework and owner


class Names:
    def __init__(self, tasks: Tasks, nodes: Nodes, desired: Desired) -> None:
        self._tasks = tasks
        self._nodes = nodes
        self._desired = desired
        self._serving: dict[App, set[str]] = {}  # tasks
        self._named: dict[App, dict[str, NamedTask]] = {}  # as they were shared
        self._where: dict[str, Address] = {}
        self._away: set[str] = set()  # nodes that can not be reached
        tasks.listen(self._task_changed)
        nodes.listen(self._node_changed)

    def load(self) -> None:
        """After tasks and nodes."""
        for view in self._nodes.all():
            self._note(view)
        for record in self._tasks.all():
            self._task_changed(None, record)

    def _task_changed(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        record = after or before
        assert record is not None
        app = record.spec.framework, record.spec.owner
        here = self._serving.setdefault(app, set())
        known = record.spec.id in here
        if after is not None and serving(after):
            here.add(record.spec.id)
        elif known:
            here.discard(record.spec.id)
        else:
            return
        self._publish(app)

    def _node_changed(self, view: NodeView) -> None:
        if self._note(view):
            for app in {(record.spec.framework, record.spec.owner) for record in self._tasks.on(view.node.id)}:
                self._publish(app)

    def _note(self, view: NodeView) -> bool:
        """Whether it is news."""
        name, before = view.node.id, (self._where.get(view.node.id), view.node.id in self._away)
        self._where[name] = view.node.address
        (self._away.discard if view.state is NodeState.ONLINE else self._away.add)(name)
        return before != (self._where[name], name in self._away)

    def _publish(self, app: App) -> None:
        records = [record for task in self._serving.get(app, ()) if (record := self._tasks.get(task)) is not None]
        near = [record for record in records if record.node not in self._away]
        named = {record.spec.id: task for record in near or records if (task := self._named_task(record)) is not None}
        known = self._named.get(app, {})
        for task_id in known.keys() - named.keys():
            self._desired.unshare(f"name/{task_id}")
        for task_id, task in named.items():
            if known.get(task_id) != task:
                self._desired.share(pb.Item(key=f"name/{task_id}", name=named_task_to_wire(task)))
        self._named[app] = named
        if not self._serving.get(app):
            self._serving.pop(app, None)
            del self._named[app]

    def _named_task(self, record: TaskRecord) -> NamedTask | None:
        """None: nobody knows where its node is."""
        where = self._where.get(record.node)
        if where is None:
            return None
        spec = record.spec
        own = () if on_host(record) else tuple(map(ip_address, record.status.addresses))
        ports = tuple(replace(port, labels=()) for port in spec.ports)
        return NamedTask(spec.id, spec.framework, spec.owner, own, (where,), ports)
