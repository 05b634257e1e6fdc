"""Questions about nodes' images: from the API over streams to the nodes, and back; and either side that goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from agent.images import feed
from agent.images.feed import ImageFeed
from agent.images.images import Images, Places
from agent.streams import Refused, Serve, Stream, Streams
from master.rest.app import create_app
from master.rest.images import images_router
from model.image import PullProgress
from tests.images import Entry, layer, make, write_layout
from tests.unit.cluster import until
from tests.unit.control import Dial, Master, cluster
from wire import control_pb2 as pb

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]

IMAGE: dict[str, Any] = {
    "reference": "docker.io/library/nginx:1.25",
    "digest": "sha256:1",
    "bytes": 7,
    "pulled_at": 1.0,
    "used_at": 2.0,
}


@asynccontextmanager
async def joined(dial: Dial, **serves: Serve) -> AsyncIterator[dict[str, Streams]]:
    """An agent for each name, which serves what is asked of its images."""
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(serving(dial, name, serve)) for name, serve in serves.items()}


@asynccontextmanager
async def serving(dial: Dial, name: str, serve: Serve) -> AsyncIterator[Streams]:
    streams = Streams({"images": serve})
    async with dial(name) as agent:
        await agent.join()
        work = asyncio.create_task(agent.serve(streams))
        try:
            yield streams
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await streams.close()


def answering(*news: pb.ImageNews) -> Serve:
    async def serve(asked: pb.Open, stream: Stream) -> None:
        await stream.opened()
        for each in news:
            await stream.write(pb.Frame(images=each))

    return serve


def refusing(reason: str) -> Serve:
    async def serve(asked: pb.Open, stream: Stream) -> None:
        raise Refused(reason)

    return serve


@asynccontextmanager
async def client(parts: Master) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_app(lambda token: True, [images_router(parts.nodes, parts.dispatcher.streams)])
    transport, headers = httpx2.ASGITransport(app=app), {"Authorization": "Bearer any"}
    base = "http://master/api/v1/images"
    async with httpx2.AsyncClient(transport=transport, base_url=base, headers=headers) as made:
        yield made


async def test_images_of_all_nodes_are_listed_and_who_can_not_tell_says_why(tmp_path: Path) -> None:
    one, two = answering(pb.ImageNews(images=[pb.NodeImage(**IMAGE, tasks=["web.1"])])), refusing("its disk is gone")
    async with cluster(tmp_path) as (parts, dial), joined(dial, n1=one, n2=two), client(parts) as api:
        body = (await api.get("")).json()
    assert body == {"images": [{"node": "n1", **IMAGE, "tasks": ["web.1"]}], "errors": {"n2": "its disk is gone"}}


async def test_a_pull_tells_how_far_each_node_is(tmp_path: Path) -> None:
    progress = pb.PullProgress(reference="nginx:1.25", layers=5, layers_done=2, bytes=80 << 20, bytes_done=34 << 20)
    one = answering(pb.ImageNews(progress=progress), pb.ImageNews(images=[pb.NodeImage(**IMAGE)]))
    two = refusing("image nginx:1.25: not found")
    async with cluster(tmp_path) as (parts, dial), joined(dial, n1=one, n2=two), client(parts) as api:
        pulled = await api.post("/pull", json={"reference": "nginx:1.25"})
    lines = [json.loads(line) for line in pulled.text.splitlines()]
    assert [line["error"] for line in lines if line["node"] == "n2"] == ["image nginx:1.25: not found"]
    first, last = (line for line in lines if line["node"] == "n1")
    assert first["progress"]["message"] == "pulls nginx:1.25: 2 of 5 layers, 34 of 80 MiB"
    assert last["done"]["image"]["digest"] == "sha256:1"


@pytest.mark.parametrize("verb", ["remove", "prune"])
async def test_what_a_removal_frees_is_told(tmp_path: Path, verb: str) -> None:
    body = {"reference": "nginx"} if verb == "remove" else {}
    one, two = answering(pb.ImageNews(freed_bytes=42)), refusing("was not asked")
    async with cluster(tmp_path) as (parts, dial), joined(dial, n1=one, n2=two), client(parts) as api:
        removed = await api.post(f"/{verb}", json={**body, "nodes": ["n1"]})
    assert json.loads(removed.text) == {"node": "n1", "done": {"freed_bytes": 42}}


async def test_a_node_hears_that_nobody_waits_any_more(tmp_path: Path) -> None:
    async def pulls_for_ever(asked: pb.Open, stream: Stream) -> None:
        await stream.opened()
        await asyncio.Event().wait()

    async with cluster(tmp_path) as (parts, dial), joined(dial, n1=pulls_for_ever) as agents, client(parts) as api:
        pulling = asyncio.create_task(api.post("/pull", json={"reference": "nginx"}))
        await until(lambda: bool(agents["n1"]._open))
        pulling.cancel()
        await until(lambda: not agents["n1"]._open and not parts.dispatcher.streams._open)


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


class Said:
    """A stream's other end: what it was told, without the words that begin and end a stream."""

    def __init__(self) -> None:
        self.news: list[pb.ImageNews] = []

    async def opened(self) -> None:
        pass

    async def write(self, frame: pb.Frame) -> None:
        self.news.append(frame.images)


class Node:
    """The agent's end, with a real store."""

    def __init__(self, directory: Path) -> None:
        self.images = Images(Places(directory / "images", directory / "containers", directory, (directory,)))
        self.feed = ImageFeed(self.images)

    async def ask(self, **wanted: Any) -> pb.ImageNews:
        """The last word. Raises Refused."""
        said = Said()
        await self.feed.serve(pb.Open(images=pb.OpenImages(**wanted)), cast(Stream, said))
        return said.news[-1]


@asynccontextmanager
async def a_node(directory: Path) -> AsyncIterator[Node]:
    made = Node(directory)
    await made.images.open()
    yield made
    await made.images.close()


async def test_a_node_pulls_lists_removes_and_prunes(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", {"1": make([layer([Entry("a", b"x" * 5000)])]), "2": make([layer([])])})
    names = [f"oci:{tmp_path}/layout:{tag}" for tag in ("1", "2")]
    async with a_node(tmp_path) as node:
        pulled = [(await node.ask(pull=name)).images[0] for name in names]
        assert [image.reference for image in pulled] == names
        assert {image.reference for image in (await node.ask(list=pb.Empty())).images} == set(names)
        assert (await node.ask(remove=names[0])).freed_bytes >= 5000
        with pytest.raises(Refused, match=f"image {names[0]}: is not on this node"):
            await node.ask(remove=names[0])
        await node.ask(prune=pb.Empty())
        assert not (await node.ask(list=pb.Empty())).images
        with pytest.raises(Refused, match="no OCI layout"):
            await node.ask(pull=f"oci:{tmp_path}/nothing:1")


async def test_a_pull_says_every_moment_how_far_it_is_and_ends_with_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "TELL_S", 0.01)
    never, given_up = asyncio.Event(), asyncio.Event()

    async def pull(reference: str, tell: Callable[[PullProgress], None]) -> None:
        tell(PullProgress(reference, 5, 2))
        try:
            await never.wait()
        finally:
            given_up.set()

    async with a_node(tmp_path) as node:
        node.images.pull = pull  # type: ignore[assignment]
        said = Said()
        asked = pb.Open(images=pb.OpenImages(pull="nginx"))
        serving = asyncio.create_task(node.feed.serve(asked, cast(Stream, said)))
        await until(lambda: len(said.news) > 1)
        assert said.news[-1].progress.layers_done == 2
        serving.cancel()
        await asyncio.wait({serving})
        assert given_up.is_set()
