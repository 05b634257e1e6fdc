"""Looks at a container's files from inside: the last stage of `enter.py`, in the place of a program.

An image need not have `ls`, `cat` or `tar`, so this process does their work itself, confined like a command and with
nothing but the container's files in reach: a link, also one that is swapped meanwhile, leads to what the container
has anyway (CVE-2018-15664). Links into other processes (/proc/PID/exe) are not followed. No user or group is looked up
by name: that would load code from the container's files (CVE-2019-14271).

Writes to standard output: JSON lines, a file's bytes, or a tar archive; why it could not, to standard error.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tarfile
from collections.abc import Callable

from agent.launcher import syscalls as sc

CHUNK_BYTES = 64 * 1024
IN_ROOT = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Made up as they are read, without an end or as large as memory.
VIRTUAL = (sc.PROC_SUPER_MAGIC, sc.SYSFS_MAGIC)
TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
ARCHIVED = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE}


def serve(verb: str, path: str) -> int:
    """Exit code."""
    try:
        VERBS[verb](path)
    except OSError as error:
        return _failed(f"{path}: {error.strerror}")
    except RecursionError:
        return _failed(f"{path}: Directories are nested too deeply")
    return 0


def _failed(reason: str) -> int:
    os.write(2, reason.encode(errors="replace"))
    return 1


def _list(path: str) -> None:
    """A line for each entry of a directory, or one for what is not a directory."""
    try:
        directory = _open(path, os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError:
        above, name = os.path.split(path.rstrip("/"))
        entries = [(name, _open(above or "/", sc.O_PATH))]
    else:
        entries = [(name, directory) for name in sorted(os.listdir(directory))]
    with os.fdopen(1, "w", encoding="utf-8", closefd=False) as out:
        for name, above_it in entries:
            try:
                out.write(json.dumps(_entry(name, above_it)) + "\n")
            except FileNotFoundError:  # it went meanwhile
                continue


def _entry(name: str, directory: int) -> dict[str, object]:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return {
        "name": os.fsencode(name).decode(errors="replace"),
        "type": TYPES[stat.S_IFMT(status.st_mode)],
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size": status.st_size,
        "modified": status.st_mtime,
        "target": os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else None,
    }


def _read(path: str) -> None:
    descriptor = _open(path, os.O_RDONLY | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a file")
    while data := os.read(descriptor, CHUNK_BYTES):
        _write(data)


def _pack(path: str) -> None:
    """With the last part of the path for its name. Devices, sockets and pipes are left out."""
    name = os.path.basename(os.path.normpath("/" + path)) or "."
    top = _open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(1, "wb", closefd=False) as out, tarfile.open(fileobj=out, mode="w|", bufsize=CHUNK_BYTES) as archive:
        _add_open(archive, name, top)
        if stat.S_ISDIR(os.fstat(top).st_mode):
            _add_below(archive, name, top)


def _add_below(archive: tarfile.TarFile, name: str, top: int) -> None:
    for where, directories, names, directory in os.fwalk(".", dir_fd=top):
        if sc.fstatfs_type(directory) in VIRTUAL:
            directories.clear()
            continue
        for entry in sorted((*directories, *names)):
            _add(archive, os.path.normpath(os.path.join(name, where, entry)), entry, directory)


def _add(archive: tarfile.TarFile, where: str, name: str, directory: int) -> None:
    """What goes meanwhile is left out."""
    try:
        kind = stat.S_IFMT(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
        if kind == stat.S_IFLNK:
            _add_link(archive, where, os.readlink(name, dir_fd=directory))
        elif kind in ARCHIVED:
            descriptor = os.open(name, OPEN_FLAGS, dir_fd=directory)
            try:
                _add_open(archive, where, descriptor)
            finally:
                os.close(descriptor)
    except FileNotFoundError:
        return


def _add_link(archive: tarfile.TarFile, where: str, target: str) -> None:
    member = tarfile.TarInfo(where)
    member.type, member.linkname = tarfile.SYMTYPE, target
    archive.addfile(member)


def _add_open(archive: tarfile.TarFile, where: str, descriptor: int) -> None:
    """A file or a directory; whatever else it may have become is nothing."""
    status = os.fstat(descriptor)
    kind = stat.S_IFMT(status.st_mode)
    member = tarfile.TarInfo(where)
    member.mode, member.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    member.uid, member.gid = status.st_uid, status.st_gid
    if kind in ARCHIVED:
        member.type = ARCHIVED[kind]
        member.size = status.st_size if kind == stat.S_IFREG else 0
        archive.addfile(member, _Exactly(descriptor) if kind == stat.S_IFREG else None)


class _Exactly:
    """A file that has as many bytes as are asked for, zeros where it has become shorter."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        return os.read(self._descriptor, size).ljust(size, b"\0")


def _open(path: str, flags: int) -> int:
    root = os.open("/", sc.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return sc.openat2(root, "/" + path.lstrip("/"), flags, IN_ROOT)
    finally:
        os.close(root)


def _write(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]


VERBS: dict[str, Callable[[str], None]] = {"list": _list, "read": _read, "pack": _pack}
