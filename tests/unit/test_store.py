"""What every back end of the store must do, and what only the SQLite file can suffer.

The first part is the conformance suite: it sees nothing but the contract, so another back end joins it by one more
line in `BACK_ENDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from master.store.base import Change, Compacted, Conflict, Delete, Entry, Put, Store, StoreError
from master.store.remembered import Remembered
from master.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]
DEADLINE_S = 10.0
pytestmark = pytest.mark.anyio

Open = Callable[[], Awaitable[Store]]


async def open_sqlite(directory: Path) -> Store:
    return await SqliteStore.open(directory / "store.db", history=50)


async def open_remembered(directory: Path) -> Store:
    return Remembered(await open_sqlite(directory), "a/b")


BACK_ENDS = {"sqlite": open_sqlite, "remembered": open_remembered}


@pytest.fixture(params=sorted(BACK_ENDS))
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same store; called again, the way a restarted master would."""
    return lambda: BACK_ENDS[request.param](tmp_path)


@pytest.fixture
async def store(reopen: Open) -> AsyncIterator[Store]:
    opened = await reopen()
    yield opened
    await opened.close()


async def take(changes: AsyncIterator[Change], count: int) -> list[Change]:
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(changes) for _ in range(count)]


async def gone(store: Store, key: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await store.get(key):  # noqa: ASYNC110 - polls what only time changes
            await asyncio.sleep(0.01)


async def test_put_get_delete(store: Store) -> None:
    assert await store.get("a") is None
    first = await store.transaction(Put("a", b"1"))
    assert await store.get("a") == Entry("a", b"1", first)
    second = await store.transaction(Delete("a"))
    assert second == first + 1 == await store.revision()
    assert await store.get("a") is None


async def test_range_is_by_prefix_and_ordered(store: Store) -> None:
    keys = ("apps/b", "apps/a", "apps/ü", "appt", "app", "apps/\U0010ffff")
    await store.transaction(*(Put(key, b"") for key in keys))
    assert [entry.key for entry in await store.range("apps/")] == ["apps/a", "apps/b", "apps/ü", "apps/\U0010ffff"]
    assert len(await store.range("")) == 6


async def test_compare_and_set(store: Store) -> None:
    revision = await store.transaction(Put("a", b"1", expected=0))
    with pytest.raises(Conflict, match="a: changed meanwhile"):
        await store.transaction(Put("a", b"2", expected=0))
    assert await store.revision() == revision
    await store.transaction(Put("a", b"2", expected=revision))
    with pytest.raises(Conflict):
        await store.transaction(Delete("a", expected=revision))
    await store.transaction(Put("b", b"", expected=0), Delete("none", expected=0))


async def test_a_conflict_writes_nothing(store: Store) -> None:
    with pytest.raises(Conflict) as raised:
        await store.transaction(Put("a", b"1"), Put("b", b"1", expected=7))
    assert raised.value.key == "b"
    assert await store.range("") == [] and await store.revision() == 0


async def test_a_key_twice_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        await store.transaction(Put("a", b"1"), Delete("a"))


async def test_what_can_not_be_stored_is_refused_and_harms_no_one(store: Store) -> None:
    with pytest.raises(UnicodeEncodeError):
        await store.transaction(Put("\ud800", b""))
    with pytest.raises(TypeError, match="put a"):
        await store.transaction(Put("a", "text"))  # type: ignore[arg-type]
    assert await store.transaction(Put("a", b"")) == 1


async def test_exactly_one_of_many_wins(store: Store) -> None:
    attempts = [store.transaction(Put("seat", str(number).encode(), expected=0)) for number in range(100)]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    winners = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert len(winners) == 1 and sum(isinstance(outcome, Conflict) for outcome in outcomes) == 99
    entry = await store.get("seat")
    assert entry and entry.value == str(winners[0]).encode()


async def test_concurrent_transactions_get_their_own_revisions(store: Store) -> None:
    revisions = await asyncio.gather(*(store.transaction(Put(f"k/{number}", b"")) for number in range(300)))
    assert sorted(revisions) == list(range(1, 301))
    assert {entry.revision for entry in await store.range("k/")} == set(revisions)


async def test_watch_replays_the_past_then_follows(store: Store) -> None:
    await store.transaction(Put("a/1", b"x"), Put("b/1", b"y"))
    second = await store.transaction(Delete("a/1"))
    changes = store.watch("a/", 0)
    assert await take(changes, 2) == [Change(1, "a/1", b"x"), Change(second, "a/1", None)]
    follower = asyncio.create_task(take(changes, 1))
    await store.transaction(Put("b/2", b""))
    third = await store.transaction(Put("a/2", b"z"))
    assert await follower == [Change(third, "a/2", b"z")]


async def test_deleting_what_is_not_there_is_no_change(store: Store) -> None:
    await store.transaction(Delete("a"))
    await store.transaction(Put("a", b""))
    assert await take(store.watch("", 0), 1) == [Change(2, "a", b"")]


async def test_no_watcher_misses_or_repeats(store: Store) -> None:
    async def write(writer: int) -> None:
        for number in range(5):
            await store.transaction(Put(f"k/{writer}", str(number).encode()))

    watchers = [asyncio.create_task(take(store.watch("k/", 0), 45)) for _ in range(5)]
    await asyncio.gather(*(write(writer) for writer in range(9)))
    seen = [await watcher for watcher in watchers]
    assert all(changes == seen[0] for changes in seen)
    assert [change.revision for change in seen[0]] == list(range(1, 46))


async def test_compacted_history(store: Store) -> None:
    for number in range(60):
        await store.transaction(Put("k", str(number).encode()))
    with pytest.raises(Compacted):
        await take(store.watch("", 0), 1)
    assert [change.revision for change in await take(store.watch("", 10), 50)] == list(range(11, 61))


async def test_a_revision_from_the_future_means_read_again(store: Store) -> None:
    with pytest.raises(Compacted):
        await take(store.watch("", 17), 1)


async def test_a_lease_that_runs_out_takes_its_keys(store: Store) -> None:
    await store.grant("node-1", 0.2)
    await store.transaction(Put("nodes/1", b"", lease="node-1"), Put("nodes/2", b""))
    assert [change.value for change in await take(store.watch("nodes/1", 0), 2)] == [b"", None]
    assert [entry.key for entry in await store.range("nodes/")] == ["nodes/2"]
    with pytest.raises(StoreError, match="lease node-1"):
        await store.transaction(Put("nodes/1", b"", lease="node-1"))


async def test_a_lease_renewed_keeps_its_keys(store: Store) -> None:
    await store.grant("brief", 0.5)
    await store.grant("renewed", 0.5)
    await store.transaction(Put("brief", b"", lease="brief"), Put("renewed", b"", lease="renewed"))
    await store.grant("renewed", 60.0)
    await gone(store, "brief")
    assert await store.get("renewed")
    await store.revoke("renewed")
    assert await store.get("renewed") is None


async def test_a_plain_put_takes_the_key_off_its_lease(store: Store) -> None:
    await store.grant("l", 60)
    await store.transaction(Put("a", b"", lease="l"))
    await store.transaction(Put("a", b""))
    await store.revoke("l")
    assert await store.get("a")


async def test_reopened_it_is_as_before(reopen: Open) -> None:
    store = await reopen()
    await store.grant("l", 0.3)
    revision = await store.transaction(Put("a", b"1", lease="l"), Put("b", b"2"))
    await store.close()
    store = await reopen()
    assert await store.revision() == revision
    assert await store.get("a") == Entry("a", b"1", revision)  # with its full time to live again
    assert len(await take(store.watch("", 0), 2)) == 2
    await gone(store, "a")
    await store.close()


async def test_closed_says_so(reopen: Open) -> None:
    store = await reopen()
    watcher = asyncio.create_task(take(store.watch("", 0), 1))
    waiting = [asyncio.create_task(store.transaction(Put(f"k/{number}", b""))) for number in range(2000)]
    await store.transaction(Put("last", b""))
    await store.close()
    await store.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    acknowledged = {f"k/{number}" for number, outcome in enumerate(outcomes) if isinstance(outcome, int)}
    assert all(isinstance(outcome, int | StoreError) for outcome in outcomes)
    with contextlib.suppress(StoreError):
        await watcher
    with pytest.raises(StoreError, match="closed"):
        await store.get("a")
    store = await reopen()
    assert acknowledged <= {entry.key for entry in await store.range("k/")}
    await store.close()


async def test_a_caller_that_goes_away_stops_no_one(store: Store) -> None:
    tasks = [asyncio.create_task(store.transaction(Put(f"k/{number}", b""))) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, int) for outcome in outcomes[1::2])


