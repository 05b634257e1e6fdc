"""Limits of each process (getrlimit(2)). All are checked before the container is made."""

from __future__ import annotations

import resource

from isolators.base import BundlePart, Container, Isolator, Unsupported
from model.task import Rlimit

KINDS = frozenset(name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE")
MAX = 2**63 - 1  # what Python can pass on
# Of open files, unless the task says otherwise: what systemd gives a service. Not the agent's own: a container must not
# depend on how the agent was started, and programs that close all descriptors up to a high limit take seconds.
FILES = Rlimit("RLIMIT_NOFILE", 1024, 524_288)


class RlimitsIsolator(Isolator):
    name = "rlimits"

    async def prepare(self, container: Container) -> BundlePart:
        limits = container.task.rlimits
        for limit in limits:
            _check(limit)
        if len({limit.kind for limit in limits}) != len(limits):
            raise Unsupported("rlimits: a kind is given twice")
        if not any(limit.kind == FILES.kind for limit in limits):
            limits = (*limits, _within_own(FILES))
        entries = [{"type": limit.kind, "soft": limit.soft, "hard": limit.hard} for limit in limits]
        return {"process": {"rlimits": entries}}


def _within_own(limit: Rlimit) -> Rlimit:
    """An agent without CAP_SYS_RESOURCE can't give more than it has."""
    _, most = resource.getrlimit(getattr(resource, limit.kind))
    hard = limit.hard if most == resource.RLIM_INFINITY else min(limit.hard, most)
    return Rlimit(limit.kind, min(limit.soft, hard), hard)


def _check(limit: Rlimit) -> None:
    if limit.kind not in KINDS:
        raise Unsupported(f"rlimits: {limit.kind!r} is not one of {', '.join(sorted(KINDS))}")
    if not 0 <= limit.soft <= limit.hard <= MAX:
        raise Unsupported(f"rlimits: {limit.kind} must have 0 <= soft ({limit.soft}) <= hard ({limit.hard}) <= {MAX}")
