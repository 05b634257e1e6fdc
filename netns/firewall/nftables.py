"""The firewall of a node, in the one nftables table that is ours. Nothing else is read, flushed or re-ordered.

What should be there is computed (`ruleset.py`), compared with what was put there before (`change.py`), and the
difference is one transaction. The kernel is read only to find out whether somebody changed our table: cheaply by the
generation, which counts everybody's transactions, and if that has moved by a listing (`listing.py`).

Nothing is put there before the first `configure`. After a restart of the agent the table of the last one goes on
guarding until the master has said what should be, and then is replaced in one transaction; and without `configure`
there is no network that a container could be on.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace

from model.network import Address
from model.policy import Policy
from model.task import Protocol
from netns.driver import NetworkError
from netns.firewall.change import TABLE, GuestElement, Ruleset, diff, drop, exchange, load
from netns.firewall.libnftables import Nftables
from netns.firewall.listing import Listing, differences, frame
from netns.firewall.netfilter import Led, Netfilter
from netns.firewall.ruleset import NUMBERS, compile_rules, guest_elements, published, with_members
from netns.firewall.table import Guest, Table, Zone

HostPort = tuple[Protocol, int]


class NftFirewall:
    """Implements `netns.firewall.table.Firewall`, for the network namespace of the thread that first calls a verb.

    What may take long is done in a thread, since the library does not hold the interpreter. The kernel and what is
    known of it change together there, whether or not the caller is cancelled; the lock keeps two from doing so."""

    def __init__(self) -> None:
        self._nft: Nftables | None = None
        self._netfilter: Netfilter | None = None
        self._lock = threading.RLock()
        self._table: Table | None = None  # as configured, without guests
        self._ruleset = compile_rules(Table())
        self._guests: dict[str, Guest] = {}
        self._owners: dict[HostPort, str] = {}  # containers by the ports that they publish
        self._elements: Counter[GuestElement] = Counter()  # containers of a pod share some
        self._generation: int | None = None  # after our last change; None: somebody else came between
        self._frame: Listing | None = None  # None: not known for certain

    def open(self) -> None:
        """For the network namespace of the calling thread. Whoever will have many files open does so before; else it is
        done when first needed. Raises NetworkError."""
        with self._lock:
            if self._nft is None or self._netfilter is None:
                self._nft, self._netfilter = Nftables(), Netfilter()

    async def configure(
        self,
        zones: tuple[Zone, ...],
        policies: tuple[Policy, ...],
        members: Mapping[str, frozenset[Address]],
        peers: frozenset[Address],
    ) -> None:
        table = Table(zones, policies, dict(members), peers=peers)
        if table == self._table:
            return
        self.open()
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
        if self._table is None or self._netfilter is None:
            return []
        with self._lock:
            if self._generation is not None and self._netfilter.generation() == self._generation:
                return []
        return await asyncio.to_thread(self._mend)

    async def remove(self) -> None:
        self.open()
        with self._lock:
            self._run(drop())
            self._close()
            self._table, self._ruleset = None, compile_rules(Table())
            self._guests, self._owners, self._elements = {}, {}, Counter()

    def _close(self) -> None:
        if self._nft is not None and self._netfilter is not None:
            self._nft.close()
            self._netfilter.close()
        self._nft = self._netfilter = self._generation = self._frame = None

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
                self._load(ruleset, elements)
            else:
                gone, new = _exchanged(self._elements, elements)
                self._commit(diff(before, ruleset, gone, new), ruleset, lambda: elements)
                if before.chains != ruleset.chains or before.sets.keys() != ruleset.sets.keys():
                    self._remember()
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
                self._commit(exchange(gone, new), self._ruleset, lambda: (known.keys() - gone) | new)
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
                self._commit(exchange(*_exchanged(self._elements, elements)), self._ruleset, lambda: elements)
            self._guests, self._owners, self._elements = guests, owners, elements

    def _mend(self) -> list[str]:
        with self._lock:
            if self._table is None or self._nft is None or self._netfilter is None:
                return []
            generation = self._netfilter.generation()
            listing = self._list()
            if listing is None:
                wrong = [f"the table {TABLE} was gone"]
            elif self._frame is None:
                wrong = [f"the table {TABLE} was changed while we changed it"]
            else:
                wrong = differences(listing, self._frame, self._ruleset, self._elements)
            if wrong:
                self._load(self._ruleset, self._elements)
            else:
                self._generation = generation
            return wrong

    def _commit(self, commands: str, ruleset: Ruleset, elements: Callable[[], Iterable[GuestElement]]) -> None:
        """What can not be changed, because somebody removed or changed it, is put there anew."""
        if not commands:
            return
        try:
            self._run(commands)
        except NetworkError as error:
            try:
                self._load(ruleset, elements())
            except NetworkError:
                raise error from None  # it says what the change was

    def _load(self, ruleset: Ruleset, elements: Iterable[GuestElement]) -> None:
        """Whatever anybody did before is over with it."""
        assert self._netfilter is not None
        self._generation = self._netfilter.generation()
        self._run(load(ruleset, elements))
        self._remember()

    def _run(self, commands: str) -> None:
        assert self._nft is not None and self._netfilter is not None
        before = self._netfilter.generation()
        self._nft.run(commands)
        after = self._netfilter.generation()
        self._generation = after if before == self._generation and after == before + 1 else None

    def _remember(self) -> None:
        """What the kernel made of our rules, if nobody else can have changed them since."""
        assert self._netfilter is not None
        listing, generation = self._list(terse=True), self._netfilter.generation()
        self._frame = frame(listing) if listing is not None and generation == self._generation else None

    def _list(self, terse: bool = False) -> Listing | None:
        assert self._nft is not None
        try:
            return self._nft.read(f"list table {TABLE}", terse)
        except NetworkError as error:
            if "No such file or directory" in str(error):
                return None
            raise


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
    """In a thread: the kernel looks through all connections of all namespaces, 20 ms when there are none."""
    try:
        await asyncio.to_thread(_forget_and_close, netfilter, led)
    except OSError as error:
        raise NetworkError(f"forget connections to {container}: {error}") from error


def _forget_and_close(netfilter: Netfilter, led: frozenset[Led]) -> None:
    """The socket is closed by who uses it: the caller may be cancelled before the end."""
    with closing(netfilter):
        netfilter.forget(led)


def _count(guests: Iterable[Guest], guarded: frozenset[str]) -> Counter[GuestElement]:
    return Counter(element for guest in guests for element in guest_elements(guest, guarded))


def _exchanged(
    before: Counter[GuestElement], after: Counter[GuestElement]
) -> tuple[set[GuestElement], set[GuestElement]]:
    """(gone, new)"""
    return (set(), set()) if before is after else (before.keys() - after.keys(), after.keys() - before.keys())


def _led(guest: Guest) -> frozenset[Led]:
    return frozenset(
        Led(NUMBERS[protocol], host, address, number)
        for protocol, host, number in published(guest)
        for address in guest.addresses
    )
