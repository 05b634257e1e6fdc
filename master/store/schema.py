"""The tables of the SQLite store, and what is done to them inside of a transaction.

`entries` is the map as it is now, `changes` what became of it lately, for watchers: whole revisions, of which the
last `HISTORY` are kept. `leases` has times to live, not deadlines, because a deadline on any clock means nothing
after a reboot. Keys are stored as their UTF-8 bytes: these sort like the text, and the byte 0xff never occurs in
them, so prefix + 0xff is an exact upper bound for a prefix.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from master.store.base import Change, Compacted, Conflict, Delete, Entry, Put, StoreError

HISTORY = 10_000  # revisions
APPLICATION_ID = 0x74657075  # "tepu", in the header of the file
VERSION = 1
TABLES = f"""
    CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease TEXT)
                         WITHOUT ROWID;
    CREATE INDEX entries_of_lease ON entries (lease) WHERE lease IS NOT NULL;
    CREATE TABLE changes (revision INTEGER, ordinal INTEGER, key BLOB NOT NULL, value BLOB,
                          PRIMARY KEY (revision, ordinal)) WITHOUT ROWID;
    CREATE TABLE leases (id TEXT PRIMARY KEY, ttl_s REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE position (revision INTEGER NOT NULL, compacted INTEGER NOT NULL);
    INSERT INTO position VALUES (0, 0);
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True, slots=True)
class Transaction:
    operations: tuple[Put | Delete, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    lease: str
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Revoke:
    lease: str


Write = Transaction | Grant | Revoke


@dataclass(frozen=True, slots=True)
class Page:
    """Changes of whole revisions, up to and with revision `until`; `current` is the store's."""

    changes: tuple[Change, ...]
    until: int
    current: int


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables in a new file; refuse a file that is damaged or not ours."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables:
        connection.executescript(f"BEGIN; {TABLES} COMMIT;")
    elif application != APPLICATION_ID:
        raise StoreError("a database of another program")
    elif version != VERSION:
        raise StoreError(f"made by another version of Tepui (format {version}, this one reads {VERSION})")
    else:
        check_integrity(connection)


def check_integrity(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreError(f"file is damaged ({verdict}): restore it from a backup")


def perform(connection: sqlite3.Connection, write: Write) -> int:
    """Do one write in the transaction that is open. Returns the revision. Raises Conflict before changing anything."""
    match write:
        case Transaction(operations):
            return _transact(connection, operations)
        case Grant(lease, ttl_s):
            connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?)", (lease, ttl_s))
            return revision(connection)
        case Revoke(lease):
            held = connection.execute("SELECT key FROM entries WHERE lease = ? ORDER BY key", (lease,)).fetchall()
            connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
            return _transact(connection, tuple(Delete(key.decode()) for (key,) in held))


def compact(connection: sqlite3.Connection, history: int) -> None:
    horizon = revision(connection) - history
    if horizon > 0:
        connection.execute("DELETE FROM changes WHERE revision <= ?", (horizon,))
        connection.execute("UPDATE position SET compacted = max(compacted, ?)", (horizon,))


def revision(connection: sqlite3.Connection) -> int:
    (current,) = connection.execute("SELECT revision FROM position").fetchone()
    return int(current)


def entry(connection: sqlite3.Connection, key: str) -> Entry | None:
    row = connection.execute("SELECT value, revision FROM entries WHERE key = ?", (key.encode(),)).fetchone()
    return Entry(key, *row) if row else None


def entries(connection: sqlite3.Connection, prefix: str) -> list[Entry]:
    rows = connection.execute(
        "SELECT key, value, revision FROM entries WHERE key >= ? AND key < ? ORDER BY key", _bounds(prefix)
    )
    return [Entry(key.decode(), value, changed) for key, value, changed in rows]


def page(connection: sqlite3.Connection, prefix: str, after: int, size: int) -> Page:
    """Changes of the `size` revisions that follow `after`. Raises Compacted, also for a revision from the future: its
    reader saw another store, for instance this one before it was restored from a backup."""
    current, compacted = connection.execute("SELECT revision, compacted FROM position").fetchone()
    if not compacted <= after <= current:
        raise Compacted(f"revision {after} is not in the history, which goes from {compacted} to {current}")
    until = min(after + size, current)
    rows = connection.execute(
        "SELECT revision, key, value FROM changes WHERE revision > ? AND revision <= ? AND key >= ? AND key < ?"
        " ORDER BY revision, ordinal",
        (after, until, *_bounds(prefix)),
    )
    return Page(tuple(Change(number, key.decode(), value) for number, key, value in rows), until, current)


def _transact(connection: sqlite3.Connection, operations: tuple[Put | Delete, ...]) -> int:
    # Everything that can refuse comes first: several transactions share one commit, so none may stop half-way.
    for operation in operations:
        _check(connection, operation)
    current = revision(connection) + 1
    connection.execute("UPDATE position SET revision = ?", (current,))
    for ordinal, operation in enumerate(operations):
        if _change(connection, operation, current):
            value = operation.value if isinstance(operation, Put) else None
            row = (current, ordinal, operation.key.encode(), value)
            connection.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", row)
    return current


def _check(connection: sqlite3.Connection, operation: Put | Delete) -> None:
    if operation.expected is not None:
        found = entry(connection, operation.key)
        if operation.expected != (found.revision if found else 0):
            raise Conflict(operation.key)
    lease = operation.lease if isinstance(operation, Put) else None
    if lease is not None and not connection.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone():
        raise StoreError(f"put {operation.key}: lease {lease} does not exist or ran out")


def _change(connection: sqlite3.Connection, operation: Put | Delete, current: int) -> bool:
    key = operation.key.encode()
    if isinstance(operation, Delete):
        return connection.execute("DELETE FROM entries WHERE key = ?", (key,)).rowcount > 0
    row = (key, operation.value, current, operation.lease)
    connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", row)
    return True


def _bounds(prefix: str) -> tuple[bytes, bytes]:
    return prefix.encode(), prefix.encode() + b"\xff"
