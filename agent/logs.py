"""Sends a task's output to the master when asked, on a stream of its own.

Reads the task's log files as they are written to; a reader that is slow slows down only its own stream, and misses
what is rotated away meanwhile, of which it is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import structlog

from agent.log_reader import LogReader
from model.task import TASK_ID
from wire import control_pb2 as pb
from wire import control_pb2_grpc

log = structlog.get_logger()

POLL_S = 0.1
FEEDS_AT_ONCE = 32
STREAMS = ("stdout", "stderr")


class LogFeed:
    """`path` says where a task's stream is written; `over` whether the task has ended (or was never here)."""

    def __init__(self, path: Callable[[str, str], Path], over: Callable[[str], bool]) -> None:
        self._path = path
        self._over = over
        self._feeds: set[asyncio.Task[None]] = set()

    def open(self, stub: control_pb2_grpc.ControlStub, request: pb.OpenLog) -> None:
        feed = asyncio.create_task(self._send(stub, request))
        self._feeds.add(feed)
        feed.add_done_callback(self._feeds.discard)

    async def close(self) -> None:
        for feed in self._feeds:
            feed.cancel()
        await asyncio.gather(*self._feeds, return_exceptions=True)

    async def _send(self, stub: control_pb2_grpc.ControlStub, request: pb.OpenLog) -> None:
        call = stub.SendLog(self._chunks(request), metadata=(("request", request.request),))
        try:
            await call
        except grpc.aio.AioRpcError as error:
            log.warning("log not sent", task=request.task_id, reason=f"{error.code().name}: {error.details()}")

    async def _chunks(self, request: pb.OpenLog) -> AsyncIterator[pb.LogChunk]:
        if request.stream not in STREAMS:
            yield pb.LogChunk(error=f"no stream {request.stream!r}: stdout or stderr")
            return
        if len(self._feeds) > FEEDS_AT_ONCE:
            yield pb.LogChunk(error=f"{FEEDS_AT_ONCE} logs of this node are being read already")
            return
        if not TASK_ID.fullmatch(request.task_id):
            yield pb.LogChunk(error=f"{request.task_id!r} is not a task id")
            return
        try:
            path = self._path(request.task_id, request.stream)
            # In a thread: to find the place may take a look at all that is there.
            reader = await asyncio.to_thread(LogReader, path, request.tail, request.since)
        except OSError as error:
            yield pb.LogChunk(error=f"{request.stream} of {request.task_id}: {error.strerror}")
            return
        try:
            async for data in self._follow(reader, request):
                yield pb.LogChunk(data=data)
            yield pb.LogChunk(end=True)
        except OSError as error:
            yield pb.LogChunk(error=f"{request.stream} of {request.task_id}: {error.strerror}")
        finally:
            reader.close()

    async def _follow(self, reader: LogReader, request: pb.OpenLog) -> AsyncIterator[bytes]:
        """What there is, then what is added while the task lives."""
        yield b""  # tells the reader that the log is open, even if nothing was written yet
        while True:
            over = self._over(request.task_id)  # before the read: what comes after the end was written before it
            while data := reader.read():
                yield data
            if over or not request.follow:
                return
            await asyncio.sleep(POLL_S)
