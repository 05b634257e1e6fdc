"""What a task says about its image."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Rules(StrEnum):
    """Whose rules say what is executed (agent/images/command.py): Docker's, or those of Mesos's own containerizer."""

    DOCKER = "docker"
    MESOS = "mesos"


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """`reference` is `oci:/path:tag`, `docker-archive:/path` or a name as `docker pull` takes it. `force_pull` asks the
    registry again though the node has the image. `arguments`: the task's `argv` is what the image's entrypoint gets,
    else it is all that is executed; an empty one leaves it to the image. `pull_config` is a Docker `config.json` with
    credentials; it is kept out of logs and of the agent's disk."""

    reference: str
    force_pull: bool = False
    rules: Rules = Rules.DOCKER
    arguments: bool = False
    pull_config: str = field(default="", repr=False)
