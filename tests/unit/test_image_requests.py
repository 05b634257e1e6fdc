"""Questions about nodes' images: from the API over a node's session, and back; and either side that goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agent.images.images import Images, Places
from agent.images.requests import REQUESTS_AT_ONCE, ImageRequests
from master import images as asked
from master.images import Unanswered
from master.rest.app import create_app
from master.rest.images import images_router
from tests.images import Entry, layer, make, write_layout
from tests.unit.cluster import until
from tests.unit.control import Agent, Dial, Master, cluster
from wire import control_pb2 as pb

pytestmark = pytest.mark.anyio

IMAGE: dict[str, Any] = {
    "reference": "docker.io/library/nginx:1.25",
    "digest": "sha256:1",
    "bytes": 7,
    "pulled_at": 1.0,
    "used_at": 2.0,
}


@asynccontextmanager
async def joined(dial: Dial, *names: str) -> AsyncIterator[list[Agent]]:
    if not names:
        yield []
        return
    async with dial(names[0]) as agent, joined(dial, *names[1:]) as others:
        await agent.join()
        yield [agent, *others]


async def request_of(agent: Agent) -> pb.ImageRequest:
    """The next one that comes."""
    while (message := await agent.read()) is not None:
        if message.HasField("image_request"):
            return message.image_request
    raise ConnectionError("the master ended the session")


async def answer(agent: Agent, request: pb.ImageRequest, **fields: Any) -> None:
    await agent.send(pb.AgentMessage(image_answer=pb.ImageAnswer(request=request.request, **fields)))


@asynccontextmanager
async def client(parts: Master) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_app(lambda token: True, [images_router(parts.nodes, parts.dispatcher.images)])
    transport, headers = httpx2.ASGITransport(app=app), {"Authorization": "Bearer any"}
    base = "http://master/api/v1/images"
    async with httpx2.AsyncClient(transport=transport, base_url=base, headers=headers) as made:
        yield made


async def test_images_of_all_nodes_are_listed_and_who_can_not_tell_says_why(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), joined(dial, "n1", "n2") as (one, two), client(parts) as api:
        listing = asyncio.create_task(api.get(""))
        await answer(one, await request_of(one), done=True, images=[pb.NodeImage(**IMAGE, tasks=["web.1"])])
        await answer(two, await request_of(two), done=True, error="its disk is gone")
        body = (await listing).json()
        assert body == {"images": [{"node": "n1", **IMAGE, "tasks": ["web.1"]}], "errors": {"n2": "its disk is gone"}}


async def test_a_pull_tells_how_far_each_node_is(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), joined(dial, "n1", "n2") as (one, two), client(parts) as api:
        pulling = asyncio.create_task(api.post("/pull", json={"reference": "nginx:1.25"}))
        requests = [await request_of(agent) for agent in (one, two)]
        assert {request.pull for request in requests} == {"nginx:1.25"}
        progress = pb.PullProgress(reference="nginx:1.25", layers=5, layers_done=2, bytes=80 << 20, bytes_done=34 << 20)
        await answer(one, requests[0], progress=progress)
        await until(lambda: said_of(parts, requests[0]))
        await answer(one, requests[0], done=True, images=[pb.NodeImage(**IMAGE)])
        await answer(two, requests[1], done=True, error="image nginx:1.25: not found")
        lines = [json.loads(line) for line in (await pulling).text.splitlines()]
    assert [line["error"] for line in lines if line["node"] == "n2"] == ["image nginx:1.25: not found"]
    first, last = (line for line in lines if line["node"] == "n1")
    assert first["progress"]["message"] == "pulls nginx:1.25: 2 of 5 layers, 34 of 80 MiB"
    assert last["done"]["image"]["digest"] == "sha256:1"


def said_of(parts: Master, request: pb.ImageRequest) -> bool:
    """What the node said of it has come, and was passed on."""
    wait = parts.dispatcher.images._waits[request.request]
    return wait.latest is not None and not wait.news.is_set()


@pytest.mark.parametrize("verb", ["remove", "prune"])
async def test_what_a_removal_frees_is_told(tmp_path: Path, verb: str) -> None:
    body = {"reference": "nginx"} if verb == "remove" else {}
    async with cluster(tmp_path) as (parts, dial), joined(dial, "n1") as (one,), client(parts) as api:
        removing = asyncio.create_task(api.post(f"/{verb}", json={**body, "nodes": ["n1"]}))
        request = await request_of(one)
        assert request.WhichOneof("what") == verb
        await answer(one, request, done=True, freed_bytes=42)
        assert json.loads((await removing).text) == {"node": "n1", "done": {"freed_bytes": 42}}


async def test_a_node_hears_that_nobody_waits_any_more(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), joined(dial, "n1") as (one,):
        async with aclosing(parts.dispatcher.images.follow("n1", pb.ImageRequest(pull="nginx"))) as answers:
            first = asyncio.ensure_future(anext(answers))
            request = await request_of(one)
            await answer(one, request)
            assert not (await first).done
        cancelled = await request_of(one)
        assert (cancelled.request, cancelled.cancel) == (request.request, True)


async def test_a_request_ends_with_the_nodes_session(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), dial("n1") as one:
        await one.join()
        asking = asyncio.create_task(parts.dispatcher.images.ask("n1", pb.ImageRequest(list=True)))
        await request_of(one)
        one.call.cancel()
        with pytest.raises(Unanswered, match="the connection to it broke"):
            await asking
        with pytest.raises(Unanswered, match="is not connected"):
            await parts.dispatcher.images.ask("n1", pb.ImageRequest(list=True))


async def test_a_silent_node_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "SILENCE_DEADLINE_S", 0.05)
    async with cluster(tmp_path) as (parts, dial), joined(dial, "n1"):
        with pytest.raises(Unanswered, match="has said nothing"):
            await parts.dispatcher.images.ask("n1", pb.ImageRequest(list=True))


async def test_a_node_answers_for_itself_alone(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), joined(dial, "n1", "n2") as (one, two):
        asking = asyncio.create_task(parts.dispatcher.images.ask("n1", pb.ImageRequest(prune=True)))
        request = await request_of(one)
        await answer(two, request, done=True, freed_bytes=666)
        await answer(one, request, done=True, freed_bytes=1)
        assert (await asking).freed_bytes == 1


@pytest.mark.parametrize(
    ("verb", "body", "status", "says"),
    [
        ("pull", {"reference": "nginx", "nodes": ["n9"]}, 404, "Node 'n9' does not exist"),
        ("pull", {"reference": "nginx"}, 409, "no node is connected"),
        ("pull", {"reference": ""}, 422, "/reference"),
        ("remove", {}, 422, "/reference"),
        ("prune", {"node": "n1"}, 422, "/node"),
    ],
)
async def test_bad_requests_name_the_field(
    tmp_path: Path, verb: str, body: dict[str, Any], status: int, says: str
) -> None:
    async with cluster(tmp_path) as (parts, _), client(parts) as api:
        refused = await api.post(f"/{verb}", json=body)
        assert refused.status_code == status and says in refused.text


class Node:
    """The agent's end, with a real store and what it said."""

    def __init__(self, directory: Path) -> None:
        self.images = Images(Places(directory / "images", directory / "containers", directory, (directory,)))
        self.names = 0
        self.answers: list[pb.ImageAnswer] = []
        self.requests = ImageRequests(self.images, self.answers.append)

    async def ask(self, **wanted: Any) -> pb.ImageAnswer:
        self.names += 1
        self.requests.take(pb.ImageRequest(request=f"r{self.names}", **wanted))
        await until(lambda: bool(self.answers) and self.answers[-1].done)
        return self.answers.pop()