KEYS = st.sampled_from(["a", "a/b", "b", "ü"])
PUTS = st.builds(Put, KEYS, st.binary(max_size=4), st.one_of(st.none(), st.integers(0, 6)))
DELETES = st.builds(Delete, KEYS, st.one_of(st.none(), st.integers(0, 6)))
TRANSACTIONS = st.lists(st.lists(PUTS | DELETES, max_size=3, unique_by=lambda operation: operation.key), max_size=12)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(transactions=TRANSACTIONS)
async def test_it_is_a_map_with_a_log(reopen: Open, transactions: list[list[Put | Delete]]) -> None:
    """Against a model of ten lines; what the watch tells must add up to what the range shows."""
    store = await reopen()
    begin = await store.revision()
    await store.transaction(*(Delete(key) for key in ("a", "a/b", "b", "ü")))
    model: dict[str, Entry] = {}
    for operations in transactions:
        expected = {op.key: model[op.key].revision if op.key in model else 0 for op in operations}
        if all(op.expected in (None, expected[op.key]) for op in operations):
            revision = await store.transaction(*operations)
            for op in operations:
                model.pop(op.key, None)
                if isinstance(op, Put):
                    model[op.key] = Entry(op.key, op.value, revision)
        else:
            with pytest.raises(Conflict):
                await store.transaction(*operations)
    assert await store.range("") == sorted(model.values(), key=lambda entry: entry.key)
    replayed: dict[str, bytes] = {}
    last = await store.transaction(Put("end", b""))
    async for change in store.watch("", begin):
        replayed.pop(change.key, None)
        if change.value is not None:
            replayed[change.key] = change.value
        if change.revision == last:
            break
    assert replayed == {key: entry.value for key, entry in model.items()} | {"end": b""}
    await store.transaction(Delete("end"))
    await store.close()


