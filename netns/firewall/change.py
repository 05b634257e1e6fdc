"""What is in the kernel's table, as data, and the nft commands that make one state of it out of another.

Rules are replaced by the chain, elements one by one: a transaction has no more in it than what differs. Only sets of
subnets, which are small, are filled anew, because nft looks for overlaps in what was before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from model.network import Address

FAMILY, NAME = "inet", "tepui"
TABLE = f"{FAMILY} {NAME}"
BASES: Mapping[str, str] = {
    "forged": "type filter hook prerouting priority raw; policy accept;",
    "input": "type filter hook input priority filter; policy accept;",
    "forward": "type filter hook forward priority filter; policy accept;",
    "publish": "type nat hook prerouting priority dstnat + 1; policy accept;",
    "publish_own": "type nat hook output priority -99; policy accept;",
    "leave": "type nat hook postrouting priority srcnat; policy accept;",
}

GuestElement = tuple[str, str]  # the name of a set, and an element of it


@dataclass(frozen=True, slots=True)
class Set:
    """`type` and elements as nft has them. Elements of a map are `key : value`. `str` of one is its text."""

    type: str
    elements: frozenset[object] = frozenset()
    interval: bool = False

    @property
    def kind(self) -> str:
        return "map" if " : " in self.type else "set"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Rules of each chain, and sets by name, without what guests add to the sets. `guarded` are the apps that policies
    are for."""

    chains: Mapping[str, tuple[str, ...]]
    sets: Mapping[str, Set]
    guarded: frozenset[str]
    members: Mapping[str, frozenset[Address]] = field(repr=False, compare=False)


def load(ruleset: Ruleset, guests: Iterable[GuestElement]) -> str:
    """The whole table, where there is none."""
    empty = Ruleset({}, {}, frozenset(), {})
    return f"add table {TABLE}\n" + diff(empty, ruleset, new=guests)


def diff(before: Ruleset, after: Ruleset, gone: Iterable[GuestElement] = (), new: Iterable[GuestElement] = ()) -> str:
    """With what guests take from the sets and add to them. Empty when there is nothing to change."""
    return "".join(f"{command}\n" for command in _diff(before, after, gone, new))


def exchange(gone: Iterable[GuestElement], new: Iterable[GuestElement]) -> str:
    """As `diff`, when nothing but guests changes."""
    return "".join(f"{command}\n" for command in _exchange(gone, new))


def _exchange(gone: Iterable[GuestElement], new: Iterable[GuestElement]) -> Iterator[str]:
    yield from (f"delete element {TABLE} {name} {{ {', '.join(map(_key, of))} }}" for name, of in _grouped(gone))
    yield from (f"add element {TABLE} {name} {{ {', '.join(of)} }}" for name, of in _grouped(new))


def _diff(before: Ruleset, after: Ruleset, gone: Iterable[GuestElement], new: Iterable[GuestElement]) -> Iterator[str]:
    """First what others refer to, last what nobody refers to any more."""
    stale_chains, stale_sets = before.chains.keys() - after.chains.keys(), before.sets.keys() - after.sets.keys()
    changed = [name for name, rules in after.chains.items() if before.chains.get(name) != rules]
    for name in changed:
        if name not in before.chains:
            yield f"add chain {TABLE} {name} {{ {BASES.get(name, '')} }}"
    # After the chains: nft sends elements of a map of intervals together with the map.
    for name, of in after.sets.items():
        if name not in before.sets:
            yield f"add {of.kind} {TABLE} {name} {{ type {of.type}; {'flags interval; ' if of.interval else ''}}}"
    for name in (*changed, *sorted(stale_chains)):
        if name in before.chains:
            yield f"flush chain {TABLE} {name}"
    for name, of in after.sets.items():
        yield from _elements(name, before.sets.get(name), of)
    yield from _exchange(gone, new)
    for name in changed:
        yield from (f"add rule {TABLE} {name} {rule}" for rule in after.chains[name])
    yield from (f"delete chain {TABLE} {name}" for name in sorted(stale_chains))
    yield from (f"delete {before.sets[name].kind} {TABLE} {name}" for name in sorted(stale_sets))


def _elements(name: str, before: Set | None, after: Set) -> Iterator[str]:
    if before is after:
        return
    old = before.elements if before else frozenset()
    new = after.elements - old
    # Elements are compared one by one, in Python: it is worth not to do it twice.
    gone = old - after.elements if len(old) + len(new) != len(after.elements) else frozenset()
    if after.interval and old and (gone or new):
        yield f"flush {after.kind} {TABLE} {name}"
        gone, new = frozenset(), after.elements
    if gone:
        yield f"delete element {TABLE} {name} {{ {', '.join(sorted(_key(str(element)) for element in gone))} }}"
    if new:
        yield f"add element {TABLE} {name} {{ {', '.join(sorted(map(str, new)))} }}"


def _grouped(elements: Iterable[GuestElement]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for name, element in sorted(elements):
        groups.setdefault(name, []).append(element)
    return list(groups.items())


def _key(element: str) -> str:
    return element.partition(" : ")[0]
