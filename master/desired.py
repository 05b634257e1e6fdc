"""What every node should have, as keyed items, and what each session still has to be told.

An item is for one node or for all (but perhaps one: a node is no peer of itself). Changing an item only marks its key
in the sessions concerned; the session's writer turns the marks into one Change when it gets to it. So a slow node costs
one set of keys, however often its items change, and it always gets the newest. The keys of what is for all are noted
once, and each session reads on from where it was.

What is new for the node alone may go before what is for all, which may be much and has time, as what is gone has. So
who waits for nodes to have all that is desired (`barrier`) waits for a Change with which a node is told everything.

Messages of protobuf are put together by putting their bytes together. An item is encoded once, whoever gets it, and
that when the first does: what becomes of it before then costs nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

from wire import control_pb2 as pb

NEWS_KEPT = 10_000
APART_S = 10e-6  # sessions that are woken by the same news, for each that there is
Fill = Callable[[pb.Item], None]


@dataclass(slots=True, eq=False)
class _Item:
    """`content` is how to write it, and once that was done a message with it. `skip` is a node that does not get it."""

    content: Fill | bytes
    skip: str | None = None

    def encoded(self) -> bytes:
        if not isinstance(self.content, bytes):
            message = pb.MasterMessage()
            self.content(message.change.put.add())
            self.content = message.SerializeToString()
        return self.content


@dataclass(slots=True, eq=False)
class Feed:
    """One session's view. `applied` is what the node says it has; `told` are the keys of what it was told and has not
    said that it has, by revision and with the time of the clock; `closed` that the session is over. `own` and `dirty`
    are keys of what it is still to be told, for itself and for all. `urgent` is set by what it is to be told at once,
    `wake` by that and by all else."""

    node: str
    moved: Callable[[Feed], None]  # it was told or has applied more, or is closed
    revision: int = 0
    applied: int = 0
    told: dict[int, tuple[float, frozenset[str]]] = field(default_factory=dict)
    closed: bool = False
    own: set[str] = field(default_factory=set)
    dirty: set[str] = field(default_factory=set)
    read: int = 0  # of what all are to be told
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    urgent: asyncio.Event = field(default_factory=asyncio.Event)

    def hurry(self) -> None:
        self.urgent.set()
        self.wake.set()

    def acknowledge(self, revision: int) -> None:
        self.applied = max(self.applied, revision)
        for past in [number for number in self.told if number <= self.applied]:
            del self.told[past]
        self.moved(self)

    def close(self) -> None:
        self.closed = True
        self.hurry()
        self.moved(self)

    @property
    def complete(self) -> bool:
        """It was told everything."""
        return not (self.closed or self.own or self.dirty or self.revision == 0)


@dataclass(slots=True, eq=False)
class _Barrier:
    """`due` has the nodes that are waited for, each with the revision that it must have applied; infinite until it was
    told everything."""

    due: dict[str, float]
    passed: asyncio.Event = field(default_factory=asyncio.Event)

    def see(self, feed: Feed) -> None:
        if feed.node not in self.due:
            return
        if feed.closed:
            self.due[feed.node] = math.inf
        elif feed.complete and self.due[feed.node] == math.inf:
            self.due[feed.node] = feed.revision
        if feed.applied >= self.due[feed.node]:
            del self.due[feed.node]
        if not self.due:
            self.passed.set()


class Desired:
    def __init__(self) -> None:
        self._own: dict[str, dict[str, _Item]] = {}
        self._shared: dict[str, _Item] = {}
        self._feeds: dict[str, Feed] = {}
        self._barriers: list[_Barrier] = []
        self._news: list[str] = []  # keys of what all are to be told, in order
        self._asleep: set[Feed] = set()

    @property
    def sessions(self) -> int:
        return len(self._feeds)

    def open(self, node: str) -> Feed:
        """A new session's feed; its first Change will be full. The node's earlier feed no longer gets anything."""
        if (earlier := self._feeds.get(node)) is not None:
            earlier.close()
        feed = self._feeds[node] = Feed(node, self._moved, read=len(self._news))
        feed.hurry()
        return feed

    def close(self, feed: Feed) -> None:
        feed.close()
        self._asleep.discard(feed)
        if self._feeds.get(feed.node) is feed:
            del self._feeds[feed.node]

    def put(self, node: str, item: pb.Item) -> None:
        self._own.setdefault(node, {})[item.key] = _Item(partial(_copy, item))
        self._mark(node, item.key, urgent=True)

    def remove(self, node: str, key: str) -> None:
        if self._own.get(node, {}).pop(key, None) is not None:
            self._mark(node, key, urgent=False)

    def forget(self, node: str) -> None:
        """It will not come back."""
        self._own.pop(node, None)

    def share(self, item: pb.Item, skip: str | None = None) -> None:
        self.share_made(item.key, partial(_copy, item), skip)

    def share_made(self, key: str, fill: Fill, skip: str | None = None) -> None:
        """An item that is written, with its key, when somebody has to be told of it."""
        self._shared[key] = _Item(fill, skip)
        self._mark_all(key, skip)

    def unshare(self, key: str) -> None:
        if (shared := self._shared.pop(key, None)) is not None:
            self._mark_all(key, shared.skip)

    async def encode(self, feed: Feed) -> None:
        """What all are to be told, before it is this node's turn: an item may take a while, and all else has its turn
        after each."""
        self._catch_up(feed)
        for key in list(feed.dirty):
            item = self._shared.get(key)
            if item is not None and not isinstance(item.content, bytes):
                item.encoded()
                await asyncio.sleep(0)

    def next_change(self, feed: Feed, *, only_own: bool = False) -> bytes | None:
        """What the node must be told now, a whole message to it; None when there is nothing. With `only_own` what is
        for all has to wait."""
        feed.wake.clear()
        feed.urgent.clear()
        self._asleep.add(feed)
        self._catch_up(feed)
        full = feed.revision == 0
        if full:
            feed.dirty = {key for key, item in self._shared.items() if item.skip != feed.node}
            feed.own = set(self._own.get(feed.node, ()))
        keys, feed.own = feed.own, set()
        if full or not only_own:
            keys |= feed.dirty
            feed.dirty = set()
        if not keys and not full:
            return None
        feed.revision += 1
        feed.told[feed.revision] = time.monotonic(), frozenset(keys)
        self._moved(feed)
        return b"".join((_message(pb.Change(revision=feed.revision, full=full)), *self._told(feed.node, keys)))

    def behind(self, key: str) -> dict[str, float]:
        """Nodes with a session that do not have the newest of the item yet, and for how many seconds they know."""
        now, late = time.monotonic(), {}
        for node, feed in self._feeds.items():
            self._catch_up(feed)
            since = [at for at, keys in feed.told.values() if key in keys]
            if since or key in feed.dirty or key in feed.own:
                late[node] = now - min(since, default=now)
        return late

    async def barrier(self, nodes: Iterable[str], deadline_s: float) -> list[str]:
        """Waits until every one of `nodes` has applied all that was desired up to now. One without a session goes by
        what it was told last, so its next session is waited for. Returns those that were late for the deadline."""
        feeds = {node: self._feeds.get(node) for node in nodes}
        barrier = _Barrier(dict.fromkeys(feeds, math.inf))
        for feed in filter(None, feeds.values()):
            self._catch_up(feed)
            barrier.see(feed)
        if not barrier.due:
            return []
        self._barriers.append(barrier)
        try:
            async with asyncio.timeout(deadline_s):
                await barrier.passed.wait()
        except TimeoutError:
            return sorted(barrier.due)
        finally:
            self._barriers.remove(barrier)
        return []

    def _moved(self, feed: Feed) -> None:
        if feed is self._feeds.get(feed.node):
            for barrier in self._barriers:
                barrier.see(feed)

    def _told(self, node: str, keys: Iterable[str]) -> Iterator[bytes]:
        own, shared = self._own.get(node, {}), self._shared
        for key in keys:
            item = shared.get(key)
            if item is None or item.skip == node:
                item = own.get(key)
            yield item.encoded() if item is not None else _removal(key)

    def _mark(self, node: str, key: str, *, urgent: bool) -> None:
        if (feed := self._feeds.get(node)) is not None:
            feed.own.add(key)
            feed.wake.set()
            if urgent:
                feed.urgent.set()

    def _mark_all(self, key: str, skip: str | None) -> None:
        if skip is None:
            self._news.append(key)
        for feed in self._feeds.values() if skip is not None else ():
            if feed.node != skip:
                feed.dirty.add(key)
        apart_s = APART_S * self.sessions
        for number, feed in enumerate(self._asleep):  # all else has its turn in between
            asyncio.get_running_loop().call_later(number * apart_s, feed.wake.set)
        self._asleep.clear()
        if len(self._news) > NEWS_KEPT:
            for feed in self._feeds.values():
                self._catch_up(feed)
                feed.read = 0
            self._news.clear()

    def _catch_up(self, feed: Feed) -> None:
        if feed.read < len(self._news):
            feed.dirty.update(self._news[feed.read :])
            feed.read = len(self._news)


def _copy(item: pb.Item, to: pb.Item) -> None:
    to.CopyFrom(item)


@lru_cache(1 << 12)  # all nodes are told at about the same time
def _removal(key: str) -> bytes:
    return _message(pb.Change(remove=[key]))


def _message(change: pb.Change) -> bytes:
    return pb.MasterMessage(change=change).SerializeToString()
