"""A foreign runtime, Debian's podman, with `tepui-cni` as its network, as an operator sets it up."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from agent.foreign import id_of
from netns.driver import Attachment
from netns.firewall.nftables import NftFirewall
from netns.firewall.table import Zone
from netns.link import veth_name
from netns.networks import Networks
from tests.kernel.cni import DEBIAN
from tests.kernel.foreign import PLUGIN, Door, door, until
from tests.kernel.namespaces import Echo, NetnsProcess, ip, run
from tests.kernel.test_cni_socket import UNDERLAY, spec
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio

DEADLINE_S = 60.0 * PATIENCE
UNIFIED = "/sys/fs/cgroup/unified"
CONTAINERS_CONF = """
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{networks}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
"""


@dataclass(frozen=True, slots=True)
class Podman:
    """All of its directories are the test's."""

    directory: Path

    def prepare(self, conflist: dict[str, Any]) -> None:
        for name in ("plugins", "networks", "rootfs/bin"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "plugins/tepui-cni").symlink_to(PLUGIN)
        (self.directory / "plugins/tuning").symlink_to(DEBIAN / "tuning")
        (self.directory / "networks/10-tepui.conflist").write_text(json.dumps(conflist))
        places = {name: self.directory / name for name in ("plugins", "networks")}
        (self.directory / "containers.conf").write_text(CONTAINERS_CONF.format(**places))
        shutil.copy("/bin/busybox", self.directory / "rootfs/bin/busybox")

    async def run(self, how: str, script: str, *options: str) -> str:
        limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")  # or it raises them
        rootfs = ("--rootfs", str(self.directory / "rootfs"))
        apart = ("--network=tepui", "--cgroups=disabled")
        return await self("run", how, *apart, *limits, *options, *rootfs, "/bin/busybox", "sh", "-c", script)

    async def __call__(self, *argv: str) -> str:
        places = [f"--{name}={self.directory / name}" for name in ("root", "runroot", "tmpdir")]
        process = await asyncio.create_subprocess_exec(
            "podman", *places, "--storage-driver=vfs", *argv,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "CONTAINERS_CONF": str(self.directory / "containers.conf")},
        )  # fmt: skip
        try:
            async with asyncio.timeout(DEADLINE_S):
                stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, stderr.decode()
        return stdout.decode()


@pytest.fixture
def apart(host_mounts: None) -> None:
    """What podman finds of the machine, or might change of it, is the test's."""
    for words in ("link add card type veth peer wire", f"addr add {UNDERLAY}/24 dev card", "link set card up"):
        run("ip", *words.split())
    for place in ("/run", "/var/lib"):
        run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", place)
    if os.path.ismount(UNIFIED):
        run("umount", UNIFIED)  # crun refuses a hybrid of both versions


@pytest.fixture
async def node(apart: None, tmp_path: Path) -> AsyncIterator[Door]:
    prod, firewall = spec("prod", 1), NftFirewall()
    async with Networks(tmp_path / "agent", "n1", "boot-1", UNDERLAY) as networks:
        await firewall.configure((Zone(prod.network, tuple(b.subnet for b in prod.blocks)),), (), {}, frozenset())
        await networks.configure(prod)
        async with door(tmp_path / "agent", networks, firewall) as opened:
            yield opened
        await firewall.remove()


@pytest.fixture
async def podman(node: Door, tmp_path: Path) -> AsyncIterator[Podman]:
    made = Podman(tmp_path / "podman")
    socket_path, capabilities = str(node.runtime.socket), {"portMappings": True}
    ours = {"type": "tepui-cni", "network": "prod", "socket": socket_path, "capabilities": capabilities}
    tuning = {"type": "tuning", "sysctl": {"net.core.somaxconn": "1024"}, "dataDir": str(tmp_path / "tuning")}
    made.prepare({"cniVersion": "1.0.0", "name": "tepui", "plugins": [ours, tuning]})
    yield made
    await made("rm", "--force", "--all", "--time=0")


async def test_a_container_of_podman_reaches_one_of_ours(
    node: Door, podman: Podman, spawn: Callable[[], NetnsProcess], echo_server: Callable[[int], Echo]
) -> None:
    own = spawn()
    [address, _] = await node.networks.attach(Attachment("own", "prod", own.pid))
    port = echo_server(own.pid).port
    script = f"busybox ip -4 -o addr show eth0; echo hello | busybox nc {address} {port}"
    link, client, hello = (await podman.run("--rm", script)).splitlines()
    assert f" {client}/32 " in link and ip_address(client) != address and hello == "hello"
    assert node.records() == [] and ours() == {veth_name("own")}


async def test_a_port_that_podman_publishes(node: Door, podman: Podman) -> None:
    script = "while :; do echo here | busybox nc -l -p 80; done"
    container = (await podman.run("--detach", script, "--publish=8080:80")).strip()
    await until(lambda: answer(8080) == b"here\n")
    assert node.records() == [id_of(container, "eth0")] and len(ours()) == 1
    await podman("rm", "--force", "--time=0", container)
    assert answer(8080) == b"" and node.records() == [] and ours() == set()


def ours() -> set[str]:
    return {link["ifname"] for link in ip("link") if link["ifname"].startswith("tv")}


def answer(port: int) -> bytes:
    """Nothing, when nobody is there."""
    try:
        with socket.create_connection((str(UNDERLAY), port), timeout=1.0) as connection:
            return connection.recv(100)
    except OSError:
        return b""
