"""What is left of an offer while instances are placed on it: resources, ports of the node, and addresses."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from master.offers import Offer
from model.resources import Resources

Socket = tuple[str, int]  # protocol and port


@dataclass(slots=True)
class Room:
    """`holders` are the tasks that have ports of the node. `addresses` are those left on networks that have an end;
    `ports` is the first and the last of the ports that may be chosen."""

    free: Resources
    holders: dict[Socket, str]
    addresses: dict[str, int]
    ports: tuple[int, int]

    @classmethod
    def of(cls, offer: Offer) -> Self:
        return cls(offer.resources, dict(offer.published), dict(offer.addresses), offer.node.ports)

    def taken_of(self, sockets: Sequence[Socket]) -> tuple[tuple[Socket, str], ...]:
        """Those that somebody has, and who."""
        return tuple((socket, self.holders[socket]) for socket in sockets if socket in self.holders)

    def full_of(self, networks: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in networks if self.addresses.get(name, 1) < 1)

    def choose(self, app: str, sockets: Sequence[Socket], wanted: Sequence[tuple[str, ...]]) -> tuple[int, ...] | None:
        """A port for each of `wanted`, free with all its protocols, and none of `sockets`; None when there are not as
        many. Each app begins at another place: who still has the port of one that is gone does not find the next."""
        if not wanted:
            return ()
        first, last = self.ports
        size = last - first + 1
        start = zlib.crc32(app.encode()) % size
        used = {*self.holders, *sockets}
        numbers: list[int] = []
        candidates = iter(first + (start + offset) % size for offset in range(size))
        for protocols in wanted:
            number = next((n for n in candidates if not any((protocol, n) in used for protocol in protocols)), None)
            if number is None:
                return None
            numbers.append(number)
        return tuple(numbers)

    def take(
        self,
        app: str,
        resources: Resources,
        networks: Sequence[str],
        sockets: Sequence[Socket],
        wanted: Sequence[tuple[str, ...]],
    ) -> tuple[int, ...]:
        """For an instance for which there is room. Returns the ports that were chosen for it."""
        ports = self.choose(app, sockets, wanted)
        assert ports is not None
        self.free -= resources
        self.holders |= dict.fromkeys(sockets, app)
        for number, protocols in zip(ports, wanted, strict=True):
            self.holders |= {(protocol, number): app for protocol in protocols}
        for name in networks:
            if name in self.addresses:
                self.addresses[name] -= 1
        return ports
