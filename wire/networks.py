"""Networks, peers, VIPs, names and policies: messages to model and back. Reading trusts nothing (`convert.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from model.names import NamedTask
from model.network import Block, Network, NetworkKind, Share, Vtep
from model.policy import Members, Policy, PortRange, Source
from model.task import Protocol
from model.vip import Backend, Vip
from wire import control_pb2 as pb
from wire.ports import port_from_wire, port_to_wire


def network_to_wire(share: Share) -> pb.NetworkBlock:
    network = share.network
    return pb.NetworkBlock(
        name=network.name,
        kind=network.kind,
        subnets=map(str, network.subnets),
        block_prefix=network.block_prefix,
        block_prefix6=network.block_prefix6,
        vni=network.vni,
        mtu=network.mtu,
        internal=network.internal,
        cni=network.cni,
        blocks=[str(block.subnet) for block in share.blocks],
        retiring=[str(block.subnet) for block in share.retiring],
        singles=map(str, share.singles),
    )


def network_from_wire(node: str, message: pb.NetworkBlock) -> Share:
    network = Network(
        name=message.name,
        kind=NetworkKind(message.kind),
        subnets=tuple(map(ip_network, message.subnets)),
        block_prefix=message.block_prefix,
        block_prefix6=message.block_prefix6,
        vni=message.vni if message.HasField("vni") else None,
        mtu=message.mtu if message.HasField("mtu") else None,
        internal=message.internal,
        cni=message.cni,
    )
    return Share(
        network,
        _blocks(message.name, node, message.blocks),
        _blocks(message.name, node, message.retiring),
        tuple(map(ip_address, message.singles)),
    )


def peer_to_wire(peer: Vtep) -> pb.Peer:
    return pb.Peer(
        network=peer.network,
        node=peer.node,
        underlay=str(peer.underlay),
        mac=peer.mac,
        blocks=[str(block.subnet) for block in peer.blocks],
        singles=map(str, peer.singles),
    )


def peer_from_wire(message: pb.Peer) -> Vtep:
    return Vtep(
        message.network,
        message.node,
        ip_address(message.underlay),
        message.mac,
        _blocks(message.network, message.node, message.blocks),
        tuple(map(ip_address, message.singles)),
    )


def released_to_wire(block: Block) -> pb.BlockReleased:
    return pb.BlockReleased(network=block.network, block=str(block.subnet))


def released_from_wire(node: str, message: pb.BlockReleased) -> Block:
    return Block(message.network, node, ip_network(message.block))


def policy_to_wire(policy: Policy) -> pb.Policy:
    return pb.Policy(
        name=policy.name,
        network=policy.network,
        app=policy.app,
        sources=[
            pb.PolicySource(
                network=source.network, app=source.app, subnet="" if source.subnet is None else str(source.subnet)
            )
            for source in policy.sources
        ],
        ports=[pb.PortRange(protocol=ports.protocol, first=ports.first, last=ports.last) for ports in policy.ports],
    )


def policy_from_wire(message: pb.Policy) -> Policy:
    return Policy(
        message.name,
        message.network,
        message.app,
        tuple(
            Source(source.network, source.app, ip_network(source.subnet) if source.subnet else None)
            for source in message.sources
        ),
        tuple(PortRange(Protocol(ports.protocol), ports.first, ports.last) for ports in message.ports),
    )


def members_to_wire(members: Members) -> pb.Members:
    return pb.Members(app=members.app, addresses=members.addresses)


def members_from_wire(message: pb.Members) -> Members:
    return Members(message.app, tuple(str(ip_address(address)) for address in message.addresses))


def named_task_to_wire(task: NamedTask) -> pb.NamedTask:
    return pb.NamedTask(
        id=task.id,
        framework=task.framework,
        app=task.app,
        addresses=map(str, task.addresses),
        node=map(str, task.node),
        ports=map(port_to_wire, task.ports),
    )


def named_task_from_wire(message: pb.NamedTask) -> NamedTask:
    return NamedTask(
        message.id,
        message.framework,
        message.app,
        tuple(map(ip_address, message.addresses)),
        tuple(map(ip_address, message.node)),
        tuple(map(port_from_wire, message.ports)),
    )


def vip_to_wire(vip: Vip) -> pb.Vip:
    return pb.Vip(
        address=str(vip.address),
        port=vip.port,
        protocol=vip.protocol,
        name=vip.name,
        backends=map(_backend_to_wire, vip.backends),
        affinity_s=vip.affinity_s,
        prefer_local=vip.prefer_local,
        external=vip.external,
    )


def backend_part(backend: Backend) -> bytes:
    """Of a VIP. Messages of protobuf are put together by putting their bytes together: when a VIP is told again, with
    one that has come or gone, the others need not be encoded again."""
    return pb.Vip(backends=[_backend_to_wire(backend)]).SerializeToString()


def _backend_to_wire(backend: Backend) -> pb.Backend:
    return pb.Backend(
        task_id=backend.task_id,
        node=backend.node,
        address=str(backend.address),
        port=backend.port,
        weight=backend.weight,
        outside=str(backend.outside[0]) if backend.outside else None,
        outside_port=backend.outside[1] if backend.outside else 0,
    )


def vip_from_wire(message: pb.Vip) -> Vip:
    return Vip(
        address=ip_address(message.address),
        port=message.port,
        protocol=Protocol(message.protocol),
        name=message.name,
        backends=tuple(map(_backend_from_wire, message.backends)),
        affinity_s=message.affinity_s,
        prefer_local=message.prefer_local,
        external=message.external,
    )


def _backend_from_wire(message: pb.Backend) -> Backend:
    outside = (ip_address(message.outside), message.outside_port) if message.HasField("outside") else None
    return Backend(message.task_id, message.node, ip_address(message.address), message.port, message.weight, outside)


def _blocks(network: str, node: str, subnets: Iterable[str]) -> tuple[Block, ...]:
    return tuple(Block(network, node, ip_network(subnet)) for subnet in subnets)
