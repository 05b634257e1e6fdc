"""Task output from an agent's files to a reader: over gRPC, and on to HTTP; and either side that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from agent.log_reader import CHUNK_BYTES
from agent.logs import LogFeed
from agent.streams import STREAMS_AT_ONCE, Streams
from master.logs import LogError
from tests.unit.cluster import until
from tests.unit.control import Dial, Master, cluster
from wire import control_pb2 as pb

pytestmark = pytest.mark.anyio
BIG = CHUNK_BYTES * 600  # more than queue and connection hold together


class Node:
    """An agent whose tasks write what the test says, and end when it says so."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ended: set[str] = set()
        feed = LogFeed(lambda task, stream: directory / task / stream, self.ended.__contains__)
        self.streams = Streams({"log": feed.serve})

    def write(self, task: str, data: bytes, stream: str = "stdout") -> None:
        (self.directory / task).mkdir(exist_ok=True)
        with (self.directory / task / stream).open("ab") as file:
            file.write(data)


@asynccontextmanager
async def answering(dial: Dial, directory: Path) -> AsyncIterator[Node]:
    async with dial("n1") as agent:
        await agent.join()
        node = Node(directory)
        work = asyncio.create_task(agent.serve(node.streams))
        try:
            yield node
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await node.streams.close()


def read(
    parts: Master, task: str = "a", stream: str = "stdout", tail: int = -1, follow: bool = False, since: float = 0.0
) -> AsyncGenerator[bytes, None]:
    return parts.logs.read("n1", pb.OpenLog(task_id=task, stream=stream, tail=tail, follow=follow, since=since))


async def all_of(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def test_what_was_written_is_read(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), answering(dial, tmp_path) as node:
        node.write("a", b"one\ntwo\n")
        node.write("a", b"oops\n", "stderr")
        node.write("empty", b"")
        assert await all_of(read(parts)) == b"one\ntwo\n"
        assert await all_of(read(parts, tail=1)) == b"two\n"
        assert await all_of(read(parts, tail=0)) == b""
        assert await all_of(read(parts, tail=10**9)) == b"one\ntwo\n"
        assert await all_of(read(parts, stream="stderr")) == b"oops\n"
        assert await all_of(read(parts, "empty")) == b""
        await until(lambda: not node.streams._open)
        assert parts.dispatcher.streams._open == {}


async def test_a_follower_gets_everything_to_the_end(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), answering(dial, tmp_path) as node:
        node.write("a", b"begin ")
        got: list[bytes] = []

        async def follow() -> None:
            async for chunk in read(parts, follow=True):
                got.append(chunk)

        following = asyncio.create_task(follow())
        await until(lambda: b"".join(got) == b"begin ")
        node.write("a", b"middle ")
        await until(lambda: b"".join(got) == b"begin middle ")
        node.write("a", b"end")
        node.ended.add("a")
        await until(following.done)
        assert b"".join(got) == b"begin middle end"


async def test_a_task_that_is_forgotten_while_it_is_followed(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), answering(dial, tmp_path) as node:
        node.write("a", b"all of it")
        async with aclosing(read(parts, follow=True)) as chunks:
            assert await anext(chunks) == b""
            (tmp_path / "a" / "stdout").unlink()
            node.ended.add("a")
            assert b"".join([chunk async for chunk in chunks]) == b"all of it"


@pytest.mark.parametrize(
    ("task", "stream", "complaint"),
    [
        ("absent", "stdout", "log of absent: stdout of absent: No such file or directory"),
        ("../a", "stdout", "log of ../a: '../a' is not a task id"),
        ("a", "../../a/stdout", "no stream '../../a/stdout': stdout or stderr"),
        ("link", "stdout", "Too many levels of symbolic links"),
    ],
)
async def test_what_can_not_be_read_is_an_error_with_a_reason(
    tmp_path: Path, task: str, stream: str, complaint: str
) -> None:
    async with cluster(tmp_path) as (parts, dial), answering(dial, tmp_path) as node:
        node.write("a", b"secret")
        (tmp_path / "link").mkdir()
        (tmp_path / "link" / "stdout").symlink_to(tmp_path / "a" / "stdout")
        with pytest.raises(LogError, match=complaint):
            await all_of(read(parts, task, stream))


async def test_a_node_that_is_away_or_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("master.streams.OPEN_DEADLINE_S", 0.1)
    async with cluster(tmp_path) as (parts, dial):
        with pytest.raises(LogError, match="its node is not connected"):
            await all_of(read(parts))
        async with dial("n1") as agent:
            await agent.join()
            with pytest.raises(LogError, match="did not answer within 0.1 s"):
                await all_of(read(parts))
        assert parts.dispatcher.streams._open == {}


async def test_a_reader_that_leaves_ends_the_agents_stream(tmp_path: Path) -> None:
    """Also when nothing is being written, which is when nobody would notice."""
    async with cluster(tmp_path) as (parts, dial), answering(dial, tmp_path) as node:
        node.write("quiet", b"hello")
        node.write("loud", bytes(BIG))
        for task in ("quiet", "loud"):
            async with aclosing(read(parts, task, follow=True)) as chunks:
                await anext(chunks)
                assert node.streams._open
            await until(lambda: not node.streams._open)
        assert parts.dispatcher.streams._open == {}


async def test_an_agent_that_breaks_off_is_an_error_for_the_reader(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), answering(dial, tmp_path) as node:
        node.write("a", b"some of it")
        chunks = read(parts, follow=True)
        assert await anext(chunks) == b"" and await anext(chunks) == b"some of it"
        await node.streams.close()
        with pytest.raises(LogError, match="the connection to its node broke"):
            async with asyncio.timeout(5):
                await anext(chunks)


async def test_a_slow_reader_holds_the_stream_not_the_memory(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), answering(dial, tmp_path) as node:
        node.write("a", bytes(BIG))
        chunks = read(parts)
        size = len(await anext(chunks))
        (reader,) = parts.dispatcher.streams._open.values()
        await until(reader._room.locked)
        assert reader._incoming.qsize() <= 17
        async for chunk in chunks:
            size += len(chunk)
        assert size == BIG


async def test_a_node_has_no_more_than_so_many_readers(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), answering(dial, tmp_path) as node:
        node.write("a", b"")
        readers = [read(parts, follow=True) for _ in range(STREAMS_AT_ONCE)]
        for reader in readers:
            assert await anext(reader) == b""
        with pytest.raises(LogError, match="64 streams of this node are open already"):
            await all_of(read(parts))
        for reader in readers:
            await reader.aclose()
        await until(lambda: not node.streams._open)
        assert await all_of(read(parts)) == b""
