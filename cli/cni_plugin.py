"""`tepui-cni`: the CNI plug-in by which another runtime's container gets onto one of this node's networks.

It does nothing itself. What the runtime said (environment, standard input) goes to the agent as one line of JSON, by a
Unix socket that is root's alone, and the line that comes back (`agent/cni_socket.py`) is printed. It is started for
each container, so it imports the standard library only, and little of that.

Source: containernetworking/cni SPEC.md 1.1.0, sections 2, 4 and 5.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress

TYPE_CHECKING = False  # typing takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

VERSIONS = ("1.0.0", "1.1.0")
SINCE_1_1 = ("GC", "STATUS")
COMMANDS = ("ADD", "DEL", "CHECK", *SINCE_1_1)
SOCKET = "/run/tepui/cni.sock"
DEADLINE_S = 60.0
MAX_BYTES = 1 << 20  # of the configuration, and of the answer

# SPEC.md, "Error"
INCOMPATIBLE_VERSION, INVALID_ENVIRONMENT, IO_FAILURE, NOT_DECODED, INVALID_CONFIGURATION = 1, 4, 5, 6, 7
TRY_AGAIN_LATER = 11


class Failed(Exception):
    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


def main() -> int:
    """The exit status."""
    version = VERSIONS[-1]
    try:
        command = os.environ.get("CNI_COMMAND", "")
        configuration = _configuration()
        if command == "VERSION":
            said = configuration.get("cniVersion")
            _print({"cniVersion": said if isinstance(said, str) else version, "supportedVersions": VERSIONS})
            return 0
        version = _version(configuration, command)
        result = _ask(configuration, _request(command, configuration))
    except Failed as failed:
        _print({"cniVersion": version, "code": failed.code, "msg": failed.msg, "details": failed.details})
        return 1
    if result:
        _print({"cniVersion": version, **result})
    return 0


def _configuration() -> dict[str, Any]:
    try:
        text = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise Failed(NOT_DECODED, "the configuration is not JSON", str(error)) from error
    except OSError as error:
        raise Failed(IO_FAILURE, "read the configuration", str(error.strerror)) from error
    return found


def _version(configuration: dict[str, Any], command: str) -> str:
    """That of the configuration, which the command has to be of too."""
    version = configuration.get("cniVersion")
    supported = VERSIONS[1:] if command in SINCE_1_1 else VERSIONS
    if version not in supported:
        known = " or ".join(supported)
        raise Failed(INCOMPATIBLE_VERSION, f"cniVersion: {json.dumps(version)[:100]}: {command} needs {known}")
    return str(version)


def _request(command: str, configuration: dict[str, Any]) -> dict[str, Any]:
    if command not in COMMANDS:
        known = ", ".join((*COMMANDS, "VERSION"))
        raise Failed(INVALID_ENVIRONMENT, f"CNI_COMMAND: {json.dumps(command)[:100]} is not one of {known}")
    variables = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS")
    return {
        "command": command,
        "environment": {name: os.environ[name] for name in variables if name in os.environ},
        "configuration": configuration,
    }


def _ask(configuration: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """The result, which is empty for most commands."""
    path = configuration.get("socket", SOCKET)
    if not isinstance(path, str) or not path.startswith("/"):
        raise Failed(INVALID_CONFIGURATION, "socket: must be the path of the agent's socket")
    try:
        answer = json.loads(_converse(path, json.dumps(request).encode("ascii") + b"\n"))
    except (OSError, ValueError) as error:  # ValueError: the agent ended before it had answered
        raise Failed(TRY_AGAIN_LATER, f"the agent does not answer at {path}", str(error)) from error
    refusal = answer.get("error")
    if refusal is not None:
        raise Failed(refusal["code"], refusal["msg"], refusal["details"])
    result: dict[str, Any] = answer["result"]
    return result


def _converse(path: str, line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(path)
        with suppress(BrokenPipeError):  # it would not hear of it, and has said why
            connection.sendall(line)
        with connection.makefile("rb") as answer:
            return answer.readline(MAX_BYTES)


def _print(message: dict[str, Any]) -> None:
    print(json.dumps(message))


if __name__ == "__main__":
    sys.exit(main())
