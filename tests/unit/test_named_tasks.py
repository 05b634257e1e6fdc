"""Which tasks have names: at any time what a recomputation from all tasks and nodes gives."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings

from master.discovery import serving
from master.names import Names
from model.names import NamedTask
from model.network import Address
from model.node import NodeState
from model.task import Port, TaskState
from tests.unit.cluster import next_change, node
from tests.unit.control import Master, master, task
from tests.unit.test_discovery import perform, steps
from wire.networks import named_task_from_wire

pytestmark = pytest.mark.anyio
NODE: Address = node("n1").address


def recomputed(parts: Master) -> dict[str, NamedTask]:
    online = {view.node.id for view in parts.nodes.all() if view.state is NodeState.ONLINE}
    every = {record.spec.id: record for record in parts.tasks.all() if serving(record)}  # all are of one app
    near = {name: record for name, record in every.items() if record.node in online}
    return {
        name: NamedTask(
            name, "services", "/web", tuple(map(ip_address, record.status.addresses)), (NODE,), (Port(8080),)
        )
        for name, record in (near or every).items()
    }


def on_the_wire(parts: Master) -> dict[str, NamedTask]:
    feed = parts.desired.open("observer")
    change = next_change(parts.desired, feed)
    parts.desired.close(feed)
    assert change is not None
    items = [item for item in change.put if item.HasField("name")]
    found = {item.name.id: named_task_from_wire(item.name) for item in items}
    assert {item.key for item in items} == {f"name/{name}" for name in found}
    return found


async def check(history: list[tuple[object, ...]], directory: Path) -> None:
    lives: list[list[tuple[object, ...]]] = [[]]
    for step in history:
        if step == ("restart",):
            lives.append([])
        else:
            lives[-1].append(step)
    for life in lives:
        async with master(directory) as parts:
            Names(parts.tasks, parts.nodes, parts.desired).load()
            for name in ("n1", "n2"):
                await parts.nodes.connected(node(name))
            for step in life:
                await perform(parts, step)
                assert on_the_wire(parts) == recomputed(parts)


@given(steps)
@settings(max_examples=60)
def test_names_are_what_a_recomputation_gives(history: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(check(history, Path(directory)))


async def test_a_task_of_the_nodes_network_has_its_nodes_address_alone(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        Names(parts.tasks, parts.nodes, parts.desired).load()
        await parts.nodes.connected(node("n1"))
        await parts.tasks.add("n1", [replace(task("a", vip="/web:80"), network="host")])
        await parts.saw("a", TaskState.RUNNING)
        (named,) = on_the_wire(parts).values()
        assert (named.addresses, named.node) == ((), (NODE,))
        assert named.ports == (Port(8080),)  # its labels are nobody's business


async def test_of_two_apps_each_is_judged_by_itself(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        Names(parts.tasks, parts.nodes, parts.desired).load()
        for name in ("n1", "n2"):
            await parts.nodes.connected(node(name))
        await parts.tasks.add("n1", [task("a", vip="/web:80")])
        await parts.tasks.add("n2", [replace(task("b", vip="/db:80"), owner="/db")])
        for name in ("a", "b"):
            await parts.saw(name, TaskState.RUNNING, addresses=("100.64.0.2",))
        parts.nodes._away("n2", NodeState.UNREACHABLE, 0.0)
        assert on_the_wire(parts).keys() == {"a", "b"}  # of /db there is no other
