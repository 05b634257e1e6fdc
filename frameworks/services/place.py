"""Which offer gets which instance: a pure function of what waits, what is on offer, and what runs where.

Instances of an app are spread: a node with fewer of them comes first, then the one with the most free. Or they are
packed, if it asks for that: the one with the least free that has still room comes first. Apps take turns, one instance
at a time, so that none starves behind a large one. Whatever an offer can't take is a refusal with the reason
(`frameworks/services/refusals.py`).

All apps share one order of the offers, and whether there is room is asked of the best only, so that thousands of
instances find their places on hundreds of nodes in a moment.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from frameworks.services.constraints import Constraint
from frameworks.services.refusals import Refusal
from frameworks.services.room import Room
from master.offers import Offer
from model.resources import Resources
from model.rights import missing

Spread = Mapping[tuple[str, str], int]  # (app, node) -> tasks
Places = Mapping[tuple[str, Constraint], Counter[str]]  # of each app's instances, by what the constraint is about
Rank = tuple[int, int, str, int]


@dataclass(frozen=True, slots=True)
class Demand:
    """`count` instances of an app, each of which needs `resources`, an address on each of `networks`, that a node
    permits `rights`, and ports of the node: `sockets` by protocol and number, and for each of `chosen`, which are
    protocols, one whose number does not matter. On `static` networks it asks for an address that is no node's. One that
    is an `instance` of before has volumes on the `node`, and can be nowhere else; `constraints` were met when it was
    there first. `packed` ones fill one node after the other. It is of `version` of the app."""

    app: str
    resources: Resources
    networks: tuple[str, ...]
    count: int
    rights: frozenset[str] = frozenset()
    instance: str = ""
    node: str = ""
    sockets: tuple[tuple[str, int], ...] = ()
    chosen: tuple[tuple[str, ...], ...] = ()
    static: frozenset[str] = frozenset()
    constraints: tuple[Constraint, ...] = ()
    packed: bool = False
    version: str = ""

    @property
    def leased(self) -> tuple[str, ...]:
        """Networks on which the node is to have an address for it."""
        return tuple(name for name in self.networks if name not in self.static)


@dataclass(frozen=True, slots=True)
class Placement:
    """`ports` are those that were chosen, in the order of the demand's."""

    app: str
    offer: Offer
    instance: str = ""
    ports: tuple[int, ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    placements: tuple[Placement, ...]
    refusals: tuple[Refusal, ...]


NOWHERE: Places = MappingProxyType({})


def place(demands: Sequence[Demand], offers: Sequence[Offer], running: Spread, places: Places = NOWHERE) -> Plan:
    board = _Board(offers, running, places)
    searches = [_Search(demand, board) for demand in dict.fromkeys(demands) if demand.count > 0]
    placements: list[Placement] = []
    refusals: list[Refusal] = []
    while searches:
        for search in list(searches):
            best = search.best()
            if best is None:
                refusals += board.refusals(search.demand)
            else:
                placements.append(board.take(search.demand, best))
                search.lacking -= 1
            if best is None or not search.lacking:
                searches.remove(search)
    return Plan(tuple(placements), tuple(refusals))


class _Board:
    """The offers, which are known by their numbers, and what has been placed on them. `order` has those with the most
    free first, `counts` how many instances of an app there are on each one's node."""

    def __init__(self, offers: Sequence[Offer], running: Spread, places: Places) -> None:
        self.offers = offers
        self._rooms = [Room.of(offer) for offer in offers]
        self._ranks = sorted(map(self._rank, range(len(offers))))
        self.order = [number for *_, number in self._ranks]
        self._numbers: dict[str, list[int]] = {}  # by node
        for number, offer in enumerate(offers):
            self._numbers.setdefault(offer.node.id, []).append(number)
        self._counts: dict[str, list[int]] = {}
        for (app, node), count in running.items():
            self._add(app, node, count)
        self._taken = {key: Counter(counts) for key, counts in places.items()}

    def counts(self, app: str) -> list[int]:
        return self._counts.setdefault(app, [0] * len(self.offers))

    def take(self, demand: Demand, number: int) -> Placement:
        """An instance for which there is room."""
        offer, room = self.offers[number], self._rooms[number]
        place = bisect(self._ranks, self._rank(number)) - 1
        del self._ranks[place], self.order[place]
        ports = room.take(demand.app, demand.resources, demand.leased, demand.sockets, demand.chosen)
        place = bisect(self._ranks, self._rank(number))
        self._ranks.insert(place, self._rank(number))
        self.order.insert(place, number)
        self._add(demand.app, offer.node.id, 1)
        for constraint in demand.constraints:
            if (at := constraint.place_of(offer.node)) is not None:
                self._taken.setdefault((demand.app, constraint), Counter())[at] += 1
        return Placement(demand.app, offer, demand.instance, ports, demand.version)

    def refusal(self, demand: Demand, number: int) -> Refusal | None:
        return _refusal(demand, self.offers[number], self._rooms[number], self._taken)

    def refusals(self, demand: Demand) -> list[Refusal]:
        found = (self.refusal(demand, number) for number in range(len(self.offers)))
        return [refusal for refusal in found if refusal is not None]

    def _rank(self, number: int) -> Rank:
        free = self._rooms[number].free
        return -free.cpus, -free.mem, self.offers[number].node.id, number

    def _add(self, app: str, node: str, count: int) -> None:
        for number in self._numbers.get(node, ()):
            self.counts(app)[number] += count


class _Search:
    """For the best offer for one demand, time and again. One that has no room is not looked at again: what is placed
    makes none. But a constraint may allow more at one place when there is more at others."""

    def __init__(self, demand: Demand, board: _Board) -> None:
        self.demand = demand
        self.lacking = demand.count
        self._board = board
        self._counts = board.counts(demand.app)
        self._open = {n for n, offer in enumerate(board.offers) if demand.node in ("", offer.node.id)}
        self._evens = any(constraint.evens for constraint in demand.constraints)

    def best(self) -> int | None:
        return next((number for number in self._ranked() if self._has_room(number)), None)

    def _ranked(self) -> Iterator[int]:
        if self.demand.packed:
            yield from (number for number in reversed(self._board.order) if number in self._open)
            return
        for fewest in sorted({self._counts[number] for number in self._open}):
            for number in self._board.order:
                if self._counts[number] == fewest and number in self._open:
                    yield number

    def _has_room(self, number: int) -> bool:
        refusal = self._board.refusal(self.demand, number)
        if refusal is not None and not (refusal.unmet and self._evens):
            self._open.discard(number)
        return refusal is None


def _refusal(demand: Demand, offer: Offer, room: Room, taken: Places) -> Refusal | None:
    if demand.node not in ("", offer.node.id):
        return Refusal(demand.app, offer.node.id, room.free, elsewhere=demand.node)
    refusal = Refusal(
        demand.app,
        offer.node.id,
        room.free,
        lacking=tuple(room.free.shortage(demand.resources)),
        no_network=tuple(name for name in demand.networks if name not in offer.networks),
        forbidden=missing(demand.rights, offer.node.rights),
        taken=room.taken_of(demand.sockets),
        no_address=room.full_of(demand.leased),
        unmet=tuple(str(each) for each in _unmet(demand, offer, taken)),
        no_port=room.choose(demand.app, demand.sockets, demand.chosen) is None,
    )
    return refusal if refusal.causes else None


def _unmet(demand: Demand, offer: Offer, taken: Places) -> Iterator[Constraint]:
    for constraint in demand.constraints if not demand.node else ():
        others = taken.get((demand.app, constraint), Counter())
        if not constraint.allows(constraint.place_of(offer.node), others):
            yield constraint
