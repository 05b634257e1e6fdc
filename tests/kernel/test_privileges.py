"""Capabilities, kernel settings, users and secrets, as a program in a real container finds them."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.launcher.client import LaunchError
from isolators.mount import mount_points
from isolators.rights import Rights
from isolators.secrets import SecretsIsolator
from model.capability import DEFAULT
from model.task import Secret
from tests.kernel.sandbox import ID_BASE, Sandbox, mounts_below, root_directory, sandbox, task

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

SECRET = Secret("password", "hunter2\n")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Sandbox]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with sandbox(state, Rights(capabilities=frozenset({"CAP_NET_RAW"}))) as made:
        yield made


async def shell(node: Sandbox, script: str, **changes: Any) -> str:
    ended, text = await node.run(task("web.1", "sh", "-c", script, **changes))
    assert ended.code == 0, (ended, text)
    return text


@pytest.mark.parametrize(
    ("add", "drop", "mask"),
    [((), ("ALL",), 0), (("CAP_NET_RAW",), ("ALL",), 1 << 13), (("CAP_KILL",), ("ALL",), 1 << 5)],
)
async def test_capabilities_are_those_asked_for(
    node: Sandbox, add: tuple[str, ...], drop: tuple[str, ...], mask: int
) -> None:
    text = await shell(node, "cat /proc/self/status", capabilities_add=add, capabilities_drop=drop)
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {mask}
    assert len(DEFAULT) > mask.bit_count()


async def test_calls_follow_the_capabilities(node: Sandbox) -> None:
    """Without CAP_SYS_CHROOT the filter denies chroot, before the kernel would look."""
    script = "import os\ntry: os.chroot('/missing')\nexcept OSError as e: print(e.errno)"
    for drop, number in (((), 2), (("CAP_SYS_CHROOT",), 1)):
        name = f"web.{number}"
        _, text = await node.run(task(name, "python3", "-I", "-S", "-c", script, capabilities_drop=drop))
        assert text == f"{number}\n"


async def test_sysctls_are_set_in_the_container_alone(node: Sandbox) -> None:
    given = {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmni": "99", "fs.mqueue.queues_max": "7"}
    paths = ["/proc/sys/" + name.replace(".", "/") for name in given]
    before = read(paths)
    text = await shell(node, f"cat {' '.join(paths)}", sysctls=tuple(given.items()))
    assert text.split() == list(given.values())
    assert read(paths) == before


@pytest.mark.parametrize("name", ["net.core.bpf_jit_harden", "net.ipv4.invented", "net.ipv4"])
async def test_a_setting_that_the_kernel_does_not_let_a_container_make_is_named(node: Sandbox, name: str) -> None:
    container = node.container(task("web.1", "true", sysctls=((name, "1"),)))
    launch = await node.create(container)
    await node.prepare(container)
    with pytest.raises(LaunchError, match=f"set sysctl {name}"):
        await node.fill(container, launch)


async def test_sysctls_do_not_go_by_the_images_proc(node: Sandbox, tmp_path: Path) -> None:
    """CVE-2025-52881: a file system of the image's in the place of procfs receives what is written."""
    image = root_directory(tmp_path / "image")
    (image / "proc/sys/kernel").mkdir(parents=True)
    (image / "proc/sys/kernel/shmmni").write_text("1")
    text = await shell(node, "cat /proc/sys/kernel/shmmni", rootfs=str(image), sysctls=(("kernel.shmmni", "98"),))
    assert text == "98\n"
    assert (image / "proc/sys/kernel/shmmni").read_text() == "1"


async def test_supplementary_groups_are_the_images(node: Sandbox, tmp_path: Path) -> None:
    image = root_directory(tmp_path / "image")
    (image / "etc/group").write_text("web:x:1000:\nfirst:x:20:web\nsecond:x:21:root,web\nother:x:22:root\n")
    assert (await shell(node, "id -u; id -G", rootfs=str(image), user="web")).split() == ["1000", "1000", "20", "21"]


async def test_secrets_are_read_only_files_of_the_user(node: Sandbox) -> None:
    look = (
        "cat /run/secrets/password; stat -c '%a %u:%g' /run/secrets /run/secrets/password; stat -f -c %T /run/secrets;"
    )
    touch = "touch /run/secrets/x 2>&- || echo closed; cat /proc/self/mountinfo | grep /run/secrets"
    text = await shell(node, look + touch, user="1000:100", secrets=(SECRET,))
    assert text.splitlines()[:5] == ["hunter2", "500 1000:100", "400 1000:100", "ramfs", "closed"]
    assert " ro,nosuid,nodev,noexec" in text


async def test_secrets_are_closed_to_other_users_of_the_container(node: Sandbox) -> None:
    script = (
        "import os\nos.setgid(7), os.setuid(7)\ntry: open('/run/secrets/password')\nexcept OSError as e: print(e.errno)"
    )
    _, text = await node.run(task("web.1", "python3", "-I", "-S", "-c", script, secrets=(SECRET,)))
    assert text == "13\n"


async def test_secrets_are_in_no_file_of_the_node(node: Sandbox) -> None:
    container, _ = await node.start(task("web.1", "sleep", "infinity", secrets=(SECRET,)))
    memory = container.directory / "secrets"
    files = [path for path in everything_below(container.directory) if not path.is_relative_to(memory)]
    files = [path for path in files if not path.is_fifo()]  # what the container writes
    assert [path for path in files if b"hunter2" in path.read_bytes()] == []
    assert [point.kind for point in mount_points() if point.path == memory] == ["ramfs"]
    status = (memory / "password").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o400, ID_BASE)


async def test_secrets_of_nobody_are_let_go(node: Sandbox) -> None:
    containers = [node.container(task(name, "true", secrets=(SECRET,))) for name in ("web.1", "web.2")]
    for container in containers:
        await node.create(container)
        await node.prepare(container)
    await SecretsIsolator(node.state).recover(containers[:1], ["web.2"])
    assert [path.parent.name for path in mounts_below(node.state) if path.name == "secrets"] == ["web.1"]


def read(paths: list[str]) -> list[str]:
    return [Path(path).read_text() for path in paths]


def everything_below(directory: Path) -> list[Path]:
    """Without what is mounted there of the node's."""
    found = []
    for above, below, files in os.walk(directory):
        below[:] = [name for name in below if name != "rootfs"]
        found += [Path(above, name) for name in files]
    return found
