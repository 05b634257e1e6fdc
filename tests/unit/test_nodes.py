"""Nodes that come, stay away and come back; and the blocks of addresses that they own for good."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from master.networks import NETWORK_CODEC, NETWORKS, NetworkFull, Networks
from master.nodes import Nodes, NodeView
from master.store.base import Put, StoreError
from master.store.sqlite import SqliteStore
from model.network import Network, NetworkKind, vtep_mac
from model.node import NodeState
from tests.unit.cluster import node, until

pytestmark = pytest.mark.anyio


def state_of(nodes: Nodes, name: str) -> NodeState:
    view = nodes.get(name)
    assert view is not None
    return view.state


async def test_silence_is_first_unreachable_then_lost(store: SqliteStore) -> None:
    nodes = Nodes(store, unreachable_after_s=0.02, lost_after_s=0.06)
    heard: list[NodeView] = []
    nodes.listen(heard.append)
    await nodes.connected(node("n1"))
    nodes.disconnected("n1")
    await until(lambda: state_of(nodes, "n1") is NodeState.LOST)
    assert [(view.state, view.connected) for view in heard] == [
        (NodeState.ONLINE, True),
        (NodeState.ONLINE, False),
        (NodeState.UNREACHABLE, False),
        (NodeState.LOST, False),
    ]
    await nodes.connected(node("n1"))
    assert heard[-1] == NodeView(node("n1"), NodeState.ONLINE, connected=True)
    nodes.close()


async def test_who_comes_back_in_time_is_not_given_up(store: SqliteStore) -> None:
    nodes = Nodes(store, unreachable_after_s=0.01, lost_after_s=0.05)
    heard: list[NodeState] = []
    for name in ("n1", "n2"):
        await nodes.connected(node(name))
        nodes.disconnected(name)
    nodes.listen(lambda view: heard.append(view.state) if view.node.id == "n1" else None)
    await nodes.connected(node("n1"))
    await until(lambda: state_of(nodes, "n2") is NodeState.LOST)  # their time ran at the same pace
    assert heard == [NodeState.ONLINE]
    nodes.close()


async def test_known_nodes_get_the_same_time_after_a_restart(store: SqliteStore) -> None:
    await Nodes(store).connected(node("n1"))
    nodes = Nodes(store, unreachable_after_s=0.01, lost_after_s=0.03)
    await nodes.load()
    assert nodes.all() == [NodeView(node("n1"), NodeState.ONLINE)]
    await until(lambda: state_of(nodes, "n1") is NodeState.LOST)
    nodes.close()


async def test_a_node_that_is_not_on_disk_is_not_connected(store: SqliteStore) -> None:
    nodes = Nodes(store)
    await store.close()
    with pytest.raises(StoreError):
        await nodes.connected(node("n1"))
    assert nodes.all() == []


async def test_errors_are_told_when_they_change(store: SqliteStore) -> None:
    nodes = Nodes(store)
    await nodes.connected(node("n1"))
    heard: list[tuple[str, ...]] = []
    nodes.listen(lambda view: heard.append(view.errors))
    for errors in [(), ("no bridge",), ("no bridge",), ()]:
        nodes.report("n1", errors)
    assert heard == [("no bridge",), ()]


async def test_a_node_keeps_its_blocks(store: SqliteStore) -> None:
    networks = Networks(store)
    await networks.load()
    for name in ("n1", "n2"):
        await networks.admit(node(name))
    again = Networks(store)
    await again.load()
    for name, subnet in [("n2", "100.64.1.0/24"), ("n1", "100.64.0.0/24"), ("n3", "100.64.2.0/24")]:
        admitted = {share.network.name: share.blocks for share in await again.admit(node(name))}
        assert [block.subnet for block in admitted["overlay"]] == [ip_network(subnet)]
        assert admitted["host"] == admitted["none"] == ()
    (vtep,) = again.vteps(node("n2"))
    assert (vtep.underlay, vtep.mac) == (ip_address("10.0.0.1"), vtep_mac("n2", 1024))


async def test_nodes_that_arrive_together_get_different_blocks(store: SqliteStore) -> None:
    networks = Networks(store)
    await networks.load()
    await asyncio.gather(*(networks.admit(node(f"n{number}")) for number in range(20)))
    blocks = {networks.block("overlay", f"n{number}") for number in range(20)}
    assert len({block.subnet for block in blocks if block}) == 20


async def test_a_node_that_leaves_while_its_block_is_written_keeps_it(store: SqliteStore) -> None:
    networks = Networks(store)
    await networks.load()
    arrival = asyncio.create_task(networks.admit(node("n1")))
    await asyncio.sleep(0)
    arrival.cancel()
    await asyncio.gather(arrival, return_exceptions=True)
    await networks.admit(node("n2"))
    await networks.admit(node("n1"))
    again = Networks(store)
    await again.load()
    for name in ("n1", "n2"):
        assert again.block("overlay", name) == networks.block("overlay", name)
    assert networks.block("overlay", "n1") != networks.block("overlay", "n2")


async def test_a_network_without_a_block_left_says_so(store: SqliteStore) -> None:
    small = Network("overlay", NetworkKind.OVERLAY, (ip_network("10.9.0.0/23"),), 24, vni=1024)
    await store.transaction(Put(NETWORKS + "overlay", NETWORK_CODEC.encode(small)))
    networks = Networks(store)
    await networks.load()
    await networks.admit(node("n1"))
    await networks.admit(node("n2"))
    with pytest.raises(NetworkFull, match="network overlay: all its /24 blocks are taken, none for n3"):
        await networks.admit(node("n3"))
    await networks.admit(node("n1"))


async def test_a_block_that_could_not_be_written_is_not_owned(store: SqliteStore) -> None:
    networks = Networks(store)
    await networks.load()
    await store.close()
    with pytest.raises(StoreError):
        await networks.admit(node("n1"))
    assert networks.block("overlay", "n1") is None
