"""What this node's configuration lets tasks ask for beyond the defaults. Nothing, unless it says otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rights:
    """`capabilities` may be added to the default set. `unconfined`: system calls may go unfiltered, or be filtered by
    a profile that is laxer than the default. `host_network`: a task may be in the node's own network. `devices`:
    paths of the node's devices that tasks may have."""

    capabilities: frozenset[str] = frozenset()
    unconfined: bool = False
    host_network: bool = False
    devices: frozenset[str] = frozenset()


NO_RIGHTS = Rights()
