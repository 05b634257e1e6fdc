"""A network's gateway on a node: a link that carries the gateway's address, and that containers are not connected to.

Each container has a veth pair of its own whose other end is simply a link of the node: there is no switch between
them, so neighbours have nothing in common but the node, which routes between them, translates virtual addresses (back,
too) and applies policies. A bridge with isolated ports looks the same from inside, but where br_netfilter is loaded, as
Docker and Kubernetes have it, translation happens in the bridge already: a packet to a VIP whose backend is a
neighbour is then switched to its port, against the isolation, and lost.

The gateway's link is a bridge without ports: the one kind of link that holds addresses, needs no other end and is in
every kernel. It answers for the gateway, and what is routed to it (addresses that nobody leased, virtual addresses
that were not translated) ends there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from model.network import Block
from netns.address import LinkAddress
from netns.link import Link, gateway_name
from netns.reconcile import State
from netns.route import Route
from netns.sysctl import forwarding, ipv6, quiet

# The node's end of every veth pair has it, so containers know it from their start. No two of them share a wire.
GATEWAY_MAC = "02:74:00:00:00:01"


def gateway_state(network: str, blocks: Sequence[Block], mtu: int) -> State:
    """A link that has the gateway of each block. The node talks to containers with the gateway's address."""
    dev = gateway_name(network)
    mac = (b"\x02" + hashlib.sha256(network.encode()).digest()[:5]).hex(":")
    return State(
        links=frozenset({Link(dev, "bridge", mac, mtu)}),
        sysctls=(*quiet(dev), *forwarding(dev), *(ipv6(dev, True) if has_ipv6(blocks) else ())),
        addresses=frozenset(LinkAddress(dev, block.gateway) for block in blocks),
        routes=frozenset(Route(dev, block.subnet, source=block.gateway) for block in blocks),
    )


def has_ipv6(blocks: Sequence[Block]) -> bool:
    return any(block.subnet.version == 6 for block in blocks)
