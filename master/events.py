"""What happened, in order, for whoever wants to follow: tasks that change their state, nodes that come and go,
networks and policies that are made and removed.

The last `KEPT` events are in memory. Each has an id, `RUN-NUMBER`, by which a reader who was away goes on where it was:
RUN tells this life of the master from others, whose numbers mean nothing here. A reader who is too slow, or away for
too long, gets an event `missed` in place of what is no longer kept; nobody waits for it, and it costs a number.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from master.networks import Networks
from master.nodes import Nodes, NodeView
from master.tasks import TaskRecord, Tasks
from model.network import Network
from model.policy import Policy

KEPT = 4096


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is `task`, `node`, `network`, `policy` or `missed`; `data` is JSON."""

    id: str
    kind: str
    data: str


class Events:
    def __init__(self, tasks: Tasks, nodes: Nodes, networks: Networks, kept: int = KEPT) -> None:
        self._run = secrets.token_hex(4)
        self._next = 0
        self._events: deque[Event] = deque(maxlen=kept)
        self._more = asyncio.Event()
        self._nodes: dict[str, dict[str, Any]] = {}  # as they were told last
        tasks.listen(self._task_changed)
        nodes.listen(self._node_changed)
        networks.listen(self._network_changed)

    async def read(self, last_id: str = "", follow: bool = True) -> AsyncIterator[Event]:
        """Those after `last_id`, or all that are kept; then, with `follow`, what comes."""
        position = self._position(last_id)
        while True:
            first = self._next - len(self._events)
            if position < first:
                yield self._missed(first - position, first)
                position = first
            more = self._more  # before the look: what comes after it is seen the next time
            for event in list(self._events)[position - first :]:
                yield event
                position += 1
            if not follow:
                return
            if position == self._next:
                await more.wait()

    def _position(self, last_id: str) -> int:
        run, _, number = last_id.rpartition("-")
        known = run == self._run and number.isdecimal() and int(number) < self._next
        return int(number) + 1 if known else self._next - len(self._events)

    def _missed(self, count: int, first: int) -> Event:
        return Event(self._id(first - 1), "missed", json.dumps({"count": count}))

    def _id(self, number: int) -> str:
        return f"{self._run}-{number}"

    def _publish(self, kind: str, data: dict[str, Any]) -> None:
        self._events.append(Event(self._id(self._next), kind, json.dumps({"at": time.time(), **data})))
        self._next += 1
        self._more.set()
        self._more = asyncio.Event()

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
