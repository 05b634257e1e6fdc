"""What happened in the cluster: tasks that change their state, nodes that come and go, networks and policies that are
made and removed. `event_log.py` says how it is read.
"""

from __future__ import annotations

import time
from typing import Any

from master.event_log import KEPT, EventLog
from master.networks import Networks
from master.nodes import Nodes, NodeView
from master.tasks import TaskRecord, Tasks
from model.network import Network
from model.policy import Policy


class Events(EventLog):
    """Kinds are `task`, `node`, `network`, `policy` and `missed`."""

    def __init__(self, tasks: Tasks, nodes: Nodes, networks: Networks, kept: int = KEPT) -> None:
        super().__init__(kept)
        self._nodes: dict[str, dict[str, Any]] = {}  # as they were told last
        tasks.listen(self._task_changed)
        nodes.listen(self._node_changed)
        networks.listen(self._network_changed)

    def _publish(self, kind: str, data: dict[str, Any]) -> None:
        self.publish(kind, {"at": time.time(), **data})

    def _task_changed(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        if after is not None and (before is None or _said(before) != _said(after)):
            self._publish(
                "task", {"task": after.spec.id, "owner": after.spec.owner, "node": after.node, **_said(after)}
            )

    def _network_changed(self, name: str, network: Network | None) -> None:
        self._publish("network", {"network": name, "state": "removed" if network is None else "created"})

    def policy_changed(self, name: str, policy: Policy | None) -> None:
        """For whoever has the policies to call."""
        self._publish("policy", {"policy": name, "state": "removed" if policy is None else "set"})

    def _node_changed(self, view: NodeView) -> None:
        said = {
            "state": view.state.value,
            "connected": view.connected,
            "draining": view.draining,
            "errors": list(view.errors),
        }
        if self._nodes.get(view.node.id) != said:
            self._nodes[view.node.id] = said
            self._publish("node", {"node": view.node.id, **said})


def _said(record: TaskRecord) -> dict[str, Any]:
    """What of a task is worth an event when it changes."""
    status = record.status
    return {
        "state": status.state.name,
        "killing": record.killing,
        "healthy": status.healthy,
        "reason": status.reason,
        "exit_code": status.exit_code,
    }
