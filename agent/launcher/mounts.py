"""What is mounted in a container, as operations that say what they do before they do it.

`opened` is called with the node's ids, and in the node's mount namespace or a copy of it: sources may lie in
directories that are closed to everyone but root. `execute` is called with the container's ids, so that new file systems
belong to the container's root. `root` is the
new root, open with O_PATH. Targets are looked up as if it were `/` (openat2 with RESOLVE_IN_ROOT): a symbolic link in
an image can not lead a mount out of it, and between look-up and mount there is no path that could be exchanged.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Any, Protocol

from agent.launcher import idmap
from agent.launcher import syscalls as sc
from agent.launcher.idmap import IdMap

ATTRIBUTES = {
    "ro": sc.MOUNT_ATTR_RDONLY,
    "nosuid": sc.MOUNT_ATTR_NOSUID,
    "nodev": sc.MOUNT_ATTR_NODEV,
    "noexec": sc.MOUNT_ATTR_NOEXEC,
    "noatime": sc.MOUNT_ATTR_NOATIME,
    "strictatime": sc.MOUNT_ATTR_STRICTATIME,
}
# What is so without being asked for; `relatime` is the kernel's default.
DEFAULTS = ("rw", "relatime", "bind", "rbind")
PROPAGATION = {"rprivate": sc.MS_PRIVATE, "rslave": sc.MS_SLAVE, "rshared": sc.MS_SHARED}
IN_ROOT = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
# A link in their place could put them where the paths to mask are not (CVE-2019-19921), or have devices and links made
# where the container's root could not (CVE-2026-41579).
NEVER_BY_LINK = ("/proc", "/sys", "/dev")
# What the launcher puts there, and what an image or a volume may not cover (CVE-2025-52881).
OWN_KINDS = {
    "/proc": ("proc",),
    "/sys": ("sysfs",),
    "/dev": ("tmpfs", "devpts", "mqueue"),
}
MAX_LINKS = 40  # path_resolution(7)
MASK_ATTRIBUTES = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC

# config-linux.md, "Dev symbolic links", and the container's own ptmx.
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


class Operation(Protocol):
    def describe(self) -> str: ...

    def execute(self, root: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A file system of its own: proc, tmpfs, devpts, ..."""

    kind: str
    source: str
    destination: str
    attributes: int
    options: tuple[str, ...]

    def opened(self) -> Filesystem:
        return self

    def describe(self) -> str:
        return f"mount {self.kind} on {self.destination}"

    def execute(self, root: int) -> None:
        target = mount_target(root, self.destination, directory=True)
        attach(sc.new_mount(self.kind, self.source, self.options, self.attributes), target, self.destination)


@dataclass(frozen=True, slots=True)
class Bind:
    """A part of the node's file system. The maps say which id of its files is which one of the node's where it is
    mounted; without them each is itself. A copy of a mount propagates as the mount does, so that is always set."""

    source: str
    destination: str
    recursive: bool
    attributes: int
    propagation: int = sc.MS_PRIVATE
    uid_maps: tuple[IdMap, ...] = ()
    gid_maps: tuple[IdMap, ...] = ()

    def opened(self) -> Attach:
        attributes, propagation = self.attributes, self.propagation
        tree = sc.copy_tree(self.source, recursive=self.recursive, attributes=attributes, propagation=propagation)
        try:
            if self.uid_maps:
                self._map_ids(tree, sc.AT_RECURSIVE if self.recursive else 0)
        except OSError:
            os.close(tree)
            raise
        return Attach(tree, self.source, self.destination)

    def _map_ids(self, tree: int, recursive: int) -> None:
        userns = idmap.namespace(self.uid_maps, self.gid_maps)
        try:
            sc.mount_setattr(tree, recursive, self.source, attr_set=sc.MOUNT_ATTR_IDMAP, userns=userns)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise OSError(errno.EINVAL, "its file system can not map ids", self.source) from error
        finally:
            os.close(userns)

    def describe(self) -> str:
        return f"bind {self.source}"


@dataclass(frozen=True, slots=True)
class Attach:
    """A bind mount whose source is open: the detached mount `tree`."""

    tree: int
    source: str
    destination: str

    def describe(self) -> str:
        return f"bind {self.source} on {self.destination}"

    def execute(self, root: int) -> None:
        directory = stat.S_ISDIR(os.fstat(self.tree).st_mode)
        attach(self.tree, mount_target(root, self.destination, directory=directory), self.destination)


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the node: a user namespace can not make any. Checked, so that a replaced file is not passed on.
    `kind` is `c` or `b`."""

    path: str
    kind: str
    major: int
    minor: int

    @property
    def source(self) -> str:
        return self.path

    @property
    def destination(self) -> str:
        return self.path

    def opened(self) -> Attach:
        tree = sc.copy_tree(self.path, recursive=False, attributes=sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC)
        status = os.fstat(tree)
        is_kind = stat.S_ISBLK if self.kind == "b" else stat.S_ISCHR
        if not is_kind(status.st_mode) or status.st_rdev != os.makedev(self.major, self.minor):
            raise OSError(errno.ENODEV, "not the device it should be", self.path)
        return Attach(tree, self.path, self.path)

    def describe(self) -> str:
        return f"bind device {self.path}"


# Every OCI runtime supplies these (config-linux.md, "Default Devices").
DEVICES = (
    Device("/dev/null", "c", 1, 3),
    Device("/dev/zero", "c", 1, 5),
    Device("/dev/full", "c", 1, 7),
    Device("/dev/random", "c", 1, 8),
    Device("/dev/urandom", "c", 1, 9),
    Device("/dev/tty", "c", 5, 0),
)


@dataclass(frozen=True, slots=True)
class DeviceLinks:
    def describe(self) -> str:
        return "link /dev/fd and standard streams"

    def execute(self, root: int) -> None:
        dev = sc.openat2(root, "/dev", os.O_RDONLY | os.O_DIRECTORY, IN_ROOT)
        for name, target in DEVICE_LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        os.close(dev)


@dataclass(frozen=True, slots=True)
class Mask:
    """Hides a directory under an empty one, a file under `/dev/null`. What is not there needs no hiding, and what
    the container's root may not even look up (EACCES) is hidden well enough."""

    path: str

    def describe(self) -> str:
        return f"mask {self.path}"

    def execute(self, root: int) -> None:
        target = _open_existing(root, self.path)
        if target is None:
            return
        if stat.S_ISDIR(os.fstat(target).st_mode):
            tree = sc.new_mount("tmpfs", "tmpfs", ("size=4k", "nr_inodes=2", "mode=755"), MASK_ATTRIBUTES)
        else:
            tree = sc.open_tree("/dev/null", sc.OPEN_TREE_CLONE)
        attach(tree, target, self.path)


