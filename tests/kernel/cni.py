"""What tests of CNI networks share: conflists, plug-ins that are scripts, and what the plug-ins left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from model.network import Network, NetworkKind
from netns.driver import NetworkSpec
from tests.kernel.namespaces import ip

DEBIAN = Path("/usr/lib/cni")
SUBNET = ip_network("10.88.0.0/24")


def conflist(*plugins: dict[str, Any], name: str = "sdn", version: str = "1.0.0", **more: Any) -> str:
    return json.dumps({"cniVersion": version, "name": name, "plugins": list(plugins), **more})


def spec(cni: str, network: str = "sdn") -> NetworkSpec:
    return NetworkSpec(Network(network, NetworkKind.CNI, (SUBNET,), cni=cni), ())


def host_local(data: Path, **more: Any) -> dict[str, Any]:
    ranges = [[{"subnet": str(SUBNET)}]]
    return {"type": "host-local", "dataDir": str(data), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], **more}


def reserved(data: Path, name: str = "sdn") -> dict[str, str]:
    """Address -> container, of host-local's files."""
    found = {path.name: path for path in (data / name).glob("*.*.*.*")}
    return {address: path.read_text().split()[0] for address, path in found.items()}


def links() -> set[str]:
    return {link["ifname"] for link in ip("link")}


PREAMBLE = f"""#!{sys.executable} -ISs
import json, os, signal, subprocess, sys, time
command = os.environ["CNI_COMMAND"]
request = json.load(sys.stdin)
here = HERE
with open(here + "/" + NAME + ".log", "a") as log:
    print(json.dumps([command, dict(os.environ), request, os.readlink("/proc/self/ns/net")]), file=log)
if command == "VERSION":
    print(json.dumps({{"cniVersion": request["cniVersion"], "supportedVersions": VERSIONS}}))
    sys.exit()
def done(**changes):
    result = {{
        "cniVersion": request["cniVersion"],
        "interfaces": [{{"name": "eth0", "sandbox": os.environ.get("CNI_NETNS", "")}}],
        "ips": [{{"address": "10.88.0.9/24", "interface": 0}}],
    }}
    print(json.dumps((request.get("prevResult") or result) | changes))
    sys.exit()
def fail(code, msg, details=""):
    print(json.dumps({{"cniVersion": request["cniVersion"], "code": code, "msg": msg, "details": details}}))
    sys.exit(1)
"""


def script(directory: Path, name: str, body: str, versions: Sequence[str] = ("1.0.0", "1.1.0")) -> None:
    """A plug-in. It logs each call, answers VERSION, and does `body` for everything else; `done` and `fail` end it."""
    path = directory / name
    head = PREAMBLE.replace("HERE", repr(str(directory))).replace("NAME", repr(name))
    path.write_text(head.replace("VERSIONS", repr(list(versions))) + body + "\n")
    path.chmod(0o755)


def calls(directory: Path, name: str) -> list[tuple[str, dict[str, str], dict[str, Any], str]]:
    """(command, environment, request, network namespace) of each call of a script since the last time."""
    path = directory / f"{name}.log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [tuple(json.loads(line)) for line in lines]


def commands(directory: Path, name: str) -> list[str]:
    return [call[0] for call in calls(directory, name) if call[0] != "VERSION"]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def mounts_below(directory: Path) -> list[str]:
    table = subprocess.run(["findmnt", "-rno", "TARGET"], capture_output=True, text=True, check=True).stdout
    return [line for line in table.splitlines() if line.startswith(os.fspath(directory) + "/")]
