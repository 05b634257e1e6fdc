"""Nodes that come, stay away and come back."""

from __future__ import annotations

import pytest

from master.nodes import Nodes, NodeView
from master.store.base import StoreError
from master.store.sqlite import SqliteStore
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


async def test_one_that_is_removed_is_not_known_after_a_restart(store: SqliteStore) -> None:
    nodes = Nodes(store, unreachable_after_s=0.01, lost_after_s=0.02)
    for name in ("n1", "n2"):
        await nodes.connected(node(name))
    nodes.disconnected("n1")
    await nodes.remove("n1")
    assert [view.node.id for view in nodes.all()] == ["n2"]
    again = Nodes(store)
    await again.load()
    assert [view.node.id for view in again.all()] == ["n2"]
    for each in nodes, again:
        each.close()


async def test_a_node_drains_until_it_is_said_otherwise(store: SqliteStore) -> None:
    nodes = Nodes(store)
    await nodes.connected(node("n1"))
    heard: list[bool] = []
    nodes.listen(lambda view: heard.append(view.draining))
    for draining in (True, True, False, True):
        await nodes.drain("n1", draining)
    await nodes.connected(node("n1", cpus=1))
    assert heard == [True, False, True, True]
    nodes.close()
    again = Nodes(store)
    await again.load()
    assert [view.draining for view in again.all()] == [True]
    await again.remove("n1")
    await again.connected(node("n1"))
    assert [view.draining for view in again.all()] == [False]
    again.close()
