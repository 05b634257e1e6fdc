"""The isolator contract. What each verb may rely on, and what it promises.

A container begins as a sandbox, for which no task is known yet: made ahead, so that a task does not wait for it. The
agent calls, from one event loop:

    open      -> [the launcher makes the namespaces; the container's first process waits in them] -> isolate
    prepare   -> [the task's root and mounts are put in place] while enforce -> [exec], when there is a task for it
    update, usage, watch, exceeded, join, leave, pause, resume: any number of times while it runs
    cleanup   <- always once `open` was called, also when that failed, in the reverse order

Several containers may be under way. For one container `open`, `prepare` and `cleanup` go from isolator to isolator;
`isolate` is called on all isolators at once.

After an agent restart `recover` is called once, before anything else.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.network import Address
from model.resources import Resources
from model.task import Interface, TaskSpec, Usage

# A part of an OCI runtime specification `config.json`, as the JSON it will be written as.
BundlePart = dict[str, Any]


class IsolatorError(Exception):
    """An operation on the kernel failed. The text names the operation and the object; retrying might help."""


class Unsupported(IsolatorError):
    """This node can not do what the task asks for: refuse the task, do not retry."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The sandbox of a pod, which never gets a task: what the pod's containers share is its own. They join those of its
    namespaces that are in `kinds` (as OCI names them); `pid` is its first process."""

    id: str
    directory: Path
    layer: Path
    pid: int
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a container has before there is a task for it. `directory` is its OCI bundle, which nobody needs after a
    reboot, and `layer` is for what it writes: both exist, are ours alone (0700) and are removed by the agent after the
    last cleanup. Ids 0 to `id_count` - 1 inside are `id_base` + id outside. `network` is the name of its network.
    With a `holder` it is in a pod: the ids are those of all of its containers, and `quota` takes the place of their
    base where a number must be this container's alone. `address` is the one it is to have on its network (empty: any),
    and `interfaces` are further networks: with either, it was made for one task."""

    id: str
    directory: Path
    layer: Path
    id_base: int
    network: str
    id_count: int = 65536
    holder: Holder | None = None
    quota: int = 0
    address: str = ""
    interfaces: tuple[Interface, ...] = ()

    @property
    def number(self) -> int:
        """No other container of the node has it."""
        return self.quota or self.id_base


@dataclass(frozen=True, slots=True)
class Container:
    """A container as isolators see it: a sandbox and the task that has got it. `layers` are the directories of its
    image, the uppermost first; `prepare` and `enforce` alone are told them."""

    task: TaskSpec
    sandbox: Sandbox
    layers: tuple[Path, ...] = ()

    @property
    def id(self) -> str:
        return self.sandbox.id

    @property
    def directory(self) -> Path:
        return self.sandbox.directory

    @property
    def layer(self) -> Path:
        return self.sandbox.layer

    @property
    def id_base(self) -> int:
        return self.sandbox.id_base

    @property
    def id_count(self) -> int:
        return self.sandbox.id_count

    @property
    def number(self) -> int:
        return self.sandbox.number

    @property
    def rootfs(self) -> Path:
        """Where the container's root is mounted on the node."""
        return self.directory / "rootfs"


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that was hit, for people: `memory limit 64 MiB exceeded`."""

    reason: str


class Isolator:
    """Override what applies. None of the verbs forks, and none blocks for longer than a system call takes."""

    name = "isolator"

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        """Learn again what `known` containers hold, and release everything that bears our prefix and belongs to
        none of them. `orphans` are ids whose directories were found but can not be read."""

    async def open(self, sandbox: Sandbox) -> BundlePart:
        """Make what the host side needs before the namespaces exist, and return what is the same for any task. Never
        called twice for one id. Raises IsolatorError or Unsupported; cleanup follows in either case."""
        return {}

    async def isolate(self, sandbox: Sandbox, pid: int) -> tuple[Address, ...]:
        """The namespaces exist and `pid` (in the agent's pid namespace) waits in them, before exec. Returns the
        addresses this isolator gave the container: none, but for the one of the network."""
        return ()

    async def prepare(self, container: Container) -> BundlePart:
        """Make what the task asks for, and return the rest of the configuration. Called once, after `isolate`. Raises
        as `open` does."""
        return {}

    async def enforce(self, container: Container) -> None:
        """Do what the configuration does not depend on, but the program may not run without: called after all have
        prepared, while the launcher is at work; the program runs when it has returned. Raises as `open` does."""

    async def watch(self, container: Container) -> Limit | None:
        """Ends when the container hit a limit, with that limit. None at once: this isolator has nothing to watch."""
        return None

    async def exceeded(self, container: Container) -> Limit | None:
        """The limit that the container has hit so far, also when `watch` had no time to see it: asked at the end."""
        return None

    async def update(self, container: Container, resources: Resources) -> None:
        """Change limits of a running container in place, to `resources` and what else `container.task` says. Raises
        Unsupported, or IsolatorError when the kernel can't: less memory than is in use."""

    async def join(self, container: Container, session: str, pid: int) -> Path | None:
        """`pid` waits outside, and is to be in the running container with all that it starts: a `session`, which can
        be told apart from the rest. The isolator that does so returns the cgroup that holds it and nothing else."""
        return None

    async def leave(self, container: Container, session: str) -> None:
        """Nothing of the session lives afterwards. Accepts one that never was, and being called again."""

    async def pause(self, container: Container) -> None:
        """Stop all processes of a running container; returns when they stand still."""

    async def resume(self, container: Container) -> None:
        """Let them go on. Accepts a container that is not paused."""

    async def usage(self, container: Container, usage: Usage) -> Usage:
        """`usage` with this isolator's figures filled in from the kernel."""
        return usage

    async def connections(self, container: Container, ports: Collection[int]) -> int:
        """How many are open from outside to these ports of the container."""
        return 0

    async def cleanup(self, sandbox: Sandbox) -> None:
        """Undo everything. Accepts a sandbox that was never opened, and being called again."""


def merge(parts: list[BundlePart]) -> BundlePart:
    """One configuration out of parts: objects are merged, lists are joined, and two different values for one key are
    a fault of the isolators (ValueError that names the key)."""
    merged: BundlePart = {}
    for part in parts:
        _merge_into(merged, part, "")
    return merged


def _merge_into(target: BundlePart, part: BundlePart, path: str) -> None:
    for key, value in part.items():
        if key not in target:
            target[key] = list(value) if isinstance(value, list) else {**value} if isinstance(value, dict) else value
        elif isinstance(target[key], dict) and isinstance(value, dict):
            target[key] = dict(target[key])
            _merge_into(target[key], value, f"{path}/{key}")
        elif isinstance(target[key], list) and isinstance(value, list):
            target[key] = target[key] + value
        elif target[key] != value:
            raise ValueError(f"{path}/{key}: {target[key]!r} and {value!r}")
