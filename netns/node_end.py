"""The node's end of containers' links, put right after somebody changed something: a link that was set down, a setting,
the routes and neighbours that lead to the container. All of them are read at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from netns.container import Endpoint, neighbours, node_end, routes
from netns.link import SetUp
from netns.neighbour import read_neighbours
from netns.netlink import Netlink, link_is_up
from netns.reconcile import State, diff, perform
from netns.route import NETWORK_PROTOCOL, read_routes
from netns.sysctl import holds


async def mend_links(host: Netlink, endpoints: Sequence[Endpoint]) -> list[str]:
    """Of `endpoints` whose links exist. Returns what was done, in words."""
    if not endpoints:
        return []
    down = _down(endpoints)
    await host.apply(down)
    actual, desired = await _states(host, endpoints)
    return [operation.describe() for operation in down] + await perform(host, diff(desired, actual))


async def lacking_links(host: Netlink, endpoints: Sequence[Endpoint]) -> list[str]:
    """What `mend_links` would do, in words."""
    actual, desired = await _states(host, endpoints)
    return [operation.describe() for operation in _down(endpoints)] + diff(desired, actual).describe()


def _down(endpoints: Sequence[Endpoint]) -> list[SetUp]:
    return [SetUp(end.veth, alias=end.container) for end in endpoints if not link_is_up(end.veth)]


async def _states(host: Netlink, endpoints: Sequence[Endpoint]) -> tuple[State, State]:
    """(actual, desired)"""
    ours = {end.veth for end in endpoints}
    desired = State(
        sysctls=tuple(sysctl for end in endpoints for sysctl in node_end(end)),
        neighbours=frozenset(neighbour for end in endpoints for neighbour in neighbours(end)),
        routes=frozenset(route for end in endpoints for route in routes(end)),
    )
    actual = State(
        sysctls=tuple(sysctl for sysctl in desired.sysctls if holds(sysctl)),
        neighbours=frozenset(each for each in await read_neighbours(host) if each.dev in ours),
        routes=frozenset(each for each in await read_routes(host, None, NETWORK_PROTOCOL) if each.dev in ours),
    )
    return actual, desired
