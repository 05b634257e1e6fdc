"""Which offer gets which instance: a pure function of what waits, what is on offer, and what runs where.

Instances of an app are spread: a node with fewer of them comes first, then the one with the most free. Apps take
turns, one instance at a time, so that none starves behind a large one. Whatever an offer can't take is a refusal with
the reason (`frameworks/services/refusals.py`).
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Demand:
    """`count` instances of an app, each of which needs `resources`, an address on each of `networks`, that a node
    permits `rights`, and ports of the node: `sockets` by protocol and number, and for each of `chosen`, which are
    protocols, one whose number does not matter. On `static` networks it asks for an address that is no node's. One that
    is an `instance` of before has volumes on the `node`, and can be nowhere else; `constraints` were met when it was
    there first. It is of `version` of the app."""

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
    taken = {key: Counter(counts) for key, counts in places.items()}
    rooms = {offer.id: Room.of(offer) for offer in offers}
    spread = Counter(running)
    waiting = {demand: demand.count for demand in demands if demand.count > 0}
    placements: list[Placement] = []
    refusals: list[Refusal] = []
    while waiting:
        for demand in list(waiting):
            fitting = [offer for offer in offers if not _refusal(demand, offer, rooms[offer.id], taken)]
            if not fitting:
                refusals += [refused for o in offers if (refused := _refusal(demand, o, rooms[o.id], taken))]
                del waiting[demand]
                continue
            best = min(fitting, key=lambda offer: _rank(demand, offer, rooms[offer.id].free, spread))
            ports = rooms[best.id].take(demand.app, demand.resources, demand.leased, demand.sockets, demand.chosen)
            placements.append(Placement(demand.app, best, demand.instance, ports, demand.version))
            spread[demand.app, best.node.id] += 1
            for constraint in demand.constraints:
                if (at := constraint.place_of(best.node)) is not None:
                    taken.setdefault((demand.app, constraint), Counter())[at] += 1
            waiting[demand] -= 1
            if not waiting[demand]:
                del waiting[demand]
    return Plan(tuple(placements), tuple(refusals))


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


def _rank(demand: Demand, offer: Offer, free: Resources, spread: Counter[tuple[str, str]]) -> tuple[int, int, int, str]:
    return spread[demand.app, offer.node.id], -free.cpus, -free.mem, offer.node.id
