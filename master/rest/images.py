"""The images of nodes: `GET /api/v1/images`, and `POST .../pull`, `.../remove` and `.../prune`.

What takes a while answers with a line of JSON for each thing that happens: `{"node": ..., "progress": {...}}`, and once
for each node `{"node": ..., "done": {...}}` or `{"node": ..., "error": ...}`. Whoever stops reading ends what is under
way. Without `nodes` all are meant that are connected.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from master.images import Images, Unanswered
from master.nodes import Nodes
from master.rest.errors import ApiError
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


def images_router(nodes: Nodes, images: Images) -> APIRouter:
    router = APIRouter(prefix="/api/v1/images", tags=["images"])

    def streamed(wanted: pb.ImageRequest, where: Where) -> StreamingResponse:
        return StreamingResponse(_lines(images, _named(nodes, where.nodes), wanted), media_type=LINES)

    @router.get("")
    async def list_images(node: Annotated[list[str] | None, Query()] = None) -> dict[str, Any]:
        names = _named(nodes, node or ())
        answers = await asyncio.gather(*(_listed(images, name) for name in names))
        found = [image for answer in answers if not isinstance(answer, str) for image in answer]
        errors = {name: answer for name, answer in zip(names, answers, strict=True) if isinstance(answer, str)}
        return {"images": found, "errors": errors}

    @router.post("/pull")
    async def pull_image(which: Which) -> StreamingResponse:
        return streamed(pb.ImageRequest(pull=which.reference), which)

    @router.post("/remove")
    async def remove_image(which: Which) -> StreamingResponse:
        return streamed(pb.ImageRequest(remove=which.reference), which)

    @router.post("/prune")
    async def prune_images(where: Where) -> StreamingResponse:
        return streamed(pb.ImageRequest(prune=True), where)

    return router


def _named(nodes: Nodes, names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if nodes.get(name) is None]
    if unknown:
        raise ApiError(404, f"Node '{unknown[0]}' does not exist")
    found = sorted(set(names)) or sorted(view.node.id for view in nodes.all() if view.connected)
    if not found:
        raise ApiError(409, "no node is connected")
    return found


async def _listed(images: Images, node: str) -> list[dict[str, Any]] | str:
    """Or why not."""
    try:
        answer = await images.ask(node, pb.ImageRequest(list=True))
    except Unanswered as error:
        return str(error)
    return [{"node": node, **asdict(node_image_from_wire(image))} for image in answer.images]


async def _lines(images: Images, nodes: Sequence[str], wanted: pb.ImageRequest) -> AsyncIterator[bytes]:
    events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(EVENTS_WAITING_MOST)
    works = [asyncio.create_task(_follow(images, node, wanted, events)) for node in nodes]
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
    images: Images, node: str, wanted: pb.ImageRequest, events: asyncio.Queue[dict[str, Any] | None]
) -> None:
    """All that happens on one node, and None at its end."""
    try:
        async with aclosing(images.follow(node, wanted)) as answers:
            async for answer in answers:
                await events.put({"node": node, **_event(answer)})
    except Unanswered as error:
        await events.put({"node": node, "error": str(error)})
    await events.put(None)


def _event(answer: pb.ImageAnswer) -> dict[str, Any]:
    if not answer.done:
        progress = pull_progress_from_wire(answer.progress)
        return {"progress": {**asdict(progress), "message": progress.describe() if progress.reference else ""}}
    brought = [asdict(node_image_from_wire(image)) for image in answer.images]
    return {"done": {"image": brought[0]} if brought else {"freed_bytes": answer.freed_bytes}}
