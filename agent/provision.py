"""What a task needs that is not on the node yet: its image, and files that are fetched for it.

Comes before the isolators and takes as long as it takes, so it tells how far it is. Afterwards the container says what
of the image it is: its layers, and the program, environment, user and directory that image and task make together.

Files come first, for among them may be the credentials for the image (`.docker/config.json`, also from an archive).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from agent.fetch.errors import FetchError
from agent.fetch.errors import Refused as FetchRefused
from agent.fetch.fetcher import Fetcher
from agent.images import command
from agent.images.errors import ImageError, Refused
from agent.images.images import Images
from isolators import mount
from isolators.base import Container, IsolatorError, Unsupported
from isolators.sandbox import DESTINATION, DIRECTORY
from model.task import TaskSpec

CREDENTIALS = "/.docker/config.json"  # in the sandbox, where apps for Mesos have it fetched to
CREDENTIALS_MOST_BYTES = 64 << 10

Tell = Callable[[str], None]


def is_due(task: TaskSpec) -> bool:
    return task.image is not None or bool(task.fetch)


class Provision:
    def __init__(self, images: Images, fetcher: Fetcher) -> None:
        self._images = images
        self._fetcher = fetcher

    async def provide(self, container: Container, tell: Tell) -> Container:
        """The container with all that it needs. Its directory is made. Raises Unsupported for what no other try would
        bring, else IsolatorError; the container is to be cleaned up then."""
        sandbox = container.directory / DIRECTORY
        container.directory.mkdir(mode=0o700)
        sandbox.mkdir(mode=0o700)
        os.chown(sandbox, container.id_base, container.id_base)
        try:
            await self._fetcher.fetch(container.task.fetch, sandbox, container.id_base, tell)
            return _with_sandbox(await self._with_image(container, sandbox, tell))
        except (Refused, FetchRefused) as error:
            raise Unsupported(str(error)) from error
        except (ImageError, FetchError) as error:
            raise IsolatorError(str(error)) from error

    async def _with_image(self, container: Container, sandbox: Path, tell: Tell) -> Container:
        spec = container.task.image
        if spec is None:
            return container
        if container.task.rootfs:
            raise Refused("a task has an image or a rootfs, not both")
        if not spec.pull_config:
            spec = dataclasses.replace(spec, pull_config=_fetched_credentials(sandbox))
        image, layers = await self._images.use(spec, container.directory, tell)
        task = command.resolve(container.task, image.config, DESTINATION)
        return dataclasses.replace(container, task=task, layers=layers)


def _with_sandbox(container: Container) -> Container:
    task = container.task
    env = (("MESOS_SANDBOX", DESTINATION), *task.env)
    task = dataclasses.replace(task, env=env, cwd=task.cwd or DESTINATION, user=task.user or "0:0")
    return dataclasses.replace(container, task=task)


def _fetched_credentials(sandbox: Path) -> str:
    """A Docker `config.json`, when one was fetched; links in what was fetched lead to nothing outside."""
    try:
        with os.fdopen(mount.open_in_root(sandbox, CREDENTIALS), "rb") as file:
            return file.read(CREDENTIALS_MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""  # there is none
