"""Brings images into the store, each once however many ask for it, and each layer once however many images have it.

A pull is one asyncio task that all wait for who want the same image with the same credentials; it ends when the last of
them has gone. A layer belongs to the pull that asked for it first, and the others wait for that. No pull waits before
it has begun with its own layers, so two can not wait for each other.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from agent.images import manifest, unpack
from agent.images.errors import DiskFull, ImageError, Unreachable, WrongDigest
from agent.images.manifest import Image, Layer
from agent.images.reference import Reference
from agent.images.source import Source
from agent.images.store import ROOT, Store

TRIES = 6
RETRY_FIRST_S = 1.0  # doubles: 31 s of waiting in all
TELL_S = 1.0
UNPACKS_AT_ONCE = 4

Progress = Callable[[str], None]
# Reference, credentials (a Docker `config.json`, or nothing), a directory for this pull alone.
OpenSource = Callable[[Reference, str, Path], AbstractAsyncContextManager[Source]]
MakeRoom = Callable[[], Awaitable[int]]  # returns the bytes that it freed


@dataclass
class _Pull:
    reference: Reference
    work: asyncio.Task[Image] | None = None
    waiting: int = 0
    source: Source | None = None
    total_bytes: int = 0
    read_bytes: dict[str, int] = field(default_factory=dict)  # by blob

    def describe(self) -> str:
        """`pulling nginx:1.25 42%`. Bringing and unpacking count half each."""
        if not self.total_bytes or self.source is None:
            return f"pulling {self.reference}"
        read, fetched = sum(self.read_bytes.values()), self.source.fetched_bytes()
        share = read / self.total_bytes if fetched is None else (read + fetched) / self.total_bytes / 2
        return f"pulling {self.reference} {min(99, int(100 * share))}%"


class Pulls:
    def __init__(self, store: Store, open_source: OpenSource, make_room: MakeRoom) -> None:
        self._store = store
        self._open_source = open_source
        self._make_room = make_room
        self._pulls: dict[tuple[Reference, str], _Pull] = {}
        self._layers: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._pinned: Counter[str] = Counter()
        self._unpacking = asyncio.Semaphore(UNPACKS_AT_ONCE)
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def pinned(self) -> set[str]:
        """Layers, by diff-id, that pulls under way count on."""
        return {diff_id for diff_id, count in self._pinned.items() if count}

    async def close(self) -> None:
        works = [pull.work for pull in self._pulls.values() if pull.work is not None]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, *self._settling, return_exceptions=True)

    async def pull(self, reference: Reference, credentials: str, progress: Progress) -> Image:
        """Tries again where that can help: a registry that is down, a disk on which room can be made."""
        delay, relieved = RETRY_FIRST_S, False
        attempt = 1
        while True:
            try:
                return await self._join(reference, credentials, progress)
            except Unreachable as error:
                if attempt == TRIES:
                    raise Unreachable(f"{error} (tried {TRIES} times)") from error
                progress(f"image {reference}: {error}; trying again in {delay:g} s ({attempt} of {TRIES})")
            except DiskFull:
                if relieved or not await self._make_room():
                    raise
                relieved = True
                continue
            await asyncio.sleep(delay)
            delay, attempt = 2 * delay, attempt + 1

    async def _join(self, reference: Reference, credentials: str, progress: Progress) -> Image:
        key = (reference, hashlib.sha256(credentials.encode()).hexdigest())
        pull = self._pulls.get(key)
        if pull is None:
            pull = self._pulls[key] = _Pull(reference)
            pull.work = asyncio.create_task(self._run(pull, credentials), name=f"pull {reference}")
        assert pull.work is not None
        pull.waiting += 1
        try:
            progress(pull.describe())
            while not (await asyncio.wait({pull.work}, timeout=TELL_S))[0]:
                progress(pull.describe())
            return pull.work.result()
        finally:
            pull.waiting -= 1
            if not pull.waiting:
                del self._pulls[key]
                pull.work.cancel()
                await asyncio.wait({pull.work})  # nothing of it is at work any more

    async def _run(self, pull: _Pull, credentials: str) -> Image:
        try:
            return await self._bring_image(pull, credentials)
        except OSError as error:  # of the store's own files
            kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else ImageError
            raise kind(f"{error.filename or 'store'}: {error.strerror}") from error

    async def _bring_image(self, pull: _Pull, credentials: str) -> Image:
        async with (
            self._store.staging() as staging,
            self._open_source(pull.reference, credentials, staging) as source,
        ):
            pull.source = source
            manifest_data, config_data = await source.image()
            image = manifest.image_of(manifest_data, config_data)
            diff_ids = {layer.diff_id for layer in image.layers}
            self._pinned.update(diff_ids)
            try:
                await self._bring(pull, source, image, staging)
                self._store.put_image(pull.reference, manifest_data, config_data)
            finally:
                self._pinned.subtract(diff_ids)
        self._settle(image)
        return image

    def _settle(self, image: Image) -> None:
        settling = asyncio.create_task(self._store.settle(image))
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)

    async def _bring(self, pull: _Pull, source: Source, image: Image, staging: Path) -> None:
        missing = {(layer.blob, layer.diff_id): layer for layer in image.layers if not self._store.has(layer)}
        others = [self._layers[key] for key in missing if key in self._layers]
        own = {key: layer for key, layer in missing.items() if key not in self._layers}
        pull.total_bytes = sum(layer.size for layer in own.values())
        for key in own:
            self._layers[key] = asyncio.get_running_loop().create_future()
        try:
            await source.fetch(image, own.values())
            async with asyncio.TaskGroup() as group:
                for layer in own.values():
                    group.create_task(self._bring_layer(pull, source, layer, staging))
        except ExceptionGroup as group_of:
            raise group_of.exceptions[0] from None
        finally:
            for key in own:  # who waits for one that did not come finds that it is not here
                self._layers.pop(key).set_result(None)
        if others:
            await asyncio.wait(others)
        if not all(self._store.has(layer) for layer in image.layers):
            raise Unreachable("another pull of one of its layers failed")

    async def _bring_layer(self, pull: _Pull, source: Source, layer: Layer, staging: Path) -> None:
        blob = await source.blob(layer)
        async with self._unpacking:
            staged = staging / f"layer.{layer.diff_id.removeprefix('sha256:')}.{layer.blob[-8:]}"
            root = staged / ROOT
            root.mkdir(parents=True)
            root.chmod(0o755)

            def read(count: int) -> None:
                pull.read_bytes[layer.blob] = count

            try:
                unpacked = await unpack.unpack(blob, root, read)
            except FileNotFoundError as error:
                raise ImageError(f"its layer {layer.blob} is missing") from error
            for what, expected, actual in (
                ("layer", layer.blob, unpacked.blob),
                ("layer's content", layer.diff_id, unpacked.diff_id),
            ):
                if expected != actual:
                    raise WrongDigest(f"wrong digest: a {what} should be {expected} and is {actual}")
            self._store.put_layer(unpacked, staged)
