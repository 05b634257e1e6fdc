"""Streams between the master and an agent, over the real call: both directions, their bounds, and either end's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from agent.streams import CHUNK_BYTES, Refused, Serve, Stream, Streams
from master import streams as master_streams
from master.streams import StreamError
from tests.unit.cluster import until
from tests.unit.control import Dial, Master, cluster
from wire import control_pb2 as pb

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]
BIG = 600  # chunks: more than queues and connection hold together
CHUNK = pb.Frame(data=bytes(CHUNK_BYTES))


def port() -> pb.Open:
    return pb.Open(port=pb.OpenPort(task_id="a", port=80))


@asynccontextmanager
async def serving(dial: Dial, serve: Serve, name: str = "n1") -> AsyncIterator[Streams]:
    """An agent that serves streams of one kind."""
    streams = Streams({"port": serve})
    async with dial(name) as agent:
        await agent.join()
        work = asyncio.create_task(agent.serve(streams))
        try:
            yield streams
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await streams.close()


async def echo(asked: pb.Open, stream: Stream) -> None:
    await stream.opened()
    while (frame := await stream.read()) is not None and not frame.HasField("eof"):
        await stream.write(frame)


async def deaf(asked: pb.Open, stream: Stream) -> None:
    """Neither reads nor writes."""
    await stream.opened()
    await asyncio.Event().wait()


async def nobody_waits(parts: Master, streams: Streams) -> None:
    await until(lambda: not streams._open and not parts.dispatcher.streams._open)


async def test_frames_go_both_ways_in_order_until_the_agent_has_said_all(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), serving(dial, echo) as streams:
        async with parts.dispatcher.streams.open("n1", port()) as stream:
            for number in range(100):
                await stream.write(pb.Frame(data=str(number).encode()))
                assert (frame := await stream.read()) is not None and frame.data == str(number).encode()
            await stream.write(pb.Frame(eof=pb.Empty()))
            assert await stream.read() is None
        await nobody_waits(parts, streams)


async def test_what_the_agent_refuses_has_its_reason(tmp_path: Path) -> None:
    async def refuse(asked: pb.Open, stream: Stream) -> None:
        raise Refused(f"nothing listens on {asked.port.port}")

    async with cluster(tmp_path) as (parts, dial), serving(dial, refuse) as streams:
        with pytest.raises(StreamError, match="nothing listens on 80"):
            async with parts.dispatcher.streams.open("n1", port()):
                pass
        with pytest.raises(StreamError, match="does not know streams of kind files"):
            async with parts.dispatcher.streams.open("n1", pb.Open(files=pb.OpenFiles())):
                pass
        await nobody_waits(parts, streams)


async def test_a_fault_of_the_agents_ends_the_stream(tmp_path: Path) -> None:
    async def fail(asked: pb.Open, stream: Stream) -> None:
        await stream.opened()
        raise ZeroDivisionError

    async with cluster(tmp_path) as (parts, dial), serving(dial, fail) as streams:
        with pytest.raises(StreamError, match="the connection to its node broke"):
            async with parts.dispatcher.streams.open("n1", port()) as stream:
                await stream.read()
        await nobody_waits(parts, streams)


async def test_an_end_that_leaves_ends_the_other_also_one_that_does_not_listen(tmp_path: Path) -> None:
    """With nothing under way, and with more under way than the other end will ever read."""
    async with cluster(tmp_path) as (parts, dial), serving(dial, deaf) as streams:
        for count in (0, 1, BIG):
            async with parts.dispatcher.streams.open("n1", port()) as stream:
                assert streams._open
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        for _ in range(count):
                            await stream.write(CHUNK)
                        await stream.read()
            await nobody_waits(parts, streams)


async def test_who_writes_to_an_agent_that_goes_hears_of_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), serving(dial, deaf) as streams:
        async with parts.dispatcher.streams.open("n1", port()) as stream:

            async def write() -> None:
                while True:
                    await stream.write(CHUNK)

            writing = asyncio.create_task(write())
            await until(stream._outgoing.full)
            await streams.close()
            with pytest.raises(StreamError, match="broke"):
                async with asyncio.timeout(5):
                    await writing
        await nobody_waits(parts, streams)


async def test_a_slow_reader_holds_the_writer_not_the_memory(tmp_path: Path) -> None:
    written = 0

    async def write(asked: pb.Open, stream: Stream) -> None:
        nonlocal written
        await stream.opened()
        for _ in range(BIG):
            await stream.write(CHUNK)
            written += 1

    async with cluster(tmp_path) as (parts, dial), serving(dial, write):
        async with parts.dispatcher.streams.open("n1", port()) as stream:
            await until(stream._room.locked)
            assert stream._incoming.qsize() <= 17 and written < BIG
            frames = 0
            while await stream.read() is not None:
                frames += 1
        assert frames == BIG


async def test_calls_that_nobody_asked_this_node_for_end_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), serving(dial, deaf), dial("n2") as other:
        await other.join()
        async with parts.dispatcher.streams.open("n1", port()):
            (request,) = parts.dispatcher.streams._open
            for metadata in ((), (("request", "invented"),), (("request", request),)):
                call = other.stub.Stream(metadata=metadata, timeout=5)
                assert await call.read() is grpc.aio.EOF
                assert await call.code() is grpc.StatusCode.OK


async def test_streams_to_an_agent_that_was_end_with_the_next_one() -> None:
    streams = master_streams.Streams(lambda node, message: True)

    async def opened() -> None:
        async with streams.open("n1", pb.Open()):
            pass

    waiting = asyncio.create_task(opened())
    await asyncio.sleep(0)
    streams.forget("n2")
    await asyncio.sleep(0)
    assert not waiting.done()
    streams.forget("n1")
    with pytest.raises(StreamError, match="broke"):
        await waiting
