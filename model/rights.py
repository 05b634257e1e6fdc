"""What a task needs that no node permits by default, in words: the node's configuration names each.

An agent tells the master what its node permits, so that a task goes where it can run, and says whose permission it
waits for. The agent decides: it refuses what its own configuration does not permit, whatever the master sent.
"""

from __future__ import annotations

from model.capability import DEFAULT
from model.task import TaskSpec

UNCONFINED = "seccomp unconfined"
HOST_NETWORK = "network host"


def capability(name: str) -> str:
    return f"capability {name}"


def device(path: str) -> str:
    return f"device {path}"


def needed(task: TaskSpec) -> frozenset[str]:
    """Of a profile for seccomp only the agent can tell whether it is laxer than the default."""
    rights = {capability(name) for name in task.capabilities_add if name not in DEFAULT}
    rights |= {device(each.path) for each in task.limits.devices}
    if task.seccomp == "unconfined":
        rights.add(UNCONFINED)
    if task.network == "host":
        rights.add(HOST_NETWORK)
    return frozenset(rights)
