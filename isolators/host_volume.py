"""Finds the node's side of a host volume, below what the node's configuration permits.

The path is looked up once, from the permitted directory, and what was found stays open: what is exchanged afterwards,
on either side, changes nothing. A link may lead anywhere within the permitted directory, and not out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path

from isolators import mount
from isolators.base import Unsupported
from model.volume import HostVolume, VolumeMount, nearest, needed_mode

# linux/magic.h: what the kernel says of itself, wherever it is mounted.
KERNEL_FILES = {
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x73636673: "securityfs",
    0xCAFE4A11: "bpf",
}


def open_host(wanted: VolumeMount, permitted: Collection[HostVolume], state_directory: Path) -> int:
    """Open with O_PATH. Raises Unsupported, or OSError for what might be another time."""
    above, mode = nearest(wanted.source, permitted), needed_mode(wanted)
    if above is None or not above.permits(mode):
        raise Unsupported(f"host path {wanted.source}:{mode}: not in host_volumes of this node's agent.toml")
    below = "" if wanted.source == above.path else os.path.relpath(wanted.source, above.path)
    try:
        descriptor = mount.open_beneath(Path(above.path), below)
    except OSError as error:
        raise _explained(wanted.source, above, error) from error
    try:
        _check(descriptor, wanted, state_directory)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _explained(path: str, above: HostVolume, error: OSError) -> Exception:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return Unsupported(f"host path {path} is not there on this node")
        case errno.EXDEV | errno.ELOOP:
            return Unsupported(f"host path {path}: a link in it leads out of {above.path}, or nowhere")
    return error


def _check(descriptor: int, wanted: VolumeMount, state_directory: Path) -> None:
    path, status = wanted.source, os.fstat(descriptor)
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise Unsupported(f"host path {path} is neither a directory nor a file")
    if kind := KERNEL_FILES.get(mount.fstatfs_type(descriptor)):
        raise Unsupported(f"host path {path} is on {kind}, and the kernel's")
    real = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    if real.is_relative_to(state_directory) or state_directory.is_relative_to(real):
        raise Unsupported(f"host path {path}: the agent's own files are there")
    if not wanted.read_only and 0 in (status.st_uid, status.st_gid):
        # Else who is root in the container could make files for root of the node to run.
        raise Unsupported(f"host path {path}: its owner or group is root: tasks write to others' files only")
