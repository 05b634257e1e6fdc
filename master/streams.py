"""The master's ends of streams to the nodes. The request goes over the node's session, and its agent dials back with a
call of its own (`Stream` in wire/control.proto), which is joined here with whoever asked.

The queues each way are short: who is slow to read slows the agent down (HTTP/2 flow control), and nobody's memory
grows. Each side ends when the other does: the agent's call with the block that opened the stream, and the block's
`read` and `write`, with a `StreamError`, when the call breaks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from wire import control_pb2 as pb

QUEUE_FRAMES = 16
OPEN_DEADLINE_S = 10.0
BROKEN = "the connection to its node broke"

Tell = Callable[[str, pb.MasterMessage], bool]


class StreamError(Exception):
    """There is no stream, or no more of it: the node is away, or its agent says why."""


class Stream:
    """To `node`. Reading and writing may go on at the same time, each in one task."""

    def __init__(self, node: str) -> None:
        self.node = node
        # `_room` bounds the frames in the queue, but for the last one, which says why there are no more.
        self._room = asyncio.Semaphore(QUEUE_FRAMES)
        self._incoming: asyncio.Queue[pb.Frame] = asyncio.Queue()
        self._outgoing: asyncio.Queue[pb.Frame] = asyncio.Queue(QUEUE_FRAMES)
        self._closed = asyncio.Event()
        self._broken = False

    async def read(self) -> pb.Frame | None:
        """None when that was all: not to be called again."""
        frame = await self._incoming.get()
        self._room.release()
        if frame.HasField("error"):
            raise StreamError(frame.error)
        return None if frame.HasField("end") else frame

    async def write(self, frame: pb.Frame) -> None:
        if self._broken:
            raise StreamError(BROKEN)
        await self._outgoing.put(frame)

    async def opened(self) -> None:
        try:
            async with asyncio.timeout(OPEN_DEADLINE_S):
                frame = await self.read()
        except TimeoutError as error:
            raise StreamError(f"its node did not answer within {OPEN_DEADLINE_S:g} s") from error
        if frame is None or not frame.HasField("opened"):
            raise StreamError("its node answered with something else")

    def close(self) -> None:
        self._closed.set()

    async def carry(self, frames: AsyncIterator[pb.Frame]) -> AsyncIterator[pb.Frame]:
        """What is written here goes out, and `frames` come in; until either side ends."""
        filling = asyncio.create_task(self._fill(frames))
        closed = asyncio.create_task(self._closed.wait())
        try:
            while (frame := await self._next_outgoing(filling, closed)) is not None:
                yield frame
        finally:
            filling.cancel()
            closed.cancel()
            await asyncio.gather(filling, closed, return_exceptions=True)
            self.break_off()

    async def _fill(self, frames: AsyncIterator[pb.Frame]) -> None:
        async for frame in frames:
            await self._room.acquire()
            self._incoming.put_nowait(frame)

    async def _next_outgoing(self, *ends: asyncio.Task[object]) -> pb.Frame | None:
        """None when one of `ends` has come before there is anything to send."""
        getting = asyncio.create_task(self._outgoing.get())
        try:
            await asyncio.wait((getting, *ends), return_when=asyncio.FIRST_COMPLETED)
            return getting.result() if getting.done() else None
        finally:
            getting.cancel()

    def break_off(self) -> None:
        """The last frame is of interest only to a reader who has not seen the end."""
        self._broken = True
        self._incoming.put_nowait(pb.Frame(error=BROKEN))
        while not self._outgoing.empty():
            self._outgoing.get_nowait()  # lets go a `write` that waits


class Streams:
    """`tell` sends a message to a node's agent; False when that is not connected."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._open: dict[str, Stream] = {}

    @asynccontextmanager
    async def open(self, node: str, asked: pb.Open) -> AsyncIterator[Stream]:
        """A stream to whatever `asked.what` says, until the block ends. Raises StreamError."""
        asked.request = secrets.token_hex(16)
        stream = self._open[asked.request] = Stream(node)
        try:
            if not self._tell(node, pb.MasterMessage(open=asked)):
                raise StreamError("its node is not connected")
            await stream.opened()
            yield stream
        finally:
            del self._open[asked.request]
            stream.close()
            self._tell(node, pb.MasterMessage(close=asked.request))

    def forget(self, node: str) -> None:
        """Its agent is another one now. A connection of the one before can outlive it in a process that it was about to
        start, and nobody would hear of its end."""
        for stream in [stream for stream in self._open.values() if stream.node == node]:
            stream.break_off()

    async def join(self, node: str, request: str, frames: AsyncIterator[pb.Frame]) -> AsyncIterator[pb.Frame]:
        """The agent's call for `request`. Ends at once when nobody asked this node for it."""
        stream = self._open.get(request)
        if stream is not None and stream.node == node:
            async for frame in stream.carry(frames):
                yield frame
