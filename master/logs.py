"""Task output on its way from an agent to a reader: the reader's request is sent to the agent over its session, and the
agent answers with a stream of its own (`SendLog`) that ends up in the reader's queue.

The queue is short, so a slow reader slows the agent's stream down (HTTP/2 flow control) and nobody's memory grows. Each
side ends when the other does: the agent's stream with its reader, the reader, with an error, when the stream breaks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from wire import control_pb2 as pb

QUEUE_CHUNKS = 16
OPEN_DEADLINE_S = 10.0


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

    async def read(
        self, task_id: str, ask: Callable[[pb.OpenLog], bool], *, stream: str, tail: int, follow: bool
    ) -> AsyncIterator[bytes]:
        """The task's output as it comes. `ask` sends the request to the agent. Raises LogError."""
        request = pb.OpenLog(request=secrets.token_hex(8), task_id=task_id, stream=stream, tail=tail, follow=follow)
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


async def _first(reader: _Reader, task_id: str) -> pb.LogChunk:
    try:
        async with asyncio.timeout(OPEN_DEADLINE_S):
            return await reader.next()
    except TimeoutError as error:
        raise LogError(f"log of {task_id}: its node did not answer within {OPEN_DEADLINE_S:g} s") from error
