"""One agent for one state directory: two would each clear away the other's containers as orphans."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = "agent.lock"
FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
PID_BYTES = 32


class InUse(Exception):
    """Another agent has it."""


@contextmanager
def alone_in(state: Path) -> Iterator[None]:
    """Raises InUse, or OSError when the directory can not be written to. The kernel lets go of it when the agent ends,
    in whatever way."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(state / LOCK_FILE, FLAGS, 0o600)
    try:
        _take(lock, state)
        yield
    finally:
        os.close(lock)


def _take(lock: int, state: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, PID_BYTES, 0).decode(errors="replace").strip()
        raise InUse(f"{state}: another agent (process {holder}) uses this state directory") from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
