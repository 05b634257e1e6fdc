"""What people ask of the node's images through the master: which there are, to bring one, to remove some.

Each request is a task of its own, which says every second that it is still at work, and how far. It ends with the
session that it came by, or when nobody is left to hear of it; what a pull has brought by then is kept for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from agent.images.errors import ImageError
from agent.images.images import Images
from agent.images.reference import parse
from model.image import NodeImage, PullProgress
from wire import control_pb2 as pb

REQUESTS_AT_ONCE = 16
TELL_S = 1.0

Answer = Callable[[pb.ImageAnswer], None]


class ImageRequests:
    """`answer` passes on what is said of a request; of several before the master could be told, the last counts."""

    def __init__(self, images: Images, answer: Answer) -> None:
        self._images = images
        self._answer = answer
        self._works: dict[str, asyncio.Task[None]] = {}

    def take(self, request: pb.ImageRequest) -> None:
        name = request.request
        if request.WhichOneof("what") == "cancel":
            if name in self._works:
                self._works[name].cancel()
        elif len(self._works) >= REQUESTS_AT_ONCE:
            error = f"{REQUESTS_AT_ONCE} requests for images of this node are being answered already"
            self._answer(pb.ImageAnswer(request=name, done=True, error=error))
        else:
            work = self._works[name] = asyncio.create_task(self._serve(request), name=f"images {name}")
            work.add_done_callback(lambda _: self._works.pop(name))

    async def close(self) -> None:
        works = list(self._works.values())
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    async def _serve(self, request: pb.ImageRequest) -> None:
        said: list[PullProgress] = []
        working = asyncio.create_task(self._work(request, said))
        try:
            while not (await asyncio.wait({working}, timeout=TELL_S))[0]:
                self._answer(pb.ImageAnswer(request=request.request, progress=_progress(said)))
            self._answer(working.result())
        finally:
            working.cancel()
            await asyncio.wait({working})

    async def _work(self, request: pb.ImageRequest, said: list[PullProgress]) -> pb.ImageAnswer:
        answer = partial(pb.ImageAnswer, request=request.request, done=True)
        try:
            match request.WhichOneof("what"):
                case "list":
                    return answer(images=map(_image, self._images.listed()))
                case "pull":
                    return answer(images=[_image(await self._pull(request.pull, said))])
                case "remove":
                    return answer(freed_bytes=await self._images.remove(request.remove))
                case "prune":
                    return answer(freed_bytes=await self._images.prune())
                case what:
                    return answer(error=f"this node does not know how to {what} images")
        except ImageError as error:
            return answer(error=str(error))
        except OSError as error:
            return answer(error=f"images: {error.filename or 'store'}: {error.strerror}")

    async def _pull(self, reference: str, said: list[PullProgress]) -> NodeImage:
        def tell(progress: PullProgress) -> None:
            said[:] = [progress]

        await self._images.pull(reference, tell)
        name = str(parse(reference))
        return next(kept for kept in self._images.listed() if kept.reference == name)


def _progress(said: list[PullProgress]) -> pb.PullProgress | None:
    return pb.PullProgress(**asdict(said[-1])) if said else None


def _image(image: NodeImage) -> pb.NodeImage:
    return pb.NodeImage(**asdict(image))
