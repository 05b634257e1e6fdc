"""The root file system: an overlay that the agent mounts at `Container.rootfs`, and what is mounted inside of it.

Reads the task's `rootfs`, writes below `Container.directory` only: `upper` and `work` (what the container writes; gone
with it), `lower` (an attachment point, empty afterwards) and `rootfs`.

Without `task.rootfs` the lower layer is the node's own `/`, as the container's unprivileged ids see it: /etc/shadow
stays closed, for the node's root is nobody inside. It must never be idmapped, which would make the container's root
the owner of the node's files. With `task.rootfs` the lower layer is an idmapped clone of that directory, so that ids in
the image mean ids in the container and no file is copied or changed for it. An image has several such layers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from isolators import layers, mount
from isolators.base import BundlePart, Container, Isolator, IsolatorError, Unsupported

UserNamespace = Callable[[int, int], Awaitable[int]]  # (id_base, id_count) -> descriptor, closed here

# Docker's defaults (moby, oci/defaults.go), the interrupt counters, and what tells of the node's temperature and power.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/class/powercap",
    "/sys/devices/virtual/powercap",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
    "/sys/class/thermal",
    "/sys/devices/virtual/thermal",
    "/sys/firmware",
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys", "/proc/sysrq-trigger")

TEMPORARY_MIB = 64  # of a tmpfs, and at least this; its pages count against the container's memory limit too


class FilesystemIsolator(Isolator):
    name = "filesystem"

    def __init__(self, state_directory: Path, userns_fd: UserNamespace) -> None:
        """`state_directory` is the agent's, and above every `Container.directory`; containers don't see it."""
        if set(str(state_directory)) & set(",:\\"):
            raise ValueError(f"state directory {state_directory}: overlay mounts can't have , : or \\ in a path")
        self._state_directory = state_directory
        self._userns_fd = userns_fd

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        kept = {container.rootfs for container in known}
        for point in reversed(mount.mount_points()):
            if point.path.is_relative_to(self._state_directory) and _is_ours(point.path) and point.path not in kept:
                mount.unmount(point.path)

    async def prepare(self, container: Container) -> BundlePart:
        for name in ("lower", "work", "rootfs"):
            (container.directory / name).mkdir(mode=0o700)
        _make_upper(container)
        try:
            await self._mount(container)
        except OSError as error:
            raise _failed("mount root file system", container, error) from error
        return self.part(container)

    def part(self, container: Container) -> BundlePart:
        """What `prepare` returns; nothing is made for it."""
        return {
            "root": {"path": str(container.rootfs), "readonly": False},
            "mounts": _mounts(container),
            "linux": {"maskedPaths": self._masked(container), "readonlyPaths": list(READ_ONLY_PATHS)},
        }

    async def cleanup(self, container: Container) -> None:
        for path in (container.rootfs, container.directory / "lower"):
            try:
                mount.unmount(path)
            except OSError as error:
                raise _failed("unmount root file system", container, error) from error
        for name in ("upper", "work"):
            shutil.rmtree(container.directory / name, ignore_errors=True)

    async def _mount(self, container: Container) -> None:
        if container.layers:
            await self._mount_layers(container)
            return
        if not container.task.rootfs:
            _mount_overlay("/", container)
            return
        lower = container.directory / "lower"
        await self._attach_idmapped(Path(container.task.rootfs), lower, container)
        _mount_overlay(str(lower), container)
        mount.umount2(lower, mount.MNT_DETACH)  # the overlay has a copy of its own

    async def _mount_layers(self, container: Container) -> None:
        userns = await self._userns_fd(container.id_base, container.id_count)
        try:
            with layers.attached(container.layers, container.directory / "lower", userns) as lower:
                _mount_overlay(lower, container)
        finally:
            os.close(userns)

    async def _attach_idmapped(self, source: Path, target: Path, container: Container) -> None:
        tree = _open_rootfs(source, container)
        try:
            userns = await self._userns_fd(container.id_base, container.id_count)
            try:
                mount.set_idmap(tree, userns, source)
            finally:
                os.close(userns)
            mount.move_mount(tree, target)
        finally:
            os.close(tree)

    def _masked(self, container: Container) -> list[str]:
        own = [] if container.task.rootfs or container.layers else [str(self._state_directory)]
        return [*MASKED_PATHS, *own]


def _open_rootfs(source: Path, container: Container) -> int:
    if not source.is_dir():
        raise Unsupported(f"root file system of {container.id}: {source} is not a directory on this node")
    return mount.open_tree(source)


def _make_upper(container: Container) -> None:
    """The merged root has owner and mode of the upper layer's: the container's root may add to its `/`."""
    upper = container.directory / "upper"
    upper.mkdir()
    os.chown(upper, container.id_base, container.id_base)
    upper.chmod(0o755)


def _mount_overlay(lower: str, container: Container) -> None:
    """`volatile`: nobody reads the upper layer after the container, so nothing of it has to reach the disk; without
    it each unmount waits for all dirty pages of the node. Device files of the lower layer stay dead (MS_NODEV)."""
    upper, work = container.directory / "upper", container.directory / "work"
    data = f"lowerdir={lower},upperdir={upper},workdir={work},volatile"
    mount.mount("overlay", container.rootfs, "overlay", mount.MS_NOSUID | mount.MS_NODEV, data)


def _mounts(container: Container) -> list[dict[str, Any]]:
    size = max(TEMPORARY_MIB, container.task.resources.mem)
    plain = ["nosuid", "nodev", "noexec"]
    terminal = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    return [
        _new("proc", "/proc", plain),
        _new("tmpfs", "/dev", ["nosuid", "strictatime", "mode=755", "size=64k"]),
        _new("devpts", "/dev/pts", terminal),
        _new("mqueue", "/dev/mqueue", plain),
        _new("tmpfs", "/dev/shm", [*plain, "mode=1777", f"size={TEMPORARY_MIB}m"]),
        _sysfs(container),
        _new("tmpfs", "/run", ["nosuid", "nodev", "mode=755", f"size={TEMPORARY_MIB}m"]),
        _new("tmpfs", "/tmp", ["nosuid", "nodev", "mode=1777", f"size={size}m"]),
    ]


def _sysfs(container: Container) -> dict[str, Any]:
    """A sysfs shows a network namespace, so only who owns one may mount it; else the node's is bound."""
    options = ["nosuid", "nodev", "noexec", "ro"]
    if container.task.network != "host":
        return _new("sysfs", "/sys", options)
    return {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", *options]}


def _new(kind: str, destination: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": options}


def _is_ours(path: Path) -> bool:
    return path.name in ("rootfs", "lower")


def _failed(operation: str, container: Container, error: OSError) -> IsolatorError:
    return IsolatorError(f"{operation} of {container.id}: {error.filename}: {error.strerror}")
