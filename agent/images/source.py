"""Where images come from: the contract, and the two sources that are files of the node.

A source is opened for one image. `image` returns its description, every byte of which is what its digest says; `fetch`
begins to bring the layers that are wanted; `blob` waits for one of them. Nothing is believed of a layer until it was
unpacked: its digests are only known then.
"""

from __future__ import annotations

import asyncio
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any, Self

from agent.images import manifest
from agent.images.errors import Hostile, ImageError, NotFound, Refused
from agent.images.manifest import Image, Layer
from agent.images.reference import Reference
from agent.images.unpack import Blob

ARCHIVE_MOST_MEMBERS = 10_000


class Source(ABC):
    """Used as `async with`; afterwards nothing of it is left."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        return

    @abstractmethod
    async def image(self) -> tuple[bytes, bytes]:
        """Manifest and configuration. Raises ImageError."""

    async def fetch(self, image: Image, wanted: Collection[Layer]) -> None:
        """Begin to bring these layers; the others are known already. Called once, after `image`."""
        return

    @abstractmethod
    async def blob(self, layer: Layer) -> Blob:
        """Returns when the layer's archive is there. Raises ImageError."""

    def fetched_bytes(self) -> int | None:
        """How much of the wanted layers is there; None: they need no bringing."""
        return None


class Layout(Source):
    """An OCI layout directory (image-spec, image-layout.md)."""

    def __init__(self, reference: Reference) -> None:
        self._directory = Path(reference.name)
        self._tag = reference.tag

    async def image(self) -> tuple[bytes, bytes]:
        return await asyncio.to_thread(self._image)

    async def blob(self, layer: Layer) -> Blob:
        return Blob(self._path(layer.blob))

    def _image(self) -> tuple[bytes, bytes]:
        index = _read(self._directory / "index.json", "no OCI layout")
        data = self._read_blob(manifest.choose(index, self._tag), "its manifest")
        if manifest.is_index(data):
            data = self._read_blob(manifest.choose(data), "its manifest")
        return data, self._read_blob(manifest.parse_manifest(data).config, "its configuration")

    def _read_blob(self, digest: str, what: str) -> bytes:
        return manifest.check(_read(self._path(digest), f"{what} is missing"), digest, what)

    def _path(self, digest: str) -> Path:
        return self._directory / "blobs" / "sha256" / digest.removeprefix("sha256:")


class Archive(Source):
    """What `docker save` writes: a tar with `manifest.json`, a configuration and a tar of each layer. It has no
    manifest by the OCI's rules, so one is made: its layers' blobs are the archives themselves, by their diff-ids."""

    def __init__(self, reference: Reference) -> None:
        self._path = Path(reference.name)
        self._tag = reference.tag
        self._members: dict[str, tarfile.TarInfo] = {}
        self._layers: dict[str, Blob] = {}

    async def image(self) -> tuple[bytes, bytes]:
        return await asyncio.to_thread(self._image)

    async def blob(self, layer: Layer) -> Blob:
        return self._layers[layer.blob]

    def _image(self) -> tuple[bytes, bytes]:
        try:
            with open(self._path, "rb") as file, tarfile.TarFile(fileobj=file) as archive:
                self._list(archive)
                chosen = self._choose(archive)
                config = self._content(archive, chosen["Config"])
                return self._manifest(config, chosen["Layers"]), config
        except FileNotFoundError as error:
            raise NotFound("there is no such file") from error
        except (tarfile.TarError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"no archive of docker save: {type(error).__name__} {error}") from error

    def _list(self, archive: tarfile.TarFile) -> None:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would remember all of them twice
            self._members[str(PurePosixPath(member.name))] = member
            if len(self._members) > ARCHIVE_MOST_MEMBERS:
                raise Hostile(f"it has more than {ARCHIVE_MOST_MEMBERS} members")

    def _choose(self, archive: tarfile.TarFile) -> dict[str, Any]:
        entries: list[dict[str, Any]] = json.loads(self._content(archive, "manifest.json"))
        fitting = [entry for entry in entries if not self._tag or self._tag in (entry.get("RepoTags") or ())]
        if not fitting:
            raise NotFound(f"there is no image {self._tag!r} in it")
        return fitting[0]

    def _content(self, archive: tarfile.TarFile, name: str) -> bytes:
        member = self._resolve(name)
        file = archive.extractfile(member) if member.size <= manifest.MOST_BYTES else None
        if file is None:
            raise Hostile(f"its {name} is no file of sensible size")
        return file.read()

    def _resolve(self, name: str) -> tarfile.TarInfo:
        """Older versions of Docker write a layer that occurs twice as a link to the first."""
        member = self._members[str(PurePosixPath(name))]
        if member.issym():
            member = self._members[_beside(name, member.linkname)]
        if not member.isreg() or member.sparse is not None:
            raise Hostile(f"its {name} is no plain file")
        return member

    def _manifest(self, config: bytes, names: list[str]) -> bytes:
        _, diff_ids = manifest.parse_config(config)
        if len(names) != len(diff_ids):
            raise Hostile(f"it has {len(names)} layers, and its configuration {len(diff_ids)}")
        descriptors = []
        for name, diff_id in zip(names, diff_ids, strict=True):
            member = self._resolve(name)
            self._layers[diff_id] = Blob(self._path, member.offset_data, member.size)
            descriptors.append({"digest": diff_id, "size": member.size})
        described = {"digest": manifest.digest_of(config), "size": len(config)}
        return json.dumps({"schemaVersion": 2, "config": described, "layers": descriptors}).encode()


def _beside(name: str, link: str) -> str:
    parts: list[str] = []
    for part in (PurePosixPath(name).parent / link).parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _read(path: Path, absent: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(manifest.MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{absent}: there is no {path}") from error
    except OSError as error:
        raise ImageError(f"read {path}: {error.strerror}") from error
