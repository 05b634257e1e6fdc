"""Limits of each process (getrlimit(2)). All are checked before the container is made."""

from __future__ import annotations

import resource

from isolators.base import BundlePart, Container, Isolator, Unsupported
from model.task import Rlimit

KINDS = frozenset(name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE")
MAX = 2**63 - 1  # what Python can pass on


class RlimitsIsolator(Isolator):
    name = "rlimits"

    async def prepare(self, container: Container) -> BundlePart:
        limits = container.task.rlimits
        for limit in limits:
            _check(limit)
        if len({limit.kind for limit in limits}) != len(limits):
            raise Unsupported("rlimits: a kind is given twice")
        entries = [{"type": limit.kind, "soft": limit.soft, "hard": limit.hard} for limit in limits]
        return {"process": {"rlimits": entries}}


def _check(limit: Rlimit) -> None:
    if limit.kind not in KINDS:
        raise Unsupported(f"rlimits: {limit.kind!r} is not one of {', '.join(sorted(KINDS))}")
    if not 0 <= limit.soft <= limit.hard <= MAX:
        raise Unsupported(f"rlimits: {limit.kind} must have 0 <= soft ({limit.soft}) <= hard ({limit.hard}) <= {MAX}")
