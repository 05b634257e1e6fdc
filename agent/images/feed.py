"""Serves the streams of the kind `images`: what people ask of the node's images, which there are, to bring one, to
remove some.

A pull ends with its stream, unless a task waits for the same image; what it has brought by then is kept for the next.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from agent.images.errors import ImageError
from agent.images.images import Images
from agent.images.reference import parse
from agent.streams import Refused, Stream
from model.image import NodeImage, PullProgress
from wire import control_pb2 as pb

TELL_S = 1.0


class ImageFeed:
    def __init__(self, images: Images) -> None:
        self._images = images

    async def serve(self, asked: pb.Open, stream: Stream) -> None:
        await stream.opened()
        try:
            news = await self._work(asked.images, stream)
        except ImageError as error:
            raise Refused(str(error)) from error
        except OSError as error:
            raise Refused(f"images: {error.filename or 'store'}: {error.strerror}") from error
        await stream.write(pb.Frame(images=news))

    async def _work(self, wanted: pb.OpenImages, stream: Stream) -> pb.ImageNews:
        match wanted.WhichOneof("what"):
            case "list":
                return pb.ImageNews(images=map(_image, self._images.listed()))
            case "pull":
                return pb.ImageNews(images=[_image(await self._pull(wanted.pull, stream))])
            case "remove":
                return pb.ImageNews(freed_bytes=await self._images.remove(wanted.remove))
            case "prune":
                return pb.ImageNews(freed_bytes=await self._images.prune())
            case what:
                raise Refused(f"this node does not know how to {what} images")

    async def _pull(self, reference: str, stream: Stream) -> NodeImage:
        latest = [PullProgress(reference)]

        def tell(progress: PullProgress) -> None:
            latest[:] = [progress]

        pulling = asyncio.create_task(self._images.pull(reference, tell))
        try:
            while not (await asyncio.wait({pulling}, timeout=TELL_S))[0]:
                progress = pb.PullProgress(**asdict(latest[0]))
                await stream.write(pb.Frame(images=pb.ImageNews(progress=progress)))
            pulling.result()
        finally:
            pulling.cancel()
            await asyncio.wait({pulling})
        name = str(parse(reference))
        return next(kept for kept in self._images.listed() if kept.reference == name)


def _image(image: NodeImage) -> pb.NodeImage:
    return pb.NodeImage(**asdict(image))
