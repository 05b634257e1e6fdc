"""The peers of a launch: other runtimes, which make a container of the same root directory for the same program.

runc gets an address by CNI's plug-ins `bridge` and `host-local`, and the same limits as ours; its network namespace it
gets for nothing, no user namespace, and a root directory instead of an overlay. crun gets a network namespace without
a link, and no cgroups: Debian's refuses hybrid ones, and is run where the unified tree is not mounted.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from agent.launcher import syscalls as sc
from isolators import mount

CNI = Path("/usr/lib/cni")
UNIFIED = Path("/sys/fs/cgroup/unified")
CLONE_FS = 0x200  # linux/sched.h


class Peer(Protocol):
    def launch(self, turn: int) -> float:
        """Milliseconds until the program's first word, which it has when this returns."""


class RuncWithCni:
    def __init__(self, directory: Path, rootfs: Path) -> None:
        self._bundle = directory / "runc"
        self._state = directory / "runc-state"
        self._bundle.mkdir()
        self._default = json.dumps(_configuration("runc", rootfs))

    def launch(self, turn: int) -> float:
        """As ours. The network namespace exists already when the clock starts."""
        name = f"tepui-bench-{turn}"
        namespace = self._namespace()
        try:
            (self._bundle / "config.json").write_text(json.dumps(self._configuration(name, namespace)))
            begin = time.monotonic_ns()
            self._cni("ADD", name, namespace)
            runc = ["runc", "--root", str(self._state), "run", "--bundle", str(self._bundle), name]
            printed = subprocess.run(runc, capture_output=True, text=True, check=True).stdout
            self._cni("DEL", name, namespace)
            return (int(printed) - begin) / 1e6
        finally:
            subprocess.run(["umount", namespace], check=True)
            Path(namespace).unlink()

    def _namespace(self) -> str:
        """A network namespace that a file keeps, as container runtimes hand them to CNI."""
        path = self._bundle / "netns"
        path.touch()
        subprocess.run(["unshare", f"--net={path}", "true"], check=True)
        return str(path)

    def _cni(self, command: str, container: str, namespace: str) -> None:
        network = {
            "cniVersion": "1.0.0",
            "name": "bench",
            "type": "bridge",
            "bridge": "benchbr0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "subnet": "198.18.0.0/24",
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": str(self._state / "ipam"),
            },
        }
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": namespace,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(CNI),
            "PATH": os.environ["PATH"],
        }
        subprocess.run(
            [CNI / "bridge"], input=json.dumps(network).encode(), env=environment, capture_output=True, check=True
        )

    def _configuration(self, name: str, namespace: str) -> dict[str, Any]:
        configuration: dict[str, Any] = json.loads(self._default)
        linux = configuration["linux"]
        linux["cgroupsPath"] = f"/{name}"
        linux["resources"] |= {
            "cpu": {"shares": 102, "quota": 10000, "period": 100000},
            "memory": {"limit": 64 * 2**20},
            "pids": {"limit": 1024},
        }
        for entry in linux["namespaces"]:
            if entry["type"] == "network":
                entry["path"] = namespace
        return configuration


class Crun:
    def __init__(self, directory: Path, rootfs: Path) -> None:
        self._bundle = directory / "crun"
        self._state = directory / "crun-state"
        self._bundle.mkdir()
        configuration = _configuration("crun", rootfs)
        configuration["linux"]["resources"] = {}
        (self._bundle / "config.json").write_text(json.dumps(configuration))
        self._thread = ThreadPoolExecutor(1, initializer=_leave_unified)

    def launch(self, turn: int) -> float:
        return self._thread.submit(self._launch, turn).result()

    def _launch(self, turn: int) -> float:
        begin = time.monotonic_ns()
        crun = ["crun", "--cgroup-manager=disabled", "--root", str(self._state), "run", "--bundle", str(self._bundle)]
        printed = subprocess.run([*crun, f"tepui-bench-{turn}"], capture_output=True, text=True, check=True).stdout
        return (int(printed) - begin) / 1e6


def _leave_unified() -> None:
    """The calling thread alone, and its children: in a mount namespace of its own, a copy of one that is private."""
    sc.unshare(CLONE_FS | sc.CLONE_NEWNS)
    mount.unmount(UNIFIED)


def _configuration(runtime: str, rootfs: Path) -> dict[str, Any]:
    """The runtime's own default, for the program that prints the clock."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([runtime, "spec"], cwd=directory, check=True)
        configuration: dict[str, Any] = json.loads((Path(directory) / "config.json").read_text())
    configuration["process"] |= {"args": ["/clock"], "terminal": False}
    configuration["root"] = {"path": str(rootfs), "readonly": True}
    return configuration
