"""A task's workspace, where Mesos has its sandbox: /mnt/mesos/sandbox, with what was fetched for the task.

The directory is `Container.layer`/workspace, made before the container is prepared, for tasks with an image or with
something to fetch. It belongs to the task's user, who may be known only by the image's files. It is gone with the
container, as its private layer is, and counts like it. The place in the root file system, and the working directory of
the task, are made in the private layer where the image lacks them, as Docker does it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePosixPath

from isolators import mount
from isolators.base import BundlePart, Container, Isolator, IsolatorError
from isolators.process import user_of

DESTINATION = "/mnt/mesos/sandbox"
DIRECTORY = "workspace"
PATH_FLAGS = mount.O_PATH | os.O_DIRECTORY


class WorkspaceIsolator(Isolator):
    """Prepared after the file system: whose the workspace is may be looked up in it."""

    name = "workspace"

    async def prepare(self, container: Container) -> BundlePart:
        if not container.task.needs_provision:
            return {}
        workspace = container.layer / DIRECTORY
        try:
            user = user_of(container)
            _give(workspace, container.id_base + user.uid, container.id_base + user.gid)
            for path in (DESTINATION, container.task.cwd):
                _make_in_root(container, path)
        except OSError as error:
            raise IsolatorError(f"make workspace of {container.id}: {error.filename}: {error.strerror}") from error
        options = ["bind", "nosuid", "nodev"]
        return {"mounts": [{"destination": DESTINATION, "type": "bind", "source": str(workspace), "options": options}]}


def _give(workspace: Path, uid: int, gid: int) -> None:
    """Everything in it is from outside, but for its owner: nothing is followed."""
    for _, directories, files, descriptor in os.fwalk(workspace):
        for name in (*directories, *files):
            os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
        os.fchown(descriptor, uid, gid)


def _make_in_root(container: Container, path: str) -> None:
    """Links in the image lead where they would lead inside."""
    made = PurePosixPath("/")
    for part in PurePosixPath(path).parts[1:]:
        parent, made = made, made / part
        try:
            os.close(mount.open_in_root(container.rootfs, str(made), PATH_FLAGS))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            directory = mount.open_in_root(container.rootfs, str(parent), PATH_FLAGS)
            try:
                os.mkdir(part, dir_fd=directory)
                os.chmod(part, 0o755, dir_fd=directory)  # whatever the agent's umask is
                os.chown(part, container.id_base, container.id_base, dir_fd=directory, follow_symlinks=False)
            finally:
                os.close(directory)
