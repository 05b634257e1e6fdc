"""The agent's side of a guard (`guard.py`): one command in a running container, from its request to its end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.launcher.channel import MAX_MESSAGE, Message, decode, encode
from agent.launcher.client import Launcher, LauncherGone, LaunchError
from agent.launcher.descriptors import readable, writable

ANSWER_DEADLINE_S = 30.0
GONE_DEADLINE_S = 5.0  # more than a guard gives what is left of a command to hang up


class Entry:
    """Every verb raises LaunchError for what the guard says, and LauncherGone when it has gone."""

    def __init__(self, bundle: Path, guard: socket.socket) -> None:
        self._bundle = bundle
        self._guard = guard

    async def begin(self, streams: Sequence[int]) -> int:
        """Passes the command's standard streams on. The process that waits to be put into the cgroups."""
        await self._send({"op": "streams"}, streams)
        message, _ = await self._answer()
        pid: int = message["pid"]
        return pid

    async def start(self, cgroup: Path) -> int | None:
        """The program runs. Its terminal's master, which the caller closes, if it has one."""
        await self._send({"op": "start", "cgroup": str(cgroup)})
        _, descriptors = await self._answer()
        return descriptors[0] if descriptors else None

    async def signal(self, number: signal.Signals) -> None:
        """Accepts a command that has exited."""
        with suppress(LauncherGone):
            await self._send({"op": "signal", "number": int(number)})

    async def exited(self) -> int:
        """The exit code as a shell has it. There is no deadline: a command runs as long as it does."""
        message, _ = await self._receive()
        if message is None:
            raise LauncherGone("wait for command in", str(self._bundle), errno.ECONNRESET)
        return message["code"] if "code" in message else 128 + int(message["signal"])

    async def gone(self) -> bool:
        """Whether the guard has ended in time, and with it everything of the command."""
        try:
            async with asyncio.timeout(GONE_DEADLINE_S):
                while (await self._receive())[0] is not None:
                    pass
        except TimeoutError:
            return False
        return True

    def hang_up(self) -> None:
        """From now on it ends."""
        with suppress(OSError):
            self._guard.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._guard.close()

    async def _send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        while True:
            try:
                socket.send_fds(self._guard, [encode(message)], descriptors)
                return
            except BlockingIOError:
                await writable(self._guard.fileno())
            except (BrokenPipeError, ConnectionResetError) as error:
                raise LauncherGone("enter", str(self._bundle), error.errno or 0) from error

    async def _answer(self) -> tuple[Message, list[int]]:
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                message, descriptors = await self._receive()
        except TimeoutError as error:
            raise LauncherGone("enter", str(self._bundle), errno.ETIMEDOUT) from error
        if message is None:
            raise LauncherGone("enter", str(self._bundle), errno.ECONNRESET)
        if message["event"] == "error":
            raise LaunchError(message["operation"], message["path"], message["errno"])
        return message, descriptors

    async def _receive(self) -> tuple[Message | None, list[int]]:
        while True:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._guard, MAX_MESSAGE, 1)
                return decode(packet), descriptors
            except BlockingIOError:
                await readable(self._guard.fileno())
            except ConnectionResetError:
                return None, []


async def enter(launcher: Launcher, bundle: Path, request: dict[str, Any]) -> Entry:
    """`request` is that of `enter.visit`."""
    guard = await launcher.enter({"op": "enter", "bundle": str(bundle), **request})
    return Entry(bundle, guard)


def pipes() -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """A command's stdin, stdout and stderr: its ends, and ours, which do not block."""
    (stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr) = os.pipe(), os.pipe(), os.pipe()
    ours = (to_stdin, from_stdout, from_stderr)
    for descriptor in ours:
        os.set_blocking(descriptor, False)
    return (stdin, stdout, stderr), ours
