"""The node's own way to virtual addresses: a route for each pool of them, so that its connections get as far as the
translation. What is not translated ends at the gateway's link.

A pool has one route, by the network that is its home: an overlay if there is one, since backends may be on other nodes.
The node talks to VIPs with the gateway's address of that network. So the route moves as networks come and go. After a
restart it stays where it is until that network is configured again: meanwhile nothing says that another is its home.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from model.network import NetworkKind, Subnet
from netns.driver import NetworkSpec
from netns.link import gateway_name
from netns.netlink import Netlink, Operation, link_exists
from netns.reconcile import diff_routes
from netns.route import VIP_PROTOCOL, Route, read_routes
from netns.spec import NATIVE, first_block


async def reconcile_vip_routes(
    netlink: Netlink, specs: Collection[NetworkSpec], pools: Iterable[Subnet], awaited: Iterable[str]
) -> list[str]:
    """Make it so. Returns what was done, in words. A destination has one route: all that go, go before any is added.

    `awaited`: networks that an agent before this one had configured, and this one has not yet.
    """
    taken: set[Subnet] = set()
    for dev in filter(link_exists, map(gateway_name, awaited)):
        taken |= {route.destination for route in await read_routes(netlink, dev, VIP_PROTOCOL)}
    desired = vip_routes(specs, [pool for pool in pools if pool not in taken])
    withdrawn: list[Operation] = []
    added: list[Operation] = []
    for dev in sorted(filter(link_exists, map(gateway_name, _names(specs)))):
        wanted = frozenset(route for route in desired if route.dev == dev)
        gone, new = diff_routes(wanted, await read_routes(netlink, dev, VIP_PROTOCOL))
        withdrawn += gone
        added += new
    await netlink.apply(withdrawn)
    await netlink.apply(added)
    return [operation.describe() for operation in (*withdrawn, *added)]


def vip_routes(specs: Collection[NetworkSpec], pools: Iterable[Subnet]) -> frozenset[Route]:
    """None to a pool of a version of IP that this node has no block of."""
    routes = set()
    for pool in pools:
        homes = [spec for spec in specs if first_block(spec.blocks, pool.version) is not None]
        if homes:
            home = min(homes, key=lambda spec: (spec.network.kind is not NetworkKind.OVERLAY, spec.network.name))
            block = first_block(home.blocks, pool.version)
            assert block is not None
            dev = gateway_name(home.network.name)
            routes.add(Route(dev, pool, source=block.gateway, protocol=VIP_PROTOCOL))
    return frozenset(routes)


def _names(specs: Iterable[NetworkSpec]) -> list[str]:
    return [spec.network.name for spec in specs if spec.network.kind not in NATIVE]
