"""A container's stdout and stderr: FIFOs beside its bundle, which the keeper empties into log files (`pump.py`).

A container has each of them open for reading and writing. So it never writes to a pipe that nobody reads: when its
keeper is killed it gets no SIGPIPE, and waits at most for whoever opens the FIFO next (`agent/pumps.py`). The FIFO is
the container's user's, who may open it again by way of /dev/stdout; by name nobody gets at it but the agent.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat

from agent.launcher.channel import Message, failed
from agent.launcher.pump import Limits, Pump, open_log

NAMES = ("stdout", "stderr")


def request(logs: tuple[str, str], limits: tuple[Limits, Limits]) -> list[Message]:
    """As it stands in a request, and goes on to the keeper."""
    return [{"log": log, "size": limit.size, "files": limit.files} for log, limit in zip(logs, limits, strict=True)]


def make(directory: str, owner: tuple[int, int], streams: list[Message], keeper: socket.socket) -> list[int]:
    """The container's ends, which are `owner`'s (user and group, as the node counts). The keeper has the others when
    this returns. Raises SetupError."""
    ends: list[int] = []
    pumped: list[int] = []
    try:
        for name, stream in zip(NAMES, streams, strict=True):
            pumped.append(_open_log(stream["log"]))
            fifo = _fifo(directory, name)
            os.mkfifo(fifo, 0o600)
            os.chown(fifo, *owner)
            pumped.append(open_fifo(fifo, os.O_NONBLOCK))
            ends.append(open_fifo(fifo))
        socket.send_fds(keeper, [json.dumps(streams).encode()], pumped)
    except OSError as error:
        raise failed("connect streams", error) from error
    finally:
        for descriptor in pumped:
            os.close(descriptor)
    return ends


def pipes(descriptors: list[int]) -> list[int]:
    """In the keeper, of what `make` has sent."""
    return descriptors[1::2]


def pumps(packet: bytes, descriptors: list[int]) -> list[Pump]:
    """As `pipes`."""
    streams: list[Message] = json.loads(packet)
    return [
        Pump(pipe, log, stream["log"], Limits(stream["size"], stream["files"]))
        for pipe, log, stream in zip(pipes(descriptors), descriptors[::2], streams, strict=True)
    ]


def reopen(directory: str, logs: tuple[str, str], limits: tuple[Limits, Limits]) -> list[Pump]:
    """Of a container whose keeper is gone. Raises OSError."""
    return [
        Pump(open_fifo(_fifo(directory, name), os.O_NONBLOCK), open_log(log), log, limit)
        for name, log, limit in zip(NAMES, logs, limits, strict=True)
    ]


def open_fifo(path: str, flags: int = 0) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags)
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a FIFO", path)
    return descriptor


def _fifo(directory: str, name: str) -> str:
    return os.path.join(directory, f"{name}.fifo")


def _open_log(path: str) -> int:
    try:
        return open_log(path)
    except OSError as error:
        raise failed("open log", error) from error
