"""What this node's configuration lets tasks ask for beyond the defaults. Nothing, unless it says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from model import rights
from model.volume import HostVolume


@dataclass(frozen=True, slots=True)
class Rights:
    """`capabilities` may be added to the default set. `unconfined`: system calls may go unfiltered, or be filtered by
    a profile that is laxer than the default. `host_network`: a task may be in the node's own network. `devices`:
    paths of the node's devices that tasks may have. `host_volumes`: directories of the node's that they may have."""

    capabilities: frozenset[str] = frozenset()
    unconfined: bool = False
    host_network: bool = False
    devices: frozenset[str] = frozenset()
    host_volumes: frozenset[HostVolume] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """As the master is told of them."""
        names = {rights.capability(name) for name in self.capabilities} | {rights.device(path) for path in self.devices}
        names |= {rights.volume(each) for each in self.host_volumes}
        names |= {rights.UNCONFINED} if self.unconfined else set()
        return frozenset(names | ({rights.HOST_NETWORK} if self.host_network else set()))


NO_RIGHTS = Rights()
