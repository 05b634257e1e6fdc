"""Placeholder until the firewall is merged."""

from __future__ import annotations

from collections.abc import Mapping

from model.network import Address
from model.policy import Policy
from netns.firewall.table import Guest, Zone


class NftFirewall:
    """Implements `netns.firewall.table.Firewall`."""

    async def configure(
        self,
        zones: tuple[Zone, ...],
        policies: tuple[Policy, ...],
        members: Mapping[str, frozenset[Address]],
        peers: frozenset[Address],
    ) -> None: ...

    async def admit(self, guest: Guest) -> None: ...

    async def dismiss(self, container: str) -> None: ...

    async def recover(self, guests: tuple[Guest, ...]) -> None: ...

    async def mend(self) -> list[str]:
        return []

    async def remove(self) -> None: ...
