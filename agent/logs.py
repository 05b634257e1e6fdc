"""Sends a task's output to the master when asked: the streams of the kind `log`.

Reads the task's log files as they are written to; a reader that is slow slows down only its own stream, and misses
what is rotated away meanwhile, of which it is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from agent.log_reader import LogReader
from agent.streams import Refused, Stream
from model.task import TASK_ID
from wire import control_pb2 as pb

POLL_S = 0.1
STREAMS = ("stdout", "stderr")


class LogFeed:
    """`path` says where a task's stream is written; `over` whether the task has ended (or was never here)."""

    def __init__(self, path: Callable[[str, str], Path], over: Callable[[str], bool]) -> None:
        self._path = path
        self._over = over

    async def serve(self, asked: pb.Open, stream: Stream) -> None:
        request = asked.log
        if request.stream not in STREAMS:
            raise Refused(f"no stream {request.stream!r}: stdout or stderr")
        if not TASK_ID.fullmatch(request.task_id):
            raise Refused(f"{request.task_id!r} is not a task id")
        path = self._path(request.task_id, request.stream)
        try:
            # In a thread: to find the place may take a look at all that is there.
            reader = await asyncio.to_thread(LogReader, path, request.tail, request.since)
        except OSError as error:
            raise Refused(f"{request.stream} of {request.task_id}: {error.strerror}") from error
        try:
            await stream.opened()
            async for data in self._follow(reader, request):
                await stream.send(data)
        finally:
            reader.close()

    async def _follow(self, reader: LogReader, request: pb.OpenLog) -> AsyncIterator[bytes]:
        """What there is, then what is added while the task lives."""
        while True:
            over = self._over(request.task_id)  # before the read: what comes after the end was written before it
            while data := reader.read():
                yield data
            if over or not request.follow:
                return
            await asyncio.sleep(POLL_S)
