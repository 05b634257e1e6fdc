"""What root may do in its container: the default set (`model/capability.py`). A task may drop some, and add what the
node's configuration permits.

Inheritable and ambient stay empty: with them a program that drops root would keep capabilities (CVE-2022-24769).
"""

from __future__ import annotations

from isolators.base import BundlePart, Container, Isolator, Unsupported
from isolators.rights import Rights
from model.capability import ALL, DEFAULT, KNOWN
from model.task import TaskSpec


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
