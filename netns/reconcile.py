"""Make a node's links what they should be: read what is, compute the difference, apply it.

A `State` is either what should be or what is, of a few named links that are ours. `diff` is pure and gives operations
in stages; each stage may rely on the one before. Routes come last: as long as there is none nothing is sent, so
traffic never meets a half-made network. What is equal already costs no operation, and a change of one peer of an
overlay costs three, or five with IPv6.

Reading takes most of the time, so who knows what was applied last may compare with that, and read when it fails or when
somebody else may have changed something.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from netns.address import AddAddress, LinkAddress, RemoveAddress, read_addresses
from netns.link import CreateLink, Link, RemoveLink, SetLink, SetUp, read_link
from netns.neighbour import AddNeighbour, Neighbour, RemoveNeighbour, read_neighbours
from netns.netlink import Netlink, Operation
from netns.overlay.fdb import AddFdb, FdbEntry, RemoveFdb, read_fdb
from netns.route import NETWORK_PROTOCOL, AddRoute, RemoveRoute, Route, read_routes
from netns.sysctl import Sysctl, holds, write


class Keyed(Protocol):
    """An entry that takes the place of another with the same key."""

    @property
    def key(self) -> object: ...


E = TypeVar("E", bound=Keyed)


@dataclass(frozen=True, slots=True)
class State:
    """Neighbours and forwarding entries are those of VXLAN devices."""

    links: frozenset[Link] = frozenset()
    sysctls: tuple[Sysctl, ...] = ()
    addresses: frozenset[LinkAddress] = frozenset()
    neighbours: frozenset[Neighbour] = frozenset()
    fdb: frozenset[FdbEntry] = frozenset()
    routes: frozenset[Route] = frozenset()

    def __or__(self, other: State) -> State:
        return State(
            self.links | other.links,
            self.sysctls + other.sysctls,
            self.addresses | other.addresses,
            self.neighbours | other.neighbours,
            self.fdb | other.fdb,
            self.routes | other.routes,
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do, in the order of the fields. `withdrawn` routes go first, so that nothing is sent to what follows."""

    withdrawn: list[Operation] = field(default_factory=list)
    links: list[Operation] = field(default_factory=list)
    sysctls: list[Sysctl] = field(default_factory=list)
    entries: list[Operation] = field(default_factory=list)
    routes: list[Operation] = field(default_factory=list)

    def describe(self) -> list[str]:
        stages = (self.withdrawn, self.links, self.sysctls, self.entries, self.routes)
        return [operation.describe() for stage in stages for operation in stage]


async def reconcile(netlink: Netlink, desired: State) -> list[str]:
    """Make it so. Returns what was done, in words; nothing when nothing was to be done."""
    return await perform(netlink, diff(desired, await read_state(netlink, desired)))


async def perform(netlink: Netlink, changes: Changes) -> list[str]:
    """Returns what was done, in words."""
    await netlink.apply(changes.withdrawn)
    await netlink.apply(changes.links)
    for sysctl in changes.sysctls:
        write(sysctl)
    await netlink.apply(changes.entries)
    await netlink.apply(changes.routes)
    return changes.describe()


async def read_state(netlink: Netlink, desired: State) -> State:
    """What is, of the links that `desired` names."""
    state = State(sysctls=tuple(sysctl for sysctl in desired.sysctls if holds(sysctl)))
    for wanted in desired.links:
        link = await read_link(netlink, wanted.name)
        if link is not None:
            state |= await _read_link_state(netlink, link)
    return state


async def _read_link_state(netlink: Netlink, link: Link) -> State:
    vxlan = link.kind == "vxlan"
    return State(
        links=frozenset({link}),
        addresses=await read_addresses(netlink, link.name),
        neighbours=await read_neighbours(netlink, link.name) if vxlan else frozenset(),
        fdb=await read_fdb(netlink, link.name) if vxlan else frozenset(),
        routes=await read_routes(netlink, link.name, NETWORK_PROTOCOL),
    )


