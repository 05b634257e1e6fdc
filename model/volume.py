"""Volumes: files that a task's container shares with its node, with another container, or with the task before it.

A host volume is a directory of the node's, below one that the node's configuration permits (`HostVolume`). An ephemeral
one is made with the container and gone with it; one of a pod is made with the pod, gone with the last of its
containers, and the same in all that mount it. A persistent one (`PersistentVolume`) is reserved disk of one node: it
outlives the tasks that use it, one after the other, until somebody has it removed.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from model.mounts import MOST_MIB, destination_problem, path_problem

# They name directories: no slash, no leading dot.
VOLUME_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,239}")
VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
WORKSPACE = "/mnt/mesos/sandbox"  # of a task, in its container: where Mesos has its sandbox
MODES = ("ro", "rw", "rshared")  # what a node permits, each more than the one before


class VolumeKind(StrEnum):
    HOST = "host"
    EPHEMERAL = "ephemeral"
    POD = "pod"
    PERSISTENT = "persistent"


class Propagation(StrEnum):
    """Of mounts below, in the words of mount(8). Slave: those made on the node appear in the container. Shared: and the
    other way round."""

    PRIVATE = "rprivate"
    SLAVE = "rslave"
    SHARED = "rshared"


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A volume in a container. `source` is a path of the node's, the name of an ephemeral volume or one of the pod, or
    the id of a persistent one; `size` is the latter's, in MiB."""

    destination: str
    kind: VolumeKind
    source: str
    read_only: bool = False
    propagation: Propagation = Propagation.PRIVATE
    size: int = 0


@dataclass(frozen=True, slots=True)
class PersistentVolume:
    """`owner` is what the framework calls the thing it belongs to (`/db`), and `instance` the one of several that has
    it: volumes of one instance are on one node, and used together. `name` is what the definition calls it."""

    id: str
    framework: str
    owner: str
    instance: str
    name: str
    size: int  # MiB


@dataclass(frozen=True, slots=True)
class HostVolume:
    """What a node permits: tasks may have `path`, and what is below it. In its configuration, `/srv/data:rw`."""

    path: str
    mode: str

    def __str__(self) -> str:
        return f"{self.path}:{self.mode}"

    def permits(self, mode: str) -> bool:
        return MODES.index(mode) <= MODES.index(self.mode)


def parse_host_volume(text: str) -> HostVolume:
    """Raises ValueError that says what is wrong. The kernel's own files are nobody's, as where volumes are mounted."""
    path, colon, mode = text.rpartition(":")
    if not colon or mode not in MODES:
        raise ValueError(f"{text!r} must be a path, a colon and one of {', '.join(MODES)}")
    if said := destination_problem(path):
        raise ValueError(f"{text!r}: {said}")
    return HostVolume(path, mode)


def nearest(path: str, permitted: Iterable[HostVolume]) -> HostVolume | None:
    """Which of them says what may be done with `path`: the one that is the least far above it."""
    above = [each for each in permitted if posixpath.commonpath((each.path, path)) == each.path]
    return max(above, key=lambda each: len(each.path), default=None)


def needed_mode(mount: VolumeMount) -> str:
    """One of MODES."""
    if mount.propagation is Propagation.SHARED:
        return "rshared"
    return "ro" if mount.read_only else "rw"


def mount_problem(mount: VolumeMount) -> str:
    """What is wrong with it, wherever it should be; empty when nothing is."""
    if mount.kind is VolumeKind.HOST:
        if said := path_problem(mount.source):
            return f"host path {mount.source!r} {said}"
    elif mount.propagation is not Propagation.PRIVATE:
        return f"{mount.propagation.value} is for host volumes"
    elif mount.kind in (VolumeKind.EPHEMERAL, VolumeKind.POD) and not VOLUME_NAME.fullmatch(mount.source):
        return f"{mount.source!r} is no name of a volume"
    elif mount.kind is VolumeKind.PERSISTENT and not VOLUME_ID.fullmatch(mount.source):
        return f"{mount.source!r} is no id of a volume"
    elif mount.kind is VolumeKind.PERSISTENT and not 1 <= mount.size <= MOST_MIB:
        return f"size is {mount.size} MiB: it must be from 1 to {MOST_MIB}"
    return destination_problem(mount.destination)


def persistent(mounts: Iterable[VolumeMount]) -> tuple[str, ...]:
    """The ids of the persistent volumes among them, each once."""
    return tuple(dict.fromkeys(mount.source for mount in mounts if mount.kind is VolumeKind.PERSISTENT))
