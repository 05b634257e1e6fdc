"""What root may do in its container: Docker's default set less NET_RAW, which forges and reads packets of others on
the same bridge, and MKNOD, which the kernel grants to nobody in a user namespace. A task may drop some, and add what
the node's configuration permits.

Inheritable and ambient stay empty: with them a program that drops root would keep capabilities (CVE-2022-24769).
"""

from __future__ import annotations

from isolators.base import BundlePart, Container, Isolator, Unsupported
from isolators.rights import Rights
from model.task import TaskSpec

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
# The others of linux/capability.h.
OTHERS = (
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
)
KNOWN = frozenset((*DEFAULT, *OTHERS))
ALL = "ALL"


class CapabilitiesIsolator(Isolator):
    name = "capabilities"

    def __init__(self, rights: Rights) -> None:
        self._rights = rights

    async def prepare(self, container: Container) -> BundlePart:
        task = container.task
        _check(task)
        if denied := set(task.capabilities_add) - set(DEFAULT) - self._rights.capabilities:
            raise Unsupported(
                f"capabilities: {', '.join(sorted(denied))} may not be added: list it in capabilities in this"
                " node's agent.toml to permit it"
            )
        names = granted(task)
        sets = dict.fromkeys(("bounding", "effective", "permitted"), names)
        return {"process": {"capabilities": {**sets, "inheritable": [], "ambient": []}}}


def granted(task: TaskSpec) -> list[str]:
    """What root in the container has. Dropping ALL leaves what is added."""
    kept = set() if ALL in task.capabilities_drop else set(DEFAULT) - set(task.capabilities_drop)
    return sorted(kept | set(task.capabilities_add))


def _check(task: TaskSpec) -> None:
    for name in (*task.capabilities_add, *task.capabilities_drop):
        if name not in KNOWN and not (name == ALL and name in task.capabilities_drop):
            raise Unsupported(f"capabilities: {name!r} is none: they are written like CAP_NET_RAW")
    if both := set(task.capabilities_add) & set(task.capabilities_drop):
        raise Unsupported(f"capabilities: {', '.join(sorted(both))} is both added and dropped")