def diff(desired: State, actual: State) -> Changes:
    """The least that makes `desired` out of `actual`. What is to be replaced is not removed first."""
    links = list(_link_operations(desired.links, actual.links))
    actual = _without_remade(desired, actual)
    withdrawn, routes = diff_routes(desired.routes, actual.routes)
    stale_neighbours, new_neighbours, changed_neighbours = _compare(desired.neighbours, actual.neighbours)
    stale_fdb, new_fdb, changed_fdb = _compare(desired.fdb, actual.fdb)
    return Changes(
        withdrawn=withdrawn,
        links=links,
        sysctls=[sysctl for sysctl in desired.sysctls if sysctl not in actual.sysctls],
        entries=[
            *(RemoveNeighbour(neighbour) for neighbour in stale_neighbours),
            *(RemoveFdb(entry) for entry in stale_fdb),
            *(AddAddress(address) for address in sorted(desired.addresses - actual.addresses, key=repr)),
            *(SetUp(link.name) for link in _sorted(desired.links) if link.name not in _up(actual)),
            *(AddNeighbour(neighbour) for neighbour in new_neighbours + changed_neighbours),
            *(AddFdb(entry) for entry in new_fdb + changed_fdb),
        ],
        routes=[
            *routes,
            # An address goes after the routes that had it as their source got another.
            *(RemoveAddress(address) for address in sorted(actual.addresses - desired.addresses, key=repr)),
        ],
    )


def diff_routes(desired: frozenset[Route], actual: frozenset[Route]) -> tuple[list[Operation], list[Operation]]:
    """What to withdraw, and what to add or replace."""
    stale, new, changed = _compare(desired, actual)
    added = [*(AddRoute(route) for route in new), *(AddRoute(route, replace=True) for route in changed)]
    return [RemoveRoute(route) for route in stale], list(added)


def _compare(desired: frozenset[E], actual: frozenset[E]) -> tuple[list[E], list[E], list[E]]:
    """What to remove, what to add, and what takes the place of something with the same key. Sorted, so that the same
    difference is always applied in the same order."""
    wanted, present = {entry.key for entry in desired}, {entry.key for entry in actual}
    return (
        sorted((entry for entry in actual if entry.key not in wanted), key=repr),
        sorted((entry for entry in desired if entry.key not in present), key=repr),
        sorted((entry for entry in desired - actual if entry.key in present), key=repr),
    )


def _link_operations(desired: Iterable[Link], actual: Iterable[Link]) -> Iterable[Operation]:
    present = {link.name: link for link in actual}
    for link in _sorted(desired):
        found = present.get(link.name)
        if found is None or found.fixed != link.fixed:
            yield from [RemoveLink(link.name)] if found else []
            yield CreateLink(link)
            # Of a bridge's MTU only one that was set later stays: the one it is made with follows its ports.
            yield SetLink(link)
        elif replace(found, up=link.up) != link:
            yield SetLink(link)


def _without_remade(desired: State, actual: State) -> State:
    """`actual` without the links that can only be made anew, and without all that vanishes with them."""
    wanted = {link.name: link.fixed for link in desired.links}
    kept = {link.name for link in actual.links if wanted.get(link.name) == link.fixed}
    remade = {name for name in wanted if name not in kept}
    return State(
        frozenset(link for link in actual.links if link.name in kept),
        tuple(sysctl for sysctl in actual.sysctls if not remade.intersection(sysctl.path.split("/"))),
        frozenset(address for address in actual.addresses if address.dev not in remade),
        frozenset(neighbour for neighbour in actual.neighbours if neighbour.dev not in remade),
        frozenset(entry for entry in actual.fdb if entry.dev not in remade),
        frozenset(route for route in actual.routes if route.dev not in remade),
    )


def _sorted(links: Iterable[Link]) -> list[Link]:
    return sorted(links, key=lambda link: link.name)


def _up(state: State) -> set[str]:
    return {link.name for link in state.links if link.up}
