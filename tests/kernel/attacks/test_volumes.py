"""Attacks by way of volumes: host paths and links that lead elsewhere, and what a task leaves on the node's disk."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from isolators.base import Unsupported
from isolators.rights import Rights
from model.volume import VolumeKind, VolumeMount, parse_host_volume
from tests.kernel.attacks.attacker import Attacker
from tests.kernel.sandbox import Sandbox, sandbox

pytestmark = pytest.mark.anyio

OWNER = 4242


@pytest.fixture
def permitted(tmp_path: Path) -> Path:
    directory = tmp_path / "permitted"
    directory.mkdir()
    directory.chmod(0o777)
    os.chown(directory, OWNER, OWNER)
    return directory


@pytest.fixture
async def node(host_mounts: None, tmp_path: Path, permitted: Path) -> AsyncIterator[Sandbox]:
    state = tmp_path / "agent" / "containers"
    state.mkdir(mode=0o700, parents=True)
    async with sandbox(state, Rights(host_volumes=frozenset({parse_host_volume(f"{permitted}:rw")}))) as made:
        yield made


def host(path: Path | str) -> VolumeMount:
    return VolumeMount("/volume", VolumeKind.HOST, str(path))


@pytest.mark.parametrize("source", ["../victim", "link", "link/below", "up", "magic/etc"])
async def test_cve_2022_23648_and_2021_43816_a_host_path_stays_in_what_is_permitted(
    attacker: Attacker, permitted: Path, victim: Path, source: str
) -> None:
    """The attacker has put links into a volume of his, and asks for what they lead to."""
    (victim / "below").mkdir()
    script = f"ln -s {victim} /volume/link; ln -s ../victim /volume/up; ln -s /proc/self/root /volume/magic"
    await attacker.shell(script, volumes=(host(permitted),))
    assert (permitted / "link").is_symlink()
    with pytest.raises(Unsupported):
        await attacker.shell("ls /volume", volumes=(host(f"{permitted}/{source}"),))


async def test_cve_2019_5736_and_2022_0492_nothing_that_root_of_the_node_would_run(
    attacker: Attacker, permitted: Path
) -> None:
    """A file that belongs to root and takes on its owner's privileges, made where the node's users can run it."""
    text = await attacker.shell(
        "cp /bin/true /volume/run && chmod 6755 /volume/run && chown 0:0 /volume/run; chown 1:1 /volume/run;"
        " stat -c %u:%g /volume/run; /volume/run && echo ran",
        volumes=(host(permitted),),
    )
    assert "ran" in text
    status = (permitted / "run").stat()
    assert (status.st_uid, status.st_gid) == (OWNER, OWNER)


async def test_a_device_in_a_volume_opens_nothing(attacker: Attacker, permitted: Path) -> None:
    os.mknod(permitted / "kmsg", stat.S_IFCHR | 0o666, os.makedev(1, 11))
    (permitted / "kmsg").chmod(0o666)
    text = await attacker.shell("head -c 1 /volume/kmsg && echo opened", volumes=(host(permitted),))
    assert "opened" not in text and "Permission denied" in text


@pytest.mark.parametrize("kind", [VolumeKind.EPHEMERAL, VolumeKind.PERSISTENT])
async def test_cve_2018_15664_a_task_can_not_make_the_agent_follow_its_links(
    attacker: Attacker, victim: Path, kind: VolumeKind
) -> None:
    """It fills its volume with links and is cleared away; and a volume is no way to make another one's directory."""
    mount = VolumeMount("/volume", kind, "volume.1" if kind is VolumeKind.PERSISTENT else "volume", size=1)
    await attacker.shell(f"ln -s {victim} /volume/out; ln -s / /volume/root; mkdir /volume/d", volumes=(mount,))
    await attacker.node.clean()
    assert json.loads((victim / "file").read_text()) == "untouched"
    for name in ("../victim", "..", "a/b", ".removed-x", ""):
        with pytest.raises(Unsupported):
            await attacker.shell("true", volumes=(VolumeMount("/volume", kind, name, size=1),))


async def test_cve_2024_25621_volumes_are_closed_to_the_nodes_users(attacker: Attacker, tmp_path: Path) -> None:
    mounts = (
        VolumeMount("/one", VolumeKind.PERSISTENT, "volume.1", size=1),
        VolumeMount("/two", VolumeKind.EPHEMERAL, "two"),
    )
    container, _ = await attacker.node.start(attacker._task("sleep", "1", volumes=mounts))
    for directory in (tmp_path / "agent/volumes", container.layer / "volumes"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
