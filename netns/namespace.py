"""Work inside another network namespace, without forking and without moving the process there.

The namespace is a property of a thread. So a thread is started for the work, enters the namespace by its descriptor
and ends with the work: it is never given other work in the wrong place. A netlink socket stays in the namespace in
which it was opened, so it can be handed to the event loop, and nothing but opening it needs the thread.

Other runtimes name a namespace by a path. It is opened once, and what was opened is used. Nobody but root may be able
to say where the path leads, or a container's user had us work in the namespace of another one, or of the node.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from netns.driver import NetworkError

CLONE_NEWNET = 0x40000000  # linux/sched.h
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
ENTER_DEADLINE_S = 10.0

OWN = "/proc/thread-self/ns/net"
OF_PROCESS = re.compile(r"/proc/[1-9][0-9]*(/task/[1-9][0-9]*)?/ns/net")  # the kernel's own links
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
MOST_LINKS = 8  # symbolic ones, on the way of a path

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


class NoNamespace(NetworkError):
    """There is no such process or path, or it has ended or is no network namespace."""


@contextmanager
def namespace_of(pid: int, path: str = "") -> Iterator[int]:
    """A descriptor of the network namespace of `pid`, or of the one that is at `path`: it stays the same one when the
    pid is used again, and whatever becomes of the path."""
    try:
        fd = _opened(path) if path else os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NoNamespace(f"network namespace {path or f'of process {pid}'}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def identity_at(path: str) -> int:
    """The inode of the network namespace at `path`: its number for as long as it exists. Raises NoNamespace."""
    with namespace_of(0, path) as fd:
        return os.fstat(fd).st_ino


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


def _opened(path: str) -> int:
    """Raises OSError, or NoNamespace that says what is at the path instead."""
    if OF_PROCESS.fullmatch(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    else:
        place = _walk(path)
        try:
            # Opening can have effects of its own (a FIFO waits, a device may act): not before it is known what it is.
            if os.fstat(place).st_dev != os.stat(OWN).st_dev:
                raise NoNamespace(f"network namespace {path}: it is no namespace")
            fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)
    try:
        if fcntl.ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET:
            raise NoNamespace(f"network namespace {path}: it is a namespace of another kind")
        if os.fstat(fd).st_ino == os.stat(OWN).st_ino:
            raise NoNamespace(f"network namespace {path}: it is the node's own")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _walk(path: str) -> int:
    """A descriptor (O_PATH) of what is at `path`, by way of directories that only root can change."""
    if not path.startswith("/") or "\0" in path:
        raise NoNamespace(f"network namespace {path!r}: it is no absolute path")
    todo, links = path.split("/")[::-1], 0
    here = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        while todo:
            if not (name := todo.pop()):
                continue
            status = os.fstat(here)
            if status.st_uid != 0 or status.st_mode & OTHERS_WRITE:
                raise NoNamespace(f"network namespace {path}: others than root can change the way to {name!r}")
            below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            if not stat.S_ISLNK(os.fstat(below).st_mode):
                os.close(here)
                here = below
                continue
            try:
                target, links = os.readlink("", dir_fd=below), links + 1
            finally:
                os.close(below)
            if links > MOST_LINKS:
                raise NoNamespace(f"network namespace {path}: more than {MOST_LINKS} symbolic links")
            if target.startswith("/"):
                os.close(here)
                here = os.open("/", os.O_PATH | os.O_CLOEXEC)
            todo += target.split("/")[::-1]
    except BaseException:
        os.close(here)
        raise
    return here


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        raise NetworkError(f"enter network namespace: {os.strerror(ctypes.get_errno())}")
