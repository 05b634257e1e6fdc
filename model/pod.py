"""Pods: tasks that run on one node, share a network, and end together.

Each task of a pod knows the whole pod, so that a node can hold to it when there is nobody to ask.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model.resources import Resources


@dataclass(frozen=True, slots=True)
class Pod:
    """A task's pod. `id` is that of the instance, and `container` what the task is called in it. `members` are the ids
    of its tasks, in the order in which they are started. All of them have one network, one set of user ids and one
    host name. What else this one shares, with those that share it too, is asked for: System V IPC, POSIX message queues
    and /dev/shm (`share_ipc`), and the sight of each other's processes (`share_pid`). `resources` are the pod's own,
    beside those of its tasks."""

    id: str
    container: str
    members: tuple[str, ...]
    share_ipc: bool = False
    share_pid: bool = False
    resources: Resources = field(default_factory=Resources)
