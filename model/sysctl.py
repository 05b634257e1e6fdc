"""Which kernel settings a task may have: those of its container's own namespaces. Any other would be the node's.

`net.` settings belong to the network namespace; of those the kernel shows to a container only the ones that are its
own. With the node's network none of them may be set.
"""

from __future__ import annotations

import re

OF_IPC_NAMESPACE = frozenset(
    {
        "fs.mqueue.msg_default",
        "fs.mqueue.msg_max",
        "fs.mqueue.msgsize_default",
        "fs.mqueue.msgsize_max",
        "fs.mqueue.queues_max",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shm_rmid_forced",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    }
)
NET = re.compile(r"net(\.[A-Za-z0-9_-]+)+")  # it becomes a path
VALUE = re.compile(r"[ -~\t]{1,256}")


def problem(name: str, value: str, network: str) -> str:
    """Why a task in this network can't have the setting; empty when it can."""
    if name not in OF_IPC_NAMESPACE and not NET.fullmatch(name):
        allowed = ", ".join(sorted(OF_IPC_NAMESPACE))
        return f"{name!r} is not of a container's own: net.* and {allowed} are"
    if network == "host" and NET.fullmatch(name):
        return f"{name} is the node's, with the node's network"
    if not VALUE.fullmatch(value):
        return f"{name}: {value!r} is no value of one line"
    return ""