@dataclass(frozen=True, slots=True)
class ReadOnly:
    """Makes a directory or file that is mounted already read-only, by a bind mount of itself."""

    path: str

    def describe(self) -> str:
        return f"make {self.path} read-only"

    def execute(self, root: int) -> None:
        target = _open_existing(root, self.path)
        if target is None:
            return
        tree = sc.clone_mount(target, self.path)
        sc.mount_setattr(tree, sc.AT_RECURSIVE, self.path, attr_set=sc.MOUNT_ATTR_RDONLY)
        attach(tree, target, self.path)


Mount = Filesystem | Bind


def parse_mount(mount: dict[str, Any]) -> Mount:
    """One element of `mounts` (config.md, "Mounts"). Raises ValueError for a destination where nothing may go."""
    destination, options = mount["destination"], mount.get("options", [])
    if not destination.startswith("/"):
        raise ValueError(f"mounts: destination {destination!r} is not absolute")
    _check_own(mount, destination)
    attributes = 0
    for option in options:
        attributes |= ATTRIBUTES.get(option, 0)
    if mount.get("type") == "bind" or "bind" in options or "rbind" in options:
        return Bind(
            mount["source"],
            destination,
            "rbind" in options,
            attributes,
            next((PROPAGATION[option] for option in options if option in PROPAGATION), sc.MS_PRIVATE),
            id_maps(mount.get("uidMappings", [])),
            id_maps(mount.get("gidMappings", [])),
        )
    rest = tuple(option for option in options if option not in ATTRIBUTES and option not in DEFAULTS)
    return Filesystem(mount["type"], mount.get("source", mount["type"]), destination, attributes, rest)


def id_maps(entries: list[dict[str, int]]) -> tuple[IdMap, ...]:
    return tuple(IdMap(entry["containerID"], entry["hostID"], entry["size"]) for entry in entries)


def _check_own(mount: dict[str, Any], destination: str) -> None:
    """By the plain path. Where links lead is looked at when it is mounted (`mount_target`)."""
    plain = os.path.normpath("/" + destination.lstrip("/"))
    if (plain, mount.get("source")) == ("/sys", "/sys"):  # the node's, with the node's network
        return
    if plain == "/dev/shm":  # a pod's
        return
    for path, kinds in OWN_KINDS.items():
        if os.path.commonpath((plain, path)) == path and mount.get("type") not in kinds:
            raise ValueError(f"mounts: {mount.get('source')} may not be mounted on {destination}")


def mount_target(root: int, path: str, *, directory: bool) -> int:
    """Opens where to mount. Nothing may cover a part of procfs or sysfs, by whatever links it is reached: masks and
    settings would go to a file of the container's choice (CVE-2025-52881)."""
    resolve = IN_ROOT | sc.RESOLVE_NO_SYMLINKS if path in NEVER_BY_LINK else IN_ROOT
    target = open_target(root, path, directory=directory, resolve=resolve)
    if sc.fstatfs_type(target) in (sc.PROC_SUPER_MAGIC, sc.SYSFS_MAGIC):
        os.close(target)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)
    return target


def covers(above: str, path: str) -> bool:
    """Whether `path` is `above` or below it, going by the names."""
    return os.path.commonpath((above, path)) == above


def attach(tree: int, target: int, path: str) -> None:
    """Attaches the detached mount `tree` at `target`, and closes both."""
    try:
        sc.move_mount(tree, target, path)
    finally:
        os.close(tree)
        os.close(target)


def open_target(root: int, path: str, *, directory: bool, resolve: int = IN_ROOT, links: int = MAX_LINKS) -> int:
    """Opens where to mount, and makes it (and the directories above) when it is missing. A symbolic link to nowhere
    (`/etc/resolv.conf` into an empty `/run`) is followed within the root."""
    try:
        return sc.openat2(root, path, sc.O_PATH, resolve)
    except FileNotFoundError:
        pass
    above, name = os.path.split(path.rstrip("/"))
    parent = root if above in ("", "/") else open_target(root, above, directory=True, links=links)
    try:
        try:
            link = os.readlink(name, dir_fd=parent)
        except FileNotFoundError:
            return _make(parent, name, directory)
        if not links:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        return open_target(root, os.path.join(above, link), directory=directory, links=links - 1)
    finally:
        if parent != root:
            os.close(parent)


def _make(parent: int, name: str, directory: bool) -> int:
    if directory:
        os.mkdir(name, 0o755, dir_fd=parent)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644, dir_fd=parent))
    return os.open(name, sc.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def _open_existing(root: int, path: str) -> int | None:
    try:
        return sc.openat2(root, path, sc.O_PATH, IN_ROOT)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
