"""Sends a task's output to the master when asked: the streams of the kind `log`.

Reads the task's log files as they are written to; a reader that is slow slows down only its own stream.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from io import FileIO
from pathlib import Path

from agent.streams import CHUNK_BYTES, Refused, Stream
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
        try:
            path = self._path(request.task_id, request.stream)
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(f"{request.stream} of {request.task_id}: {error.strerror}") from error
        with FileIO(descriptor) as file:
            await stream.opened()
            async for data in self._follow(file, request):
                await stream.send(data)

    async def _follow(self, file: FileIO, request: pb.OpenLog) -> AsyncIterator[bytes]:
        """What is in the file from `tail` bytes before its end, then what is added while the task lives."""
        if request.tail >= 0:
            file.seek(max(0, os.fstat(file.fileno()).st_size - request.tail))
        while True:
            over = self._over(request.task_id)  # before the read: what comes after the end was written before it
            while data := file.read(CHUNK_BYTES):
                yield data
            if over or not request.follow:
                return
            await asyncio.sleep(POLL_S)
