"""What a task needs that no node permits by default, in words: the node's configuration names each.

An agent tells the master what its node permits, so that a task goes where it can run, and says whose permission it
waits for. The agent decides: it refuses what its own configuration does not permit, whatever the master sent.
"""

from __future__ import annotations

from model.capability import DEFAULT
from model.task import TaskSpec
from model.volume import HostVolume, VolumeKind, nearest, needed_mode, parse_host_volume

UNCONFINED = "seccomp unconfined"
HOST_NETWORK = "network host"
_VOLUME = "volume "


def capability(name: str) -> str:
    return f"capability {name}"


def device(path: str) -> str:
    return f"device {path}"


def volume(permitted: HostVolume) -> str:
    return f"{_VOLUME}{permitted}"


def needed(task: TaskSpec) -> frozenset[str]:
    """Of a profile for seccomp only the agent can tell whether it is laxer than the default."""
    rights = {capability(name) for name in task.capabilities_add if name not in DEFAULT}
    rights |= {device(each.path) for each in task.limits.devices}
    rights |= {
        volume(HostVolume(mount.source, needed_mode(mount))) for mount in task.volumes if mount.kind is VolumeKind.HOST
    }
    if task.seccomp == "unconfined":
        rights.add(UNCONFINED)
    if task.network == "host":
        rights.add(HOST_NETWORK)
    return frozenset(rights)


def missing(wanted: frozenset[str], permitted: frozenset[str]) -> frozenset[str]:
    """Which of the rights that are `wanted` a node does not grant. To permit a directory permits what is below it."""
    volumes = [parse_host_volume(name.removeprefix(_VOLUME)) for name in permitted if name.startswith(_VOLUME)]
    return frozenset(name for name in wanted - permitted if not _permitted(name, volumes))


def _permitted(name: str, volumes: list[HostVolume]) -> bool:
    if not name.startswith(_VOLUME):
        return False
    asked = parse_host_volume(name.removeprefix(_VOLUME))
    above = nearest(asked.path, volumes)
    return above is not None and above.permits(asked.mode)
