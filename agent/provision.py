"""What a task needs that is not on the node yet: its image, and files that are fetched for it.

Comes between a sandbox and its task, and takes as long as it takes, so it tells how far it is. Images are kept whole in
the node's store; files are fetched anew for each start, beside the container's private layer, and go with it.

Files come first, for among them may be the credentials for the image (`.docker/config.json`, also from an archive).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.fetch.errors import FetchError
from agent.fetch.errors import Refused as FetchRefused
from agent.fetch.fetcher import Fetcher
from agent.images import command
from agent.images.errors import ImageError, Refused
from agent.images.images import Images
from isolators import mount
from isolators.base import IsolatorError, Sandbox, Unsupported
from isolators.workspace import DESTINATION, DIRECTORY
from model.task import TaskSpec

CREDENTIALS = "/.docker/config.json"  # in the workspace, where apps for Mesos have it fetched to
CREDENTIALS_MOST_BYTES = 64 << 10

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Provided:
    """The task as it is executed: with the program, environment, user and directory that image and task make together.
    `layers` are the image's directories, the uppermost first."""

    task: TaskSpec
    layers: tuple[Path, ...] = ()


class Provision:
    def __init__(self, images: Images, fetcher: Fetcher) -> None:
        self._images = images
        self._fetcher = fetcher

    async def provide(self, task: TaskSpec, sandbox: Sandbox, tell: Tell) -> Provided:
        """All that the task needs is there afterwards. Raises Unsupported for what no other try would bring, else
        IsolatorError; the sandbox is to be cleaned up then."""
        workspace = sandbox.layer / DIRECTORY
        workspace.mkdir(mode=0o700)
        os.chown(workspace, sandbox.id_base, sandbox.id_base)
        try:
            await self._fetcher.fetch(task.fetch, workspace, sandbox.id_base, tell)
            return _in_workspace(await self._with_image(task, sandbox, workspace, tell))
        except (Refused, FetchRefused) as error:
            raise Unsupported(str(error)) from error
        except (ImageError, FetchError) as error:
            raise IsolatorError(str(error)) from error

    async def _with_image(self, task: TaskSpec, sandbox: Sandbox, workspace: Path, tell: Tell) -> Provided:
        spec = task.image
        if spec is None:
            return Provided(task)
        if task.rootfs:
            raise Refused("a task has an image or a rootfs, not both")
        if not spec.pull_config:
            spec = dataclasses.replace(spec, pull_config=_fetched_credentials(workspace))
        image, layers = await self._images.use(spec, task.id, sandbox.directory, tell)
        return Provided(command.resolve(task, image.config, DESTINATION), layers)


def _in_workspace(provided: Provided) -> Provided:
    task = provided.task
    env = (("MESOS_SANDBOX", DESTINATION), *task.env)
    task = dataclasses.replace(task, env=env, cwd=task.cwd or DESTINATION, user=task.user or "0:0")
    return dataclasses.replace(provided, task=task)


def _fetched_credentials(workspace: Path) -> str:
    """A Docker `config.json`, when one was fetched; links in what was fetched lead to nothing outside."""
    try:
        with os.fdopen(mount.open_in_root(workspace, CREDENTIALS), "rb") as file:
            return file.read(CREDENTIALS_MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""  # there is none
