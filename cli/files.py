"""`tepui task ls`, `cat` and `cp`: a task's files, as its container sees them."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cli.channel import Channel, opened
from cli.client import Client
from cli.output import print_table
from cli.problem import Problem
from cli.unpack import Blocks, unpack

KINDS = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "link": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "device": stat.S_IFCHR,
}


def list_entries(client: Client, where: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(_bytes(client, where, "list")).splitlines()]


def print_entries(entries: list[dict[str, Any]]) -> None:
    print_table(("MODE", "#UID", "#GID", "#SIZE", "MODIFIED", "NAME"), map(_row, entries))


def show(client: Client, where: str) -> None:
    for data in _bytes(client, where, "read"):
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def copy(client: Client, where: str, target: Path) -> None:
    """Says what was left out: it was of no kind that is copied, or leads elsewhere."""
    for name in unpack(Blocks(_bytes(client, where, "pack")), target):
        print(f"tepui: left out: {name}", file=sys.stderr)


def _bytes(client: Client, where: str, verb: str) -> Iterator[bytes]:
    task, colon, path = where.partition(":")
    if not colon or not path:
        raise Problem(f"{where}: must be TASK:PATH")
    with opened(client, f"/api/v1/tasks/{task}/files", {"verb": verb, "path": path}) as channel:
        yield from _data(channel)


def _data(channel: Channel) -> Iterator[bytes]:
    for message in channel.messages():
        if isinstance(message, tuple):
            yield message[1]


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    name = _printable(entry["name"])
    if entry["target"] is not None:
        name += f" -> {_printable(entry['target'])}"
    modified = datetime.fromtimestamp(entry["modified"], UTC).isoformat(sep=" ", timespec="minutes")
    mode = stat.filemode(KINDS[entry["type"]] | entry["mode"])
    return mode, entry["uid"], entry["gid"], entry["size"], modified.removesuffix("+00:00"), name


def _printable(name: str) -> str:
    """The container chooses the name, and must not write to the terminal what it likes."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
