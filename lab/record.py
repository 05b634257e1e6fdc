"""What a lab is meant to be: its nodes, their addresses and daemons, in `/run/tepui-lab/LAB/lab.json`.

It is on disk before anything of it is made. Removing a lab needs no more than its name.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from lab.errors import LabError

RUN = Path("/run/tepui-lab")
STATE = Path("/var/lib/tepui-lab")
CGROUP = "tepui-lab"

# Part of link names (15 bytes at most) and of a socket's path (107).
NAME = re.compile(r"[a-z][a-z0-9-]{0,14}")


@dataclass(frozen=True, slots=True)
class Daemon:
    """A program that the node keeps running. `argv[0]` is searched for in PATH. Output goes to `Node.log(name)`."""

    name: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    lab: str
    name: str
    address: IPv4Address
    daemons: tuple[Daemon, ...] = ()

    @property
    def state(self) -> Path:
        """The node's own directory, at the same path inside and outside; it outlives a power cut."""
        return STATE / self.lab / self.name

    @property
    def cgroup(self) -> str:
        """The node's subtree, relative to the root of each hierarchy."""
        return f"{CGROUP}/{self.lab}/{self.name}"

    def log(self, daemon: str) -> Path:
        return self.state / "log" / f"{daemon}.log"


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise LabError(f"{name!r}: a name has 1 to 15 lower-case letters, digits and hyphens, and begins with a letter")


def names() -> list[str]:
    """Every lab of this machine, also those that a crash left half made."""
    return sorted({path.name for root in (RUN, STATE) if root.is_dir() for path in root.iterdir()})


def read(lab: str) -> tuple[Node, ...]:
    path = RUN / lab / "lab.json"
    try:
        recorded = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise LabError(f"there is no lab {lab!r}; make it with: tepui lab up --name {lab}") from error
    return tuple(_node(lab, entry) for entry in recorded["nodes"])


def write(lab: str, nodes: tuple[Node, ...]) -> None:
    path = RUN / lab / "lab.json"
    new = path.with_suffix(".new")
    with new.open("w") as stream:
        json.dump({"nodes": [{**asdict(node), "address": str(node.address)} for node in nodes]}, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    new.rename(path)


def with_daemons(nodes: tuple[Node, ...], name: str, daemons: tuple[Daemon, ...]) -> tuple[Node, ...]:
    return tuple(replace(node, daemons=node.daemons + daemons) if node.name == name else node for node in nodes)


def _node(lab: str, entry: dict[str, Any]) -> Node:
    daemons = tuple(_daemon(each) for each in entry["daemons"])
    return Node(lab, entry["name"], IPv4Address(entry["address"]), daemons)


def _daemon(entry: dict[str, Any]) -> Daemon:
    return Daemon(entry["name"], tuple(entry["argv"]), tuple((key, value) for key, value in entry["env"]))
