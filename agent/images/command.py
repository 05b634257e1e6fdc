"""What is executed, of an image and of a task that says something else (Docker's and Mesos's tables of overrides).

    task                    image: nothing   CMD              ENTRYPOINT       both
    nothing                 refused          CMD              ENTRYPOINT       ENTRYPOINT CMD
    cmd                     sh -c cmd        sh -c cmd        sh -c cmd        sh -c cmd
    args, type DOCKER       args             args             ENTRYPOINT args  ENTRYPOINT args
    args, type MESOS        refused          CMD[0] args      ENTRYPOINT args  ENTRYPOINT args

The environment is the image's under the task's. User and directory are the task's, else the image's, else root and the
workspace (type MESOS) or `/`.
"""

from __future__ import annotations

import dataclasses
from posixpath import normpath

from agent.images.errors import Refused
from agent.images.manifest import Config
from model.image import ImageSpec, Rules
from model.task import TaskSpec


def resolve(task: TaskSpec, config: Config, workspace: str) -> TaskSpec:
    """The task as it is executed; doing it again changes nothing. `workspace` is the path of its workspace in the
    container. Raises Refused."""
    image = task.image
    assert image is not None
    return dataclasses.replace(
        task,
        image=dataclasses.replace(image, arguments=False),  # they are in there now
        argv=_argv(task.argv, image, config),
        env=tuple((dict(config.env) | dict(task.env)).items()),
        user=_user(task.user or config.user),
        cwd=task.cwd or _directory(config.cwd, "/" if image.rules is Rules.DOCKER else workspace),
    )


def _argv(argv: tuple[str, ...], image: ImageSpec, config: Config) -> tuple[str, ...]:
    if not argv:
        found = config.entrypoint + config.command
    elif not image.arguments:
        found = argv
    elif image.rules is Rules.MESOS and not config.entrypoint:
        if not config.command:
            raise Refused("the image has neither ENTRYPOINT nor CMD that the task's args could be given to")
        found = config.command[:1] + argv
    else:
        found = config.entrypoint + argv
    if not found or not found[0]:
        raise Refused("the image has neither ENTRYPOINT nor CMD, and the task says nothing to execute")
    return found


def _user(user: str) -> str:
    """Docker takes `user:` for `user`."""
    return user.removesuffix(":") or "0:0"


def _directory(cwd: str, fallback: str) -> str:
    return normpath("/" + cwd.lstrip("/")) if cwd else fallback
