"""Keeps a container's network namespace for as long as its attachment lasts, as a file that plug-ins are given.

Plug-ins need it after the container's processes have ended: `bridge` and `ptp` read there which addresses they had
masqueraded, and given no namespace they leave those rules behind. And it has to be the same path for ADD, CHECK and
DEL, also for an agent that has been restarted, which the path of a process or of a descriptor is not.

The file is a bind mount of /proc/<pid>/ns/net. After a reboot it is there, and is no namespace any more.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from netns.driver import NetworkError

MS_BIND = 0x1000  # linux/mount.h
MNT_DETACH = 2
MOST_MOUNTS = 8  # upon each other, by calls that were interrupted

_libc = ctypes.CDLL(None, use_errno=True)


def identity(namespace: int) -> int:
    """The inode of the namespace that the descriptor is of: its number as long as it exists."""
    return os.fstat(namespace).st_ino


def kept(path: Path) -> int | None:
    """The identity of the namespace that `path` keeps; None when it keeps none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino if status.st_dev == _nsfs() else None


def keep(path: Path, pid: int, namespace: int) -> None:
    """Have `path` keep the `namespace` of `pid`. Raises NetworkError when that is no longer the process's."""
    if kept(path) == identity(namespace):
        return
    let_go(path)
    path.touch(mode=0o600)
    if _libc.mount(f"/proc/{pid}/ns/net".encode(), os.fsencode(path), None, MS_BIND, None) != 0:
        raise NetworkError(f"keep network namespace of process {pid}: {os.strerror(ctypes.get_errno())}")
    if kept(path) != identity(namespace):
        raise NetworkError(f"keep network namespace of process {pid}: it ended")


def let_go(path: Path) -> None:
    for _ in range(MOST_MOUNTS):
        if kept(path) is None:
            break
        if _libc.umount2(os.fsencode(path), MNT_DETACH) != 0:
            raise NetworkError(f"unmount {path}: {os.strerror(ctypes.get_errno())}")
    path.unlink(missing_ok=True)


def _nsfs() -> int:
    """The device number of the file system that namespaces are files of."""
    return os.stat("/proc/self/ns/net").st_dev
