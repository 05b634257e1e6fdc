"""Task output on its way from an agent to a reader: the reader's request is sent to the agent over its session, and the
agent answers with a stream of its own (`SendLog`) that ends up in the reader's queue.

The queue is short, so a slow reader slows the agent's stream down (HTTP/2 flow control) and nobody's memory grows.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable

from wire import control_pb2 as pb

QUEUE_CHUNKS = 16
OPEN_DEADLINE_S = 10.0


class LogError(Exception):
    """The output can not be had: the node is away, or the agent says why."""


class Logs:
    def __init__(self) -> None:
        self._readers: dict[str, asyncio.Queue[pb.LogChunk | None]] = {}

    async def read(
        self, task_id: str, ask: Callable[[pb.OpenLog], bool], *, stream: str, tail: int, follow: bool
    ) -> AsyncIterator[bytes]:
        """The task's output as it comes. `ask` sends the request to the agent. Raises LogError."""
        request = pb.OpenLog(request=secrets.token_hex(8), task_id=task_id, stream=stream, tail=tail, follow=follow)
        queue = self._readers[request.request] = asyncio.Queue(QUEUE_CHUNKS)
        try:
            if not ask(request):
                raise LogError(f"log of {task_id}: its node is not connected")
            chunk = await _first(queue, task_id)
            while chunk is not None:
                if chunk.error:
                    raise LogError(f"log of {task_id}: {chunk.error}")
                yield chunk.data
                chunk = await queue.get()
        finally:
            del self._readers[request.request]
            # A `receive` that waits for room must find out that nobody reads any more.
            while not queue.empty():
                queue.get_nowait()

    async def receive(self, request: str, chunks: AsyncIterator[pb.LogChunk]) -> None:
        """The agent's stream for `request`. Returns when it ends, or when its reader is gone."""
        queue = self._readers.get(request)
        if queue is None:
            return
        async for chunk in chunks:
            await queue.put(chunk)
            if request not in self._readers:
                return
        await queue.put(None)


async def _first(queue: asyncio.Queue[pb.LogChunk | None], task_id: str) -> pb.LogChunk | None:
    try:
        return await asyncio.wait_for(queue.get(), OPEN_DEADLINE_S)
    except TimeoutError as error:
        raise LogError(f"log of {task_id}: its node did not answer within {OPEN_DEADLINE_S:g} s") from error
