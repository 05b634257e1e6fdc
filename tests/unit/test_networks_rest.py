"""Networks over REST: made on every node or nowhere, shown with what is in them, removed when nothing uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx2
import pytest

from master.rest.app import create_app
from master.rest.networks import NetworkParts, networks_router
from master.rest.nodes import nodes_router
from model.task import TaskState
from model.volume import PersistentVolume
from tests.unit.cluster import node, until
from tests.unit.control import Agent, Dial, Master, cluster, master, task

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]


@dataclass(frozen=True, slots=True)
class Api:
    parts: Master
    dial: Dial
    client: httpx2.AsyncClient
    uses: list[str]

    async def create(self, **network: Any) -> Any:
        return self._said(await self.client.post("/api/v1/networks", json=network))

    async def show(self, name: str) -> Any:
        return self._said(await self.client.get(f"/api/v1/networks/{name}"))

    async def remove(self, name: str) -> Any:
        return self._said(await self.client.delete(f"/api/v1/networks/{name}"))

    def _said(self, answer: httpx2.Response) -> Any:
        body = answer.json()
        return body["network"] if answer.is_success else (answer.status_code, body["message"])


@asynccontextmanager
async def api(directory: Path) -> AsyncIterator[Api]:
    async with cluster(directory) as (parts, dial):
        uses: list[str] = []
        pool = ip_network("100.127.0.0/16")
        asked = NetworkParts(
            parts.networks,
            parts.blocks,
            parts.addresses,
            parts.tasks,
            parts.nodes,
            parts.dispatcher,
            (pool,),
            lambda name: uses,
        )
        routers = [networks_router(asked), nodes_router(parts.nodes, parts.dispatcher)]
        transport = httpx2.ASGITransport(create_app(lambda token: True, routers))
        headers = {"Authorization": "Bearer x"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://m", headers=headers) as client:
            yield Api(parts, dial, client, uses)


@asynccontextmanager
async def applying(agent: Agent, errors: tuple[str, ...] = ()) -> AsyncIterator[None]:
    """The node applies what it is told, or says that it can not."""

    async def apply() -> None:
        while (message := await agent.read()) is not None:
            if message.HasField("change"):
                made = any(item.HasField("network") for item in message.change.put)
                await agent.applied(0 if made and errors else None, errors if made else ())

    await agent.join()
    work = asyncio.create_task(apply())
    try:
        yield
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def test_one_is_made_on_every_node_and_everything_is_chosen(tmp_path: Path) -> None:
    async with (
        api(tmp_path) as asked,
        asked.dial("n1") as one,
        asked.dial("n2") as two,
        applying(one),
        applying(two),
    ):
        made = await asked.create(name="prod")
        assert {key: made[key] for key in ("name", "kind", "subnets", "static", "block_prefix", "vni")} == {
            "name": "prod",
            "kind": "overlay",
            "subnets": ["100.112.0.0/16"],
            "static": ["100.112.240.0/20"],
            "block_prefix": 24,
            "vni": 1025,
        }
        assert [(each["node"], each["blocks"]) for each in made["nodes"]] == [
            ("n1", ["100.112.0.0/24"]),
            ("n2", ["100.112.1.0/24"]),
        ]
        assert one.items["network/prod"].network.blocks == ["100.112.0.0/24"]
        assert one.items["peer/prod/n2"].peer.blocks == ["100.112.1.0/24"]
        assert (made["used"], made["free"]) == (0, 240 * 253)
        removed = await asked.remove("prod")
        assert removed["name"] == "prod"
        await until(lambda: "network/prod" not in one.items and "peer/prod/n2" not in one.items)
        assert await asked.show("prod") == (
            404,
            "Network 'prod' does not exist; there are: bridge, host, none, overlay",
        )
        again = await asked.create(name="other", subnets=["10.7.0.0/24", "fd07::/64"], internal=True, mtu=1300)
        assert (again["block_prefix"], again["block_prefix6"], again["static"]) == (28, 80, ["10.7.0.240/28"])


async def test_what_a_node_can_not_have_is_made_nowhere(tmp_path: Path) -> None:
    async with api(tmp_path) as asked, asked.dial("n1") as one, asked.dial("n2") as two:
        problem = 'network "prod": subnets: 10.7.0.0/16 overlaps what this node has a route to: 10.7.3.0/24 by eth1'
        async with applying(one), applying(two, (problem,)):
            status, message = await asked.create(name="prod", subnets=["10.7.0.0/16"])
            assert status == 409 and message.endswith(f"node n2: {problem}")
            await until(lambda: "network/prod" not in one.items)
            assert asked.parts.blocks.of("prod") == [] and asked.parts.networks.get("prod") is None


@pytest.mark.parametrize(
    ("wanted", "status", "says"),
    [
        ({"name": "overlay"}, 409, "Network 'overlay': name: there is a network \"overlay\" already"),
        ({"name": "x", "vni": 1024}, 409, "Network 'x': vni: 1024 is that of network \"overlay\""),
        ({"name": "x", "subnets": ["100.64.0.0/16"]}, 409, "overlaps 100.64.0.0/11 of network"),
        ({"name": "x", "subnets": ["10.0.0.0/30"], "block_prefix": 24}, 422, "10.0.0.0/30 is too small"),
        ({"name": "x", "subnets": ["10.0.0.1/8"]}, 422, "Object is not valid"),
        ({"name": "X"}, 422, "Network 'X': name: lower-case"),
        ({"name": "x", "kind": "host"}, 422, "Object is not valid"),
        ({"name": "x", "colour": "red"}, 422, "Object is not valid"),
        ({"name": "x", "kind": "cni"}, 422, "cni: is no JSON"),
        ({}, 422, "Object is not valid"),
    ],
)
async def test_bad_ones_change_nothing(tmp_path: Path, wanted: dict[str, Any], status: int, says: str) -> None:
    async with api(tmp_path) as asked:
        before = asked.parts.networks.all()
        got, message = await asked.create(**wanted)
        assert got == status and says in message
        assert asked.parts.networks.all() == before


async def test_one_in_use_is_not_removed(tmp_path: Path) -> None:
    async with api(tmp_path) as asked, asked.dial("n1") as agent, applying(agent):
        await asked.create(name="prod")
        spec = replace(task("web.1"), network="prod")
        await asked.parts.blocks.ensure("n1", [spec])
        await asked.parts.tasks.add("n1", [spec])
        assert await asked.remove("prod") == (409, "Network 'prod' is in use by task web.1")
        assert (await asked.show("prod"))["used"] == 1
        await asked.parts.tasks.end("web.1", TaskState.FAILED, "")
        asked.uses.extend(f"policy {name}" for name in "abcd")
        assert await asked.remove("prod") == (
            409,
            "Network 'prod' is in use by policy a, policy b, policy c and 1 more",
        )
        asked.uses.clear()
        assert (await asked.remove("prod"))["name"] == "prod"
        assert await asked.remove("host") == (409, "Network 'host' is part of every cluster")


async def test_a_default_network_that_was_removed_stays_so(tmp_path: Path) -> None:
    async with api(tmp_path) as asked:
        await asked.remove("overlay")
        mine = await asked.create(name="overlay", subnets=["10.128.0.0/9"], vni=9)
        assert mine["subnets"] == ["10.128.0.0/9"]
        await asked.remove("bridge")
    async with master(tmp_path) as again:
        assert [(network.name, network.vni) for network in again.networks.all()] == [
            ("host", None),
            ("none", None),
            ("overlay", 9),
        ]


async def test_a_node_that_will_not_come_back_leaves_nothing(tmp_path: Path) -> None:
    async with api(tmp_path) as asked, asked.dial("n1") as one:
        async with asked.dial("n2") as two, applying(two):
            refused = await asked.client.delete("/api/v1/nodes/n2")
            assert (refused.status_code, refused.json()["message"]) == (
                409,
                "Node 'n2' is connected: stop its agent first",
            )
        async with applying(one):
            await until(lambda: not any(view.connected for view in asked.parts.nodes.all() if view.node.id == "n2"))
            kept = PersistentVolume("v", "services", "/db", "db", "data", 5)
            with asked.parts.volumes.claimed("n2", "services", [], [kept]) as puts:
                await asked.parts.tasks.add("n2", [task("web.1")], puts)
            removed = await asked.client.delete("/api/v1/nodes/n2")
            assert removed.json() == {"node": "n2", "tasks": 1, "volumes": 1, "blocks": 4}
            assert asked.parts.record("web.1").status.state is TaskState.GONE
            assert asked.parts.volumes.all() == [] and asked.parts.nodes.get("n2") is None
            await until(lambda: "peer/overlay/n2" not in one.items)
            assert (await asked.client.delete("/api/v1/nodes/n2")).status_code == 404
            assert node("n2").id not in {each["node"] for each in (await asked.show("overlay"))["nodes"]}
