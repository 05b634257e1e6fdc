"""Writes kernel settings of the container's own namespaces.

Through a procfs that is mounted for this alone and attached nowhere: what an image or a volume has at /proc is not
asked, so a setting can't be written to a file of the container's choice, nor a file of its choice be taken for one
(CVE-2019-19921, CVE-2025-52881).
"""

from __future__ import annotations

import errno
import os

from agent.launcher import syscalls as sc

INSIDE = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_NO_MAGICLINKS


def open_proc() -> int:
    """To be called while the node's /proc is in sight: the kernel makes no new one where it is hidden or masked."""
    return sc.new_mount("proc", "proc", (), sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC)


def write(proc: int, name: str, value: str) -> None:
    """Raises OSError with the name."""
    try:
        descriptor = sc.openat2(proc, "sys/" + name.replace(".", "/"), os.O_WRONLY, INSIDE)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error
    try:
        if sc.fstatfs_type(descriptor) != sc.PROC_SUPER_MAGIC:
            raise OSError(errno.EXDEV, "not a file of procfs", name)
        os.write(descriptor, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error
    finally:
        os.close(descriptor)
