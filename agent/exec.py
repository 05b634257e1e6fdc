"""Serves the streams of the kind `exec`: a command in a task's container, and somebody at its streams or its terminal.

The command ends when the other end leaves. What it writes is sent on as it comes, and no faster than it is taken.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from agent.commands import Command, CommandFailed, Commands, Running, Size
from agent.launcher import descriptors
from agent.streams import Refused, Stream
from isolators.base import Container
from wire import control_pb2 as pb

log = structlog.get_logger()


class ExecFeed:
    """`running` finds the container of a task that runs."""

    def __init__(self, commands: Commands, running: Callable[[str], Container | None]) -> None:
        self._commands = commands
        self._running = running

    async def serve(self, asked: pb.Open, stream: Stream) -> None:
        container = self._running(asked.exec.task_id)
        if container is None:
            raise Refused(f"task {asked.exec.task_id} does not run")
        command = _command(asked.exec)
        log.info("exec", task=container.task.id, command=list(command.argv), user=command.user)
        try:
            async with self._commands.running(container, command) as running:
                await stream.opened()
                if not asked.exec.stdin:
                    running.close_stdin()
                code = await _converse(running, stream)
        except CommandFailed as error:
            await stream.opened()
            await stream.write(pb.Frame(stderr=f"tepui: {error}\n".encode()))
            code = error.code
        await stream.write(pb.Frame(exit=code))


def _command(asked: pb.OpenExec) -> Command:
    env = tuple((pair.key, pair.value) for pair in asked.env)
    size = _size(asked.terminal) if asked.HasField("terminal") else None
    return Command(tuple(asked.argv), env, asked.user, asked.cwd, size)


async def _converse(running: Running, stream: Stream) -> int:
    """Until the command has exited and everything that it wrote was sent. Its exit code."""
    async with _listening(running, stream):
        sending = asyncio.gather(_send_output(running, stream), _send_errors(running, stream))
        code, _ = await asyncio.gather(running.exited(), sending)
        return code


@asynccontextmanager
async def _listening(running: Running, stream: Stream) -> AsyncIterator[None]:
    listening = asyncio.create_task(_listen(running, stream))
    try:
        yield
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _listen(running: Running, stream: Stream) -> None:
    while (frame := await stream.read()) is not None:
        match frame.WhichOneof("body"):
            case "data":
                await _feed(running, frame.data)
                await stream.write(pb.Frame(taken=len(frame.data)))
            case "eof":
                running.close_stdin()
            case "resize":
                running.resize(_size(frame.resize))
            case "signal":
                with suppress(ValueError):  # not a signal
                    await running.signal(signal.Signals(frame.signal))


async def _feed(running: Running, data: bytes) -> None:
    """A command that reads no more is no failure: what else is for it is dropped, as a shell's pipe would."""
    if running.stdin >= 0:
        try:
            await descriptors.write(running.stdin, data)
        except OSError:
            running.close_stdin()


async def _send_output(running: Running, stream: Stream) -> None:
    while data := await descriptors.read(running.stdout):
        await stream.send(data)


async def _send_errors(running: Running, stream: Stream) -> None:
    while running.stderr is not None and (data := await descriptors.read(running.stderr)):
        await stream.write(pb.Frame(stderr=data))


def _size(terminal: pb.Resize) -> Size:
    return Size(min(terminal.rows, 0xFFFF), min(terminal.columns, 0xFFFF))
