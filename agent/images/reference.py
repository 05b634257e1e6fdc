"""How an image is called: `oci:/path[:tag]`, `docker-archive:/path[:name:tag]`, or a name in a registry.

Names in registries are Docker's (distribution/reference): `nginx` is `docker.io/library/nginx:latest`; the first part
is a host when it has a dot or a colon, or is `localhost`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from agent.images.errors import Refused

HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])"
COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
NAME = re.compile(rf"(?:(?P<host>{HOST}(?::[0-9]{{1,5}})?)/)?(?P<path>{COMPONENT}(?:/{COMPONENT})*)")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
NAME_MOST = 255
DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"


class Transport(StrEnum):
    LAYOUT = "oci"
    ARCHIVE = "docker-archive"
    REGISTRY = "docker"


@dataclass(frozen=True, slots=True)
class Reference:
    """`name` is a path, or `host/path` in a registry. `digest` outranks `tag`."""

    transport: Transport
    name: str
    tag: str = ""
    digest: str = ""

    @property
    def host(self) -> str:
        """The registry, with its port if that was given."""
        return self.name.partition("/")[0]

    def __str__(self) -> str:
        prefix = "" if self.transport is Transport.REGISTRY else f"{self.transport}:"
        tag = f":{self.tag}" if self.tag else ""
        return f"{prefix}{self.name}{tag}{'@' if self.digest else ''}{self.digest}"


def parse(text: str) -> Reference:
    """Raises Refused."""
    for transport in (Transport.LAYOUT, Transport.ARCHIVE):
        if text.startswith(f"{transport}:/"):
            return _local(transport, text, text.removeprefix(f"{transport}:"))
    return _registry(text, text.removeprefix("docker://"))


def _local(transport: Transport, text: str, rest: str) -> Reference:
    path, _, tag = rest.partition(":")
    pure = PurePosixPath(path)
    if str(pure) != path or ".." in pure.parts or not path.isprintable():
        raise Refused(f"image {text!r}: {path!r} must be an absolute path without . or ..")
    if transport is Transport.LAYOUT and tag and not TAG.fullmatch(tag):
        raise Refused(f"image {text!r}: {tag!r} is no tag")
    return Reference(transport, path, tag)


def _registry(text: str, rest: str) -> Reference:
    named, at, digest = rest.partition("@")
    name, tag = _split_tag(named)
    match = NAME.fullmatch(name)
    if match is None or len(name) > NAME_MOST:
        raise Refused(f"image {text!r}: {name!r} is no name of an image: [host[:port]/]path, in lower case")
    if (tag or named.endswith(":")) and not TAG.fullmatch(tag):
        raise Refused(f"image {text!r}: {tag!r} is no tag")
    if at and not DIGEST.fullmatch(digest):
        raise Refused(f"image {text!r}: {digest!r} is no digest: sha256: and 64 hexadecimal digits")
    return Reference(Transport.REGISTRY, _full(match), tag or ("" if digest else DEFAULT_TAG), digest)


def _split_tag(named: str) -> tuple[str, str]:
    """A colon before the last slash belongs to a port."""
    head, slash, last = named.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{head}{slash}{name}", tag


def _full(match: re.Match[str]) -> str:
    host, path = match["host"], match["path"]
    if host and not ("." in host or ":" in host or host == "localhost"):
        host, path = None, f"{host}/{path}"
    host = host or DEFAULT_HOST
    if host in (DEFAULT_HOST, f"index.{DEFAULT_HOST}"):
        return f"{DEFAULT_HOST}/{path if '/' in path else f'library/{path}'}"
    return f"{host}/{path}"
