"""A store that answers from memory for the keys below one prefix, because nobody but this process writes them.

What is asked for often should not wait for a thread and a file: under load that takes longer than the answer. A write
is remembered when it is on disk, before its caller goes on, so whoever has written reads what he wrote. No key below
the prefix may have a lease: it would go, and nobody here would know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from master.store.base import Change, Conflict, Delete, Entry, Put, Store, StoreError


class Remembered:
    """See `master.store.base.Store` for what the verbs promise."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._entries: dict[str, Entry] = {}
        self._removed: dict[str, int] = {}  # revisions, while it is being read
        self._known = False
        self._reading = asyncio.Lock()

    async def get(self, key: str) -> Entry | None:
        if not key.startswith(self._prefix):
            return await self._store.get(key)
        await self._read()
        return self._entries.get(key)

    async def range(self, prefix: str) -> list[Entry]:
        if not prefix.startswith(self._prefix):
            return await self._store.range(prefix)
        await self._read()
        return [self._entries[key] for key in sorted(self._entries) if key.startswith(prefix)]

    async def transaction(self, *operations: Put | Delete) -> int:
        for operation in operations:
            if isinstance(operation, Put) and operation.lease and operation.key.startswith(self._prefix):
                raise ValueError(f"put {operation.key}: must not have a lease")
        # Who waits for it may be cancelled; what is written must be known here all the same.
        return await asyncio.shield(asyncio.ensure_future(self._write(operations)))

    def watch(self, prefix: str, after: int) -> AsyncIterator[Change]:
        return self._store.watch(prefix, after)

    async def grant(self, lease: str, ttl_s: float) -> None:
        await self._store.grant(lease, ttl_s)

    async def revoke(self, lease: str) -> None:
        await self._store.revoke(lease)

    async def revision(self) -> int:
        return await self._store.revision()

    async def close(self) -> None:
        await self._store.close()

    async def _write(self, operations: tuple[Put | Delete, ...]) -> int:
        try:
            revision = await self._store.transaction(*operations)
        except Conflict:
            raise
        except StoreError:
            self._known = False  # as far as it came, only the file can tell
            raise
        for operation in operations:
            if operation.key.startswith(self._prefix):
                self._remember(operation, revision)
        return revision

    def _remember(self, operation: Put | Delete, revision: int) -> None:
        known = self._entries.get(operation.key)
        if known is not None and known.revision > revision:
            return
        if isinstance(operation, Put):
            self._entries[operation.key] = Entry(operation.key, operation.value, revision)
        else:
            self._entries.pop(operation.key, None)
            if not self._known:
                self._removed[operation.key] = revision

    async def _read(self) -> None:
        """Once. What is written meanwhile is newer than what is read."""
        if self._known:
            return
        async with self._reading:
            if self._known:
                return
            self._entries.clear()
            self._removed.clear()
            for entry in await self._store.range(self._prefix):
                newest = self._entries.get(entry.key, entry)
                if newest.revision <= entry.revision and self._removed.get(entry.key, 0) < entry.revision:
                    self._entries[entry.key] = entry
            self._known = True
