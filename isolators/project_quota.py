"""Project quotas of XFS: a tree of files that may use so much of its file system and no more (xfs_quota(8)).

A directory that bears a project id gives it to everything that is made in it. The quota is set through an open file of
the file system (`quotactl_fd`, Linux 5.14), so no device has to be found.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from isolators.mount import MountPoint

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

NR_QUOTACTL_FD = 443
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_XFLAG_PROJINHERIT = 0x200
FSXATTR = struct.Struct("=5I8x")  # linux/fs.h: xflags, extsize, nextents, projid, cowextsize

Q_XGETQUOTA = 0x5803
Q_XSETQLIM = 0x5804
PRJQUOTA = 2
FS_DQUOT_VERSION = 1
FS_PROJ_QUOTA = 2
FS_DQ_BSOFT, FS_DQ_BHARD = 1 << 2, 1 << 3
BLOCK = 512
# linux/dqblk_xfs.h: version, flags, fieldmask, id, hard and soft limit of blocks, of inodes, blocks and inodes in use.
FS_DISK_QUOTA = struct.Struct("=bbHI6Q56x")

MOUNT_OPTIONS = ("prjquota", "pquota")


def enforced(directory: Path, points: Iterable[MountPoint]) -> bool:
    """Whether the file system that `directory` is on enforces project quotas."""
    above = [point for point in points if directory.is_relative_to(point.path)]
    nearest = max(above, key=lambda point: len(point.path.parts), default=None)
    return nearest is not None and nearest.kind == "xfs" and bool(set(MOUNT_OPTIONS) & set(nearest.options))


def assign(directory: Path, project: int) -> None:
    """What is made in `directory` from now on belongs to the project."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags, extsize, nextents, _, cowextsize = FSXATTR.unpack(_get(descriptor))
        changed = FSXATTR.pack(flags | FS_XFLAG_PROJINHERIT, extsize, nextents, project, cowextsize)
        fcntl.ioctl(descriptor, FS_IOC_FSSETXATTR, changed)
    finally:
        os.close(descriptor)


def project_of(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        project: int = FSXATTR.unpack(_get(descriptor))[3]
        return project
    finally:
        os.close(descriptor)


def limit(directory: Path, project: int, limit_bytes: int) -> None:
    """What the project may use of the file system that `directory` is on; 0: as much as there is."""
    blocks = limit_bytes // BLOCK
    mask = FS_DQ_BSOFT | FS_DQ_BHARD
    quota = FS_DISK_QUOTA.pack(FS_DQUOT_VERSION, FS_PROJ_QUOTA, mask, project, blocks, blocks, 0, 0, 0, 0)
    _quotactl(directory, Q_XSETQLIM, project, quota)


def used_bytes(directory: Path, project: int) -> int:
    quota = _quotactl(directory, Q_XGETQUOTA, project, bytes(FS_DISK_QUOTA.size))
    blocks: int = FS_DISK_QUOTA.unpack(quota)[8]
    return blocks * BLOCK


def _get(descriptor: int) -> bytes:
    return fcntl.ioctl(descriptor, FS_IOC_FSGETXATTR, bytes(FSXATTR.size))


def _quotactl(directory: Path, command: int, project: int, quota: bytes) -> bytes:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        buffer = ctypes.create_string_buffer(quota, len(quota))
        numbers = [ctypes.c_long(NR_QUOTACTL_FD), ctypes.c_int(descriptor), ctypes.c_int(command << 8 | PRJQUOTA)]
        if _libc.syscall(*numbers, ctypes.c_uint(project), buffer) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))
        return buffer.raw
    finally:
        os.close(descriptor)
