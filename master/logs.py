"""Task output on its way from an agent to a reader: the reader's request is sent to the agent over its session, and the
agent answers with a stream of its own (`SendLog`) that ends up in the reader's queue.

The queue is short, so a slow reader slows the agent's stream down (HTTP/2 flow control) and nobody's memory grows. Each
side ends when the other does: the agent's stream with its reader, the reader, with an error, when the stream breaks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from wire import control_pb2 as pb

QUEUE_CHUNKS = 16
OPEN_DEADLINE_S = 10.0

Ask = Callable[[pb.OpenLog], bool]  # sends a request to an agent; False when that is not connected


class LogError(Exception):
    """The output can not be had: the node is away, or the agent says why."""


@dataclass(slots=True, eq=False)
class _Reader:
    """`room` bounds the chunks in the queue, but for the last one, which says why there are no more."""

    queue: asyncio.Queue[pb.LogChunk] = field(default_factory=asyncio.Queue)
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(QUEUE_CHUNKS))
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self) -> pb.LogChunk:
        chunk = await self.queue.get()
        self.room.release()
        return chunk

    async def fill(self, chunks: AsyncIterator[pb.LogChunk]) -> None:
        async for chunk in chunks:
            await self.room.acquire()
            self.queue.put_nowait(chunk)


class Logs:
    def __init__(self) -> None:
        self._readers: dict[str, _Reader] = {}

    async def read(self, wanted: pb.OpenLog, ask: Ask) -> AsyncGenerator[bytes, None]:
        """The output that is `wanted`, as it comes, after an empty part. Raises LogError."""
        request = pb.OpenLog()
        request.CopyFrom(wanted)
        request.request = secrets.token_hex(8)
        task_id = request.task_id
        reader = self._readers[request.request] = _Reader()
        try:
            if not ask(request):
                raise LogError(f"log of {task_id}: its node is not connected")
            chunk = await _first(reader, task_id)
            while not chunk.end:
                if chunk.error:
                    raise LogError(f"log of {task_id}: {chunk.error}")
                yield chunk.data
                chunk = await reader.next()
        finally:
            del self._readers[request.request]
            reader.gone.set()

    async def find(self, wanted: pb.OpenLog, asks: Iterable[Ask]) -> AsyncIterator[bytes]:
        """As `read`, of a task that nobody here remembers: the nodes behind `asks` keep logs for longer."""
        readings = [self.read(wanted, ask) for ask in asks]
        try:
            begun = await asyncio.gather(*map(_begun, readings))
            found = next((reading for reading in begun if reading is not None), None)
            if found is None:
                raise LogError(f"log of {wanted.task_id}: none of the {len(readings)} connected nodes has it")
            async for data in found:
                yield data
        finally:
            await asyncio.gather(*(reading.aclose() for reading in readings))

    async def receive(self, request: str, chunks: AsyncIterator[pb.LogChunk]) -> None:
        """The agent's stream for `request`. Returns when it ends, or when its reader is gone."""
        reader = self._readers.get(request)
        if reader is None:
            return
        filling = asyncio.create_task(reader.fill(chunks))
        gone = asyncio.create_task(reader.gone.wait())
        try:
            await asyncio.wait((filling, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            filling.cancel()
            gone.cancel()
            await asyncio.gather(filling, gone, return_exceptions=True)
            # Of interest only to a reader who has not seen the end.
            reader.queue.put_nowait(pb.LogChunk(error="the connection to its node broke"))


async def _begun(reading: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None] | None:
    """Past its first part, which is empty and tells that there is a log."""
    try:
        await anext(reading)
    except LogError:
        return None
    return reading


async def _first(reader: _Reader, task_id: str) -> pb.LogChunk:
    try:
        async with asyncio.timeout(OPEN_DEADLINE_S):
            return await reader.next()
    except TimeoutError as error:
        raise LogError(f"log of {task_id}: its node did not answer within {OPEN_DEADLINE_S:g} s") from error
