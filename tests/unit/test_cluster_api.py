"""Our own part of the API, over the real server: nodes, tasks and their output, VIPs, join tokens."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agent.logs import LogFeed
from agent.streams import Streams
from master.auth import token as admin_token
from master.rest.app import create_app
from master.rest.cluster import cluster_router
from master.rest.server import serving
from master.rest.vips import vips_router
from master.tokens import Tokens
from model.task import TaskState, Usage
from pki.credentials import server_context
from pki.identity import Role
from pki.token import TokenRefused, parse_token
from tests.unit.cluster import node, until
from tests.unit.control import Agent, Dial, Master, certificates, cluster, task

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]
TOKEN, KEPT = admin_token.mint()
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True, slots=True)
class Api:
    parts: Master
    dial: Dial
    tokens: Tokens
    client: httpx2.AsyncClient

    async def get(self, path: str, **params: Any) -> Any:
        answer = await self.client.get(f"/api/v1{path}", params=params)
        return answer.json() if answer.status_code == 200 else (answer.status_code, answer.json()["message"])


@asynccontextmanager
async def api(directory: Path) -> AsyncIterator[Api]:
    issued = certificates(directory / "web")
    issued.issue(Role.MASTER, "m1")
    async with cluster(directory) as (parts, dial):
        tokens = Tokens(parts.store, issued.authority.fingerprint)
        router = cluster_router(parts.tasks, parts.nodes, parts.allocator, parts.logs, tokens)
        vips = vips_router(parts.discovery, parts.nodes, parts.desired, "tepui.internal")
        app = create_app(lambda token: admin_token.matches(token, KEPT), [router, vips])
        context = server_context(directory / "web" / "m1", ssl.TLSVersion.TLSv1_3)
        async with serving(app, "127.0.0.1", 0, context) as port:
            trust = ssl.create_default_context(cafile=str(directory / "web" / "m1" / "ca.pem"))
            base = f"https://localhost:{port}"
            async with httpx2.AsyncClient(base_url=base, verify=trust, headers=HEADERS, trust_env=False) as client:
                yield Api(parts, dial, tokens, client)


async def test_nodes_tasks_and_vips_as_json(tmp_path: Path) -> None:
    async with api(tmp_path) as cluster:
        await cluster.parts.nodes.connected(node("n1"))
        await cluster.parts.run("a.1", "n1", vip="/web:80")
        usage = Usage(cpu_limit=0.1, mem_limit_bytes=32 << 20, pids_limit=64)
        await cluster.parts.saw("a.1", TaskState.RUNNING, addresses=("100.64.0.2",), usage=usage)
        (seen,) = (await cluster.get("/nodes"))["nodes"]
        assert (seen["id"], seen["state"], seen["connected"], seen["tasks"]) == ("n1", "online", True, 1)
        assert seen["resources"] == {"cpus": 4.0, "mem": 4096, "disk": 10000, "gpus": 0}
        assert seen["used"] == {"cpus": 0.1, "mem": 32, "disk": 0, "gpus": 0}
        (listed,) = (await cluster.get("/tasks"))["tasks"]
        assert listed == (await cluster.get("/tasks/a.1"))["task"]
        assert (listed["state"], listed["addresses"]) == ("RUNNING", ["100.64.0.2"])
        assert listed["limits"] == {"cpus": 0.1, "mem_bytes": 32 << 20, "disk_bytes": None, "pids": 64}
        await until(lambda: bool(cluster.parts.discovery.table()))
        (vip,) = (await cluster.get("/vips"))["vips"]
        assert (vip["name"], vip["port"], [backend["task_id"] for backend in vip["backends"]]) == (
            "services/web",
            80,
            ["a.1"],
        )


async def test_which_nodes_have_a_vip_as_it_should_be(tmp_path: Path) -> None:
    async with api(tmp_path) as cluster:
        parts = cluster.parts
        feeds = {}
        for name in ("n1", "n2"):
            await parts.nodes.connected(node(name))
            feeds[name] = parts.desired.open(name)

        def take(name: str, applied: bool = True) -> None:
            while parts.desired.next_change(feeds[name]) is not None:
                pass
            if applied:
                feeds[name].acknowledge(feeds[name].revision)

        async def states() -> list[str]:
            (vip,) = (await cluster.get("/vips/web"))["vips"]
            (listed,) = (await cluster.get("/vips"))["vips"]
            assert listed["behind"] == [each["node"] for each in vip["nodes"] if each["state"]]
            return [each["state"] for each in vip["nodes"]]

        take("n1")
        take("n2")
        await parts.run("a.1", "n1", vip="/web:80")
        await parts.saw("a.1", TaskState.RUNNING, addresses=("100.64.0.2",))
        await until(lambda: any(vip.backends for vip in parts.discovery.table()))
        assert await states() == ["behind by 0.0 s"] * 2
        take("n1")
        take("n2", applied=False)
        assert await states() == ["", "behind by 0.0 s"]
        take("n2")
        assert await states() == ["", ""]
        parts.nodes.report("n2", ("apply VIP table: nftables: no", "configure overlay: no"))
        assert await states() == ["", "has what it had: apply VIP table: nftables: no"]
        parts.nodes.disconnected("n1")
        assert (await states())[0] == "has what it had: it is not connected"
        address = str(parts.discovery.table()[0].address)
        for name in ("services/web", "web:80", address, f"{address}:80", f"{address}:80/tcp"):
            assert (await cluster.get(f"/vips/{name}"))["vips"][0]["name"] == "services/web"
        assert await cluster.get("/vips/other") == (404, "No task asks for a VIP 'other'")


async def test_tasks_are_found_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    async with api(tmp_path) as cluster:
        await cluster.parts.tasks.add("n1", [task("web.1"), task("web.12"), task("db.7")])
        assert (await cluster.get("/tasks/db"))["task"]["id"] == "db.7"
        assert (await cluster.get("/tasks/web.1"))["task"]["id"] == "web.1"
        for missing in ("web", "nothing"):
            assert (await cluster.get(f"/tasks/{missing}"))[0] == 404


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"stream": "stdin"}, "/stream"),
        ({"tail": 2**63}, "/tail"),
        ({"tail": -2}, "/tail"),
        ({"follow": "maybe"}, "/follow"),
    ],
)
async def test_bad_questions_about_output_name_the_field(tmp_path: Path, params: dict[str, Any], field: str) -> None:
    async with api(tmp_path) as cluster:
        await cluster.parts.tasks.add("n1", [task("a")])
        answer = await cluster.client.get("/api/v1/tasks/a/log", params=params)
        assert answer.status_code == 422 and answer.json()["details"][0]["path"] == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"ttl_s": 0}', "/ttl_s"),
        ('{"ttl_s": 1e999}', "/ttl_s"),
        ('{"uses": 0}', "/uses"),
        ('{"forever": true}', "/forever"),
    ],
)
async def test_bad_wishes_for_tokens_name_the_field(tmp_path: Path, body: str, field: str) -> None:
    async with api(tmp_path) as cluster:
        answer = await cluster.client.post("/api/v1/tokens", content=body)
        assert answer.status_code == 422 and answer.json()["details"][0]["path"] == field


async def test_a_token_is_good_for_as_many_uses_as_it_has(tmp_path: Path) -> None:
    async with api(tmp_path) as cluster:
        answer = await cluster.client.post("/api/v1/tokens", json={"uses": 3})
        token = parse_token(answer.json()["token"])
        outcomes = await asyncio.gather(*(cluster.tokens.redeem(token) for _ in range(8)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(type(None)) == 3
        assert all(outcome is None or isinstance(outcome, TokenRefused) for outcome in outcomes)


@asynccontextmanager
async def answering(agent: Agent, streams: Streams) -> AsyncIterator[None]:
    work = asyncio.create_task(agent.serve(streams))
    try:
        yield
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await streams.close()


async def test_output_over_http_and_a_follower_that_hangs_up(tmp_path: Path) -> None:
    over: set[str] = set()
    streams = Streams({"log": LogFeed(lambda task_id, stream: tmp_path / stream, over.__contains__).serve})
    (tmp_path / "stdout").write_text("hello\n")
    async with api(tmp_path) as cluster, cluster.dial("n1") as agent:
        await agent.join()
        await cluster.parts.tasks.add("n1", [task("a")])
        async with answering(agent, streams):
            assert (await cluster.client.get("/api/v1/tasks/a/log")).text == "hello\n"
            assert (await cluster.get("/tasks/a/log", stream="stderr"))[0] == 502
            for _ in range(3):
                async with cluster.client.stream("GET", "/api/v1/tasks/a/log", params={"follow": True}) as stream:
                    async for text in stream.aiter_text():
                        assert text == "hello\n"
                        break
            await until(lambda: not streams._open and not cluster.parts.dispatcher.streams._open)


async def test_output_of_a_node_that_is_away(tmp_path: Path) -> None:
    async with api(tmp_path) as cluster:
        await cluster.parts.tasks.add("n1", [task("a")])
        assert await cluster.get("/tasks/a/log") == (502, "log of a: its node is not connected")
