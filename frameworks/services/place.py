"""Which offer gets which instance: a pure function of what waits, what is on offer, and what runs where.

Instances of an app are spread: a node with fewer of them comes first, then the one with the most free. Apps take
turns, one instance at a time, so that none starves behind a large one. Whatever an offer can't take is a refusal with
the reason, in words and amounts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from master.offers import Offer
from model.resources import UNITS, Resources, describe
from model.rights import missing

Spread = Mapping[tuple[str, str], int]  # (app, node) -> tasks


@dataclass(frozen=True, slots=True)
class Demand:
    """`count` instances of an app, each of which needs `resources`, `network` and that a node permits `rights`. One
    that is an `instance` of before has volumes on the `node`, and can be nowhere else."""

    app: str
    resources: Resources
    network: str
    count: int
    rights: frozenset[str] = frozenset()
    instance: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    app: str
    offer: Offer
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why `node` can't run another instance of `app`: too little of `lacking` kinds, no such network, what it
    needs is `forbidden` there, or its volume is `elsewhere`."""

    app: str
    node: str
    free: Resources
    lacking: tuple[str, ...]
    no_network: bool = False
    forbidden: frozenset[str] = frozenset()
    elsewhere: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    placements: tuple[Placement, ...]
    refusals: tuple[Refusal, ...]


def place(demands: Sequence[Demand], offers: Sequence[Offer], running: Spread) -> Plan:
    free = {offer.id: offer.resources for offer in offers}
    spread = Counter(running)
    waiting = {demand: demand.count for demand in demands if demand.count > 0}
    placements: list[Placement] = []
    refusals: list[Refusal] = []
    while waiting:
        for demand in list(waiting):
            fitting = [offer for offer in offers if not _refusal(demand, offer, free[offer.id])]
            if not fitting:
                refusals += [refused for o in offers if (refused := _refusal(demand, o, free[o.id]))]
                del waiting[demand]
                continue
            best = min(fitting, key=lambda offer: _rank(demand, offer, free[offer.id], spread))
            placements.append(Placement(demand.app, best, demand.instance))
            free[best.id] -= demand.resources
            spread[demand.app, best.node.id] += 1
            waiting[demand] -= 1
            if not waiting[demand]:
                del waiting[demand]
    return Plan(tuple(placements), tuple(refusals))


def explain(demand: Demand, refusals: Sequence[Refusal]) -> list[str]:
    """`needs 4 CPU: 3 of 3 nodes have too little (most free: 1.5 CPU)`, one sentence for each cause."""
    nodes = len(refusals)
    sentences = [f"its volume is on node {node}" for node in sorted({refusal.elsewhere for refusal in refusals} - {""})]
    without = sum(refusal.no_network for refusal in refusals)
    if without:
        sentences.append(f'needs network "{demand.network}": {_of(without, nodes)} not have it')
    for right in sorted({right for refusal in refusals for right in refusal.forbidden}):
        refusing = sum(right in refusal.forbidden for refusal in refusals)
        who = "no node permits it" if refusing == nodes else f"{_of(refusing, nodes)} not permit it"
        sentences.append(f"needs {right}: {who}, in its agent.toml")
    for kind in UNITS:
        short = [refusal for refusal in refusals if kind in refusal.lacking]
        if short:
            needed = describe(kind, getattr(demand.resources, kind))
            most = describe(kind, max(getattr(refusal.free, kind) for refusal in short))
            have = "has" if nodes == 1 else "have"
            sentences.append(f"needs {needed}: {len(short)} of {_nodes(nodes)} {have} too little (most free: {most})")
    return sentences


def reason(refusals: Sequence[Refusal]) -> str:
    """Why one offer was declined, for the master: each app that waits, and what it misses there."""
    return "; ".join(dict.fromkeys(_reason(refusal) for refusal in refusals))


def _reason(refusal: Refusal) -> str:
    if refusal.elsewhere:
        return f"{refusal.app} has its volume on node {refusal.elsewhere}"
    return f"{refusal.app} lacks {', '.join(_names(refusal))}"


def _refusal(demand: Demand, offer: Offer, free: Resources) -> Refusal | None:
    lacking = tuple(free.shortage(demand.resources))
    no_network = demand.network not in offer.networks
    forbidden = missing(demand.rights, offer.node.rights)
    if demand.node not in ("", offer.node.id):
        return Refusal(demand.app, offer.node.id, free, (), elsewhere=demand.node)
    if not lacking and not no_network and not forbidden:
        return None
    return Refusal(demand.app, offer.node.id, free, lacking, no_network, forbidden)


def _rank(demand: Demand, offer: Offer, free: Resources, spread: Counter[tuple[str, str]]) -> tuple[int, int, int, str]:
    return spread[demand.app, offer.node.id], -free.cpus, -free.mem, offer.node.id


def _names(refusal: Refusal) -> list[str]:
    return [UNITS[kind] for kind in refusal.lacking] + ["the network"] * refusal.no_network + sorted(refusal.forbidden)


def _of(count: int, total: int) -> str:
    return f"{count} of {_nodes(total)} {'does' if total == 1 else 'do'}"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
