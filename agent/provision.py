"""What a task needs that is not on the node yet: its image, and files that are fetched for it.

Comes before the isolators and takes as long as it takes, so it tells how far it is. Afterwards the container says what
of the image it is: its layers, and the program, environment, user and directory that image and task make together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from agent.images import command
from agent.images.errors import ImageError, Refused
from agent.images.images import Images
from isolators.base import Container, IsolatorError, Unsupported
from isolators.sandbox import DESTINATION, DIRECTORY
from model.task import TaskSpec

Tell = Callable[[str], None]


def is_due(task: TaskSpec) -> bool:
    return task.image is not None or bool(task.fetch)


class Provision:
    def __init__(self, images: Images) -> None:
        self._images = images

    async def provide(self, container: Container, tell: Tell) -> Container:
        """The container with all that it needs. Its directory is made. Raises Unsupported for what no other try would
        bring, else IsolatorError; the container is to be cleaned up then."""
        container.directory.mkdir(mode=0o700)
        (container.directory / DIRECTORY).mkdir(mode=0o700)
        try:
            return _with_sandbox(await self._with_image(container, tell))
        except Refused as error:
            raise Unsupported(str(error)) from error
        except ImageError as error:
            raise IsolatorError(str(error)) from error

    async def _with_image(self, container: Container, tell: Tell) -> Container:
        spec = container.task.image
        if spec is None:
            return container
        if container.task.rootfs:
            raise Refused("a task has an image or a rootfs, not both")
        image, layers = await self._images.use(spec, container.directory, tell)
        task = command.resolve(container.task, image.config, DESTINATION)
        return dataclasses.replace(container, task=task, layers=layers)


def _with_sandbox(container: Container) -> Container:
    env = (("MESOS_SANDBOX", DESTINATION), *container.task.env)
    return dataclasses.replace(container, task=dataclasses.replace(container.task, env=env))
