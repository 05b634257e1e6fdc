"""Task output on its way from an agent to a reader: a stream of the kind `log` (see streams.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

from master.streams import StreamError, Streams
from wire import control_pb2 as pb


class LogError(Exception):
    """The output can not be had: the node is away, or the agent says why."""


class Logs:
    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def read(self, node: str, wanted: pb.OpenLog) -> AsyncGenerator[bytes, None]:
        """The output as it comes; first an empty part, when it is certain that there is any. Raises LogError."""
        try:
            async with self._streams.open(node, pb.Open(log=wanted)) as opened:
                yield b""
                while (frame := await opened.read()) is not None:
                    yield frame.data
        except StreamError as error:
            raise LogError(f"log of {wanted.task_id}: {error}") from error

    async def find(self, nodes: Iterable[str], wanted: pb.OpenLog) -> AsyncGenerator[bytes, None]:
        """As `read`, of a task that nobody here remembers: nodes keep logs for longer."""
        readings = [self.read(node, wanted) for node in nodes]
        try:
            begun = await asyncio.gather(*map(_begun, readings))
            found = next((reading for reading in begun if reading is not None), None)
            if found is None:
                raise LogError(f"log of {wanted.task_id}: none of the {len(readings)} connected nodes has it")
            yield b""
            async for data in found:
                yield data
        finally:
            await asyncio.gather(*(reading.aclose() for reading in readings))


async def _begun(reading: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None] | None:
    """Past its first part; None when there is no such log."""
    try:
        await anext(reading)
    except LogError:
        return None
    return reading
