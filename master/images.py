"""What nodes are asked about their images, over their sessions, and what they answer.

Of what a node says of a request only the latest is kept, so a slow reader costs nobody any memory. A request ends with
its answer, with its reader, or with the node's session, whichever comes first; the node hears of each.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from wire import control_pb2 as pb

SILENCE_DEADLINE_S = 15.0  # a node that is at work says so every second

Tell = Callable[[str, pb.MasterMessage], bool]


class Unanswered(Exception):
    """The node is away, or says why it can not be done."""


@dataclass(slots=True, eq=False)
class _Wait:
    node: str
    latest: pb.ImageAnswer | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, answer: pb.ImageAnswer) -> None:
        if self.latest is None or not self.latest.done:
            self.latest = answer
            self.news.set()

    async def next(self) -> pb.ImageAnswer:
        try:
            async with asyncio.timeout(SILENCE_DEADLINE_S):
                await self.news.wait()
        except TimeoutError as error:
            raise Unanswered(f"it has said nothing for {SILENCE_DEADLINE_S:g} s") from error
        self.news.clear()
        assert self.latest is not None
        if self.latest.error:
            raise Unanswered(self.latest.error)
        return self.latest


class Images:
    """`tell` sends a message to a node; False when it can not have it."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._waits: dict[str, _Wait] = {}

    async def ask(self, node: str, wanted: pb.ImageRequest) -> pb.ImageAnswer:
        """The last word of `follow`."""
        async with aclosing(self.follow(node, wanted)) as answers:
            return [answer async for answer in answers][-1]

    async def follow(self, node: str, wanted: pb.ImageRequest) -> AsyncGenerator[pb.ImageAnswer, None]:
        """How far the node is, as it says so; the last one is what came of it. Raises Unanswered."""
        request = pb.ImageRequest(request=secrets.token_hex(8))
        request.MergeFrom(wanted)
        wait = self._waits[request.request] = _Wait(node)
        try:
            if not self._tell(node, pb.MasterMessage(image_request=request)):
                raise Unanswered("it is not connected")
            while True:
                answer = await wait.next()
                yield answer
                if answer.done:
                    return
        finally:
            del self._waits[request.request]
            if wait.latest is None or not wait.latest.done:
                cancel = pb.ImageRequest(request=request.request, cancel=True)
                self._tell(node, pb.MasterMessage(image_request=cancel))

    def receive(self, node: str, answer: pb.ImageAnswer) -> None:
        wait = self._waits.get(answer.request)
        if wait is not None and wait.node == node:
            wait.put(answer)

    def lost(self, node: str) -> None:
        """Its session is over."""
        for wait in self._waits.values():
            if wait.node == node:
                wait.put(pb.ImageAnswer(done=True, error="the connection to it broke"))