# What is remembered


async def test_what_is_remembered_is_as_it_is_in_the_store(tmp_path: Path) -> None:
    """Also when it is written while it is read for the first time, and when the writer did not wait."""
    below = await open_sqlite(tmp_path)
    await below.transaction(*(Put(f"a/{number}", b"old") for number in range(20)))
    store = Remembered(below, "a/")
    writes = [store.transaction(Put(f"a/{number}", b"new")) for number in range(10)]
    writes += [store.transaction(Delete(f"a/{number}")) for number in range(10, 15)]
    reading = asyncio.create_task(store.range("a/"))
    await asyncio.gather(*writes)
    assert {entry.value for entry in await reading} <= {b"old", b"new"}
    with pytest.raises(ValueError, match="lease"):
        await store.transaction(Put("a/1", b"", lease="any"))
    leaving = asyncio.create_task(store.transaction(Put("a/left", b"left"), Put("b", b"")))
    await asyncio.sleep(0)
    leaving.cancel()
    await store.transaction(Put("b", b""))
    assert await store.range("a/") == await below.range("a/")
    assert await store.get("a/left") == await below.get("a/left") is not None
    await store.close()


# The SQLite file

WRITER = """
import asyncio, sys
from pathlib import Path
from master.store.base import Put
from master.store.sqlite import SqliteStore

async def write(store, writer):
    for number in range(100_000):
        key = f"{writer}/{number}"
        await store.transaction(Put(f"left/{key}", b"x" * 200), Put(f"right/{key}", b"x"))
        print(key, flush=True)

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    await asyncio.gather(*(write(store, writer) for writer in range(16)))

asyncio.run(main())
"""


