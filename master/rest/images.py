"""The images of nodes: `GET /api/v1/images`, and `POST .../pull`, `.../remove` and `.../prune`.

What takes a while answers with a line of JSON for each thing that happens: `{"node": ..., "progress": {...}}`, and once
for each node `{"node": ..., "done": {...}}` or `{"node": ..., "error": ...}`. Whoever stops reading ends what is under
way. Without `nodes` all are meant that are connected.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from master.nodes import Nodes
from master.rest.errors import ApiError
from master.streams import StreamError, Streams
from wire import control_pb2 as pb
from wire.convert import node_image_from_wire, pull_progress_from_wire

LINES = "application/x-ndjson"
EVENTS_WAITING_MOST = 64

NodeNames = Annotated[list[str], Field(max_length=10_000)]


class Where(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    nodes: NodeNames = []


class Which(Where):
    reference: Annotated[str, Field(min_length=1, max_length=1024)]


def images_router(nodes: Nodes, streams: Streams) -> APIRouter:
    router = APIRouter(prefix="/api/v1/images", tags=["images"])

    def streamed(wanted: pb.OpenImages, where: Where) -> StreamingResponse:
        return StreamingResponse(_lines(streams, _named(nodes, where.nodes), wanted), media_type=LINES)

    @router.get("")
    async def list_images(node: Annotated[list[str] | None, Query()] = None) -> dict[str, Any]:
        names = _named(nodes, node or ())
        answers = await asyncio.gather(*(_listed(streams, name) for name in names))
        found = [image for answer in answers if not isinstance(answer, str) for image in answer]
        errors = {name: answer for name, answer in zip(names, answers, strict=True) if isinstance(answer, str)}
        return {"images": found, "errors": errors}

    @router.post("/pull")
    async def pull_image(which: Which) -> StreamingResponse:
        return streamed(pb.OpenImages(pull=which.reference), which)

    @router.post("/remove")
    async def remove_image(which: Which) -> StreamingResponse:
        return streamed(pb.OpenImages(remove=which.reference), which)

    @router.post("/prune")
    async def prune_images(where: Where) -> StreamingResponse:
        return streamed(pb.OpenImages(prune=pb.Empty()), where)

    return router


def _named(nodes: Nodes, names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if nodes.get(name) is None]
    if unknown:
        raise ApiError(404, f"Node '{unknown[0]}' does not exist")
    found = sorted(set(names)) or sorted(view.node.id for view in nodes.all() if view.connected)
    if not found:
        raise ApiError(409, "no node is connected")
    return found


async def _listed(streams: Streams, node: str) -> list[dict[str, Any]] | str:
    """Or why not."""
    found: list[dict[str, Any]] = []
    try:
        async with aclosing(_heard(streams, node, pb.OpenImages(list=pb.Empty()))) as all_news:
            async for news in all_news:
                found += ({"node": node, **asdict(node_image_from_wire(image))} for image in news.images)
    except StreamError as error:
        return str(error)
    return found


async def _heard(streams: Streams, node: str, wanted: pb.OpenImages) -> AsyncGenerator[pb.ImageNews, None]:
    async with streams.open(node, pb.Open(images=wanted)) as stream:
        while (frame := await stream.read()) is not None:
            yield frame.images


async def _lines(streams: Streams, nodes: Sequence[str], wanted: pb.OpenImages) -> AsyncIterator[bytes]:
    events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(EVENTS_WAITING_MOST)
    works = [asyncio.create_task(_follow(streams, node, wanted, events)) for node in nodes]
    left = len(works)
    try:
        while left:
            event = await events.get()
            if event is None:
                left -= 1
            else:
                yield json.dumps(event).encode() + b"\n"
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)


async def _follow(
    streams: Streams, node: str, wanted: pb.OpenImages, events: asyncio.Queue[dict[str, Any] | None]
) -> None:
    """All that happens on one node, and None at its end."""
    try:
        async with aclosing(_heard(streams, node, wanted)) as all_news:
            async for news in all_news:
                await events.put({"node": node, **_event(news)})
    except StreamError as error:
        await events.put({"node": node, "error": str(error)})
    await events.put(None)


def _event(news: pb.ImageNews) -> dict[str, Any]:
    if news.HasField("progress"):
        progress = pull_progress_from_wire(news.progress)
        return {"progress": {**asdict(progress), "message": progress.describe()}}
    brought = [asdict(node_image_from_wire(image)) for image in news.images]
    return {"done": {"image": brought[0]} if brought else {"freed_bytes": news.freed_bytes}}
