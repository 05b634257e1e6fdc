"""Writes small files that must be whole after a crash: keys, certificates, secrets.

A file gets its mode when it is created, under a temporary name in the same directory; it is on disk (fsync) before it
gets its real name, and the name is on disk when the call returns. No reader sees half a file, or a key that others
may read.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE = 0o600
PUBLIC = 0o644


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Raises FileExistsError, and changes nothing, when `path` is there already. Makes the directory (0700) too."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _written(path, data, mode) as temporary:
        os.link(temporary, path)  # unlike rename, link never replaces


def write_atomic(path: Path, data: bytes, mode: int) -> None:
    with _written(path, data, mode) as temporary:
        os.replace(temporary, path)


def write_unsynced(path: Path, data: bytes, mode: int) -> int:
    """No reader sees half of it, yet a power cut may leave anything. Returns its descriptor, for the caller to sync,
    and the directory after it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    return descriptor


def sync_directory(path: Path) -> None:
    """Make what was created, renamed or removed in it last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _written(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write(temporary, data, mode)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # the umask may have taken bits from a public file
        file.write(data)
        file.flush()
        os.fsync(descriptor)