def start(program: str, path: Path, fsize: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        if fsize is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fsize, fsize))

    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=limit
    )


@pytest.mark.parametrize("after", [1, 150, 700])
async def test_kill_9_loses_nothing_acknowledged_and_leaves_no_half(tmp_path: Path, after: int) -> None:
    path = tmp_path / "store.db"
    with start(WRITER, path) as process:
        assert process.stdout
        acknowledged = [process.stdout.readline().strip() for _ in range(after)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    store = await SqliteStore.open(path)
    left = {entry.key.removeprefix("left/") for entry in await store.range("left/")}
    right = {entry.key.removeprefix("right/") for entry in await store.range("right/")}
    assert left == right and set(acknowledged) <= left
    assert await store.revision() == len(left)
    await store.close()


async def test_two_masters_can_not_share_it(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    with pytest.raises(StoreError, match=rf"store\.db: in use by another master \(process {os.getpid()}\)"):
        await SqliteStore.open(tmp_path / "store.db")
    await store.transaction(Put("a", b""))
    await store.close()
    await (await SqliteStore.open(tmp_path / "store.db")).close()


async def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    await store.transaction(Put("a", b"secret"))
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in os.listdir(tmp_path)}
    assert set(modes) == {"store.db", "store.db-wal", "store.db-shm", "store.db.lock"}
    assert set(modes.values()) == {0o600}
    await store.close()


async def test_damaged_files_are_named(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"open .*garbage\.db: .*not a database"):
        await SqliteStore.open(garbage)
    path = tmp_path / "store.db"
    store = await SqliteStore.open(path)
    await store.transaction(*(Put(f"k/{number}", b"x" * 1000) for number in range(200)))
    await store.close()
    with path.open("r+b") as file:
        file.seek(4096 * 8)
        file.write(b"\xff" * 4096 * 20)
    with pytest.raises(StoreError, match=r"open .*store\.db: .*(damaged|malformed)"):
        await SqliteStore.open(path)


async def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    foreign, newer = tmp_path / "foreign.db", tmp_path / "newer.db"
    with contextlib.closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(StoreError, match=r"foreign\.db: a database of another program"):
        await SqliteStore.open(foreign)
    await (await SqliteStore.open(newer)).close()
    with contextlib.closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"newer\.db: made by another version .*format 99"):
        await SqliteStore.open(newer)


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none/store\.db\.lock: No such file or directory"):
        await SqliteStore.open(tmp_path / "none" / "store.db")


FILLER = """
import asyncio, sys
from pathlib import Path
from master.store.base import Put, StoreError
from master.store.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    for number in range(1000):
        try:
            await store.transaction(Put(f"k/{number}", b"x" * 4000))
        except StoreError as error:
            print(number, error, flush=True)
            break
    entries = await store.range("k/")
    assert len(entries) == number, (len(entries), number)

asyncio.run(main())
"""


async def test_a_full_disk_is_named_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    """The kernel refuses to let the files grow (RLIMIT_FSIZE), as it does when the disk is full."""
    path = tmp_path / "store.db"
    with start(FILLER, path, fsize=400_000) as process:
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    number, _, message = output.partition(" ")
    assert int(number) > 10 and message.startswith(f"write {path}: ")
    store = await SqliteStore.open(path)
    assert len(await store.range("k/")) == int(number)
    await store.transaction(Put("again", b""))
    await store.close()
