"""What is executed: arguments, environment, directory and user.

A user is `uid:gid` in decimal, `uid`, or a name, which is looked up in the container's own /etc/passwd. That file comes
from an image, so it is opened as if the image were `/`, and only a regular file of sensible size is read.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from isolators import mount
from isolators.base import BundlePart, Container, Isolator, IsolatorError, Unsupported

OCI_VERSION = "1.2.0"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_ID = 65535
PASSWD_MAX_BYTES = 1 << 20

# [0-9] and no int() of anything else: int() takes "+0", " 0" and other scripts' digits for zero, and zero is root.
_IDS = re.compile(r"(0|[1-9][0-9]{0,4})(?::(0|[1-9][0-9]{0,4}))?")
_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,31}\$?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class User:
    uid: int
    gid: int


class ProcessIsolator(Isolator):
    """Prepared after the file system: names of users are looked up in it."""

    name = "process"

    async def prepare(self, container: Container) -> BundlePart:
        task = container.task
        user = parse_user(task.user) or _look_up(task.user, container.rootfs)
        environment = {"PATH": PATH, **dict(task.env)}
        _check(task.argv, environment, task.cwd)
        return {
            "ociVersion": OCI_VERSION,
            "process": {
                "terminal": False,
                "user": {"uid": user.uid, "gid": user.gid},
                "args": list(task.argv),
                "env": [f"{name}={value}" for name, value in environment.items()],
                "cwd": task.cwd,
            },
        }


def parse_user(text: str) -> User | None:
    """`1000:100` or `1000` (the group has the same number then); None when it is not a number. Raises Unsupported."""
    match = _IDS.fullmatch(text)
    if match is None:
        if not _NAME.fullmatch(text):
            raise Unsupported(f"user {text!r} must be a name, or uid:gid with numbers from 0 to {MAX_ID}")
        return None
    user = User(int(match[1]), int(match[2] or match[1]))
    if max(user.uid, user.gid) > MAX_ID:
        raise Unsupported(f"user {text!r}: ids go up to {MAX_ID}")
    return user


def _look_up(name: str, rootfs: Path) -> User:
    for line in _read_passwd(rootfs).splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[0] == name:
            user = parse_user(f"{fields[2]}:{fields[3]}")
            if user is not None:
                return user
    raise Unsupported(f"user {name!r} is not in the container's /etc/passwd")


def _read_passwd(rootfs: Path) -> str:
    try:
        descriptor = mount.open_in_root(rootfs, "/etc/passwd")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise IsolatorError(f"open /etc/passwd in {rootfs}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unsupported("the container's /etc/passwd is not a file")
        return file.read(PASSWD_MAX_BYTES).decode(errors="replace")


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
