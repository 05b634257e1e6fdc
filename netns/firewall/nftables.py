"""The firewall of a node, in the one nftables table that is ours. Nothing else is read, flushed or re-ordered.

What should be there is computed (`ruleset.py`), compared with what was put there before (`change.py`), and the
difference is one transaction. The kernel is read only when somebody else has changed something (`netns/nft/own.py`).

Nothing is put there before the first `configure`. After a restart of the agent the table of the last one goes on
guarding until the master has said what should be, and then is replaced in one transaction; and without `configure`
there is no network that a container could be on.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace

from model.network import Address
from model.policy import Policy
from model.task import Protocol
from netns.driver import NetworkError
from netns.firewall.change import TABLE, GuestElement, Ruleset, diff, exchange, load
from netns.firewall.listing import differences
from netns.firewall.ruleset import NUMBERS, compile_rules, guest_elements, published, with_members
from netns.firewall.table import Entrance, Guest, Table, Zone
from netns.nft.netfilter import Netfilter
from netns.nft.own import NftSession, OwnTable

HostPort = tuple[Protocol, int]
Led = tuple[int, int, tuple[Address, int]]  # IP's number of the protocol, port of the node, who answers


class NftFirewall:
    """Implements `netns.firewall.table.Firewall`, for the network namespace of the thread that first calls a verb.

    What may take long is done in a thread, since the library does not hold the interpreter. The kernel and what is
    known of it change together there, whether or not the caller is cancelled; the lock keeps two from doing so."""

    def __init__(self, session: NftSession | None = None) -> None:
        self._session = session or NftSession()
        self._own = OwnTable(TABLE, self._session)
        self._lock = threading.RLock()
        self._table: Table | None = None  # as configured, without guests
        self._ruleset = compile_rules(Table())
        self._guests: dict[str, Guest] = {}
        self._owners: dict[HostPort, str] = {}  # containers by the ports that they publish
        self._elements: Counter[GuestElement] = Counter()  # containers of a pod share some

    async def configure(
        self,
        zones: tuple[Zone, ...],
        policies: tuple[Policy, ...],
        members: Mapping[str, frozenset[Address]],
        peers: frozenset[Address],
        entrances: frozenset[Entrance] | None = None,
    ) -> None:
        table = Table(zones, policies, dict(members), peers=peers, entrances=entrances)
        if table == self._table:
            return
        self._session.open()
        if self._table is not None and table == replace(self._table, members=table.members):
            self._put(table, with_members(table, self._ruleset), self._elements)
        else:
            await asyncio.to_thread(self._configure, table)

    async def admit(self, guest: Guest) -> None:
        with self._lock:
            _refuse_taken(guest, self._owners)
            self._exchange(guest.container, guest)

    async def dismiss(self, container: str) -> None:
        guest = self._guests.get(container)
        if guest is None:
            return
        self._exchange(container, None)
        if led := _led(guest):
            await _forget(Netfilter(), container, led)

    async def recover(self, guests: tuple[Guest, ...]) -> None:
        owners: dict[HostPort, str] = {}
        for guest in guests:
            _refuse_taken(guest, owners)
            owners |= _owned(guest)
        await asyncio.to_thread(self._recover, {guest.container: guest for guest in guests}, owners)

    async def mend(self) -> list[str]:
        if self._table is None or self._own.untouched():
            return []
        return await asyncio.to_thread(self._mend)

    async def remove(self) -> None:
        with self._lock:
            self._own.drop()
            self._session.close()
            self._table, self._ruleset = None, compile_rules(Table())
            self._guests, self._owners, self._elements = {}, {}, Counter()

    def _configure(self, table: Table) -> None:
        with self._lock:
            ruleset, elements = compile_rules(table), self._elements
            if ruleset.guarded != self._ruleset.guarded:
                elements = _count(self._guests.values(), ruleset.guarded)
            self._put(table, ruleset, elements)

    def _put(self, table: Table, ruleset: Ruleset, elements: Counter[GuestElement]) -> None:
        with self._lock:
            before = self._ruleset
            if self._table is None:
                self._own.load(load(ruleset, elements))
            else:
                gone, new = _exchanged(self._elements, elements)
                reshaped = before.chains != ruleset.chains or before.sets.keys() != ruleset.sets.keys()
                self._own.change(diff(before, ruleset, gone, new), lambda: load(ruleset, elements), reshaped)
            self._table, self._ruleset, self._elements = table, ruleset, elements

    def _exchange(self, container: str, guest: Guest | None) -> None:
        """`guest`, or nobody, in the place of who was known by this name."""
        with self._lock:
            before, known = self._guests.get(container), self._elements
            old = guest_elements(before, self._ruleset.guarded) if before else frozenset()
            wanted = guest_elements(guest, self._ruleset.guarded) if guest else frozenset()
            gone = {element for element in old - wanted if known[element] == 1}
            new = {element for element in wanted - old if not known[element]}
            if self._table is not None:
                self._own.change(exchange(gone, new), lambda: load(self._ruleset, (known.keys() - gone) | new))
            known.update(wanted)
            known.subtract(old)
            for element in gone:
                del known[element]
            for port in _owned(before) if before else ():
                del self._owners[port]
            self._guests.pop(container, None)
            if guest:
                self._guests[container] = guest
                self._owners |= _owned(guest)

    def _recover(self, guests: dict[str, Guest], owners: dict[HostPort, str]) -> None:
        with self._lock:
            elements = _count(guests.values(), self._ruleset.guarded)
            if self._table is not None:
                commands = exchange(*_exchanged(self._elements, elements))
                self._own.change(commands, lambda: load(self._ruleset, elements))
            self._guests, self._owners, self._elements = guests, owners, elements

    def _mend(self) -> list[str]:
        with self._lock:
            if self._table is None:
                return []
            wrong = self._own.wrong(
                lambda listing, remembered: differences(listing, remembered, self._ruleset, self._elements)
            )
            if wrong:
                self._own.load(load(self._ruleset, self._elements))
            return wrong


def _refuse_taken(guest: Guest, owners: Mapping[HostPort, str]) -> None:
    """Raises NetworkError that names the port and who has it."""
    wanted = Counter((protocol, host) for protocol, host, _ in published(guest))
    for (protocol, host), times in sorted(wanted.items()):
        owner = owners.get((protocol, host), guest.container)
        if times > 1 or owner != guest.container:
            raise NetworkError(f"admit {guest.container}: port {host}/{protocol} of the node is published by {owner}")


def _owned(guest: Guest) -> dict[HostPort, str]:
    return {(protocol, host): guest.container for protocol, host, _ in published(guest)}


async def _forget(netfilter: Netfilter, container: str, led: frozenset[Led]) -> None:
    try:
        await asyncio.to_thread(_forget_and_close, netfilter, led)
    except OSError as error:
        raise NetworkError(f"forget connections to {container}: {error}") from error


def _forget_and_close(netfilter: Netfilter, led: frozenset[Led]) -> None:
    """The socket is closed by who uses it: the caller may be cancelled before the end."""
    with closing(netfilter):
        versions, protocols = {address.version for _, _, (address, _) in led}, {protocol for protocol, _, _ in led}
        netfilter.forget(versions, protocols, lambda flow: (flow.protocol, flow.to[1], flow.by) in led)


def _count(guests: Iterable[Guest], guarded: frozenset[str]) -> Counter[GuestElement]:
    return Counter(element for guest in guests for element in guest_elements(guest, guarded))


def _exchanged(
    before: Counter[GuestElement], after: Counter[GuestElement]
) -> tuple[set[GuestElement], set[GuestElement]]:
    """(gone, new)"""
    return (set(), set()) if before is after else (before.keys() - after.keys(), after.keys() - before.keys())


def _led(guest: Guest) -> frozenset[Led]:
    return frozenset(
        (NUMBERS[protocol], host, (address, number))
        for protocol, host, number in published(guest)
        for address in guest.addresses
    )
