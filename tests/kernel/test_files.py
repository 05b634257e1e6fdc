"""A container's files, looked at from inside, and containers that try to make something else of it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.commands import Command, Commands
from agent.containers import Containers, Directories
from agent.launcher import descriptors
from isolators.base import Container
from tests.kernel.sandbox import Sandbox, root_directory, sandbox, task, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]
DEADLINE_S = 20.0


@dataclass
class Node:
    made: Sandbox
    commands: Commands

    async def start(self, script: str = "", **changes: Any) -> Container:
        """When the script, which is the container's, has said that it is ready."""
        argv = ("sh", "-c", f"{script}\necho ready; exec sleep infinity")
        container, _ = await self.made.start(task("web.1", *argv, **changes))
        await until(lambda: "ready" in (container.directory / "stdout").read_text(), "the container is ready")
        return container

    async def look(self, container: Container, verb: str, path: str) -> tuple[int, bytes, str]:
        """Exit code, output and reason."""
        command = Command(("files",), user="0:0", cwd="/", files=(verb, path))
        async with asyncio.timeout(DEADLINE_S), self.commands.running(container, command) as running:
            assert running.stderr is not None
            out, err = await asyncio.gather(everything(running.stdout), everything(running.stderr))
            return await running.exited(), out, err.decode()

    async def archive(self, container: Container, path: str) -> dict[str, tarfile.TarInfo]:
        code, out, reason = await self.look(container, "pack", path)
        assert code == 0, reason
        with tarfile.open(fileobj=io.BytesIO(out)) as found:
            return {member.name: member for member in found}


async def everything(descriptor: int) -> bytes:
    data = bytearray()
    while part := await descriptors.read(descriptor):
        data += part
    return bytes(data)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with sandbox(state) as made:
        containers = Containers(Directories(state), made.isolators, made.launcher)
        yield Node(made, Commands(containers, made.launcher))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Without any of the programs that the work is named after."""
    return root_directory(tmp_path / "image", ("sh", "sleep", "mkdir", "ln", "mv", "chown"))


TREE = """
mkdir -p /data/sub; echo one > /data/a; echo two > /data/sub/b; ln -s ../a /data/sub/link; ln -s /etc /data/out
chown 5:6 /data/a; mkdir -p /data/none
"""


async def test_a_directory_is_listed(node: Node, image: Path) -> None:
    container = await node.start(TREE, rootfs=str(image))
    code, out, _ = await node.look(container, "list", "/data")
    entries = {entry["name"]: entry for entry in map(json.loads, out.splitlines())}
    assert code == 0 and entries.keys() == {"a", "sub", "none", "out"}
    assert (entries["a"]["type"], entries["a"]["size"], entries["a"]["uid"], entries["a"]["gid"]) == ("file", 4, 5, 6)
    assert (entries["out"]["type"], entries["out"]["target"]) == ("link", "/etc")
    assert entries["sub"]["type"] == "directory"
    (only,) = map(json.loads, (await node.look(container, "list", "/data/sub/b"))[1].splitlines())
    assert only["name"] == "b"


async def test_a_file_is_read_as_it_is(node: Node, image: Path) -> None:
    data = os.urandom(3 << 20)
    (image / "blob").write_bytes(data)
    container = await node.start(TREE, rootfs=str(image))
    assert await node.look(container, "read", "/blob") == (0, data, "")
    assert await node.look(container, "read", "/data/sub/link") == (0, b"one\n", "")
    assert (await node.look(container, "read", "proc/self/status"))[1].startswith(b"Name:")


async def test_a_tree_is_packed(node: Node, image: Path) -> None:
    container = await node.start(TREE, rootfs=str(image))
    members = await node.archive(container, "/data")
    assert members.keys() == {"data", "data/a", "data/out", "data/none", "data/sub", "data/sub/b", "data/sub/link"}
    assert members["data/sub/link"].linkname == "../a" and members["data"].isdir()
    assert (await node.archive(container, "/data/a")).keys() == {"a"}
    assert {"bin/sh", "data/a", "proc"} <= (await node.archive(container, "/")).keys()


@pytest.mark.parametrize(
    ("verb", "path", "reason"),
    [
        ("list", "/missing", "/missing: No such file or directory"),
        ("read", "/missing", "/missing: No such file or directory"),
        ("read", "/data", "/data: Is a directory"),
        ("pack", "/missing", "/missing: No such file or directory"),
        ("read", "/dev/zero", "/dev/zero: Not a file"),
        ("read", "/proc/1/exe", "/proc/1/exe: Too many levels of symbolic links"),
        ("read", "/proc/self/exe", "/proc/self/exe: Too many levels of symbolic links"),
        ("list", "/proc/1/root/", "/proc/1/root/: Too many levels of symbolic links"),
    ],
)
async def test_what_can_not_be_looked_at_has_its_reason(
    node: Node, image: Path, verb: str, path: str, reason: str
) -> None:
    container = await node.start(TREE, rootfs=str(image))
    assert await node.look(container, verb, path) == (1, b"", reason)


async def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(node: Node, image: Path) -> None:
    os.mkfifo(image / "pipe")
    container = await node.start(rootfs=str(image))
    assert await node.look(container, "read", "/pipe") == (1, b"", "/pipe: Not a file")
    assert "pipe" not in await node.archive(container, "/")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of the node's, open to everybody."""
    directory = tmp_path / "victim"
    directory.mkdir()
    (directory / "secret").write_text("of the node")
    tmp_path.chmod(0o755)
    return directory


async def test_cve_2018_15664_links_that_are_swapped_lead_nowhere(node: Node, victim: Path, image: Path) -> None:
    """A directory that becomes a link to the node's, and back, as fast as the container can."""
    swap = f"""
mkdir -p /trap/box; echo mine > /trap/box/secret; ln -s {victim} /trap/link; cd /trap
(while :; do mv box tmp; mv link box; mv box link; mv tmp box; done) 2>/dev/null &
"""
    container = await node.start(swap, rootfs=str(image))
    for _ in range(15):
        for verb, path in (("read", "/trap/box/secret"), ("pack", "/trap"), ("pack", "/trap/box")):
            _, out, _ = await node.look(container, verb, path)
            assert b"of the node" not in out


async def test_cve_2019_14271_nothing_of_the_containers_is_loaded(node: Node, image: Path) -> None:
    """What Python would import, and the C library would load to know users by name, is the attacker's."""
    for name in ("usr/lib/python3.11", "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"):
        (image / name).mkdir(parents=True, exist_ok=True)
    for module in ("tarfile", "stat", "codecs", "json", "copy", "pwd", "grp", "traceback", "linecache", "encodings"):
        (image / "usr/lib/python3.11" / f"{module}.py").write_text("open('/loaded', 'w')\n")
    (image / "lib/x86_64-linux-gnu/libnss_files.so.2").write_bytes(b"not a library")
    (image / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\n")
    container = await node.start(TREE, rootfs=str(image))
    for verb, path in (("list", "/data"), ("read", "/data/a"), ("pack", "/data"), ("pack", "/missing")):
        await node.look(container, verb, path)
    assert not (container.rootfs / "loaded").exists()


async def test_a_task_without_capabilities_shows_what_its_root_may_see(node: Node, image: Path) -> None:
    container = await node.start("mkdir /data; echo one > /data/a", rootfs=str(image), capabilities_drop=("ALL",))
    assert await node.look(container, "read", "/data/a") == (0, b"one\n", "")
