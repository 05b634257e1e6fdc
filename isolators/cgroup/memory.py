"""Memory: the limit, swap beyond it, the mark above which it is reclaimed first, and what happens at the limit.

When nothing is left to reclaim, the kernel kills: on version 2 every process of the container (`memory.oom.group`), on
version 1 one of them. The count of such kills, and news of it, are what the isolator's `watch` lives on.
"""

from __future__ import annotations

import errno
import os
import select
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from cgroupspy.controllers import MemoryController
from cgroupspy.interfaces import DictFile, FlagFile, IntegerFile

from isolators.cgroup.controller import Controller, Files, LimitFile, Opener, has_file, open_files
from isolators.cgroup.limits import Limits
from model.task import Usage

UNLIMITED_BYTES = 1 << 62  # memory.limit_in_bytes without a limit reads as the largest multiple of a page


class OomNews(Protocol):
    """Readable after the kernel has killed in a cgroup, until it is drained."""

    def fileno(self) -> int: ...

    def drain(self) -> None: ...

    def close(self) -> None: ...


class MemoryFilesV2(Files):  # type: ignore[misc]
    """cgroup-v2.rst, "Memory Interface Files"."""

    max = LimitFile("memory.max")
    high = LimitFile("memory.high")
    swap_max = LimitFile("memory.swap.max")
    oom_group = FlagFile("memory.oom.group")
    current = IntegerFile("memory.current", readonly=True)
    peak = IntegerFile("memory.peak", readonly=True)
    events = DictFile("memory.events", readonly=True)


class MemoryV1(Controller):
    """cgroup-v1/memory.rst"""

    name = "memory"

    def limit(self, directory: Path, limits: Limits) -> None:
        files = open_files(MemoryController, directory)
        _limit_v1(files, limits, counts_swap=has_file(directory, "memory.memsw.limit_in_bytes"))
        high = limits.high_bytes or None
        if (high is not None) or _limited(files.soft_limit_in_bytes) is not None:
            files.soft_limit_in_bytes = high

    def usage(self, directory: Path, usage: Usage, opened: Opener) -> Usage:
        files = opened(MemoryController, directory)
        return replace(
            usage,
            mem_bytes=files.usage_in_bytes,
            mem_limit_bytes=_limited(files.limit_in_bytes),
            mem_peak_bytes=files.max_usage_in_bytes,
        )

    def oom_kills(self, directory: Path) -> int:
        count: int = open_files(MemoryController, directory).oom_control["oom_kill"]
        return count

    def oom_news(self, directory: Path) -> OomNews:
        return OomNewsV1(directory)


class MemoryV2(Controller):
    name = "memory"

    def limit(self, directory: Path, limits: Limits) -> None:
        files = open_files(MemoryFilesV2, directory)
        _make_room(files, limits.memory_bytes, directory)
        files.max = limits.memory_bytes
        if has_file(directory, "memory.swap.max"):  # not without CONFIG_SWAP
            files.swap_max = limits.swap_bytes
        files.high = limits.high_bytes or None
        files.oom_group = True

    def usage(self, directory: Path, usage: Usage, opened: Opener) -> Usage:
        files = opened(MemoryFilesV2, directory)
        peak = files.peak if has_file(directory, "memory.peak") else 0  # Linux 5.19
        return replace(usage, mem_bytes=files.current, mem_limit_bytes=files.max, mem_peak_bytes=peak)

    def oom_kills(self, directory: Path) -> int:
        count: int = open_files(MemoryFilesV2, directory).events["oom_kill"]
        return count

    def oom_news(self, directory: Path) -> OomNews:
        return FileNews(directory / "memory.events")


class OomNewsV1:
    """An eventfd that the kernel writes to (cgroup-v1/memory.rst, "OOM Control"); also when the cgroup is removed."""

    def __init__(self, directory: Path) -> None:
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(directory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                (directory / "cgroup.event_control").write_text(f"{self._eventfd} {control}")
            finally:
                os.close(control)
        except OSError:
            os.close(self._eventfd)
            raise

    def fileno(self) -> int:
        return self._eventfd

    def drain(self) -> None:
        os.eventfd_read(self._eventfd)

    def close(self) -> None:
        os.close(self._eventfd)


class FileNews:
    """Tells when a file of a version 2 cgroup has changed. The kernel raises POLLPRI for it, which an event loop does
    not wait for; an epoll that does is readable then, and the event loop waits for that one."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self.drain()
        self._epoll.register(self._file, select.EPOLLPRI)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def drain(self) -> None:
        os.pread(self._file, 4096, 0)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._file)


def _limit_v1(files: Any, limits: Limits, *, counts_swap: bool) -> None:
    """Memory and swap together may never be less than memory alone, so the order depends on the direction. Without
    swap accounting the kernel has no such file."""
    amounts = {"limit_in_bytes": limits.memory_bytes}
    if counts_swap:
        both = limits.memory_bytes + limits.swap_bytes
        growing = both > (files.memsw_limit_in_bytes or 0)
        amounts = {"memsw_limit_in_bytes": both, **amounts} if growing else {**amounts, "memsw_limit_in_bytes": both}
    for name, amount in amounts.items():
        setattr(files, name, amount)


def _make_room(files: Any, limit: int, directory: Path) -> None:
    """Lowering memory.max below what is used kills; a resize must not. Setting memory.high reclaims what can be had
    and kills nobody; when that is not enough the resize is refused, as version 1 does by itself."""
    if not has_file(directory, "memory.current") or files.current <= limit:
        return
    before = files.high
    files.high = limit
    if files.current > limit:
        files.high = before
        raise OSError(errno.EBUSY, f"more than {limit} bytes are in use", str(directory))


def _limited(amount: int | None) -> int | None:
    return None if amount is None or amount >= UNLIMITED_BYTES else amount
