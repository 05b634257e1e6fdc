"""A CNI network configuration list: what of it is refused, and the request that each plug-in gets of it.

Plug-ins run as root, so a name that leads elsewhere must not get through (CVE-2026-7474). Most of them are written in
Go, whose JSON takes keys of any case for the same and the last one wins: names are looked for under every spelling, and
the protocol's own keys are accepted under one only.

Source: containernetworking/cni SPEC.md 1.1.0, sections 1 and 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netns.driver import NetworkError

VERSIONS = ("1.1.0", "1.0.0")  # of the specification, the best first
MAX_BYTES = 64 << 10
MAX_DEPTH = 16
MAX_PLUGINS = 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of networks, plug-ins and containers

PROTOCOL_KEYS = {
    key.casefold(): key
    for key in ("cniVersion", "name", "type", "capabilities", "ipam", "runtimeConfig", "prevResult", "args")
}
RESERVED = ("runtimeConfig", "prevResult", "args")
RESERVED_PREFIX = "cni.dev/"
VALID_ATTACHMENTS = RESERVED_PREFIX + "valid-attachments"

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plugin:
    """`delegates` are the plug-ins that it will execute itself, to have addresses."""

    type: str
    config: Json
    capabilities: frozenset[str]
    delegates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conflist:
    """`versions`: those that it allows and we speak, the best first."""

    name: str
    versions: tuple[str, ...]
    plugins: tuple[Plugin, ...]
    disable_check: bool
    disable_gc: bool

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset[str]().union(*(plugin.capabilities for plugin in self.plugins))


def parse(text: str) -> Conflist:
    """Raises NetworkError that names the field: `cni.plugins[1].ipam.type: ...`."""
    document = _decoded(text)
    for key in document:
        for exact in ("cniVersion", "cniVersions", "name", "plugins", "disableCheck", "disableGC"):
            _refuse(key.casefold() == exact.casefold() and key != exact, key, f'is spelled "{exact}"')
    name = document.get("name")
    _refuse(not isinstance(name, str) or not NAME.fullmatch(name), "name", f"must match {NAME.pattern}")
    plugins = document.get("plugins")
    _refuse(not isinstance(plugins, list) or not plugins, "plugins", "must be a list of at least one plug-in")
    _refuse(len(plugins or ()) > MAX_PLUGINS, "plugins", f"at most {MAX_PLUGINS}")
    return Conflist(
        str(name),
        _versions(document),
        tuple(_plugin(f"plugins[{number}]", plugin) for number, plugin in enumerate(plugins or ())),
        _flag(document, "disableCheck"),
        _flag(document, "disableGC"),
    )


def request(
    conflist: Conflist,
    plugin: Plugin,
    version: str,
    *,
    capabilities: Json | None = None,
    previous: Json | None = None,
    valid: Sequence[tuple[str, str]] | None = None,
) -> bytes:
    """What `plugin` reads: its configuration unchanged, and what the specification adds (section 3, "Deriving request
    configuration"). `valid` are (container, interface), for GC."""
    body: dict[str, Any] = {key: value for key, value in plugin.config.items() if key != "capabilities"}
    body |= {"cniVersion": version, "name": conflist.name}
    supported = {key: value for key, value in (capabilities or {}).items() if key in plugin.capabilities}
    if supported:
        body["runtimeConfig"] = supported
    if previous is not None:
        body["prevResult"] = previous
    if valid is not None:
        body[VALID_ATTACHMENTS] = [{"containerID": container, "ifname": name} for container, name in valid]
    return json.dumps(body).encode("ascii")


def _decoded(text: str) -> dict[str, Any]:
    _refuse(not text.strip(), "", "is missing")
    _refuse(len(text.encode(errors="replace")) > MAX_BYTES, "", f"is larger than {MAX_BYTES >> 10} KiB")
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise NetworkError(f"cni: is not JSON: {error}") from error
    _refuse(not isinstance(document, dict), "", "must be an object")
    _refuse(_depth(document) > MAX_DEPTH, "", f"is nested deeper than {MAX_DEPTH}")
    found: dict[str, Any] = document
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _depth(value: Any, above: int = 0) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if above > MAX_DEPTH:
        return above
    return max((_depth(child, above + 1) for child in children), default=above)


def _versions(document: Json) -> tuple[str, ...]:
    stated = document.get("cniVersions", [])
    _refuse(not isinstance(stated, list), "cniVersions", "must be a list of versions")
    allowed = [document["cniVersion"], *stated] if "cniVersion" in document else list(stated)
    common = tuple(version for version in VERSIONS if version in allowed)
    found = ", ".join(map(str, allowed))[:100] or "none"
    _refuse(not common, "cniVersion", f"{found}: must be {' or '.join(reversed(VERSIONS))}")
    return common


def _flag(document: Json, key: str) -> bool:
    value = document.get(key, False)
    _refuse(not isinstance(value, bool), key, "must be true or false")
    return bool(value)


def _plugin(where: str, config: Any) -> Plugin:
    if not isinstance(config, dict):
        raise NetworkError(f"cni.{where}: must be an object")
    for key in config:
        exact = PROTOCOL_KEYS.get(key.casefold(), key)
        _refuse(key != exact, f"{where}.{key}", f'is spelled "{exact}"')
        _refuse(
            key in RESERVED or key.casefold().startswith(RESERVED_PREFIX),
            f"{where}.{key}",
            "is not for a configuration",
        )
    _refuse("type" not in config, f"{where}.type", "is missing")
    for path, name in _types(where, config):
        bad = not isinstance(name, str) or not NAME.fullmatch(name)
        _refuse(bad, path, f"{json.dumps(name)[:100]} is not the plain name of a plug-in")
    capabilities = config.get("capabilities", {})
    _refuse(not isinstance(capabilities, dict), f"{where}.capabilities", "must be an object")
    ipam = config.get("ipam")
    return Plugin(
        config["type"],
        config,
        frozenset(name for name, supported in capabilities.items() if supported is True),
        tuple(name for _, name in _types("", ipam)),
    )


def _types(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Whatever is called `type`, at any depth: plug-ins execute other plug-ins by such names."""
    if isinstance(value, dict):
        for key, child in value.items():
            if key.casefold() == "type":
                yield f"{where}.{key}", child
            yield from _types(f"{where}.{key}", child)
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _types(f"{where}[{number}]", child)


def _refuse(bad: bool, field: str, problem: str) -> None:
    if bad:
        raise NetworkError(f"cni.{field}: {problem}" if field else f"cni: {problem}")
