"""What a task says about its image, and what a node says about those that it has."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Rules(StrEnum):
    """Whose rules say what is executed (agent/images/command.py): Docker's, or those of Mesos's own containerizer."""

    DOCKER = "docker"
    MESOS = "mesos"


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """`reference` is `oci:/path:tag`, `docker-archive:/path` or a name as `docker pull` takes it. `force_pull` asks the
    registry again though the node has the image. `arguments`: the task's `argv` is what the image's entrypoint gets,
    else it is all that is executed; an empty one leaves it to the image. `pull_secret` is the name that the registry's
    credentials have on the node; empty: those that the task fetches, or the node's own."""

    reference: str
    force_pull: bool = False
    rules: Rules = Rules.DOCKER
    arguments: bool = False
    pull_secret: str = ""


def may_use(owner: str, secret: str) -> bool:
    """As DC/OS has it: a secret `team/web/pull` is for what is below `/team/web`, and one without a slash for all."""
    path, _, _ = secret.rpartition("/")
    return not path or f"{owner}/".startswith(f"/{path}/")


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is. `layers` are all of the image's, 0 while that is not known; `bytes` those of the layers that
    have to be brought. `note` is what it waits for instead."""

    reference: str
    layers: int = 0
    layers_done: int = 0
    bytes: int = 0
    bytes_done: int = 0
    note: str = ""

    def describe(self) -> str:
        """`pulls nginx:1.25: 2 of 5 layers, 34 of 80 MiB`."""
        if self.note:
            return f"pulls {self.reference}: {self.note}"
        if not self.layers:
            return f"pulls {self.reference}"
        done, size = _mebibytes(self.bytes_done), _mebibytes(self.bytes)
        return f"pulls {self.reference}: {self.layers_done} of {self.layers} layers, {done} of {size} MiB"


@dataclass(frozen=True, slots=True)
class NodeImage:
    """An image in a node's store. `bytes` is what its layers take there, also those that others share. Times are
    seconds since the epoch, `tasks` those that use it now."""

    reference: str
    digest: str
    bytes: int
    pulled_at: float
    used_at: float
    tasks: tuple[str, ...]


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f}" if size >= 10 << 20 or not size else f"{size / 2**20:.1f}"
