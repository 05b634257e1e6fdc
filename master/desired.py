"""What every node should have, as keyed items, and what each session still has to be told.

An item is for one node or for all (but perhaps one: a node is no peer of itself). Changing an item only marks its key
in the sessions concerned; the session's writer turns the marks into one Change when it gets to it. So a slow node costs
one set of keys, however often its items change, and it always gets the newest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from wire import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class _Shared:
    item: pb.Item
    skip: str | None  # a node that does not get it


@dataclass(slots=True, eq=False)
class Feed:
    """One session's view. `applied` is what the node says it has; `told` are the keys of what it was told and has not
    said that it has, by revision and with the time of the clock; `closed` that the session is over."""

    node: str
    revision: int = 0
    applied: int = 0
    told: dict[int, tuple[float, frozenset[str]]] = field(default_factory=dict)
    closed: bool = False
    dirty: set[str] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    def mark(self, key: str) -> None:
        self.dirty.add(key)
        self.wake.set()

    def acknowledge(self, revision: int) -> None:
        self.applied = max(self.applied, revision)
        for past in [number for number in self.told if number <= self.applied]:
            del self.told[past]
        self.progress.set()

    def close(self) -> None:
        self.closed = True
        self.progress.set()
        self.wake.set()

    @property
    def due(self) -> int:
        """The revision that will hold, or holds, everything desired up to now."""
        return self.revision + bool(self.dirty or self.revision == 0)

    async def reach(self, revision: int) -> bool:
        """Returns when the node has applied `revision`; False when it is gone before."""
        while not self.closed and self.applied < revision:
            self.progress.clear()
            await self.progress.wait()
        return self.applied >= revision


class Desired:
    def __init__(self) -> None:
        self._shared: dict[str, _Shared] = {}
        self._own: dict[str, dict[str, pb.Item]] = {}
        self._feeds: dict[str, Feed] = {}
        self._opened = asyncio.Event()  # by the next session; another one afterwards

    def open(self, node: str) -> Feed:
        """A new session's feed; its first Change will be full. The node's earlier feed no longer gets anything."""
        if (earlier := self._feeds.get(node)) is not None:
            earlier.close()
        feed = self._feeds[node] = Feed(node)
        feed.wake.set()
        self._opened.set()
        self._opened = asyncio.Event()
        return feed

    def close(self, feed: Feed) -> None:
        feed.close()
        if self._feeds.get(feed.node) is feed:
            del self._feeds[feed.node]

    def put(self, node: str, item: pb.Item) -> None:
        self._own.setdefault(node, {})[item.key] = item
        self._mark(node, item.key)

    def remove(self, node: str, key: str) -> None:
        if self._own.get(node, {}).pop(key, None) is not None:
            self._mark(node, key)

    def forget(self, node: str) -> None:
        """It will not come back."""
        self._own.pop(node, None)

    def share(self, item: pb.Item, skip: str | None = None) -> None:
        self._shared[item.key] = _Shared(item, skip)
        self._mark_all(item.key, skip)

    def unshare(self, key: str) -> None:
        if (shared := self._shared.pop(key, None)) is not None:
            self._mark_all(key, shared.skip)

    def next_change(self, feed: Feed) -> pb.Change | None:
        """What the node must be told now; None when it was told everything."""
        feed.wake.clear()
        if feed.revision == 0:
            feed.dirty.clear()
            feed.revision = 1
            items = self._items(feed.node)
            feed.told[1] = time.monotonic(), frozenset(item.key for item in items)
            return pb.Change(revision=1, full=True, put=items)
        if not feed.dirty:
            return None
        keys, feed.dirty = feed.dirty, set()
        feed.revision += 1
        feed.told[feed.revision] = time.monotonic(), frozenset(keys)
        change = pb.Change(revision=feed.revision)
        for key in sorted(keys):
            item = self._item(feed.node, key)
            if item is None:
                change.remove.append(key)
            else:
                change.put.append(item)
        return change

    def behind(self, key: str) -> dict[str, float]:
        """Nodes with a session that do not have the newest of the item yet, and for how many seconds they know."""
        now, late = time.monotonic(), {}
        for node, feed in self._feeds.items():
            since = [at for at, keys in feed.told.values() if key in keys]
            if since or key in feed.dirty:
                late[node] = now - min(since, default=now)
        return late

    async def barrier(self, nodes: Iterable[str], deadline_s: float) -> list[str]:
        """Waits until every one of `nodes` has applied all that was desired up to now. One without a session goes by
        what it was told last, so its next session is waited for. Returns those that were late for the deadline."""
        feeds = {node: self._feeds.get(node) for node in nodes}
        waits = {
            asyncio.create_task(self._caught_up(node, feed, feed.due if feed else 0)): node
            for node, feed in feeds.items()
        }
        if not waits:
            return []
        try:
            _, late = await asyncio.wait(waits, timeout=deadline_s)
        finally:
            for wait in waits:
                wait.cancel()
        return sorted(waits[wait] for wait in late)

    async def _caught_up(self, node: str, feed: Feed | None, due: int) -> None:
        while feed is None or not await feed.reach(due):
            while (feed := self._feeds.get(node)) is None or feed.closed:
                await self._opened.wait()
            due = feed.due

    def _items(self, node: str) -> list[pb.Item]:
        shared = [entry.item for entry in self._shared.values() if entry.skip != node]
        return shared + list(self._own.get(node, {}).values())

    def _item(self, node: str, key: str) -> pb.Item | None:
        shared = self._shared.get(key)
        if shared is not None and shared.skip != node:
            return shared.item
        return self._own.get(node, {}).get(key)

    def _mark(self, node: str, key: str) -> None:
        if (feed := self._feeds.get(node)) is not None:
            feed.mark(key)

    def _mark_all(self, key: str, skip: str | None) -> None:
        for feed in self._feeds.values():
            if feed.node != skip:
                feed.mark(key)
