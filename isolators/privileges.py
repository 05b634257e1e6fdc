"""No program in a container gains privileges by being executed."""

from __future__ import annotations

from isolators.base import BundlePart, Container, Isolator


class PrivilegesIsolator(Isolator):
    name = "privileges"

    async def prepare(self, container: Container) -> BundlePart:
        return {"process": {"noNewPrivileges": True}}
