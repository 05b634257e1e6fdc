"""What the embedded store tells Prometheus: how much it holds, how much is written, and how long that takes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from master.store.sqlite import SqliteStore
from model.metrics import Family, Kind, gauge


def families(store: SqliteStore) -> Iterator[Family]:
    written = store.written
    for name, help, value in (
        ("tepui_store_writes_total", "Transactions, with those that were refused.", float(written.writes)),
        ("tepui_store_commits_total", "Commits: transactions that wait together share one.", float(written.commits)),
        ("tepui_store_commit_seconds_total", "Time that commits took, nearly all of it the disk's.", written.seconds),
    ):
        yield Family(name, Kind.COUNTER, help, (((), value),))
    yield gauge("tepui_store_waiting_writes", "Transactions that wait for a commit.", float(store.waiting))
    yield gauge("tepui_store_size_bytes", "The store's files.", float(_size(store)))


def _size(store: SqliteStore) -> int:
    total = 0
    for suffix in ("", "-wal"):
        try:
            total += os.stat(f"{store.path}{suffix}").st_size
        except FileNotFoundError:
            continue
    return total
