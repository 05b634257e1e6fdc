"""Unpacks an archive that came from a container, and may say whatever the container likes.

Directories are opened one by one, by descriptor and never through a link, so nothing is written outside of the target,
whatever is there already (CVE-2021-32760, CVE-2025-47290). A link that leads out of what is copied is left out. Files
get the caller's ownership, and of their modes the permission bits alone.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from cli.problem import Problem

FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MOST_NESTED = 256


class Blocks:
    """Parts of bytes as a file that can only be read forwards."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._left = b""

    def read(self, size: int) -> bytes:
        while len(self._left) < size and (part := next(self._parts, b"")):
            self._left += part
        data, self._left = self._left[:size], self._left[size:]
        return data


def unpack(archive: Blocks, target: Path) -> list[str]:
    """Below `target` if that is a directory, else under its name. Returns what was left out. Raises Problem."""
    within = target.is_dir()
    directory = target if within else target.parent
    left_out = []
    try:
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with tarfile.open(fileobj=archive, mode="r|") as members:  # type: ignore[call-overload]
                for member in members:
                    path = _path(member.name, None if within else target.name)
                    if not _put(top, path, member, members):
                        left_out.append(member.name)
        finally:
            os.close(top)
    except (OSError, tarfile.TarError) as error:
        raise Problem(f"copy to {target}: {error}") from error
    return left_out


def _path(name: str, rename: str | None) -> PurePosixPath:
    """Of the member below the target, whose first part may get another name."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) > MOST_NESTED:
        raise Problem(f"the archive has a member {name!r}: refused")
    if rename is None or not path.parts:
        return path
    return PurePosixPath(rename, *path.parts[1:])


def _put(top: int, path: PurePosixPath, member: tarfile.TarInfo, members: tarfile.TarFile) -> bool:
    """False when there is nothing of the kind that is made."""
    if not path.parts:
        return member.isdir()
    directory = _opened(top, path.parts[:-1])
    try:
        if member.isdir():
            _make_directory(path.name, directory, member.mode)
        elif member.isreg():
            _write(path.name, directory, member.mode, members.extractfile(member))
        elif member.issym() and not _leads_out(path, member.linkname):
            _replace(path.name, directory)
            os.symlink(member.linkname, path.name, dir_fd=directory)
        else:
            return False
    finally:
        os.close(directory)
    return True


def _opened(top: int, parts: tuple[str, ...]) -> int:
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
        os.mkdir(name, mode & 0o777 | 0o700, dir_fd=directory)
    except FileExistsError:
        os.close(os.open(name, DIRECTORY_FLAGS, dir_fd=directory))  # fails where it is something else


def _write(name: str, directory: int, mode: int, content: IO[bytes] | None) -> None:
    assert content is not None
    _replace(name, directory)
    with os.fdopen(os.open(name, FILE_FLAGS, mode & 0o777 | 0o600, dir_fd=directory), "wb") as file:
        shutil.copyfileobj(content, file)


def _replace(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return


def _leads_out(path: PurePosixPath, link: str) -> bool:
    """Of the directory that is copied, which the path begins with. Once down a directory, which may be a link, nobody
    knows where `..` is."""
    parts = PurePosixPath(link).parts
    ups = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    return link.startswith("/") or ".." in parts[ups:] or ups > len(path.parts) - 2
