"""Attacks on what starts a container: its executable, its open files, its users, its sockets and its state."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.containers import Directories
from agent.launcher.client import LaunchError
from isolators.base import Unsupported
from isolators.mount import mount_points
from tests.kernel.attacks.attacker import INSIDE, Attacker
from tests.kernel.sandbox import Sandbox, task

pytestmark = pytest.mark.anyio


OVERWRITE = """
held = os.open("/proc/self/exe", os.O_PATH)
names = ["/proc/self/exe", "/proc/1/exe", f"/proc/self/fd/{held}", os.path.realpath("/proc/self/exe")]
found = [attempt(name, flags) for name in names for flags in (os.O_WRONLY, os.O_RDWR | os.O_TRUNC)]
os.dup2(held, 9)
print(json.dumps(found), flush=True)
os.execv("/bin/sh", ["sh", "-c", "(echo x > /proc/self/fd/9) && echo overwritten"])
"""
LEAKED = 40  # descriptors 3 and up


async def test_cve_2019_5736_runtime_is_not_overwritten_through_its_executable(attacker: Attacker) -> None:
    """The container's program is whatever executes it: the node's interpreter. It tries to open itself for writing, and
    again when it has become another program and nobody in the container executes it."""
    before = digest(sys.executable)
    argv = ("/proc/self/exe", "-I", "-S", "-c", f"{INSIDE}\nimport json\n{OVERWRITE}")
    _, text = await attacker.node.run(task("attacker.1", *argv))
    assert set(json.loads(text.splitlines()[0])) <= {"EACCES", "EROFS"}, text
    assert "overwritten" not in text
    assert digest(sys.executable) == before


async def test_cve_2019_5736_an_image_that_names_it_as_interpreter(attacker: Attacker, image: Path) -> None:
    before = digest(sys.executable)
    (image / "bin/evil").write_text("#!/proc/self/exe\nopen('/proc/self/exe', 'wb')\n")
    (image / "bin/evil").chmod(0o755)
    ended, _ = await attacker.node.run(task("attacker.1", "/bin/evil", rootfs=str(image)))
    assert ended.code != 0
    assert digest(sys.executable) == before


async def test_cve_2024_21626_leaked_descriptors_are_no_way_out(node: Sandbox) -> None:
    """Whoever starts the launcher has left directories of the node open, for every program that it executes."""
    leaked = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(LEAKED)]
    try:
        for descriptor in leaked:
            os.set_inheritable(descriptor, True)
        for number in range(3, LEAKED):
            container = node.container(task(f"attacker.{number}", "pwd", cwd=f"/proc/self/fd/{number}"))
            launch = await node.create(container)
            await node.prepare(container)
            with pytest.raises(LaunchError, match="change directory"):
                await node.fill(container, launch)
    finally:
        for descriptor in leaked:
            os.close(descriptor)


async def test_cve_2024_21626_only_the_standard_streams_are_open(attacker: Attacker) -> None:
    assert await attacker.find("found = sorted(map(int, os.listdir('/proc/self/fd')))[:-1]") == [0, 1, 2]
    assert await attacker.find("found = [os.readlink(f'/proc/1/fd/{n}')[:5] for n in range(1)]") == ["/dev/"]


async def test_cve_2022_29162_and_2022_27650_nothing_is_inheritable(attacker: Attacker) -> None:
    for user in ("0:0", "1000:1000"):
        text = await attacker.shell("cat /proc/self/status", user=user)
        assert "CapInh:\t0000000000000000" in text and "CapAmb:\t0000000000000000" in text


@pytest.mark.parametrize("user", ["4294967296", "-1", "0x0", " 0", "+0", "4294967295:0", "65536", "0:65536", "\u0660"])
async def test_cve_2026_30892_and_2024_40635_users_are_parsed_strictly(node: Sandbox, user: str) -> None:
    with pytest.raises(Unsupported, match="user"):
        await node.start(task("attacker.1", "id", user=user))


async def test_cve_2020_15257_no_abstract_socket_is_ours(attacker: Attacker) -> None:
    """They belong to the network, so a container in the node's would reach them. The test's network is new: all that
    is in it are sockets of this test, its launcher and its keepers."""
    await attacker.node.start(task("web.1", "sleep", "infinity"))
    assert [name for name in unix_sockets() if name.startswith("@")] == []


def test_cve_2024_25621_state_is_closed_to_others(tmp_path: Path) -> None:
    """Also when the directories were there before, and open."""
    directories = Directories(tmp_path / "agent")
    (tmp_path / "agent" / "tasks").mkdir(parents=True, mode=0o777)
    (tmp_path / "agent").chmod(0o777)
    directories.make()
    made = [path for path in (tmp_path / "agent", *(tmp_path / "agent").rglob("*")) if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}


@pytest.mark.parametrize("kind", ["pid", "ipc", "user", "mount"])
async def test_cve_2021_3283_no_namespace_is_the_nodes(node: Sandbox, kind: str) -> None:
    """A bundle that leaves one out, or names one to join, is not run."""

    def leave_out(config: dict[str, Any]) -> None:
        spaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [space for space in spaces if space["type"] != kind]

    def join(config: dict[str, Any]) -> None:
        for space in config["linux"]["namespaces"]:
            if space["type"] == kind:
                space["path"] = "/proc/1/ns/" + {"mount": "mnt"}.get(kind, kind)

    for number, change in enumerate((leave_out, join)):
        container = node.container(task(f"attacker.{number}", "true"))
        with pytest.raises(LaunchError, match="linux/namespaces"):
            await node.create(container, change)
        container = node.container(task(f"attacker.late.{number}", "true"))
        launch = await node.create(container)
        await node.prepare(container, change)
        with pytest.raises(LaunchError, match="linux/namespaces"):
            await node.fill(container, launch)


async def test_cve_2021_3283_the_nodes_network_takes_a_right(node: Sandbox) -> None:
    with pytest.raises(Unsupported, match="host_network"):
        await node.create(node.container(task("attacker.1", "true", network="host")))


async def test_cve_2018_15664_and_2024_1329_links_in_a_container_lead_nowhere(
    attacker: Attacker, image: Path, victim: Path
) -> None:
    """Links at every path that agent and launcher touch: the files of name resolution, users, mount points, and what
    is removed afterwards (CVE-2022-24683, CVE-2026-6959)."""
    for name in ("etc/hosts", "etc/resolv.conf", "etc/hostname", "run", "upper", "work"):
        (image / name).unlink(missing_ok=True)
        (image / name).symlink_to(f"../../../../../../../../../..{victim}/{Path(name).name}")
    await attacker.shell(
        f"ln -s {victim} /tree; ln -s {victim} /tmp/tree; ln -sf {victim}/file /etc/passwd", rootfs=str(image)
    )
    await attacker.node.clean()
    assert os.listdir(victim) == ["file"]
    assert (victim / "file").read_text() == '"untouched"'
    assert [point.path for point in mount_points() if point.path.is_relative_to(victim)] == []


async def test_cve_2018_15664_users_are_not_looked_up_through_links(
    attacker: Attacker, image: Path, victim: Path
) -> None:
    (victim / "passwd").write_text("web:x:0:0::/:/bin/sh\n")
    (image / "etc/passwd").unlink()
    (image / "etc/passwd").symlink_to(f"../../../../../../../..{victim}/passwd")
    with pytest.raises(Unsupported, match="not in the container's /etc/passwd"):
        await attacker.shell("true", rootfs=str(image), user="web")


def unix_sockets() -> list[str]:
    """The names of those that have one."""
    lines = Path("/proc/thread-self/net/unix").read_text().splitlines()[1:]
    return [line.split(maxsplit=7)[7] for line in lines if len(line.split()) > 7]


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).resolve().read_bytes()).hexdigest()
