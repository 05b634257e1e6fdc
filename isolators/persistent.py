"""Persistent volumes: directories of the agent's own, `<state>/volumes/ID`, each for one container at a time.

They are there after anything but `remove`: what is on the disk is found again by its name, and nothing else is written
down. On the disk ids 0 and up of whoever uses a volume are `VOLUME_IDS` and up, which are nobody's on the node; each
container sees them as its own.

A volume has a size. Where the file system enforces project quotas (see `disk.py`) it is a project of its own; elsewhere
who uses it measures it.
"""

from __future__ import annotations

import os
from pathlib import Path

from isolators import disk_usage, project_quota
from isolators.mount import mount_points
from isolators.removal import remove_tree
from netns.durable import sync_directory

MIB = 1 << 20
# Below the ids of containers, above what distributions give to users (agent/sandboxes.py).
VOLUME_IDS = (1 << 20) - (1 << 16)
# A container's project has the number of its first id, all of which are multiples of 1 << 16.
PROJECTS = range((1 << 20) + 1, (1 << 20) + (1 << 16))
REMOVED = ".removed-"


class InUse(Exception):
    """Another container has it. The text says which volume."""


class PersistentVolumes:
    def __init__(self, state_directory: Path) -> None:
        self._directory = state_directory / "volumes"
        self._holders: dict[str, str] = {}  # volume -> container
        self.quotas = project_quota.enforced(state_directory, mount_points())

    def recover(self, holders: dict[str, str]) -> None:
        """`holders`: which container has which volume. Finishes what was being removed."""
        self._holders |= holders
        for path in self._directory.glob(f"{REMOVED}*"):
            remove_tree(path)

    def take(self, volume: str, container: str, size: int, owner: tuple[int, int]) -> Path:
        """The volume's directory, which there is now. `size` in MiB; `owner` is the user and group of the container
        that the top of it is to belong to. Raises InUse and OSError."""
        if self._holders.get(volume, container) != container:
            raise InUse(f"volume {volume} is still in use by container {self._holders[volume]}")
        path = self._made(volume)
        if self.quotas:
            project_quota.limit(self._directory, self._project(path), size * MIB)
        uid, gid = owner
        os.chown(path, VOLUME_IDS + uid, VOLUME_IDS + gid)
        self._holders[volume] = container
        return path

    def release(self, container: str) -> None:
        self._holders = {volume: holder for volume, holder in self._holders.items() if holder != container}

    def held(self, volume: str) -> bool:
        return volume in self._holders

    def used_bytes(self, volume: str) -> int:
        """Takes long where there are many files. Raises disk_usage.TooDeep."""
        return disk_usage.used_bytes(self._directory / volume)

    def remove(self, volume: str) -> None:
        """With all that is in it, which may take long. Accepts one that is not there."""
        path, aside = self._directory / volume, self._directory / f"{REMOVED}{volume}"
        remove_tree(aside)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        sync_directory(self._directory)
        project = project_quota.project_of(aside) if self.quotas else 0
        remove_tree(aside)
        if project in PROJECTS:
            project_quota.limit(self._directory, project, 0)

    def _made(self, volume: str) -> Path:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._directory / volume
        try:
            path.mkdir(mode=0o755)
        except FileExistsError:
            return path
        path.chmod(0o755)  # whatever the umask
        sync_directory(self._directory)
        return path

    def _project(self, path: Path) -> int:
        """Of its own: given to it if it has none."""
        project = project_quota.project_of(path)
        if project not in PROJECTS:
            taken = {project_quota.project_of(each) for each in self._directory.iterdir()}
            project = next(number for number in PROJECTS if number not in taken)
            project_quota.assign(path, project)
        return project
