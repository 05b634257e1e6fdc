"""A node's end of an overlay network: one VXLAN device, and for each other node a route, a neighbour and an FDB entry.

A packet to a container on another node matches the route to that node's block, whose next hop is that node's VTEP
address; the neighbour entry gives the VTEP's MAC address and the forwarding entry the node's underlay address. Nothing
is asked (ARP) and nothing is learnt. Three entries a node and network, however many containers there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.network import VXLAN_OVERHEAD, Address, Vtep, vtep_mac
from netns.address import LinkAddress
from netns.driver import NetworkSpec
from netns.gateway import gateway_state
from netns.link import vxlan, vxlan_name
from netns.neighbour import Neighbour
from netns.overlay.fdb import FdbEntry
from netns.reconcile import State
from netns.route import Route
from netns.sysctl import forwarding, quiet


def overlay_mtu(underlay_mtu: int, underlay: Address) -> int:
    """What fits into a packet of the underlay beside the outer headers."""
    return underlay_mtu - VXLAN_OVERHEAD[underlay.version]


def overlay_state(spec: NetworkSpec, node: str, underlay: Address, underlay_mtu: int) -> State:
    """Everything that `spec` asks of this node: its gateway, its VTEP and its way to each peer."""
    assert spec.network.vni is not None
    dev, mtu = vxlan_name(spec.network.vni), overlay_mtu(underlay_mtu, underlay)
    own = State(
        links=frozenset({vxlan(spec.network.vni, underlay, vtep_mac(node, spec.network.vni), mtu)}),
        sysctls=(*quiet(dev), *forwarding(dev)),
        addresses=frozenset(LinkAddress(dev, block.vtep_address) for block in spec.blocks),
    )
    peers = peers_state(dev, spec.peers, source=spec.blocks[0].gateway)
    return gateway_state(spec.network.name, spec.blocks, mtu) | own | peers


def peers_state(dev: str, peers: Sequence[Vtep], source: Address) -> State:
    """The way to the containers of other nodes' blocks. The node itself takes its gateway's address for it."""
    return State(
        neighbours=frozenset(Neighbour(dev, block.vtep_address, peer.mac) for peer in peers for block in peer.blocks),
        fdb=frozenset(FdbEntry(dev, peer.mac, peer.underlay) for peer in peers),
        routes=frozenset(
            Route(dev, block.subnet, block.vtep_address, source) for peer in peers for block in peer.blocks
        ),
    )
