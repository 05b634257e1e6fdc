"""Reads records of the store, and puts aside those that can not be read: one of them must not keep the master from the
others, nor be lost before somebody has looked at it (`damaged/<key>` has its bytes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog

from master.store.base import Delete, Entry, Put, Store

log = structlog.get_logger()
T = TypeVar("T")

DAMAGED = "damaged/"


async def readable(store: Store, prefix: str, decode: Callable[[bytes], T]) -> list[tuple[str, T]]:
    """Records below `prefix`, by key. `decode` raises ValueError for what it can not read."""
    found = []
    for entry in await store.range(prefix):
        try:
            found.append((entry.key, decode(entry.value)))
        except ValueError as error:
            await _put_aside(store, entry, error)
    return found


async def _put_aside(store: Store, entry: Entry, error: ValueError) -> None:
    aside = DAMAGED + entry.key
    await store.transaction(Put(aside, entry.value), Delete(entry.key, expected=entry.revision))
    log.error("record damaged, put aside", key=entry.key, aside=aside, error=str(error))
