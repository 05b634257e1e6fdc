"""Which nodes there are, whether they answer, and what their silence means.

A node that is away keeps its tasks: containers outlive the connection. After a first delay it is unreachable: nothing
new is placed there and no VIP points there; after a second one its tasks are LOST, so that frameworks start others
elsewhere. After a restart of the master every known node gets the same time to come back.

A node that drains is to have no tasks, for as long as an operator wants that (`draining/<node>` in the store): nothing
new is offered of it, and frameworks move what they have there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from master.store.base import Delete, Put, Store
from master.store.damaged import readable
from model.codec import Codec
from model.node import LOST_AFTER_S, UNREACHABLE_AFTER_S, Node, NodeState

log = structlog.get_logger()

PREFIX, DRAINING = "nodes/", "draining/"


@dataclass(frozen=True, slots=True)
class NodeView:
    """`connected`: there is a session now. `errors`: what the agent could not do of the last change it was sent.
    `draining`: it is to have no tasks. `unreachable`: since when, on the monotonic clock."""

    node: Node
    state: NodeState
    connected: bool = False
    errors: tuple[str, ...] = ()
    draining: bool = False
    unreachable: float | None = None


CODEC = Codec(Node)
Listener = Callable[[NodeView], None]


class Nodes:
    def __init__(
        self, store: Store, unreachable_after_s: float = UNREACHABLE_AFTER_S, lost_after_s: float = LOST_AFTER_S
    ) -> None:
        self.lost_after_s = lost_after_s
        self._unreachable_after_s = unreachable_after_s
        self._store = store
        self._views: dict[str, NodeView] = {}
        self._timers: dict[str, list[asyncio.TimerHandle]] = {}
        self._listeners: list[Listener] = []

    async def load(self) -> None:
        draining = {entry.key.removeprefix(DRAINING) for entry in await self._store.range(DRAINING)}
        for _, node in await readable(self._store, PREFIX, CODEC.decode):
            self._views[node.id] = NodeView(node, NodeState.ONLINE, draining=node.id in draining)
            self._start_timers(node.id)

    def close(self) -> None:
        for node_id in list(self._timers):
            self._stop_timers(node_id)

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def get(self, node_id: str) -> NodeView | None:
        return self._views.get(node_id)

    def all(self) -> list[NodeView]:
        return sorted(self._views.values(), key=lambda view: view.node.id)

    async def connected(self, node: Node) -> None:
        known = self._views.get(node.id)
        if known is None or known.node != node:
            await self._store.transaction(Put(PREFIX + node.id, CODEC.encode(node)))
        self._stop_timers(node.id)
        log.info("node connected", node=node.id, address=str(node.address), boot_id=node.boot_id)
        draining = known is not None and known.draining
        self._publish(NodeView(node, NodeState.ONLINE, connected=True, draining=draining))

    def disconnected(self, node_id: str) -> None:
        log.warning("node disconnected", node=node_id)
        self._publish(dataclasses.replace(self._views[node_id], connected=False))
        self._start_timers(node_id)

    async def remove(self, node_id: str) -> None:
        """It will not come back under what it had. One that comes all the same is a new node."""
        await self._store.transaction(Delete(PREFIX + node_id), Delete(DRAINING + node_id))
        self._stop_timers(node_id)
        del self._views[node_id]
        log.info("node removed", node=node_id)

    async def drain(self, node_id: str, draining: bool) -> None:
        """Until it is said otherwise. The node is known. Raises StoreError."""
        if self._views[node_id].draining == draining:
            return
        key = DRAINING + node_id
        await self._store.transaction(Put(key, b"draining") if draining else Delete(key))
        log.info("node drains" if draining else "node takes tasks again", node=node_id)
        self._publish(dataclasses.replace(self._views[node_id], draining=draining))

    def report(self, node_id: str, errors: tuple[str, ...]) -> None:
        view = self._views[node_id]
        if view.errors != errors:
            for error in errors:
                log.error("node could not apply", node=node_id, error=error)
            self._publish(dataclasses.replace(view, errors=errors))

    def _away(self, node_id: str, state: NodeState, after_s: float) -> None:
        log.warning("node is away", node=node_id, state=state.value, after_s=after_s)
        before = self._views[node_id]
        since = time.monotonic() if before.unreachable is None else before.unreachable
        self._publish(dataclasses.replace(before, state=state, unreachable=since))

    def _publish(self, view: NodeView) -> None:
        self._views[view.node.id] = view
        for listener in self._listeners:
            listener(view)

    def _start_timers(self, node_id: str) -> None:
        self._stop_timers(node_id)
        loop = asyncio.get_running_loop()
        delays = ((NodeState.UNREACHABLE, self._unreachable_after_s), (NodeState.LOST, self.lost_after_s))
        self._timers[node_id] = [
            loop.call_later(after_s, self._away, node_id, state, after_s) for state, after_s in delays
        ]

    def _stop_timers(self, node_id: str) -> None:
        for timer in self._timers.pop(node_id, []):
            timer.cancel()
