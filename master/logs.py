"""Task output on its way from an agent to a reader: a stream of the kind `log` (see streams.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from master.streams import StreamError, Streams
from wire import control_pb2 as pb


class LogError(Exception):
    """The output can not be had: the node is away, or the agent says why."""


class Logs:
    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def read(self, node: str, task_id: str, *, stream: str, tail: int, follow: bool) -> AsyncIterator[bytes]:
        """The task's output as it comes; first an empty part, when it is certain that there is any. Raises LogError."""
        wanted = pb.OpenLog(task_id=task_id, stream=stream, tail=tail, follow=follow)
        try:
            async with self._streams.open(node, pb.Open(log=wanted)) as opened:
                yield b""
                while (frame := await opened.read()) is not None:
                    yield frame.data
        except StreamError as error:
            raise LogError(f"log of {task_id}: {error}") from error
