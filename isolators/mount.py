"""The mount system calls that isolators need on the node's side, by ctypes, and the kernel's table of mounts.

The launcher has its own: it imports nothing of ours, so that it stays a process of the standard library alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

NR_OPEN_TREE = 428
NR_MOVE_MOUNT = 429
NR_OPENAT2 = 437
OPENAT2_ATTEMPTS = 100
NR_MOUNT_SETATTR = 442

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
OPEN_TREE_CLONE = 0x1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_IDMAP = 0x00100000
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8
O_PATH = 0o10000000
RESOLVE_IN_ROOT = 0x10
RESOLVE_NO_MAGICLINKS = 0x02

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)). `options` are those of the file system."""

    path: Path
    root: str
    kind: str
    options: tuple[str, ...]


def mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    encoded = (source.encode(), os.fsencode(target), kind.encode())
    if _libc.mount(*encoded, ctypes.c_ulong(flags), data.encode()) < 0:
        raise _error(str(target))


def umount2(target: Path, flags: int) -> None:
    if _libc.umount2(os.fsencode(target), ctypes.c_int(flags)) < 0:
        raise _error(str(target))


def unmount(path: Path) -> None:
    """Lazily: a process that lingers in it keeps it to itself. Accepts what is not mounted, or not there."""
    try:
        umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def open_tree(path: Path) -> int:
    """A detached copy of the mount at `path`, without the mounts below."""
    return _syscall(str(path), NR_OPEN_TREE, AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | os.O_CLOEXEC)


def set_idmap(tree: int, userns: int, path: Path) -> None:
    """Ids on disk are shown through the user namespace's maps: 0 on disk is what 0 inside of it is outside. Read-only
    too, so that whatever is done to the attached tree, also to remove what a crash left, can't change the files."""
    attributes = struct.pack("4Q", MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY, 0, 0, userns)
    _syscall(str(path), NR_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, len(attributes))


def move_mount(tree: int, target: Path) -> None:
    """Attaches the detached mount `tree`."""
    _syscall(str(target), NR_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)


def open_in_root(root: Path, path: str, flags: int = os.O_RDONLY) -> int:
    """Opens a file for reading as if `root` were `/`: no symbolic link leads out (openat2(2), RESOLVE_IN_ROOT). Tried
    again when anything was renamed or mounted anywhere while a `..` was looked up: the kernel can't tell then."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # O_NONBLOCK: an image may have a FIFO there, and opening one waits for its other end.
        flags |= os.O_CLOEXEC | (0 if flags & O_PATH else os.O_NONBLOCK)
        how = struct.pack("3Q", flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        for _ in range(OPENAT2_ATTEMPTS - 1):
            try:
                return _syscall(path, NR_OPENAT2, directory, os.fsencode(path), how, len(how))
            except BlockingIOError:
                continue
        return _syscall(path, NR_OPENAT2, directory, os.fsencode(path), how, len(how))
    finally:
        os.close(directory)


def mount_points() -> list[MountPoint]:
    """Of the mount namespace of this process, in the order they were mounted."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))


def parse_mountinfo(text: str) -> list[MountPoint]:
    return [_parse_line(line) for line in text.splitlines()]


def _parse_line(line: str) -> MountPoint:
    """The optional fields before the dash vary in number."""
    mount_fields, _, super_fields = line.partition(" - ")
    _, _, _, root, path, *_ = mount_fields.split(" ")
    kind, _, options = super_fields.split(" ", 2)
    return MountPoint(Path(_unescape(path)), _unescape(root), kind, tuple(options.split(",")))


def _unescape(field: str) -> str:
    """Space, tab, newline and backslash are written as three octal digits."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _syscall(path: str, number: int, *arguments: int | bytes) -> int:
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise _error(path)
    return result


def _error(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)
