"""Work inside another network namespace, without forking and without moving the process there.

The namespace is a property of a thread. So a thread is started for the work, enters the namespace by its descriptor
and ends with the work: it is never given other work in the wrong place. A netlink socket stays in the namespace in
which it was opened, so it can be handed to the event loop, and nothing but opening it needs the thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from netns.driver import NetworkError

CLONE_NEWNET = 0x40000000  # linux/sched.h
ENTER_DEADLINE_S = 10.0

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


class NoNamespace(NetworkError):
    """There is no such process, or it has ended."""


@contextmanager
def namespace_of(pid: int) -> Iterator[int]:
    """A descriptor of the network namespace of `pid`: it stays the same one when the pid is used again."""
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NoNamespace(f"network namespace of process {pid}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


async def run_inside(namespace: int, work: Callable[[], T]) -> T:
    """What `work` returns or raises, run in the network namespace that `namespace` is a descriptor of."""

    def run() -> T:
        _enter(namespace)
        return work()

    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns")
    try:
        async with asyncio.timeout(ENTER_DEADLINE_S):
            return await asyncio.get_running_loop().run_in_executor(executor, run)
    except TimeoutError as error:
        raise NetworkError(f"work in a network namespace: not done within {ENTER_DEADLINE_S:g} s") from error
    finally:
        executor.shutdown(wait=False)  # the thread ends: it is in the wrong place for any other work


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        raise NetworkError(f"enter network namespace: {os.strerror(ctypes.get_errno())}")
