"""What the unit tests share: one event loop, and the store that a master has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from master.store.sqlite import SqliteStore


@pytest.fixture(scope="session")
async def one_loop(anyio_backend: str) -> AsyncIterator[None]:
    """For tests that use gRPC: one event loop for all of them, as a program has it. gRPC's queue of events is the
    process's too, and an event that comes late for a loop that was closed fails whichever test runs then."""
    yield


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db")
    yield store
    await store.close()
