"""What can't work is refused at the start: one clear line, exit status 1, and nothing changed on the disk."""

from __future__ import annotations

import hashlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import Lab
from lab.daemons import TEPUI
from tests.cluster import bed

NODE = "n1"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node, where nothing runs."""
    lab = Lab(bed.new_name())
    try:
        lab.up(1)
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="module")
def master(lab: Lab) -> Path:
    """The state of a master that never ran."""
    state = lab.node(NODE).state / "master"
    assert tepui(lab, "master", "init", "--state", str(state)).returncode == 0
    return state


@pytest.mark.parametrize("port", [8443, 8444, 8445])
def test_master_whose_port_is_in_use(lab: Lab, master: Path, port: int) -> None:
    with lab.within(NODE, lambda: socket.create_server(("", port))):
        refused(lab, master, ["master", "run", "--state", str(master)], str(port), "in use")


def test_master_that_may_not_read_its_state(lab: Lab, master: Path) -> None:
    refused(lab, master, ["master", "run", "--state", str(master)], str(master), "Permission denied", become=NOBODY)


def test_master_that_was_never_made(lab: Lab) -> None:
    state = lab.node(NODE).state / "none"
    refused(lab, state, ["master", "run", "--state", str(state)], "tepui master init")


def test_second_cluster_in_the_same_place(lab: Lab, master: Path) -> None:
    refused(lab, master, ["master", "init", "--state", str(master)], "already")


def test_agent_without_root(lab: Lab) -> None:
    state = lab.node(NODE).state / "agent"
    refused(lab, state, ["agent", "run", "--state", str(state)], "needs root", become=NOBODY)


def test_agent_on_a_machine_that_lacks_a_controller(lab: Lab) -> None:
    state = lab.node(NODE).state / "agent"
    without_pids = ("unshare", "-m", "sh", "-c", 'umount /sys/fs/cgroup/pids && exec "$@"', "sh")
    refused(
        lab,
        state,
        ["agent", "run", "--state", str(state)],
        "cgroup controllers pids are not mounted",
        become=without_pids,
    )


def refused(lab: Lab, state: Path, arguments: list[str], *words: str, become: tuple[str, ...] = ()) -> None:
    before = contents(state)
    done = tepui(lab, *arguments, become=become)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.startswith("tepui: ") and contents(state) == before


def tepui(lab: Lab, *arguments: str, become: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return lab.exec(NODE, [*become, *TEPUI, *arguments])


def contents(directory: Path) -> dict[str, str]:
    """Every file with a digest of what is in it; but for the lock, which says who held it last."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
