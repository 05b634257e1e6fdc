"""Commands in running containers: what `tepui task exec` and health checks ask for.

A command is entered by the launcher (agent/launcher/guard.py) and joined to its container by the isolators. It ends
with the block that runs it, and with everything that it has started: nothing of it outlives that, and nothing of the
container ends with it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import signal
import struct
import termios
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import structlog

from agent.containers import Containers
from agent.launcher import descriptors, entry
from agent.launcher.client import Launcher, LaunchError
from agent.launcher.entry import Entry
from isolators.base import Container, IsolatorError
from isolators.user import find_user, parse_ids

log = structlog.get_logger()

OUTPUT_BYTES = 4096
NONE: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as shells have it (POSIX, XCU 2.8.2)


class CommandFailed(Exception):
    """It never ran. `code` is what a shell would have exited with."""

    def __init__(self, reason: str, code: int = NOT_EXECUTABLE) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Size:
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Command:
    """`env` comes on top of the container's. An empty `user` or `cwd` is the container's. `terminal` is its size.
    `files` are verb and path for agent/launcher/files.py, which takes the place of a program."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    cwd: str = ""
    terminal: Size | None = None
    files: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended, None when it took too long, and the beginning of what it wrote."""

    code: int | None
    output: bytes


class Running:
    """A command that runs. `stdin` and `stdout` are the same descriptor when it has a terminal, and there is no
    `stderr` then. None of them blocks."""

    def __init__(self, entered: Entry, stdin: int, stdout: int, stderr: int | None = None) -> None:
        self._entered = entered
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr

    async def exited(self) -> int:
        """The exit code as a shell has it. Raises CommandFailed when it is lost."""
        try:
            return await self._entered.exited()
        except LaunchError as error:
            raise CommandFailed(f"its exit code is lost: {error}") from error

    async def signal(self, number: signal.Signals) -> None:
        await self._entered.signal(number)

    def resize(self, size: Size) -> None:
        """Of its terminal."""
        with suppress(OSError):  # it has just ended
            fcntl.ioctl(self.stdin, termios.TIOCSWINSZ, struct.pack("4H", size.rows, size.columns, 0, 0))

    def close_stdin(self) -> None:
        """The command reads the end of its input. Has no meaning for a terminal; accepts being called again."""
        if self.stderr is not None and self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def close(self) -> None:
        for descriptor in {self.stdin, self.stdout, self.stderr} - {None, -1}:
            os.close(descriptor)  # type: ignore[arg-type]


class Commands:
    def __init__(self, containers: Containers, launcher: Launcher) -> None:
        self._containers = containers
        self._launcher = launcher

    async def run(
        self, container: Container, argv: Sequence[str], env: Sequence[tuple[str, str]] = (), timeout_s: float = 20.0
    ) -> Result:
        """Without input, output and error output together. Raises CommandFailed when it can not be run at all."""
        output = bytearray()
        code: int | None = None
        try:
            async with asyncio.timeout(timeout_s), self.running(container, Command(tuple(argv), tuple(env))) as command:
                command.close_stdin()
                async with _beginning_of((command.stdout, command.stderr), output):
                    code = await command.exited()
        except TimeoutError:
            pass
        return Result(code, bytes(output))

    @asynccontextmanager
    async def running(self, container: Container, command: Command) -> AsyncIterator[Running]:
        """Until the block ends; it is ended then. Raises CommandFailed."""
        session = f"exec-{secrets.token_hex(4)}"
        entered = await self._ask(container, command)
        try:
            made = await self._started(container, command, session, entered)
            try:
                yield made
            finally:
                made.close()
        finally:
            await asyncio.shield(self._end(container, session, entered))

    async def _ask(self, container: Container, command: Command) -> Entry:
        try:
            return await entry.enter(self._launcher, container.directory, _request(container, command))
        except (IsolatorError, LaunchError, OSError) as error:
            raise CommandFailed(str(error)) from error

    async def _started(self, container: Container, command: Command, session: str, entered: Entry) -> Running:
        theirs, ours = entry.pipes() if command.terminal is None else NONE
        with ExitStack() as stack:
            for descriptor in ours:
                stack.callback(os.close, descriptor)
            try:
                pid = await _begun(entered, theirs)
                master = await entered.start(await self._containers.join(container, session, pid))
            except LaunchError as error:
                raise _failed(error) from error
            except (IsolatorError, OSError) as error:
                raise CommandFailed(str(error)) from error
            stack.pop_all()
        if master is None:
            return Running(entered, *ours)
        os.set_blocking(master, False)
        return Running(entered, master, master)

    async def _end(self, container: Container, session: str, entered: Entry) -> None:
        """The guard ends what is left of it. Should that have died, or wait for a command that the container's root has
        stopped on its way in, the isolators do."""
        entered.hang_up()
        try:
            if not await entered.gone():
                log.warning("a command does not end by itself", task=container.task.id, session=session)
            await self._containers.leave(container, session)
        except (IsolatorError, OSError) as error:
            log.error("end of a command", task=container.task.id, session=session, error=str(error))
        finally:
            entered.close()


def _request(container: Container, command: Command) -> dict[str, object]:
    user = None
    if command.user:
        found = parse_ids(command.user) or find_user(command.user, container.rootfs)
        user = [found.uid, found.gid, list(found.groups)]
    size = command.terminal or Size(0, 0)
    return {
        "argv": list(command.argv),
        "env": dict(command.env),
        "cwd": command.cwd or None,
        "user": user,
        "size": [size.rows, size.columns],
        "files": command.files,
    }


async def _begun(entered: Entry, theirs: Sequence[int]) -> int:
    try:
        return await entered.begin(theirs)
    finally:
        for descriptor in theirs:
            os.close(descriptor)


def _failed(error: LaunchError) -> CommandFailed:
    missing = isinstance(OSError(error.errno, ""), FileNotFoundError)
    return CommandFailed(str(error), NOT_FOUND if error.operation == "execute" and missing else NOT_EXECUTABLE)


@asynccontextmanager
async def _beginning_of(sources: Iterable[int | None], output: bytearray) -> AsyncIterator[None]:
    """All of the sources are read to their ends when the block has ended, unless that failed."""
    reading = [asyncio.create_task(_keep_beginning(source, output)) for source in sources if source is not None]
    try:
        yield
        await asyncio.gather(*reading)
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def _keep_beginning(descriptor: int, output: bytearray) -> None:
    """Reads to the end, so that who writes is not held up."""
    while data := await descriptors.read(descriptor):
        output += data[: OUTPUT_BYTES - len(output)]
