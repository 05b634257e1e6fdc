"""What root may do in its container: Docker's default set less NET_RAW, which forges and reads packets of others on
the same bridge, and MKNOD, which the kernel grants to nobody in a user namespace.

Inheritable and ambient stay empty: with them a program that drops root would keep capabilities (CVE-2022-24769).
"""

from __future__ import annotations

from isolators.base import BundlePart, Container, Isolator

DEFAULT = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)


class CapabilitiesIsolator(Isolator):
    name = "capabilities"

    async def prepare(self, container: Container) -> BundlePart:
        sets: dict[str, list[str]] = {kind: list(DEFAULT) for kind in ("bounding", "effective", "permitted")}
        return {"process": {"capabilities": {**sets, "inheritable": [], "ambient": []}}}
