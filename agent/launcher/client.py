"""The agent's end of the launcher: starts it, asks it for containers, starts it again when it died.

One socket leads to the launcher, and a new one to the keeper of each container, so that a slow container never delays
another. The launcher is executed, never forked: the agent has threads.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.launcher import record, streams
from agent.launcher.channel import MAX_MESSAGE, Message, decode, encode, pair
from agent.launcher.pump import DEFAULT_LIMITS, Limits

NATIVE = "native"
MAIN = Path(__file__).with_name("main.py")
ANSWER_DEADLINE_S = 30.0
STOP_DEADLINE_S = 5.0


class LaunchError(Exception):
    """`operation` on `path` failed with `errno`. The container does not exist (any more)."""

    def __init__(self, operation: str, path: str, errno: int) -> None:
        super().__init__(f"{operation}: {path}: {os.strerror(errno)}")
        self.operation, self.path, self.errno = operation, path, errno


class LauncherGone(LaunchError):
    """The launcher or the keeper ended without an answer, or gives none: try again."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A sandbox whose first process `pid` waits in its namespaces for a task."""

    bundle: Path
    pid: int
    keeper: socket.socket

    @property
    def waits(self) -> bool:
        """Whether it still does: it may have been killed."""
        try:
            self.keeper.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            pass
        return False

    async def fill(
        self, stdout: Path, stderr: Path, limits: tuple[Limits, Limits] = (DEFAULT_LIMITS, DEFAULT_LIMITS)
    ) -> None:
        """Begin to do what the bundle says; the program is not executed before `start`. What it writes goes to the two
        files, of which there are as many as `limits` say."""
        logs = streams.request((str(stdout), str(stderr)), limits)
        with suppress(LauncherGone):  # `start` will say why
            await _send(self.keeper, {"op": "fill", "streams": logs})

    async def hold(self) -> None:
        """It gets no task: from now on it lives on without the agent, until it is killed. Raises as `start` does."""
        try:
            with suppress(LauncherGone):
                await _send(self.keeper, {"op": "hold"})
            await _answer(self.keeper, "hold", self.bundle)
        finally:
            self.keeper.close()

    async def start(self) -> int:
        """Returns when the program runs, with the pid that it has: another runtime makes a process of its own. Raises
        LaunchError when it can not; nothing is left then."""
        try:
            with suppress(LauncherGone):  # then why is waiting to be read
                await _send(self.keeper, {"op": "start"})
            started = await _answer(self.keeper, "start", self.bundle)
        finally:
            self.keeper.close()
        return int(started["pid"])

    async def abort(self) -> None:
        """Returns when the container is gone. Accepts one that was started or aborted before, and leaves it alone."""
        if self.keeper.fileno() < 0:
            return
        try:
            await _send(self.keeper, {"op": "abort"})
            await _end(self.keeper)
        except LauncherGone:
            return  # gone is what was asked for
        finally:
            self.keeper.close()


class Launcher:
    """Keeps one launcher process running while it is needed."""

    def __init__(self, runtime: str = NATIVE) -> None:
        """`runtime`: what makes containers' first processes; `native` is `init.py`, see `oci.py` for others."""
        self._runtime = runtime
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts the launcher process; at once when it runs."""
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._execute()

    async def create(self, bundle: Path, frame: dict[str, Any], holder: Path | None = None) -> Launch:
        """Makes a sandbox, of what `frame` has of the bundle's configuration, and a process that waits in it. In a pod
        `holder` is the bundle of the sandbox whose namespaces it joins."""
        request = {"op": "create", "bundle": str(bundle), "frame": frame}
        if holder is not None:
            request["holder"] = str(holder)
        if self._runtime != NATIVE:
            request["runtime"] = self._runtime
        try:
            return await self._create(bundle, request)
        except LauncherGone:
            if record.read_keeper(str(bundle)) is not None:
                raise
            # The launcher died before it forked: the end of the socket says that nobody holds it, so nothing was made.
            return await self._create(bundle, request)

    async def enter(self, request: Message) -> socket.socket:
        """Asks for a guard; see `entry.py` for what it says by the socket."""
        return await self._request(request)

    async def stop(self) -> None:
        """Ends the launcher. Containers that were started go on; others are taken back by their keepers."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            await asyncio.wait_for(self._process.wait(), STOP_DEADLINE_S)
            self._process = None

    async def _create(self, bundle: Path, request: Message) -> Launch:
        keeper = await self._request(request)
        try:
            answer = await _answer(keeper, "create", bundle)
        except BaseException:
            with keeper:
                await _abandon(keeper)
            raise
        return Launch(bundle, answer["pid"], keeper)

    async def _execute(self) -> None:
        if self._socket is not None:
            self._socket.close()
        ours, theirs = pair()
        ours.setblocking(False)
        with theirs:
            number = theirs.fileno()
            command = (sys.executable, "-I", "-S", str(MAIN), str(number))
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, pass_fds=(number,)
            )
        self._socket = ours

    async def _request(self, request: Message) -> socket.socket:
        """Sends a request with one end of a new socket pair, and returns the other."""
        ours, theirs = pair()
        ours.setblocking(False)
        with theirs:
            try:
                await self._deliver(request, theirs.fileno())
            except BaseException:
                ours.close()
                raise
        return ours

    async def _deliver(self, request: Message, descriptor: int) -> None:
        await self.start()
        assert self._socket is not None
        try:
            await _send(self._socket, request, [descriptor])
        except LauncherGone:  # it died since, and asyncio has not heard of it yet: the next one gets the request
            assert self._process is not None
            await asyncio.wait_for(self._process.wait(), STOP_DEADLINE_S)
            await self.start()
            await _send(self._socket, request, [descriptor])


async def _send(channel: socket.socket, message: Message, descriptors: list[int] | None = None) -> None:
    packet = [encode(message)]
    async with _deadline("reach launcher", message["op"]):
        while True:
            try:
                socket.send_fds(channel, packet, descriptors or [])
                return
            except BlockingIOError:
                await _ready(channel, writing=True)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise LauncherGone("reach launcher", message["op"], error.errno or 0) from error


async def _answer(channel: socket.socket, operation: str, bundle: Path) -> Message:
    async with _deadline(operation, str(bundle)):
        answer = await _receive(channel)
        if answer is None:
            raise LauncherGone(operation, str(bundle), errno.ECONNRESET)
        if answer["event"] == "error":
            await _end(channel)
            raise LaunchError(answer["operation"], answer["path"], answer["errno"])
        return answer


async def _end(channel: socket.socket) -> None:
    """The keeper's end: with it everything that it made is gone."""
    async with _deadline("wait for the end of", "keeper"):
        while await _receive(channel) is not None:
            pass


async def _abandon(keeper: socket.socket) -> None:
    """Returns when nothing of it is left, also when nobody waits for it any more."""
    keeper.shutdown(socket.SHUT_WR)
    with suppress(LauncherGone):
        await _end(keeper)


@asynccontextmanager
async def _deadline(operation: str, path: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            yield
    except TimeoutError as error:
        raise LauncherGone(operation, path, errno.ETIMEDOUT) from error


async def _receive(channel: socket.socket) -> Message | None:
    while True:
        try:
            return decode(channel.recv(MAX_MESSAGE))
        except BlockingIOError:
            await _ready(channel, writing=False)
        except ConnectionResetError:  # told once; what the other side said before it ended comes after it
            continue


async def _ready(channel: socket.socket, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    ready = asyncio.Event()
    add(channel, ready.set)
    try:
        await ready.wait()
    finally:
        remove(channel)
