"""Kernel settings of the container's own namespaces. Any other would be the node's, so what may be set is listed.

`net.` settings belong to the network namespace; of those the kernel shows to a container only the ones that are its
own. With the node's network none of them may be set.
"""

from __future__ import annotations

import re

from isolators.base import BundlePart, Container, Isolator, Unsupported

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


class SysctlsIsolator(Isolator):
    name = "sysctls"

    async def prepare(self, container: Container) -> BundlePart:
        sysctls = container.task.sysctls
        for name, value in sysctls:
            _check(name, value, container.task.network)
        if len(dict(sysctls)) != len(sysctls):
            raise Unsupported("sysctls: a name is given twice")
        return {"linux": {"sysctl": dict(sysctls)}} if sysctls else {}


def _check(name: str, value: str, network: str) -> None:
    if name not in OF_IPC_NAMESPACE and not NET.fullmatch(name):
        allowed = ", ".join(sorted(OF_IPC_NAMESPACE))
        raise Unsupported(f"sysctls: {name!r} is not of a container's own: net.* and {allowed} are")
    if network == "host" and NET.fullmatch(name):
        raise Unsupported(f"sysctls: {name} is the node's, with the node's network")
    if not VALUE.fullmatch(value):
        raise Unsupported(f"sysctls: {name}: {value!r} is no value of one line")
