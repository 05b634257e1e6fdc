"""The tables of the SQLite store, and what is done to them inside of a transaction.

`entries` is the map as it is now, `changes` what became of it lately, for watchers: whole revisions, of which the
last `HISTORY` are kept. `leases` has times to live, not deadlines, because a deadline on any clock means nothing
after a reboot. Keys are stored as their UTF-8 bytes: these sort like the text, and the byte 0xff never occurs in
them, so prefix + 0xff is an exact upper bound for a prefix.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from master.store.base import Change, Compacted, Conflict, Delete, Entry, Put, StoreError

HISTORY = 10_000  # revisions
APPLICATION_ID = 0x74657075  # "tepu", in the header of the file
VERSION = 1
ROWS = 128  # of one statement
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


Operations = tuple[Put | Delete, ...]


@dataclass(frozen=True, slots=True)
class Transaction:
    operations: Operations


@dataclass(frozen=True, slots=True)
class Grant:
    lease: str
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Revoke:
    lease: str


Write = Transaction | Grant | Revoke
Outcome = int | StoreError
Row = tuple[Any, ...]


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


def perform(connection: sqlite3.Connection, writes: Sequence[Write]) -> list[Outcome]:
    """Do them one after the other in the transaction that is open: the revision of each, or why it was refused, and
    then it changes nothing.

    What can be done together is, because statements are what costs: while one runs, other threads get the interpreter,
    and then it has to wait for it again."""
    outcomes: list[Outcome] = []
    for together, group in groupby(writes, lambda write: isinstance(write, Transaction)):
        if together:
            outcomes += _transact(connection, [write.operations for write in group if isinstance(write, Transaction)])
        else:
            outcomes += [_lease(connection, write) for write in group]
    return outcomes


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
    connection.execute("BEGIN")  # of one snapshot
    try:
        return _page(connection, prefix, after, size)
    finally:
        connection.execute("COMMIT")


def _page(connection: sqlite3.Connection, prefix: str, after: int, size: int) -> Page:
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


def _lease(connection: sqlite3.Connection, write: Write) -> Outcome:
    match write:
        case Grant(lease, ttl_s):
            connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?)", (lease, ttl_s))
        case Revoke(lease):
            held = connection.execute("SELECT key FROM entries WHERE lease = ? ORDER BY key", (lease,)).fetchall()
            connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
            return _transact(connection, [tuple(Delete(key.decode()) for (key,) in held)])[0]
    return revision(connection)


def _transact(connection: sqlite3.Connection, transactions: Sequence[Operations]) -> list[Outcome]:
    leases = {lease for (lease,) in connection.execute("SELECT id FROM leases")}
    found = _revisions(connection, transactions)
    current = revision(connection)
    outcomes: list[Outcome] = []
    entries: dict[bytes, Row | None] = {}  # as they are in the end; None: removed
    changes: list[Row] = []
    for operations in transactions:
        # Everything that can refuse comes first: several transactions share one commit, so none may stop half-way.
        refusal = next((each for operation in operations if (each := _refusal(operation, found, leases))), None)
        if refusal is not None:
            outcomes.append(refusal)
            continue
        current += 1
        for ordinal, operation in enumerate(operations):
            key = operation.key.encode()
            if isinstance(operation, Put):
                entries[key] = key, operation.value, current, operation.lease
                changes.append((current, ordinal, key, operation.value))
            elif found[key]:
                entries[key] = None
                changes.append((current, ordinal, key, None))
            found[key] = current if isinstance(operation, Put) else 0
        outcomes.append(current)
    removed = [(key,) for key, row in entries.items() if row is None]
    _execute_all(connection, "DELETE FROM entries WHERE key IN (VALUES {})", removed)
    _execute_all(connection, "INSERT OR REPLACE INTO entries VALUES {}", [row for row in entries.values() if row])
    _execute_all(connection, "INSERT INTO changes VALUES {}", changes)
    connection.execute("UPDATE position SET revision = ?", (current,))
    return outcomes


def _revisions(connection: sqlite3.Connection, transactions: Sequence[Operations]) -> dict[bytes, int]:
    """Of the keys for which it matters whether they are there; 0: they are not."""
    operations = (operation for each in transactions for operation in each)
    asked = [each.key.encode() for each in operations if isinstance(each, Delete) or each.expected is not None]
    found = dict.fromkeys(asked, 0)
    rows = [(key,) for key in found]
    for row in _execute_all(connection, "SELECT key, revision FROM entries WHERE key IN (VALUES {})", rows):
        found[row[0]] = row[1]
    return found


def _refusal(operation: Put | Delete, found: Mapping[bytes, int], leases: Container[str]) -> StoreError | None:
    if operation.expected is not None and operation.expected != found[operation.key.encode()]:
        return Conflict(operation.key)
    lease = operation.lease if isinstance(operation, Put) else None
    if lease is not None and lease not in leases:
        return StoreError(f"put {operation.key}: lease {lease} does not exist or ran out")
    return None


def _execute_all(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> list[Row]:
    """`statement` for all rows of values, in few steps. Their sizes are powers of two, so that there are few of them,
    which stay prepared."""
    results: list[Row] = []
    done = 0
    while left := len(rows) - done:
        size = min(ROWS, 1 << left.bit_length() - 1)
        some = rows[done : done + size]
        values = ", ".join([f"({', '.join('?' * len(some[0]))})"] * size)
        results += connection.execute(statement.format(values), [value for row in some for value in row])
        done += size
    return results


def _bounds(prefix: str) -> tuple[bytes, bytes]:
    return prefix.encode(), prefix.encode() + b"\xff"
