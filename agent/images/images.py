"""The images of a node: has one there when a task needs it, and removes what nobody needs.

An image that is here is used as it is, as Docker does it, also by a task without the credentials that it was pulled
with; `force_pull` asks the registry. Which images are in use is read from the containers' directories each time, so
nothing in use is ever removed, whatever was killed when.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent.images import gc, uses
from agent.images.errors import ImageError, NotPermitted, Refused
from agent.images.gc import Kept
from agent.images.manifest import Image
from agent.images.pulls import Progress, Pulls
from agent.images.reference import Reference, Transport, parse
from agent.images.registry import Registry
from agent.images.source import Archive, Layout, Source
from agent.images.store import Store
from model.codec import Damaged
from model.image import ImageSpec
from pki.files import PRIVATE, write_new

log = structlog.get_logger()

TIDY_S = 60.0
AUTH_FILE = "auth.json"
CERTIFICATES = "certs.d"
EVERYTHING = 1 << 62


@dataclass(frozen=True, slots=True)
class Places:
    """`images` is the store's. `containers` has the directories of containers. `registries` may have `auth.json`, a
    Docker `config.json` for pulls without credentials of their own, and `certs.d/HOST[:PORT]/` with authorities
    (containers-certs.d(5)). `local` are the directories below which `oci:` and `docker-archive:` may read."""

    images: Path
    containers: Path
    registries: Path
    local: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """`bytes` is what its layers take, shared ones included. Times are seconds since the epoch."""

    reference: str
    digest: str
    bytes: int
    pulled_at: float
    used_at: float
    tasks: tuple[str, ...]


class Images:
    def __init__(self, places: Places) -> None:
        self._places = places
        self._store = Store(places.images)
        self._pulls = Pulls(self._store, self._source, self._relieve_fully)

    async def open(self) -> None:
        """Once, before anything else."""
        await self._store.open()

    async def close(self) -> None:
        await self._pulls.close()

    async def use(
        self, spec: ImageSpec, task: str, container: Path, progress: Progress
    ) -> tuple[Image, tuple[Path, ...]]:
        """The image, and its layers' directories, the uppermost first. They stay as long as the directory `container`
        does, that of the task's container. Raises ImageError."""
        reference = parse(spec.reference)
        image = None if spec.force_pull else self._store.image(reference)
        if image is None:
            image = await self.pull(spec, progress)
        # No await from here on: nothing can be removed before its use is known.
        uses.write(container, task, reference, image)
        self._store.used(reference)
        return image, self._store.lower(image)

    async def pull(self, spec: ImageSpec, progress: Progress) -> Image:
        """Whether it is here or not. Raises ImageError."""
        reference = parse(spec.reference)
        try:
            return await self._pulls.pull(reference, spec.pull_config, progress)
        except ImageError as error:
            raise type(error)(f"image {spec.reference}: {error}") from error

    def listed(self) -> tuple[Listed, ...]:
        used = self._uses()
        return tuple(self._describe(kept, used) for kept in self._kept())

    async def remove(self, name: str) -> int:
        """Returns the bytes that it frees. Raises Refused for an image that is in use, or not here."""
        reference = str(parse(name))
        if reference not in self._store.images:
            raise Refused(f"image {name}: is not on this node")
        if tasks := _tasks(reference, self._uses()):
            raise Refused(f"image {name}: is in use by {', '.join(tasks)}")
        return await self._remove([reference])

    async def prune(self) -> int:
        """Removes every image that no container uses. Returns the bytes that it frees."""
        return await self._remove(self._chosen(EVERYTHING))

    async def keep_tidy(self) -> None:
        """Until cancelled: makes room on the disk before it is full."""
        while True:
            try:
                if needed := gc.pressure(self._places.images):
                    await self._relieve(needed)
            except (OSError, ImageError) as error:
                log.error("images not tidied up", error=str(error))
            await asyncio.sleep(TIDY_S)

    async def _relieve_fully(self) -> int:
        return await self._relieve(EVERYTHING)

    async def _relieve(self, needed_bytes: int) -> int:
        chosen = self._chosen(needed_bytes)
        freed = await self._remove(chosen)
        log.warning("the disk is full, unused images removed", images=chosen, bytes=freed)
        return freed

    def _chosen(self, needed_bytes: int) -> list[str]:
        sizes = {layer.diff_id: layer.bytes for layer in self._store.layers.values()}
        in_use = {use.reference for use in self._uses().values()}
        return [kept.reference for kept in gc.victims(self._kept(), in_use, sizes, needed_bytes)]

    async def _remove(self, references: Iterable[str]) -> int:
        """A reference may stand for another image than when a container began: layers are kept by what containers
        stand on."""
        held = {layer for use in self._uses().values() for layer in use.layers} | self._pulls.pinned
        for reference in references:
            self._store.forget_image(reference)
        freed = self._store.drop_layers(self._store.unreferenced(held))
        self._store.drop_blobs()
        await self._store.remove_dropped()
        return freed

    def _uses(self) -> dict[str, uses.Use]:
        try:
            return uses.read_all(self._places.containers)
        except Damaged as error:
            raise ImageError(f"which images are in use can not be told: {error}") from error

    def _kept(self) -> list[Kept]:
        return [
            Kept(reference, self._store.used_at(reference), tuple(layer.diff_id for layer in image.layers))
            for reference, image in self._store.described()
        ]

    def _describe(self, kept: Kept, used: dict[str, uses.Use]) -> Listed:
        stored = self._store.images[kept.reference]
        size = sum(self._store.layers[diff_id].bytes for diff_id in set(kept.layers))
        tasks = tuple(_tasks(kept.reference, used))
        return Listed(kept.reference, stored.manifest, size, stored.pulled_at, kept.used_at, tasks)

    @asynccontextmanager
    async def _source(self, reference: Reference, credentials: str, staging: Path) -> AsyncIterator[Source]:
        if reference.transport is Transport.REGISTRY:
            registries = self._places.registries
            certificates = registries / CERTIFICATES / reference.host
            auth = _auth_file(credentials, registries / AUTH_FILE, staging)
            source: Source = Registry(reference, staging, auth, certificates if certificates.is_dir() else None)
        else:
            self._permit(Path(reference.name))
            source = Layout(reference) if reference.transport is Transport.LAYOUT else Archive(reference)
        async with source:
            yield source

    def _permit(self, path: Path) -> None:
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(os.path.realpath(directory)) for directory in self._places.local):
            raise NotPermitted(f"not authorised: {path} is not below a directory of 'local_sources' in agent.toml")


def _tasks(reference: str, used: dict[str, uses.Use]) -> list[str]:
    return sorted(use.task for use in used.values() if use.reference == reference)


def _auth_file(credentials: str, default: Path, staging: Path) -> Path:
    """A file of this pull's own, gone with it."""
    if not credentials and default.exists():
        return default
    try:
        json.loads(credentials or "{}")
    except ValueError as error:
        raise Refused("its pull secret is no Docker config.json") from error
    path = staging / AUTH_FILE
    write_new(path, (credentials or "{}").encode(), PRIVATE)
    return path
