"""What is executed: arguments, environment, directory and user (see user.py)."""

from __future__ import annotations

from isolators.base import BundlePart, Container, Isolator, Unsupported
from isolators.user import User, find_user, parse_ids

OCI_VERSION = "1.2.0"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ProcessIsolator(Isolator):
    """Prepared after the file system: names of users are looked up in it."""

    name = "process"

    async def prepare(self, container: Container) -> BundlePart:
        task = container.task
        user = user_of(container)
        environment = {"PATH": PATH, **dict(task.env)}
        _check(task.argv, environment, task.cwd)
        return {
            "ociVersion": OCI_VERSION,
            "process": {
                "terminal": False,
                "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
                "args": list(task.argv),
                "env": [f"{name}={value}" for name, value in environment.items()],
                "cwd": task.cwd,
            },
        }


def user_of(container: Container) -> User:
    """Numbers are taken as they are; everything else is looked up in the container's root file system."""
    return parse_ids(container.task.user) or find_user(container.task.user, container.rootfs)


def _check(argv: tuple[str, ...], environment: dict[str, str], cwd: str) -> None:
    if not argv or not argv[0]:
        raise Unsupported("argv is empty")
    if not cwd.startswith("/"):
        raise Unsupported(f"cwd {cwd!r} must be absolute")
    for text in (*argv, cwd, *environment, *environment.values()):
        if "\0" in text:
            raise Unsupported(f"{text!r} has a NUL, and can not be passed to a program")
    for name in environment:
        if not name or "=" in name:
            raise Unsupported(f"env: {name!r} is no name of a variable")
