"""The store contract: an ordered map of string keys to bytes, with revisions, in the manner of etcd.

Every committed transaction gets the next revision. An entry remembers the revision of its last change, which is what a
compare-and-set compares. Watchers see every change after the revision they name, in order, none twice, none left out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


class StoreError(Exception):
    """The store failed: disk full, file damaged, closed."""


class Conflict(StoreError):
    """A comparison did not hold, so nothing was written. `key` names the first that did not."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key}: changed meanwhile")
        self.key = key


class Compacted(StoreError):
    """The revision asked for is older than the history that is kept: read everything again."""


@dataclass(frozen=True, slots=True)
class Entry:
    key: str
    value: bytes
    revision: int  # of the last change


@dataclass(frozen=True, slots=True)
class Put:
    """`expected`: the entry's revision must be this; 0: the key must not exist; None: whatever it is."""

    key: str
    value: bytes
    expected: int | None = None
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    key: str
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One key's change. `value` is None for a deletion."""

    revision: int
    key: str
    value: bytes | None


class Store(Protocol):
    async def get(self, key: str) -> Entry | None: ...

    async def range(self, prefix: str) -> list[Entry]:
        """Entries whose key starts with `prefix`, in the order of their keys, as of one revision."""

    async def transaction(self, *operations: Put | Delete) -> int:
        """All or nothing, durable when it returns. Returns the new revision. Raises Conflict."""

    def watch(self, prefix: str, after: int) -> AsyncIterator[Change]:
        """Changes after revision `after`, the past ones first. Raises Compacted."""

    async def grant(self, lease: str, ttl_s: float) -> None:
        """Make or renew a lease. When it runs out, every key put with it is deleted."""

    async def revoke(self, lease: str) -> None: ...

    async def revision(self) -> int: ...

    async def close(self) -> None: ...
