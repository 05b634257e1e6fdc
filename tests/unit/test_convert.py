"""Model objects to messages and back, through their bytes; and messages that no honest peer sends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from model.adjustment import adjustment_of
from model.network import Block, Network, Share, Subnet, Vtep
from model.node import Node
from model.resources import Resources
from model.task import TaskSpec, TaskStatus
from model.vip import Vip
from tests.unit import strategies
from wire import control_pb2 as pb
from wire import convert, networks

M = TypeVar("M", bound=Message)


def carried(message: M) -> M:
    return type(message).FromString(message.SerializeToString())


@given(strategies.resources)
def test_resources(resources: Resources) -> None:
    assert convert.resources_from_wire(carried(convert.resources_to_wire(resources))) == resources


@given(strategies.specs)
def test_tasks(task: TaskSpec) -> None:
    assert convert.task_from_wire(carried(convert.task_to_wire(task))) == task


@given(strategies.specs, st.booleans(), st.booleans(), strategies.numbers)
def test_assignments(task: TaskSpec, kill: bool, paused: bool, number: int) -> None:
    wire = carried(convert.assignment_to_wire(task, kill, paused, number))
    assert convert.assignment_from_wire(wire) == (task, kill, adjustment_of(task, paused, number))


@given(strategies.statuses)
def test_statuses(status: TaskStatus) -> None:
    assert convert.status_from_wire(carried(convert.status_to_wire(status))) == status


@given(strategies.nodes, st.lists(strategies.statuses, max_size=3))
def test_hello(node: Node, tasks: list[TaskStatus]) -> None:
    assert convert.hello_from_wire(node.id, carried(convert.hello_to_wire(node, tasks))) == (node, tasks)


@given(strategies.networks, st.lists(strategies.subnets, max_size=2), strategies.names)
def test_networks(network: Network, subnets: list[Subnet], node: str) -> None:
    blocks = tuple(Block(network.name, node, subnet) for subnet in subnets)
    share = Share(network, blocks, blocks[1:], tuple(block.gateway for block in blocks))
    assert networks.network_from_wire(node, carried(networks.network_to_wire(share))) == share


@given(strategies.peers)
def test_peers(peer: Vtep) -> None:
    assert networks.peer_from_wire(carried(networks.peer_to_wire(peer))) == peer


@given(strategies.vips)
def test_vips(vip: Vip) -> None:
    assert networks.vip_from_wire(carried(networks.vip_to_wire(vip))) == vip


def read_hello(message: pb.Hello) -> object:
    return convert.hello_from_wire("n1", message)


def read_network(message: pb.NetworkBlock) -> object:
    return networks.network_from_wire("n1", message)


LIES: list[tuple[Callable[..., object], Message]] = [
    (convert.resources_from_wire, pb.Resources(cpus=-1)),
    (read_hello, pb.Hello(address="10.0.0.1", resources=pb.Resources(mem=-5))),
    (read_hello, pb.Hello(address="not an address")),
    (read_hello, pb.Hello(address="fe80::1%eth0")),
    (read_hello, pb.Hello()),
    (read_hello, pb.Hello(address="10.0.0.1", first_port=32000, last_port=31000)),
    (read_hello, pb.Hello(address="10.0.0.1", first_port=1, last_port=70000)),
    (convert.status_from_wire, pb.Status(state=1)),
    (convert.status_from_wire, pb.Status(at=math.nan)),
    (convert.status_from_wire, pb.Status(at=-math.inf)),
    (convert.status_from_wire, pb.Status(usage=pb.Usage(cpu_s=math.inf))),
    (convert.status_from_wire, pb.Status(usage=pb.Usage(cpu_limit=math.nan))),
    (convert.status_from_wire, pb.Status(addresses=["100.64.0.2", "javascript:"])),
    (convert.status_from_wire, pb.Status(addresses=["fe80::1%eth0"])),
    (convert.task_from_wire, pb.Task(kill_grace_s=math.inf)),
    (convert.task_from_wire, pb.Task(ports=[pb.Port(number=80, protocols=["sctp"])])),
    (read_network, pb.NetworkBlock(kind="moebius")),
    (read_network, pb.NetworkBlock(kind="overlay", subnets=["10.0.0.1/8"])),
    (networks.peer_from_wire, pb.Peer(blocks=["10.0.0.0/33"], underlay="10.0.0.1")),
    (networks.vip_from_wire, pb.Vip(address="10.0.0.1", protocol="tcp", backends=[pb.Backend(address="x")])),
]


@pytest.mark.parametrize(("read", "lie"), LIES)
def test_lies_are_refused(read: Callable[..., object], lie: Message) -> None:
    """With ValueError, on which the session ends; what got through would be on disk, where the next start trips."""
    with pytest.raises(ValueError):
        read(carried(lie))
