"""No program in a container gains privileges by being executed, and the kernel's OOM killer takes a container first."""

from __future__ import annotations

from isolators.base import BundlePart, Container, Isolator

OOM_SCORE_ADJ = 500  # of -1000 to 1000: before the agent and the node's own daemons, which have 0 or less


class PrivilegesIsolator(Isolator):
    name = "privileges"

    async def prepare(self, container: Container) -> BundlePart:
        return {"process": {"noNewPrivileges": True, "oomScoreAdj": OOM_SCORE_ADJ}}
