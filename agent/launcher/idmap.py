"""Maps of ids, and user namespaces that are made for nothing but to hold one: the kernel takes a map for a mount from a
namespace (mount_setattr(2), MOUNT_ATTR_IDMAP), and a namespace lives while it is open.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from agent.launcher import syscalls as sc


@dataclass(frozen=True, slots=True)
class IdMap:
    """Ids `inside` to `inside` + `count` - 1 are `outside` and up on the node."""

    inside: int
    outside: int
    count: int

    def __str__(self) -> str:
        return f"{self.inside} {self.outside} {self.count}"


def write(pid: int, uid_maps: tuple[IdMap, ...], gid_maps: tuple[IdMap, ...]) -> None:
    """Into the user namespace of a process. A write to uid_map or gid_map must be one call, and is possible once."""
    for name, maps in (("uid_map", uid_maps), ("gid_map", gid_maps)):
        path = f"/proc/{pid}/{name}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, "\n".join(map(str, maps)).encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        finally:
            os.close(descriptor)


def namespace(uid_maps: tuple[IdMap, ...], gid_maps: tuple[IdMap, ...]) -> int:
    """A user namespace, open. Nobody is in it when this returns."""
    waits, ends = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = sc.clone3(sc.CLONE_NEWUSER)
    if pid == 0:
        os.close(ends)
        os.read(waits, 1)
        os._exit(0)
    try:
        write(pid, uid_maps, gid_maps)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for descriptor in (ends, waits, pidfd):
            os.close(descriptor)
        os.waitpid(pid, 0)
