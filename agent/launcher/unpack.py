"""Puts files into a container from inside, out of a tar archive that comes by standard input: see `files.py`.

What can be written is what the container's root can write, and counts against the container's limits. Directories are
opened one by one and never through a link, so that nothing lands elsewhere than it was sent to because something in the
container was swapped meanwhile. What is made belongs to whom the directory belongs that it is made in, and gets its
mode from the archive, without the bits that lend rights.
"""

from __future__ import annotations

import errno
import os
import tarfile
from contextlib import suppress
from typing import IO

from agent.launcher import syscalls as sc

CHUNK_BYTES = 64 * 1024
MOST_NESTED = 256
IN_ROOT = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def unpack(path: str) -> None:
    """Below `path` if that is a directory, else under that name. Raises OSError and TarError."""
    top, rename = _target(path)
    with os.fdopen(0, "rb", closefd=False) as source, tarfile.open(fileobj=source, mode="r|") as members:
        for member in members:
            _put(top, _parts(member.name, rename), member, members)


def _target(path: str) -> tuple[int, str]:
    """A directory, and what the first part of each name is to become, if anything."""
    root = os.open("/", sc.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return sc.openat2(root, "/" + path.lstrip("/"), flags, IN_ROOT), ""
    except (FileNotFoundError, NotADirectoryError):
        above, name = os.path.split(path)
        if name in ("", ".", ".."):
            raise
        return sc.openat2(root, "/" + above.lstrip("/"), flags, IN_ROOT), name
    finally:
        os.close(root)


def _parts(name: str, rename: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or len(parts) > MOST_NESTED:
        raise OSError(errno.EINVAL, f"The archive has a member {name!r}")
    return [rename, *parts[1:]] if rename and parts else parts


def _put(top: int, parts: list[str], member: tarfile.TarInfo, members: tarfile.TarFile) -> None:
    if not parts:
        return
    directory = _opened(top, parts[:-1])
    try:
        if member.isdir():
            _make_directory(parts[-1], directory, member.mode & 0o777)
        elif member.isreg():
            _write(parts[-1], directory, member, members.extractfile(member))
        elif member.issym():
            _replace(parts[-1], directory)
            os.symlink(member.linkname, parts[-1], dir_fd=directory)
            _give(parts[-1], directory)
        else:
            raise OSError(errno.EINVAL, f"{member.name}: Neither file, directory nor link")
    finally:
        os.close(directory)


def _opened(top: int, parts: list[str]) -> int:
    directory = os.dup(top)
    for part in parts:
        try:
            below = os.open(part, DIRECTORY_FLAGS, dir_fd=directory)
        finally:
            os.close(directory)
        directory = below
    return directory


def _make_directory(name: str, directory: int, mode: int) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        os.close(os.open(name, DIRECTORY_FLAGS, dir_fd=directory))  # fails where it is something else
        return
    made = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    try:
        os.fchmod(made, mode | 0o700)
        _give(name, directory)
    finally:
        os.close(made)


def _write(name: str, directory: int, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
    """Whole or not at all: what there is no room for is not left half."""
    assert content is not None
    _replace(name, directory)
    descriptor = os.open(name, FILE_FLAGS, 0o600, dir_fd=directory)
    try:
        _copy(content, descriptor)
        os.fchmod(descriptor, member.mode & 0o777)
        os.utime(descriptor, (member.mtime, member.mtime))
        _give(name, directory)
    except BaseException:
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(descriptor)


def _copy(content: IO[bytes], descriptor: int) -> None:
    while data := content.read(CHUNK_BYTES):
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]


def _give(name: str, directory: int) -> None:
    owner = os.fstat(directory)
    with suppress(PermissionError):  # a container whose root may not do that: then it is root's
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=directory, follow_symlinks=False)


def _replace(name: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
