"""Serves the streams of the kind `files`: a look at a container's files, by a process inside of it.

The node's side opens nothing that a container's path leads to: see agent/launcher/files.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from agent.commands import Command, CommandFailed, Commands, Running
from agent.launcher import descriptors
from agent.streams import Refused, Stream
from isolators.base import Container
from wire import control_pb2 as pb

log = structlog.get_logger()

VERBS = ("list", "read", "pack")
REASON_BYTES = 4096


class FileFeed:
    """`running` finds the container of a task that runs."""

    def __init__(self, commands: Commands, running: Callable[[str], Container | None]) -> None:
        self._commands = commands
        self._running = running

    async def serve(self, asked: pb.Open, stream: Stream) -> None:
        wanted = asked.files
        container = self._running(wanted.task_id)
        if container is None:
            raise Refused(f"task {wanted.task_id} does not run")
        if wanted.verb not in VERBS:
            raise Refused(f"files can not be asked to {wanted.verb!r}")
        log.info("files", task=container.task.id, verb=wanted.verb, path=wanted.path)
        look = Command(("files",), user="0:0", cwd="/", files=(wanted.verb, wanted.path))
        try:
            async with self._commands.running(container, look) as running:
                await stream.opened()
                running.close_stdin()
                await _send(running, stream)
        except CommandFailed as error:
            raise Refused(f"files of {wanted.task_id}: {error}") from error


async def _send(running: Running, stream: Stream) -> None:
    code, reason, _ = await asyncio.gather(running.exited(), _reason(running), _output(running, stream))
    if code:
        raise Refused(reason or f"the look at it ended with {code}")


async def _output(running: Running, stream: Stream) -> None:
    while data := await descriptors.read(running.stdout):
        await stream.send(data)


async def _reason(running: Running) -> str:
    text = b""
    assert running.stderr is not None
    while data := await descriptors.read(running.stderr):
        text += data[: REASON_BYTES - len(text)]
    return text.decode(errors="replace")
