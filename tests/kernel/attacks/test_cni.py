"""Whoever may define a CNI network, or write somewhere near the plug-ins, does not get another program run as root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from netns.cni.driver import CniDriver
from netns.cni.execute import opened
from netns.driver import Attachment, NetworkError
from tests.kernel.cni import commands, conflist, script, spec
from tests.kernel.namespaces import NetnsProcess

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

NOBODY = 65534


@pytest.fixture
def bin(tmp_path: Path) -> Path:
    """The directory of plug-ins. Beside it is a program that is none."""
    directory = tmp_path / "bin"
    directory.mkdir(mode=0o755)
    script(tmp_path, "evil", "done()")
    script(directory, "good", "done()")
    return directory


@pytest.fixture
def driver(tmp_path: Path, bin: Path) -> CniDriver:
    return CniDriver(tmp_path / "cni", [bin])


@pytest.mark.parametrize(
    "name", ["../evil", "../../bin/ls", "/bin/ls", "good/../../evil", "..", ".", "", "a\0b", "a\n"]
)
@pytest.mark.parametrize(
    "place",
    [
        lambda name: {"type": name},
        lambda name: {"type": "good", "Type": name},  # plug-ins in Go take both for one, and the last wins
        lambda name: {"type": "good", "ipam": {"type": name}},
        lambda name: {"type": "good", "ipam": {"type": "good", "TYPE": name}},
        lambda name: {"type": "good", "delegates": [{"type": "good"}, {"type": name}]},
    ],
)
async def test_names_that_lead_elsewhere(
    driver: CniDriver, bin: Path, tmp_path: Path, name: str, place: Callable[[str], dict[str, object]]
) -> None:
    """CVE-2026-7474."""
    with pytest.raises(NetworkError, match=r'network "sdn": cni.plugins\[0\].*[tT][yY][pP][eE]: '):
        await driver.configure(spec(conflist(place(name))))
    with pytest.raises((NetworkError, ValueError)), opened(name, [bin]):
        pass
    assert (commands(tmp_path, "evil"), driver.known()) == ([], frozenset())


@pytest.mark.parametrize(
    "key", ["Name", "NAME", "cniversion", "PrevResult", "prevRe\u017fult", "runtimeConfig", "cni.dev/x"]
)
async def test_keys_that_would_replace_what_the_node_says(driver: CniDriver, key: str) -> None:
    """host-local keeps its files in a directory of the network's name."""
    with pytest.raises(NetworkError, match=r"cni.plugins\[0\]\."):
        await driver.configure(spec(conflist({"type": "good", key: "../../etc"})))


def link(path: Path) -> None:
    path.symlink_to("/bin/ls")


def directory(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path, 0o755)


def others(path: Path) -> None:
    script(path.parent, path.name, "done()")
    os.chown(path, NOBODY, NOBODY)


def open_to_all(path: Path) -> None:
    script(path.parent, path.name, "done()")
    path.chmod(0o777)


def plain(path: Path) -> None:
    script(path.parent, path.name, "done()")
    path.chmod(0o644)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (link, "is a symbolic link"),
        (directory, "is not a regular file"),
        (pipe, "is not a regular file"),
        (others, "can be changed by others than root"),
        (open_to_all, "can be changed by others than root"),
        (plain, "is not executable"),
    ],
)
@pytest.mark.parametrize("plugin", [{"type": "x"}, {"type": "good", "ipam": {"type": "x"}}])
async def test_entries_that_are_no_plugins(
    driver: CniDriver, bin: Path, make: Callable[[Path], None], words: str, plugin: dict[str, object]
) -> None:
    make(bin / "x")
    with pytest.raises(NetworkError, match=f"plug-in .*: VERSION: .*{words}"):
        await driver.configure(spec(conflist(plugin)))
    assert commands(bin, "x") == []


async def test_entry_that_was_replaced_since(
    driver: CniDriver, bin: Path, tmp_path: Path, spawn: Callable[[], NetnsProcess]
) -> None:
    web = spawn()
    await driver.configure(spec(conflist({"type": "good"})))
    (bin / "good").unlink()
    (bin / "good").symlink_to(tmp_path / "evil")
    with pytest.raises(NetworkError, match="plug-in good: ADD: is a symbolic link"):
        await driver.attach(Attachment("web", "sdn", web.pid))
    assert commands(tmp_path, "evil") == []
    assert list((tmp_path / "cni" / "attachments").iterdir()) == []


@pytest.mark.parametrize(("owner", "mode"), [(0, 0o777), (0, 0o775), (NOBODY, 0o755)])
async def test_directory_that_others_can_write(driver: CniDriver, bin: Path, owner: int, mode: int) -> None:
    os.chown(bin, owner, -1)
    os.chmod(bin, mode)
    with pytest.raises(NetworkError, match=f"{bin} is not root's alone"):
        await driver.configure(spec(conflist({"type": "good"})))
    assert commands(bin, "good") == []
