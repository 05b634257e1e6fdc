"""What this node's configuration lets tasks ask for beyond the defaults. Nothing, unless it says otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rights:
    """`capabilities` may be added to the default set. `unconfined`: system calls may go unfiltered, or be filtered by
    a profile that is laxer than the default. `host_network`: a task may be in the node's own network."""

    capabilities: frozenset[str] = frozenset()
    unconfined: bool = False
    host_network: bool = False


NO_RIGHTS = Rights()
