"""Manifests, indexes and configurations of images, as bytes from outside made into data (OCI image-spec 1.1).

Docker's (schema 2) have the same shape under other media types, so both are read alike. Nothing in them controls the
agent: of the configuration only what a process needs is read, and labels and annotations are not looked at.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from agent.images.errors import Hostile, NotFound, WrongArchitecture, WrongDigest

MOST_BYTES = 4 << 20  # of a manifest, as registries have it
MOST_LAYERS = 125  # as Docker
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "s390x": "s390x", "ppc64le": "ppc64le"}
MACHINE = ARCHITECTURES.get(platform.machine(), platform.machine())


@dataclass(frozen=True, slots=True)
class Layer:
    """`blob` is the digest of the archive as it is transferred, "" where that has none of its own; `diff_id` that of
    the archive itself; `size` the bytes of the transfer, 0 when unknown."""

    blob: str
    diff_id: str
    size: int


@dataclass(frozen=True, slots=True)
class Config:
    """What an image says about the process (image-spec config.md)."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    cwd: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """`digest` is that of the manifest. Layers from the lowest up."""

    digest: str
    layers: tuple[Layer, ...]
    config: Config


@dataclass(frozen=True, slots=True)
class Manifest:
    """Bytes that are what their digest says, and what stands in them."""

    digest: str
    config: str
    layers: tuple[tuple[str, int], ...]  # digest and size of each


Text = Annotated[str, StringConstraints(max_length=1 << 17), AfterValidator(lambda text: _no_nul(text))]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Outside(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Platform(_Outside):
    architecture: str
    os: str


class _Descriptor(_Outside):
    digest: Digest
    size: Annotated[int, Field(ge=0, lt=1 << 50)]
    mediaType: str = ""
    platform: _Platform | None = None
    annotations: dict[str, str] | None = None


class _Index(_Outside):
    manifests: list[_Descriptor]


class _Manifest(_Outside):
    config: _Descriptor
    layers: Annotated[list[_Descriptor], Field(max_length=MOST_LAYERS)]


class _Process(_Outside):
    Entrypoint: list[Text] | None = None
    Cmd: list[Text] | None = None
    Env: list[Text] | None = None
    User: Text | None = None
    WorkingDir: Text | None = None


class _RootFs(_Outside):
    diff_ids: Annotated[list[Digest], Field(max_length=MOST_LAYERS)]


class _Config(_Outside):
    architecture: str
    os: str
    rootfs: _RootFs
    config: _Process | None = None


Kind = TypeVar("Kind", bound=_Outside)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check(data: bytes, digest: str, what: str) -> bytes:
    """`data`, when it has this digest. Raises WrongDigest."""
    if (actual := digest_of(data)) != digest:
        raise WrongDigest(f"{what} should be {digest} and is {actual}")
    return data


def is_index(data: bytes) -> bool:
    found = _json(data, "manifest")
    return isinstance(found, dict) and "manifests" in found and "layers" not in found


def choose(data: bytes, tag: str = "") -> str:
    """The digest of the manifest for this machine, of those in an index; with `tag`, of those that bear it."""
    found = [entry for entry in _read(_Index, data, "index").manifests if not tag or _tag(entry) == tag]
    if not found:
        raise NotFound(f"there is no image with the tag {tag!r}")
    fitting = [entry for entry in found if entry.platform is None or _fits(entry.platform)]
    if not fitting:
        offered = sorted({f"{entry.platform.os}/{entry.platform.architecture}" for entry in found if entry.platform})
        raise WrongArchitecture(f"it is for {', '.join(offered)}, and this node is linux/{MACHINE}")
    return fitting[0].digest


def parse_manifest(data: bytes) -> Manifest:
    manifest = _read(_Manifest, data, "manifest")
    layers = tuple((layer.digest, layer.size) for layer in manifest.layers)
    return Manifest(digest_of(data), manifest.config.digest, layers)


def parse_config(data: bytes) -> tuple[Config, tuple[str, ...]]:
    """The process, and the diff-ids of the layers. Raises WrongArchitecture for an image of other machines."""
    config = _read(_Config, data, "configuration")
    if not _fits(_Platform(architecture=config.architecture, os=config.os)):
        raise WrongArchitecture(f"it is for {config.os}/{config.architecture}, and this node is linux/{MACHINE}")
    process = config.config or _Process()
    variables = (variable.partition("=") for variable in process.Env or ())
    read = Config(
        entrypoint=tuple(process.Entrypoint or ()),
        command=tuple(process.Cmd or ()),
        env=tuple((name, value) for name, _, value in variables if name),
        user=process.User or "",
        cwd=process.WorkingDir or "",
    )
    return read, tuple(config.rootfs.diff_ids)


def image_of(manifest_data: bytes, config_data: bytes) -> Image:
    """Raises Hostile when the two do not fit together."""
    manifest = parse_manifest(manifest_data)
    config, diff_ids = parse_config(check(config_data, manifest.config, "its configuration"))
    if len(diff_ids) != len(manifest.layers):
        raise Hostile(f"its manifest has {len(manifest.layers)} layers, and its configuration {len(diff_ids)}")
    layers = (Layer(blob, diff_id, size) for (blob, size), diff_id in zip(manifest.layers, diff_ids, strict=True))
    return Image(manifest.digest, tuple(layers), config)


def _fits(machine: _Platform) -> bool:
    return machine.os == "linux" and machine.architecture == MACHINE


def _tag(entry: _Descriptor) -> str:
    return (entry.annotations or {}).get("org.opencontainers.image.ref.name", "")


def _json(data: bytes, what: str) -> Any:
    if len(data) > MOST_BYTES:
        raise Hostile(f"its {what} is larger than {MOST_BYTES} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Hostile(f"its {what} is no JSON: {error}") from error


def _read(kind: type[Kind], data: bytes, what: str) -> Kind:
    try:
        return kind.model_validate(_json(data, what))
    except ValidationError as error:
        first = error.errors()[0]
        raise Hostile(f"its {what}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL")
    return text
