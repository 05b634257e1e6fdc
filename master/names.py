"""Which tasks are found by name: those that serve, as for VIPs (`discovery.py`). Every node gets all of them
(`name/<task>`), and answers for them by itself.

Of an app whose tasks are in part on nodes that can not be reached only the others are named; if there are no others, it
may as well be the master that is cut off, and all are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
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


@dataclass(frozen=True, slots=True)
class _Serving:
    """`task` is how it may be found; None: nobody knows where its node is."""

    node: str
    task: NamedTask | None


class Names:
    def __init__(self, tasks: Tasks, nodes: Nodes, desired: Desired) -> None:
        self._tasks = tasks
        self._nodes = nodes
        self._desired = desired
        self._serving: dict[App, dict[str, _Serving]] = {}  # by task
        self._shared: dict[str, NamedTask] = {}  # by task
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
        app, task_id = _app(record), record.spec.id
        here = self._serving.setdefault(app, {})
        known = here.pop(task_id, None)
        if after is not None and serving(after):
            here[task_id] = self._serve(after)
        if here.get(task_id) != known:
            # The others have to do with it only where some can not be reached.
            self._publish(app, [task_id, *(here if self._away else ())])
        if not here:
            del self._serving[app]

    def _node_changed(self, view: NodeView) -> None:
        if self._note(view):
            records = self._tasks.on(view.node.id)
            for record in records:
                here = self._serving.get(_app(record), {})
                if record.spec.id in here:
                    here[record.spec.id] = self._serve(record)
            for app in set(map(_app, records)) & self._serving.keys():
                self._publish(app, list(self._serving[app]))

    def _note(self, view: NodeView) -> bool:
        """Whether it is news."""
        name, before = view.node.id, (self._where.get(view.node.id), view.node.id in self._away)
        self._where[name] = view.node.address
        (self._away.discard if view.state is NodeState.ONLINE else self._away.add)(name)
        return before != (self._where[name], name in self._away)

    def _publish(self, app: App, task_ids: Iterable[str]) -> None:
        """What is different of these tasks."""
        here = self._serving.get(app, {})
        near = {task_id for task_id, each in here.items() if each.node not in self._away} if self._away else here
        for task_id in task_ids:
            task = here[task_id].task if task_id in (near or here) else None
            if task == self._shared.get(task_id):
                continue
            if task is None:
                del self._shared[task_id]
                self._desired.unshare(f"name/{task_id}")
            else:
                self._shared[task_id] = task
                self._desired.share_made(f"name/{task_id}", partial(_fill, task))

    def _serve(self, record: TaskRecord) -> _Serving:
        where = self._where.get(record.node)
        if where is None:
            return _Serving(record.node, None)
        spec = record.spec
        own = () if on_host(record) else tuple(map(ip_address, record.status.addresses))
        ports = tuple(replace(port, labels=()) for port in spec.ports)
        return _Serving(record.node, NamedTask(spec.id, spec.framework, spec.owner, own, (where,), ports))


def _app(record: TaskRecord) -> App:
    return record.spec.framework, record.spec.owner


def _fill(task: NamedTask, item: pb.Item) -> None:
    item.key = f"name/{task.id}"
    item.name.CopyFrom(named_task_to_wire(task))
