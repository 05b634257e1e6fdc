"""What a plug-in answered: its result, checked, or its error, in one line.

Source: containernetworking/cni SPEC.md 1.1.0, section 5.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from ipaddress import ip_interface
from typing import Any

from model.network import Address
from netns.cni.execute import Ended
from netns.driver import NetworkError

UNKNOWN_CONTAINER = 3  # the error code of a plug-in that has nothing to clean up
MAX_WORDS = 300
MOST_ENTRIES = 256  # of interfaces, and of addresses

Json = Mapping[str, Any]


class PluginError(NetworkError):
    """The plug-in said no. `code` is that of its error object, None when it gave none."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


def refuse_failure(ended: Ended) -> None:
    """Raises PluginError with what the plug-in said, when it failed."""
    if ended.code == 0:
        return
    for said in (ended.stdout, ended.stderr):
        error = _object(said)
        code, msg, details = error.get("code"), error.get("msg"), error.get("details")
        if isinstance(code, int) and isinstance(msg, str):
            more = f": {details}" if isinstance(details, str) and details else ""
            raise PluginError(f"{_one_line(msg + more)} (code {code})", code)
    how = f"exit {ended.code}" if ended.code > 0 else f"ended by {_signal(-ended.code)}"
    words = _one_line((ended.stderr or ended.stdout[: 4 * MAX_WORDS]).decode(errors="replace"))
    raise PluginError(f"{how}: {words}" if words else how)


def supported_versions(ended: Ended) -> frozenset[str]:
    """Of a VERSION."""
    refuse_failure(ended)
    versions = _object(ended.stdout).get("supportedVersions")
    if not isinstance(versions, list):
        raise PluginError("its answer has no supportedVersions")
    return frozenset(version for version in versions if isinstance(version, str))


def added(ended: Ended, version: str, interface: str, previous: Json | None) -> Json:
    """The result of an ADD, which has to stand to itself and to that of the plug-in before."""
    refuse_failure(ended)
    result = _object(ended.stdout)
    if not result:
        raise PluginError("its result is not a JSON object")
    if result.get("cniVersion") != version:
        raise PluginError(f"its result is of version {_one_line(str(result.get('cniVersion')))} and not {version}")
    if previous is not None:
        gone = set(addresses(previous, interface)) - set(addresses(result, interface))
        if gone and not addresses(result, interface):
            raise PluginError(f"its result leaves out {', '.join(sorted(map(str, gone)))} of the plug-in before it")
    else:
        addresses(result, interface)
    return result


def addresses(result: Json, interface: str) -> tuple[Address, ...]:
    """Those of the container's `interface`. An entry that names no interface is of the one that was asked for."""
    interfaces = _list(result, "interfaces")
    return tuple(
        address
        for index, address in _ips(result)
        if index is None or _is_container(_entry(interfaces, index), interface)
    )


def _ips(result: Json) -> Iterator[tuple[int | None, Address]]:
    for number, entry in enumerate(_list(result, "ips")):
        index, text = entry.get("interface"), entry.get("address")
        if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
            raise PluginError(f"its result: ips[{number}].interface: must be a number")
        try:
            if not isinstance(text, str):
                raise ValueError("must be a string")
            yield index, ip_interface(text).ip
        except ValueError as error:
            raise PluginError(f"its result: ips[{number}].address: {_one_line(str(error))}") from error


def _entry(interfaces: list[Json], index: int) -> Json:
    if not 0 <= index < len(interfaces):
        raise PluginError(f"its result: ips name interface {index} of {len(interfaces)}")
    return interfaces[index]


def _is_container(entry: Json, interface: str) -> bool:
    return bool(entry.get("sandbox")) and entry.get("name") == interface


def _list(result: Json, key: str) -> list[Json]:
    entries = result.get(key) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise PluginError(f"its result: {key}: must be a list of objects")
    if len(entries) > MOST_ENTRIES:
        raise PluginError(f"its result: {key}: more than {MOST_ENTRIES}")
    return entries


def _object(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _one_line(text: str) -> str:
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= MAX_WORDS else words[:MAX_WORDS] + "..."


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
