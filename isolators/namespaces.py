"""A namespace of every kind for each container, the node's ids it runs with, and its host name.

A container of a pod joins some of the pod's instead (`Sandbox.holder`). Its files, mounts and cgroup stay its own.
"""

from __future__ import annotations

from isolators.base import BundlePart, Container, Isolator, Sandbox, Unsupported
from isolators.rights import Rights

KINDS = ("mount", "pid", "ipc", "uts", "user", "cgroup", "network")
FILES = {"network": "net"}  # in /proc/PID/ns, where the name is another one
HOSTNAME_MAX = 63  # RFC 1035 section 2.3.4: one label


class NamespacesIsolator(Isolator):
    name = "namespaces"

    def __init__(self, rights: Rights) -> None:
        self._rights = rights

    async def open(self, sandbox: Sandbox) -> BundlePart:
        if sandbox.network == "host" and not self._rights.host_network:
            raise Unsupported("network host: set host_network in this node's agent.toml to permit it")
        ids = [{"containerID": 0, "hostID": sandbox.id_base, "size": sandbox.id_count}]
        kinds = [kind for kind in KINDS if kind != "network" or sandbox.network != "host"]
        return {
            "linux": {
                "namespaces": [_namespace(kind, sandbox) for kind in kinds],
                "uidMappings": ids,
                "gidMappings": ids,
            },
        }

    async def prepare(self, container: Container) -> BundlePart:
        return {"hostname": hostname(container.task.id)}


def _namespace(kind: str, sandbox: Sandbox) -> dict[str, str]:
    if sandbox.holder is None or kind not in sandbox.holder.kinds:
        return {"type": kind}
    return {"type": kind, "path": f"/proc/{sandbox.holder.pid}/ns/{FILES.get(kind, kind)}"}


def hostname(task_id: str) -> str:
    """The id's first label, which is the same for all of a pod. An id may have underscores, a host name may not (RFC
    1123 section 2.1)."""
    return task_id.split(".")[0].replace("_", "-")[:HOSTNAME_MAX].rstrip("-")
