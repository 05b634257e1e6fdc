"""The node's images on disk, `<state>/images`, and what is known of them in memory.

    blobs/HEX            manifests and configurations, by their digest
    layers/HEX/root      a layer, unpacked, by its diff-id: shared by all images that have it, whatever is below
    layers/HEX/layer.json
    images/HEX.json      what a reference stands for, by the digest of the reference; its mtime is the last use
    staging/             work in progress, and what is on its way out; emptied when the agent starts

A layer is unpacked in staging and renamed when its digests were found right, so there is no half of one under `layers`
after a kill. A power cut is another matter: files that were not yet on disk come back empty. A layer bears the boot
that it was made in until the file system was synchronised, and after another boot it is not trusted.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

import structlog

from agent.images import manifest
from agent.images.errors import ImageError
from agent.images.manifest import Image, Layer
from agent.images.reference import Reference
from agent.images.unpack import Unpacked
from agent.launcher.record import boot_id
from model.codec import Codec, Damaged
from pki.files import PRIVATE, write_atomic

log = structlog.get_logger()

RECORD = "layer.json"
ROOT = "root"
DROPPED = "dropped."  # in staging


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """`blobs` are the archives that were found to unpack to it. `boot` is empty when it is on disk for good."""

    diff_id: str
    blobs: tuple[str, ...]
    bytes: int
    entries: int
    boot: str


@dataclass(frozen=True, slots=True)
class StoredImage:
    """`manifest` and `config` are digests."""

    reference: str
    manifest: str
    config: str
    pulled_at: float


LAYER = Codec(StoredLayer)
IMAGE = Codec(StoredImage)


class Store:
    """One process writes it. `directory` and what is in it are the agent's alone (0700)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layers: dict[str, StoredLayer] = {}
        self.images: dict[str, StoredImage] = {}
        self._read: dict[str, Image] = {}  # by reference

    async def open(self) -> None:
        """Once: learn what is there, and clear away what is not whole."""
        for name in ("", "blobs", "layers", "images", "staging"):
            (self.directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self.directory / "layers").iterdir():
            if not self._load_layer(path):
                self._put_aside(path)
        for path in (self.directory / "images").glob("*.json"):
            self._load_image(path)
        for path in (self.directory / "staging").iterdir():
            await remove_tree(path)

    def image(self, reference: Reference) -> Image | None:
        """What the reference stands for here."""
        return self._read.get(str(reference))

    def described(self) -> list[tuple[str, Image]]:
        """All of them, by reference."""
        return list(self._read.items())

    def has(self, layer: Layer) -> bool:
        """Whether this very archive was unpacked here. That a configuration says so is not enough: it could name a
        layer of somebody else's."""
        known = self.layers.get(layer.diff_id)
        return known is not None and layer.blob in known.blobs

    def lower(self, image: Image) -> tuple[Path, ...]:
        """The directories of its layers, the uppermost first."""
        return tuple(self._layer_path(layer.diff_id) / ROOT for layer in reversed(image.layers))

    def used(self, reference: Reference) -> None:
        os.utime(self._image_path(str(reference)))

    def used_at(self, reference: str) -> float:
        return self._image_path(reference).stat().st_mtime

    @asynccontextmanager
    async def staging(self) -> AsyncIterator[Path]:
        """A directory for one pull."""
        path = Path(mkdtemp(dir=self.directory / "staging"))
        try:
            yield path
        finally:
            await remove_tree(path)

    def put_layer(self, unpacked: Unpacked, staged: Path) -> None:
        """`staged` has the layer in `root`, and is moved. Of two at once the first one stays."""
        known = self.layers.get(unpacked.diff_id)
        blobs = {unpacked.blob, *(known.blobs if known else ())}
        layer = StoredLayer(unpacked.diff_id, tuple(sorted(blobs)), unpacked.bytes, unpacked.entries, boot_id())
        if known is None:
            write_atomic(staged / RECORD, LAYER.encode(layer), PRIVATE)
            os.rename(staged, self._layer_path(layer.diff_id))
            self.layers[layer.diff_id] = layer
        else:
            self._save_layer(replace(layer, boot=known.boot))

    def put_image(self, reference: Reference, manifest_data: bytes, config_data: bytes) -> Image:
        """Its layers are here. From now on the reference stands for this image."""
        image = manifest.image_of(manifest_data, config_data)
        for data in (manifest_data, config_data):
            write_atomic(self._blob_path(manifest.digest_of(data)), data, PRIVATE)
        stored = StoredImage(str(reference), image.digest, manifest.digest_of(config_data), time.time())
        write_atomic(self._image_path(stored.reference), IMAGE.encode(stored), PRIVATE)
        self.images[stored.reference] = stored
        self._read[stored.reference] = image
        return image

    async def settle(self, image: Image) -> None:
        """Its layers will be whole after a power cut too."""
        new = {layer.diff_id for layer in image.layers if self.layers[layer.diff_id].boot}
        if not new:
            return
        process = await asyncio.create_subprocess_exec("sync", "--file-system", str(self.directory))
        if await process.wait() == 0:
            for diff_id in new & self.layers.keys():
                self._save_layer(replace(self.layers[diff_id], boot=""))

    def forget_image(self, reference: str) -> None:
        self._image_path(reference).unlink(missing_ok=True)
        self.images.pop(reference, None)
        self._read.pop(reference, None)

    def unreferenced(self, kept: Collection[str]) -> set[str]:
        """Layers that no image has and that are not among `kept`, both by diff-id."""
        held = {layer.diff_id for image in self._read.values() for layer in image.layers}
        return self.layers.keys() - held - set(kept)

    def drop_layers(self, diff_ids: Collection[str]) -> int:
        """Out of use at once, off the disk with `remove_dropped`. Returns how many bytes that will be."""
        for diff_id in diff_ids:
            self._put_aside(self._layer_path(diff_id))
        return sum(self.layers.pop(diff_id).bytes for diff_id in diff_ids)

    def drop_blobs(self) -> None:
        """Manifests and configurations that no image has."""
        held = {digest for image in self.images.values() for digest in (image.manifest, image.config)}
        for path in (self.directory / "blobs").iterdir():
            if f"sha256:{path.name}" not in held:
                path.unlink()

    async def remove_dropped(self) -> None:
        """Takes off the disk what was dropped."""
        for path in (self.directory / "staging").glob(f"{DROPPED}*"):
            await remove_tree(path)

    def _load_layer(self, path: Path) -> bool:
        try:
            layer = LAYER.decode((path / RECORD).read_bytes())
        except (OSError, Damaged) as error:
            log.error("layer is not whole, removed", path=str(path), error=str(error))
            return False
        if layer.boot not in ("", boot_id()):
            log.warning("layer may not have reached the disk before the node went down, removed", layer=layer.diff_id)
            return False
        self.layers[layer.diff_id] = layer
        return True

    def _load_image(self, path: Path) -> None:
        try:
            stored = IMAGE.decode(path.read_bytes())
            blobs = [self._blob_path(digest).read_bytes() for digest in (stored.manifest, stored.config)]
            image = manifest.image_of(*blobs)
        except (OSError, Damaged, ImageError) as error:
            log.error("image is not whole, forgotten", path=str(path), error=str(error))
            path.unlink()
            return
        if {layer.diff_id for layer in image.layers} <= self.layers.keys():
            self.images[stored.reference], self._read[stored.reference] = stored, image
        else:
            path.unlink()

    def _save_layer(self, layer: StoredLayer) -> None:
        write_atomic(self._layer_path(layer.diff_id) / RECORD, LAYER.encode(layer), PRIVATE)
        self.layers[layer.diff_id] = layer

    def _put_aside(self, path: Path) -> None:
        os.rename(path, Path(mkdtemp(prefix=DROPPED, dir=self.directory / "staging")) / path.name)

    def _layer_path(self, diff_id: str) -> Path:
        return self.directory / "layers" / diff_id.removeprefix("sha256:")

    def _blob_path(self, digest: str) -> Path:
        return self.directory / "blobs" / digest.removeprefix("sha256:")

    def _image_path(self, reference: str) -> Path:
        return self.directory / "images" / f"{hashlib.sha256(reference.encode()).hexdigest()}.json"


async def remove_tree(path: Path) -> None:
    """By rm(1): layers may be deeper than Python can recurse, and have millions of files. Accepts what is not there."""
    process = await asyncio.create_subprocess_exec("rm", "-rf", "--one-file-system", "--", str(path))
    if await process.wait() != 0:
        log.error("not removed, stays until the next start", path=str(path))