@asynccontextmanager
async def a_node(directory: Path) -> AsyncIterator[Node]:
    made = Node(directory)
    await made.images.open()
    yield made
    await made.requests.close()
    await made.images.close()


async def test_a_node_pulls_lists_removes_and_prunes(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", {"1": make([layer([Entry("a", b"x" * 5000)])]), "2": make([layer([])])})
    names = [f"oci:{tmp_path}/layout:{tag}" for tag in ("1", "2")]
    async with a_node(tmp_path) as node:
        pulled = [(await node.ask(pull=name)).images[0] for name in names]
        assert [image.reference for image in pulled] == names
        assert {image.reference for image in (await node.ask(list=True)).images} == set(names)
        assert (await node.ask(remove=names[0])).freed_bytes >= 5000
        assert (await node.ask(remove=names[0])).error == f"image {names[0]}: is not on this node"
        assert not (await node.ask(prune=True)).error
        assert not (await node.ask(list=True)).images
        assert "no OCI layout" in (await node.ask(pull=f"oci:{tmp_path}/nothing:1")).error


async def test_a_node_takes_so_many_requests_at_once_and_none_for_ever(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        never: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def prune() -> int:
            return await asyncio.shield(never)

        node.images.prune = prune  # type: ignore[method-assign]
        for number in range(REQUESTS_AT_ONCE):
            node.requests.take(pb.ImageRequest(request=str(number), prune=True))
        assert "are being answered already" in (await node.ask(list=True)).error
        node.requests.take(pb.ImageRequest(request="0", cancel=True))
        await until(lambda: "0" not in node.requests._works)
        assert not (await node.ask(list=True)).error
