"""A namespace of every kind for each container, the node's ids it runs with, and its host name."""

from __future__ import annotations

from isolators.base import BundlePart, Container, Isolator, Unsupported
from isolators.rights import Rights

KINDS = ("mount", "pid", "ipc", "uts", "user", "cgroup", "network")
HOSTNAME_MAX = 63  # RFC 1035 section 2.3.4: one label


class NamespacesIsolator(Isolator):
    name = "namespaces"

    def __init__(self, rights: Rights) -> None:
        self._rights = rights

    async def prepare(self, container: Container) -> BundlePart:
        if container.task.network == "host" and not self._rights.host_network:
            raise Unsupported("network host: set host_network in this node's agent.toml to permit it")
        ids = [{"containerID": 0, "hostID": container.id_base, "size": container.id_count}]
        kinds = [kind for kind in KINDS if kind != "network" or container.task.network != "host"]
        return {
            "hostname": hostname(container.id),
            "linux": {
                "namespaces": [{"type": kind} for kind in kinds],
                "uidMappings": ids,
                "gidMappings": ids,
            },
        }


def hostname(container_id: str) -> str:
    """The id's first label. An id may have underscores, a host name may not (RFC 1123 section 2.1)."""
    return container_id.split(".")[0].replace("_", "-")[:HOSTNAME_MAX].rstrip("-")
