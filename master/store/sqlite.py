"""The embedded store: one SQLite file, one process.

Writes are queued and committed in groups: whatever waits while the disk is busy shares the next fsync, each still
atomic, with a revision or a conflict of its own. Watchers hold no queue; they read the change log from where they
are, so a slow one costs nothing and learns at worst that its place was compacted away.

A lease runs on the monotonic clock and starts afresh when the store is opened: a master that was down for a minute
must not take that minute from those who could not reach it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from master.store import schema
from master.store.base import Change, Delete, Entry, Put, StoreError
from master.store.schema import Grant, Outcome, Revoke, Transaction, Write

QUEUE = 1024  # writes; callers wait when it is full
GROUP = 256  # writes in one commit: bounds how long the first of them waits
TOLD_AT_ONCE = 2  # callers
PAGE = 256  # revisions a watcher reads at once
BUSY_DEADLINE_S = 5.0  # a backup program may hold the file this long
RETRY_S = 1.0  # between attempts to delete what belongs to a lease that ran out

T = TypeVar("T")
Waiting = tuple[Write, "asyncio.Future[int]"]


@dataclass(frozen=True, slots=True)
class Written:
    """Since the store was opened."""

    writes: int = 0
    commits: int = 0
    seconds: float = 0.0


class SqliteStore:
    """See `master.store.base.Store` for what the verbs promise."""

    @classmethod
    async def open(cls, path: Path, history: int = schema.HISTORY) -> SqliteStore:
        """Raises StoreError: in use by another master, damaged, or not to be opened."""
        lock = _lock(path)
        try:
            writer = _connect(path)
            schema.prepare(writer)
            return cls(path, history, lock, writer, _connect(path))
        except (sqlite3.Error, OSError, StoreError) as error:
            os.close(lock)
            raise StoreError(f"open {path}: {error}") from error

    def __init__(
        self, path: Path, history: int, lock: int, writer: sqlite3.Connection, reader: sqlite3.Connection
    ) -> None:
        self.path, self._history, self._lock = path, history, lock
        self.written = Written()
        self._writer, self._reader = writer, reader
        # Threads, because fsync and long scans would hold up the event loop. One each: SQLite has one writer anyway,
        # and with a connection of its own, a reader never waits for a commit.
        self._write_thread = ThreadPoolExecutor(1, "store-write")
        self._read_thread = ThreadPoolExecutor(1, "store-read")
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue(QUEUE)
        self._committed = asyncio.Event()
        self._closed = False
        self._ttl: dict[str, float] = dict(writer.execute("SELECT id, ttl_s FROM leases").fetchall())
        self._deadline = {lease: time.monotonic() + ttl for lease, ttl in self._ttl.items()}
        self._lease_granted = asyncio.Event()
        self._tasks = [asyncio.create_task(self._commit_groups()), asyncio.create_task(self._expire_leases())]

    @property
    def waiting(self) -> int:
        """Writes that no commit has taken yet."""
        return self._queue.qsize()

    async def get(self, key: str) -> Entry | None:
        return await self._read(lambda: schema.entry(self._reader, key))

    async def range(self, prefix: str) -> list[Entry]:
        return await self._read(lambda: schema.entries(self._reader, prefix))

    async def revision(self) -> int:
        return await self._read(lambda: schema.revision(self._reader))

    async def transaction(self, *operations: Put | Delete) -> int:
        keys = [operation.key for operation in operations]
        if len(set(keys)) < len(keys):
            raise ValueError(f"transaction: a key occurs twice in {keys}")
        for operation in operations:
            _storable(operation)
        return await self._write(Transaction(operations))

    async def watch(self, prefix: str, after: int) -> AsyncIterator[Change]:
        while True:
            committed = self._committed  # taken before reading, so that no commit falls between
            page = await self._read(lambda: schema.page(self._reader, prefix, after, PAGE))  # noqa: B023 - awaited here
            for change in page.changes:
                yield change
            after = page.until
            if page.until == page.current:
                await committed.wait()

    async def grant(self, lease: str, ttl_s: float) -> None:
        if not ttl_s > 0:
            raise ValueError(f"grant lease {lease}: ttl {ttl_s} s must be greater than 0")
        lease.encode()
        stored = self._ttl.get(lease) == ttl_s
        # Before the write: from now on the lease must not run out while its renewal waits in the queue.
        self._ttl[lease], self._deadline[lease] = ttl_s, time.monotonic() + ttl_s
        self._lease_granted.set()
        if not stored:
            await self._write(Grant(lease, ttl_s))

    async def revoke(self, lease: str) -> None:
        self._deadline.pop(lease, None)
        self._ttl.pop(lease, None)
        await self._write(Revoke(lease))

    async def close(self) -> None:
        """Finish the commit under way. Writes still waiting fail; watchers end with StoreError."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._queue.empty():
            _resolve(self._queue.get_nowait()[1], self._error("write", "closed"))
        self._announce()
        loop = asyncio.get_running_loop()
        for thread, connection in ((self._read_thread, self._reader), (self._write_thread, self._writer)):
            await loop.run_in_executor(thread, connection.close)
            thread.shutdown(wait=False)
        os.close(self._lock)

    async def _read(self, query: Callable[[], T]) -> T:
        if self._closed:
            raise self._error("read", "closed")
        return await asyncio.get_running_loop().run_in_executor(self._read_thread, self._read_once, query)

    def _read_once(self, query: Callable[[], T]) -> T:
        try:
            return query()
        except sqlite3.Error as error:
            raise self._error("read", error) from error

    async def _write(self, write: Write) -> int:
        if self._closed:
            raise self._error("write", "closed")
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        await self._queue.put((write, done))
        if self._closed:  # while waiting for room in the queue
            _resolve(done, self._error("write", "closed"))
        return await done

    async def _commit_groups(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            group = [await self._queue.get()]
            while len(group) < GROUP and not self._queue.empty():
                group.append(self._queue.get_nowait())
            writes = [write for write, _ in group]
            began = time.monotonic()
            commit = loop.run_in_executor(self._write_thread, self._commit, writes)
            try:
                outcomes = await asyncio.shield(commit)
            except asyncio.CancelledError:
                outcomes = await commit  # the store is being closed; those who wait must still learn the truth
            before = self.written
            seconds = before.seconds + time.monotonic() - began
            self.written = Written(before.writes + len(writes), before.commits + 1, seconds)
            self._announce()
            await self._tell([done for _, done in group], outcomes)
            if self._closed:
                return

    async def _tell(self, callers: Iterable[asyncio.Future[int]], outcomes: Iterable[Outcome]) -> None:
        """Some at a time: who was waiting has much to do then, and all else has its turn in between."""
        told = iter(enumerate(zip(callers, outcomes, strict=True)))
        try:
            for number, (done, outcome) in told:
                _resolve(done, outcome)
                if number % TOLD_AT_ONCE == TOLD_AT_ONCE - 1 and not self._closed:
                    await asyncio.sleep(0)
        finally:  # the store is being closed
            for _, (done, outcome) in told:
                _resolve(done, outcome)

    def _commit(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                outcomes = schema.perform(self._writer, writes)
                schema.compact(self._writer, self._history)
                self._writer.execute("COMMIT")
            finally:
                # After some errors (disk full) SQLite has rolled back by itself.
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
        except Exception as error:  # noqa: BLE001 - a fault of ours, too, must reach the callers: they wait for this
            return [self._error("write", error)] * len(writes)
        return outcomes

    async def _expire_leases(self) -> None:
        while True:
            self._lease_granted.clear()
            now = time.monotonic()
            for lease in [lease for lease, deadline in self._deadline.items() if deadline <= now]:
                await self._expire(lease)
            nearest = min(self._deadline.values(), default=None)
            try:
                async with asyncio.timeout(None if nearest is None else max(0.0, nearest - time.monotonic())):
                    await self._lease_granted.wait()
            except TimeoutError:
                continue

    async def _expire(self, lease: str) -> None:
        ttl_s = self._ttl[lease]
        try:
            await self.revoke(lease)
        except StoreError:
            # The disk is full, say. The keys must go as soon as it takes writes again, unless the lease came back.
            self._ttl.setdefault(lease, ttl_s)
            self._deadline.setdefault(lease, time.monotonic() + RETRY_S)

    def _announce(self) -> None:
        self._committed.set()
        self._committed = asyncio.Event()

    def _error(self, operation: str, cause: object) -> StoreError:
        return StoreError(f"{operation} {self.path}: {cause}")


def _lock(path: Path) -> int:
    """Of a file beside the database: closing any descriptor of the database's own would drop SQLite's locks."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreError(f"open {lock_path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise StoreError(f"open {path}: in use by another master (process {holder})") from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    # Made here and with its mode, so that there is no moment in which others can read it; -wal and -shm inherit it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, BUSY_DEADLINE_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _storable(operation: Put | Delete) -> None:
    """Refuse here what would fail inside of a commit that others share."""
    operation.key.encode()
    if isinstance(operation, Put) and operation.lease is not None:
        operation.lease.encode()
    if isinstance(operation, Put) and not isinstance(operation.value, bytes):
        raise TypeError(f"put {operation.key}: the value must be bytes, not {type(operation.value).__name__}")


def _resolve(done: asyncio.Future[int], outcome: Outcome) -> None:
    if done.done():  # whoever waited was cancelled
        return
    if isinstance(outcome, StoreError):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
