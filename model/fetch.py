"""Files that are fetched for a task before it starts (Mesos, `CommandInfo.URI`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

SCHEMES = ("http", "https", "file")
URI_MOST = 8192
NAME_MOST = 255
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Fetch:
    """`destination` is a path in the task's workspace; empty: the last part of the URI's path. What is fetched is
    unpacked when it is an archive by its name and `extract` says so, unless it is to be `executable`. `digest` is what
    it must have; empty: anything. `cache` lets the node keep it for other tasks."""

    uri: str
    destination: str = ""
    extract: bool = True
    executable: bool = False
    cache: bool = False
    digest: str = ""

    @property
    def name(self) -> str:
        return self.destination or PurePosixPath(unquote(urlsplit(self.uri).path)).name


def problem(fetch: Fetch) -> str:
    """What is wrong with it, for people; empty when nothing is."""
    try:
        parts = urlsplit(fetch.uri)
        port = parts.port
    except ValueError as error:
        return f"is no URI: {error}"
    if len(fetch.uri) > URI_MOST or not fetch.uri.isprintable() or " " in fetch.uri:
        return "is no URI"
    if parts.scheme not in SCHEMES:
        return f"must begin with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
    if (parts.scheme == "file") == bool(parts.hostname):
        return "must name a host" if parts.scheme != "file" else "must have no host: file:///path"
    if port == 0:
        return "has no port 0"
    if fetch.digest and not DIGEST.fullmatch(fetch.digest):
        return f"digest {fetch.digest!r} must be sha256: and 64 hexadecimal digits"
    return _problem_of_name(fetch.name)


def _problem_of_name(name: str) -> str:
    parts = name.split("/")
    if not name.isprintable() or any(part in ("", ".", "..") or len(part.encode()) > NAME_MOST for part in parts):
        return f"{name!r} must be the name of a file, or a relative path without . and .."
    return ""
