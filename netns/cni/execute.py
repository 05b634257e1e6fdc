"""Executes a plug-in: which file that is, what it gets, and what it may cost.

A plug-in is a regular file of root's that nobody else can change, in a directory of root's. It is opened first and
what was opened is executed, so the name can not lead elsewhere, nor come to do so in between. It has a process group
of its own, a clean environment, a time limit and limits on what it says. What it started ends with it when it is
ended; what made a session of its own and is a daemon by now does not.

The child is made by the event loop's thread, with `vfork`: its network namespace is that of this thread.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from netns.driver import NetworkError

LIMIT_S = 30.0
KILL_S = 2.0
MAX_STDOUT = 1 << 20
MAX_STDERR = 4096
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Ended:
    """`code` is an exit code, or minus the number of a signal."""

    code: int
    stdout: bytes
    stderr: bytes


@contextmanager
def opened(name: str, directories: Sequence[Path]) -> Iterator[int]:
    """A descriptor (O_PATH) of the plug-in's file in the first of `directories` that has one."""
    fd = _open(name, directories)
    try:
        _refuse_unsafe(name, os.fstat(fd))
        yield fd
    finally:
        os.close(fd)


async def execute(
    name: str,
    directories: Sequence[Path],
    variables: Mapping[str, str],
    request: bytes,
    *,
    held: Sequence[int] = (),
    limit_s: float = LIMIT_S,
) -> Ended:
    """`variables` are the CNI_* ones; `held` are descriptors that stay open in the plug-in. Raises NetworkError when it
    can not be executed, or does not end within limits."""
    environment = {"PATH": PATH, "CNI_PATH": ":".join(map(str, directories)), **variables}
    loop = asyncio.get_running_loop()
    with opened(name, directories) as fd:
        try:
            transport, conversation = await loop.subprocess_exec(
                _Conversation,
                name,
                executable=f"/proc/self/fd/{fd}",
                pass_fds=(fd, *held),  # a script's interpreter opens it once more
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise NetworkError(f"execute: {error.strerror}") from error
        try:
            async with asyncio.timeout(limit_s):
                _say(transport, request)
                await conversation.ended
        except TimeoutError as error:
            raise NetworkError(f"did not end within {limit_s:g} s") from error
        finally:
            if not conversation.over:
                # The group is there while anything of it is, and nobody else gets its number.
                with suppress(ProcessLookupError):
                    os.killpg(transport.get_pid(), signal.SIGKILL)
                await asyncio.wait({conversation.exited}, timeout=KILL_S)
            transport.close()  # also where a process that left the group keeps the other end
    code = transport.get_returncode()
    assert code is not None
    return Ended(code, bytes(conversation.stdout), bytes(conversation.stderr))


class _Conversation(asyncio.SubprocessProtocol):
    """What was said until all of it has ended. More than the limit on standard output is an error; of standard error
    the first bytes are kept."""

    def __init__(self) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.over = False
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        assert isinstance(data, bytes)
        if fd == 2:
            self.stderr += data[: MAX_STDERR - len(self.stderr)]
        elif len(self.stdout) + len(data) <= MAX_STDOUT:
            self.stdout += data
        elif not self.ended.done():
            self.ended.set_exception(NetworkError(f"wrote more than {MAX_STDOUT >> 20} MiB"))

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.over = True
        if not self.ended.done():
            self.ended.set_result(None)


def _say(transport: asyncio.SubprocessTransport, request: bytes) -> None:
    stdin = transport.get_pipe_transport(0)
    assert isinstance(stdin, asyncio.WriteTransport)
    stdin.write(request)
    stdin.close()  # once it is written


def _open(name: str, directories: Sequence[Path]) -> int:
    if "/" in name:
        raise NetworkError("is not the plain name of a file")
    for directory in directories:
        try:
            parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise NetworkError(f"open {directory}: {error.strerror}") from error
        try:
            status = os.fstat(parent)
            if status.st_uid != 0 or status.st_mode & OTHERS_WRITE:
                raise NetworkError(f"{directory} is not root's alone")
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise NetworkError(f"open {directory / name}: {error.strerror}") from error
        finally:
            os.close(parent)
    raise NetworkError(f"is not in {', '.join(map(str, directories)) or 'any directory: cni_path is empty'}")


def _refuse_unsafe(name: str, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise NetworkError("is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise NetworkError("is not a regular file")
    if not status.st_mode & stat.S_IXUSR:
        raise NetworkError("is not executable")
    if status.st_uid != 0 or status.st_mode & OTHERS_WRITE:
        raise NetworkError("can be changed by others than root")
