"""A node's end of an overlay network: one VXLAN device, and for each other node an FDB entry, and for each of its
blocks a route and a neighbour.

A packet to a container on another node matches the route to that node's block, whose next hop is that node's VTEP
address; the neighbour entry gives the VTEP's MAC address and the forwarding entry the node's underlay address. Nothing
is asked (ARP, neighbour discovery) and nothing is learnt. Three entries a node and network, five where there is IPv6
too, however many containers there are. Addresses outside of blocks (singles) have a route each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_network

from model.network import VXLAN_OVERHEAD, Address, Block, Vtep, vtep_mac
from netns.address import LinkAddress
from netns.driver import NetworkSpec
from netns.gateway import gateway_state, has_ipv6
from netns.link import vxlan, vxlan_name
from netns.neighbour import Neighbour
from netns.overlay.fdb import FdbEntry
from netns.reconcile import State
from netns.route import Route
from netns.spec import first_block
from netns.sysctl import forwarding, ipv6, quiet


def overlay_mtu(underlay_mtu: int, underlay: Address) -> int:
    """What fits into a packet of the underlay beside the outer headers."""
    return underlay_mtu - VXLAN_OVERHEAD[underlay.version]


def overlay_state(spec: NetworkSpec, node: str, underlay: Address, mtu: int) -> State:
    """Everything that `spec` asks of this node: its gateway, its VTEP and its way to each peer."""
    assert spec.network.vni is not None
    dev = vxlan_name(spec.network.vni)
    own = State(
        links=frozenset({vxlan(spec.network.vni, underlay, vtep_mac(node, spec.network.vni), mtu)}),
        sysctls=(*quiet(dev), *forwarding(dev), *(ipv6(dev, True) if has_ipv6(spec.blocks) else ())),
        addresses=frozenset(LinkAddress(dev, block.vtep_address) for block in spec.blocks),
    )
    return gateway_state(spec.network.name, spec.blocks, mtu) | own | peers_state(dev, spec.peers, spec.blocks)


def peers_state(dev: str, peers: Sequence[Vtep], own: Sequence[Block]) -> State:
    """The way to the containers of other nodes, by each version of IP that this node has a block of. The node itself
    takes the gateway's address of its first for it."""
    sources = {version: block.gateway for version in (4, 6) if (block := first_block(own, version)) is not None}
    return State(
        neighbours=frozenset(
            Neighbour(dev, block.vtep_address, peer.mac)
            for peer in peers
            for block in peer.blocks
            if block.subnet.version in sources
        ),
        fdb=frozenset(FdbEntry(dev, peer.mac, peer.underlay) for peer in peers),
        routes=frozenset(route for peer in peers for route in _routes(dev, peer, sources)),
    )


def _routes(dev: str, peer: Vtep, sources: dict[int, Address]) -> Iterator[Route]:
    for block in peer.blocks:
        if block.subnet.version in sources:
            yield Route(dev, block.subnet, block.vtep_address, sources[block.subnet.version])
    for single in peer.singles:
        first = first_block(peer.blocks, single.version)
        if first is not None and single.version in sources:
            yield Route(dev, ip_network(single), first.vtep_address, sources[single.version])
