"""Events as server-sent events (HTML standard, section 9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Annotated

from fastapi import Header
from fastapi.responses import StreamingResponse

from master.event_log import Event

KEEPALIVE_S = 15.0  # a comment, so that proxies and clients know that the stream lives
KEEPALIVE = ": nothing happened\n\n"
OPENED = ": events follow\n\n"  # the server keeps the headers back until there is something to send with them

LastEventId = Annotated[str, Header(alias="Last-Event-ID", max_length=100)]


def stream(events: AsyncIterator[Event]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(_kept_alive(events), media_type="text/event-stream", headers=headers)


async def chosen(events: AsyncIterator[Event], kinds: Collection[str]) -> AsyncIterator[Event]:
    """Of these kinds, or all when none is named; what was missed is told of anyway."""
    async for event in events:
        if not kinds or event.kind in kinds or event.kind == "missed":
            yield event


async def _kept_alive(events: AsyncIterator[Event]) -> AsyncIterator[str]:
    following = asyncio.ensure_future(anext(events, None))
    try:
        yield OPENED
        while True:
            done, _ = await asyncio.wait({following}, timeout=KEEPALIVE_S)
            if not done:
                yield KEEPALIVE
                continue
            if (event := following.result()) is None:
                return
            yield f"id: {event.id}\nevent: {event.kind}\ndata: {event.data}\n\n"
            following = asyncio.ensure_future(anext(events, None))
    finally:
        following.cancel()
