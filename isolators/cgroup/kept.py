"""Files of cgroups that stay open, because they are read every second for every container.

To open, read and close one takes several times as long as to read it again from its beginning, for which the kernel
makes its text anew. A descriptor keeps no cgroup: when that is removed, reading fails, and the descriptor is closed.
At most half of the descriptors that this process may have are used for it; what is beyond is opened each time.
"""

from __future__ import annotations

import errno
import os
import resource
from functools import cache
from pathlib import Path
from typing import Any

from isolators.cgroup.controller import Files

LARGEST = 1 << 16  # of a file
FILES = 8  # read in one cgroup, about


class KeptFiles:
    """`files` is an `Opener` (see controller.py)."""

    def __init__(self, most: int | None = None) -> None:
        """`most`: of how many cgroups files are kept; None: as many as descriptors are there for."""
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 // FILES if most is None else most
        self._directories: dict[Path, _Directory] = {}

    def files(self, kind: type[Files], directory: Path) -> Any:
        """The files of one cgroup as attributes, for reading."""
        found = self._directories.get(directory)
        if found is None:
            found = _Directory(directory, keeps=len(self._directories) < self._most)
            self._directories[directory] = found
        return found.files(kind)

    def forget(self, directory: Path) -> None:
        """Accepts one that is not known."""
        found = self._directories.pop(directory, None)
        if found is not None:
            found.close()


class _Directory:
    """What cgroupspy takes for a node: all it asks for is `full_path`."""

    def __init__(self, directory: Path, keeps: bool) -> None:
        self.full_path = os.fsencode(directory)
        self._keeps = keeps
        self._descriptors: dict[bytes, int] = {}
        self._files: dict[type[Files], Any] = {}

    def files(self, kind: type[Files]) -> Any:
        if kind not in self._files:
            self._files[kind] = _reading(kind)(self)  # type: ignore[arg-type]
        return self._files[kind]

    def read(self, name: bytes) -> str:
        descriptor = self._descriptors.get(name)
        if descriptor is not None:
            return self._read(name, descriptor)
        descriptor = os.open(os.path.join(self.full_path, name), os.O_RDONLY | os.O_CLOEXEC)
        if self._keeps:
            self._descriptors[name] = descriptor
            return self._read(name, descriptor)
        try:
            return os.pread(descriptor, LARGEST, 0).decode().strip()
        finally:
            os.close(descriptor)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _read(self, name: bytes, descriptor: int) -> str:
        try:
            return os.pread(descriptor, LARGEST, 0).decode().strip()
        except OSError as error:
            os.close(self._descriptors.pop(name))
            path = os.fsdecode(os.path.join(self.full_path, name))
            code = errno.ENOENT if error.errno == errno.ENODEV else error.errno or errno.EIO  # the cgroup was removed
            raise OSError(code, os.strerror(code), path) from error


@cache
def _reading(kind: type[Files]) -> type[Files]:
    """`kind`, with its files read through the directory."""

    def get_property(self: Any, filename: bytes) -> str:
        text: str = self.node.read(filename)
        return text

    return type(kind.__name__, (kind,), {"get_property": get_property})
