"""Why a node can't run another instance of an app, in words and amounts: one sentence for each cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.resources import UNITS, Resources, describe

HOLDERS_NAMED = 3  # of a port that is taken


@dataclass(frozen=True, slots=True)
class Refusal:
    """`node` has `free` left, and not enough of `lacking` kinds; there are networks that it has not, or on which it has
    no address left; what is needed is `forbidden` there; ports are `taken` by tasks, or none is left to choose; the
    instance's volume is `elsewhere`; constraints are `unmet`; or the master `said` why not."""

    app: str
    node: str
    free: Resources
    lacking: tuple[str, ...] = ()
    no_network: tuple[str, ...] = ()
    forbidden: frozenset[str] = frozenset()
    elsewhere: str = ""
    taken: tuple[tuple[tuple[str, int], str], ...] = ()
    no_address: tuple[str, ...] = ()
    no_port: bool = False
    said: str = ""
    unmet: tuple[str, ...] = ()

    @property
    def causes(self) -> list[str]:
        """In a word or two each."""
        return [
            *(UNITS[kind] for kind in self.lacking),
            *["the network"] * bool(self.no_network),
            *sorted(self.forbidden),
            *(f"port {port}/{protocol}" for (protocol, port), _ in self.taken),
            *["a port to choose"] * self.no_port,
            *(f'an address of network "{name}"' for name in self.no_address),
            *(f"constraint {constraint}" for constraint in self.unmet),
            *[self.said] * bool(self.said),
        ]


def explain(needed: Resources, refusals: Sequence[Refusal]) -> list[str]:
    """`needs 4 CPU: 3 of 3 nodes have too little (most free: 1.5 CPU)`. `needed` is for one instance."""
    nodes = len(refusals)
    sentences = [f"its volume is on node {node}" for node in sorted({refusal.elsewhere for refusal in refusals} - {""})]
    for name, count in _counted(refusals, lambda refusal: refusal.no_network):
        sentences.append(f'needs network "{name}": {_of(count, nodes)} not have it')
    for name, count in _counted(refusals, lambda refusal: refusal.no_address):
        sentences.append(f'needs an address of network "{name}": none is left on {count} of {_nodes(nodes)}')
    for right, count in _counted(refusals, lambda refusal: sorted(refusal.forbidden)):
        who = "no node permits it" if count == nodes else f"{_of(count, nodes)} not permit it"
        sentences.append(f"needs {right}: {who}, in its agent.toml")
    for constraint, count in _counted(refusals, lambda refusal: refusal.unmet):
        sentences.append(f"constraint {constraint}: not met on {count} of {_nodes(nodes)}")
    sentences += _of_ports(refusals)
    sentences += sorted({refusal.said for refusal in refusals} - {""})
    for kind in UNITS:
        short = [refusal for refusal in refusals if kind in refusal.lacking]
        if short:
            amount = describe(kind, getattr(needed, kind))
            most = describe(kind, max(getattr(refusal.free, kind) for refusal in short))
            have = "has" if nodes == 1 else "have"
            sentences.append(f"needs {amount}: {len(short)} of {_nodes(nodes)} {have} too little (most free: {most})")
    return sentences


def reason(refusals: Sequence[Refusal]) -> str:
    """Why one offer was declined, for the master: each app that waits, and what it misses there."""
    return "; ".join(dict.fromkeys(_reason(refusal) for refusal in refusals))


def _of_ports(refusals: Sequence[Refusal]) -> list[str]:
    nodes = len(refusals)
    sentences = []
    for protocol, port in sorted({socket for refusal in refusals for socket, _ in refusal.taken}):
        holders = [
            f"{holder} on {refusal.node}"
            for refusal in refusals
            for socket, holder in refusal.taken
            if socket == (protocol, port)
        ]
        named = ", ".join(holders[:HOLDERS_NAMED])
        if more := len(holders) - HOLDERS_NAMED:
            named += f" and on {_nodes(more)} more" if more > 0 else ""
        sentences.append(f"needs host port {port}/{protocol}: taken by {named}")
    if full := sum(refusal.no_port for refusal in refusals):
        sentences.append(f"needs a host port: none is left to choose on {full} of {_nodes(nodes)}")
    return sentences


def _counted(refusals: Sequence[Refusal], of: Callable[[Refusal], Sequence[str]]) -> list[tuple[str, int]]:
    names = sorted({name for refusal in refusals for name in of(refusal)})
    return [(name, sum(name in of(refusal) for refusal in refusals)) for name in names]


def _reason(refusal: Refusal) -> str:
    if refusal.elsewhere:
        return f"{refusal.app} has its volume on node {refusal.elsewhere}"
    return f"{refusal.app} lacks {', '.join(refusal.causes)}"


def _of(count: int, total: int) -> str:
    return f"{count} of {_nodes(total)} {'does' if total == 1 else 'do'}"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
