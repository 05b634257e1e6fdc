"""Kernel settings of the container's own namespaces. Which these are is told in `model/sysctl.py`."""

from __future__ import annotations

from isolators.base import BundlePart, Container, Isolator, Unsupported
from model.sysctl import problem


class SysctlsIsolator(Isolator):
    name = "sysctls"

    async def prepare(self, container: Container) -> BundlePart:
        sysctls = container.task.sysctls
        for name, value in sysctls:
            if said := problem(name, value, container.task.network):
                raise Unsupported(f"sysctls: {said}")
        if len(dict(sysctls)) != len(sysctls):
            raise Unsupported("sysctls: a name is given twice")
        return {"linux": {"sysctl": dict(sysctls)}} if sysctls else {}
