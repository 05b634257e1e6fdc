"""Streams between somebody at the master and something on this node: each is a call of its own that the agent makes
because the master asked for it (`Open` in wire/control.proto).

What is asked for has a kind, and each kind a function that serves it: it reads frames, writes frames, and returns when
all was said or raises `Refused`. It is cancelled when the other end is gone. A stream that is slow slows down only
itself: `write` waits until the connection has room, and next to nothing is read ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeAlias

import grpc.aio
import structlog

from wire import control_pb2 as pb
from wire import control_pb2_grpc

log = structlog.get_logger()

CHUNK_BYTES = 64 * 1024
READ_AHEAD = 2
STREAMS_AT_ONCE = 64
FAREWELL_DEADLINE_S = 30.0  # for the other end to take what was written last

Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.Frame, pb.Frame]"


class Refused(Exception):
    """What was asked for can not be had, or no more of it: the other end is told the text."""


class Stream:
    """This end of one stream. One task may read while any number write."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._read: asyncio.Queue[pb.Frame | None] = asyncio.Queue(READ_AHEAD)
        self._writing = asyncio.Lock()  # a call takes one message at a time

    async def opened(self) -> None:
        """To be said first, as soon as it is certain that there is something to serve."""
        await self.write(pb.Frame(opened=pb.Empty()))

    async def read(self) -> pb.Frame | None:
        """None when the other end is gone."""
        return await self._read.get()

    async def write(self, frame: pb.Frame) -> None:
        """Raises AioRpcError when the other end is gone."""
        async with self._writing:
            await self._call.write(frame)

    async def send(self, data: bytes) -> None:
        await self.write(pb.Frame(data=data))

    async def receive(self) -> None:
        """What `read` returns, until there is no more. A call that is cancelled while it is read from ends as a whole,
        so its reading is not left to tasks that come and go."""
        with suppress(grpc.aio.AioRpcError):
            while isinstance(frame := await self._call.read(), pb.Frame):
                await self._read.put(frame)
        await self._read.put(None)


Serve = Callable[[pb.Open, Stream], Awaitable[None]]


class Streams:
    """`kinds` are the names in `Open.what`."""

    def __init__(self, kinds: Mapping[str, Serve]) -> None:
        self._kinds = kinds
        self._open: dict[str, asyncio.Task[None]] = {}

    def open(self, stub: control_pb2_grpc.ControlStub, asked: pb.Open) -> None:
        task = self._open[asked.request] = asyncio.create_task(self._serve(stub, asked))
        task.add_done_callback(lambda _: self._open.pop(asked.request))

    def end(self, request: str) -> None:
        """The other end is gone. The call says so too, but not before everything that came by it was read."""
        if request in self._open:
            self._open[request].cancel()

    async def close(self) -> None:
        tasks = list(self._open.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, stub: control_pb2_grpc.ControlStub, asked: pb.Open) -> None:
        call = stub.Stream(metadata=(("request", asked.request),))
        stream = Stream(call)
        receiving = asyncio.create_task(stream.receive())
        answering = asyncio.create_task(self._answer(asked, stream))
        gone = asyncio.create_task(call.code())
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
                await call.done_writing()
                await asyncio.wait((gone,), timeout=FAREWELL_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            log.warning("stream broke", kind=asked.WhichOneof("what"), reason=f"{error.code().name}: {error.details()}")
        except Exception:  # a fault of ours in one stream must not go unheard
            log.exception("stream failed", kind=asked.WhichOneof("what"))
        finally:
            for task in (answering, receiving, gone):
                task.cancel()
            await asyncio.gather(answering, receiving, gone, return_exceptions=True)
            call.cancel()

    async def _answer(self, asked: pb.Open, stream: Stream) -> None:
        try:
            if len(self._open) > STREAMS_AT_ONCE:
                raise Refused(f"{STREAMS_AT_ONCE} streams of this node are open already")
            await self._kind(asked)(asked, stream)
        except Refused as error:
            await stream.write(pb.Frame(error=str(error)))
        else:
            await stream.write(pb.Frame(end=pb.Empty()))

    def _kind(self, asked: pb.Open) -> Serve:
        kind = asked.WhichOneof("what")
        if kind is None or kind not in self._kinds:
            raise Refused(f"the agent of this node does not know streams of kind {kind}")
        return self._kinds[kind]
