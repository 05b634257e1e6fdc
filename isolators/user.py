"""Who a container's program runs as. The names mean what the container's own files say: /etc/passwd and /etc/group.

A user is `user`, `user:group`, each a number or a name. Without a group the user's own one goes with it, and the groups
that list the user as a member; a number that is no entry of /etc/passwd has the group of the same number.

The files come from an image, so they are opened as if the image were `/`, and only regular ones of sensible size.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from isolators import mount
from isolators.base import IsolatorError, Unsupported

MAX_ID = 65535
FILE_MAX_BYTES = 1 << 20
GROUPS_MAX = 64

# [0-9] and no int() of anything else: int() takes "+0", " 0" and other scripts' digits for zero, and zero is root.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")
_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,31}\$?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class User:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Passwd:
    name: str
    uid: int
    gid: int


def find_user(text: str, rootfs: Path) -> User:
    """Raises Unsupported when there is no such user or group, IsolatorError when a file can't be read."""
    user, colon, group = text.partition(":")
    for part in (user, group) if colon else (user,):
        _check(part, text)
    entry = _entry(user, rootfs)
    if entry is None:
        uid = _number(user)
        if uid is None:
            raise Unsupported(f"user {user!r} is not in the container's /etc/passwd")
        entry = _Passwd("", uid, uid)
    if colon:
        return User(entry.uid, _group(group, rootfs))
    return User(entry.uid, entry.gid, _memberships(entry, rootfs))


def parse_ids(text: str) -> User | None:
    """`1000:100`: what needs no look into the container. Raises Unsupported for what can be no user at all."""
    user, colon, group = text.partition(":")
    for part in (user, group) if colon else (user,):
        _check(part, text)
    uid, gid = _number(user), _number(group)
    return User(uid, gid) if uid is not None and gid is not None else None


def _check(part: str, text: str) -> None:
    number = _NUMBER.fullmatch(part)
    if number is None and not _NAME.fullmatch(part):
        raise Unsupported(f"user {text!r} must be user or user:group, each a name or a number from 0 to {MAX_ID}")
    if number is not None and int(part) > MAX_ID:
        raise Unsupported(f"user {text!r}: ids go up to {MAX_ID}")


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) and int(text) <= MAX_ID else None


def _entry(user: str, rootfs: Path) -> _Passwd | None:
    """A number means a number, also where somebody has it for a name."""
    field = 2 if _NUMBER.fullmatch(user) else 0
    for row in _rows(rootfs, "/etc/passwd", 7):
        uid, gid = _number(row[2]), _number(row[3])
        if row[field] == user and uid is not None and gid is not None:
            return _Passwd(row[0], uid, gid)
    return None


def _group(group: str, rootfs: Path) -> int:
    if (number := _number(group)) is not None:
        return number
    for name, _, gid, _ in _rows(rootfs, "/etc/group", 4):
        if name == group and (number := _number(gid)) is not None:
            return number
    raise Unsupported(f"group {group!r} is not in the container's /etc/group")


def _memberships(entry: _Passwd, rootfs: Path) -> tuple[int, ...]:
    """A number without a name is nobody's member."""
    if not entry.name:
        return ()
    found = (_number(gid) for _, _, gid, members in _rows(rootfs, "/etc/group", 4) if entry.name in members.split(","))
    groups = tuple(sorted({gid for gid in found if gid is not None and gid != entry.gid}))
    if len(groups) > GROUPS_MAX:
        raise Unsupported(f"user {entry.name!r} is in {len(groups)} groups, {GROUPS_MAX} at most")
    return groups


def _rows(rootfs: Path, path: str, width: int) -> list[list[str]]:
    rows = (line.split(":") for line in _read(rootfs, path).splitlines())
    return [row for row in rows if len(row) == width]


def _read(rootfs: Path, path: str) -> str:
    try:
        descriptor = mount.open_in_root(rootfs, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return ""
        raise IsolatorError(f"open {path} in {rootfs}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unsupported(f"the container's {path} is not a file")
        return file.read(FILE_MAX_BYTES).decode(errors="replace")
