"""Secrets of a task as files in /run/secrets, for its user alone (0400).

They are in memory: a ramfs, mounted for each container at `Container.directory`/secrets and bound into it read-only.
Unlike tmpfs it is never swapped out. The values stand in no file of the node's, neither in the bundle nor in the
agent's checkpoint; so a task that was not yet started when the agent was restarted can't be any more, and fails.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from isolators import mount
from isolators.base import BundlePart, Container, Isolator, IsolatorError, Sandbox, Unsupported
from isolators.process import user_of

DESTINATION = "/run/secrets"
DIRECTORY = "secrets"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
MAX_BYTES = 1 << 20  # of all of a task's together: a ramfs has no limit of its own


class SecretsIsolator(Isolator):
    """Prepared after the file system: whose the files are may be looked up in it."""

    name = "secrets"

    def __init__(self, state_directory: Path) -> None:
        """`state_directory` is above every `Container.directory`."""
        self._state_directory = state_directory

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        kept = {_point(container) for container in known}
        for point in mount.mount_points():
            if point.kind == "ramfs" and point.path.is_relative_to(self._state_directory) and point.path not in kept:
                mount.unmount(point.path)

    async def prepare(self, container: Container) -> BundlePart:
        if not container.task.secrets:
            return {}
        _check(container)
        user = user_of(container)
        try:
            _mount(container, container.id_base + user.uid, container.id_base + user.gid)
        except OSError as error:
            raise IsolatorError(f"mount secrets of {container.id}: {error.filename}: {error.strerror}") from error
        options = ["bind", "ro", "nosuid", "nodev", "noexec"]
        bind = {"destination": DESTINATION, "type": "bind", "source": str(_point(container)), "options": options}
        return {"mounts": [bind]}

    async def cleanup(self, sandbox: Sandbox) -> None:
        try:
            mount.unmount(_point(sandbox))
        except OSError as error:
            raise IsolatorError(f"unmount secrets of {sandbox.id}: {error.strerror}") from error


def _mount(container: Container, uid: int, gid: int) -> None:
    point = _point(container)
    point.mkdir(mode=0o700)
    flags = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC
    mount.mount("ramfs", point, "ramfs", flags, "mode=0500")
    for secret in container.task.secrets:
        assert secret.value is not None
        descriptor = os.open(point / secret.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret.value.encode())
            os.fchown(descriptor, uid, gid)
    os.chown(point, uid, gid)


def _check(container: Container) -> None:
    secrets = container.task.secrets
    for secret in secrets:
        if not NAME.fullmatch(secret.name):
            raise Unsupported(f"secrets: {secret.name!r} is no name of a file")
        if secret.value is None:
            name = container.task.id
            raise IsolatorError(f"the secrets of {name} are gone: the agent was restarted before its start")
    if len({secret.name for secret in secrets}) != len(secrets):
        raise Unsupported("secrets: a name is given twice")
    if sum(len(secret.value.encode()) for secret in secrets if secret.value) > MAX_BYTES:
        raise Unsupported(f"secrets: they are more than {MAX_BYTES} bytes together")


def _point(container: Container | Sandbox) -> Path:
    return container.directory / DIRECTORY
