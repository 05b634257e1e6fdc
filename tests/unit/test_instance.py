"""One agent for one state directory, and what it says of tasks that no longer fit its node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.instance import InUse, alone_in
from cli.node import describe
from model.fit import misfits
from model.limits import Device, TaskLimits
from model.resources import Resources
from tests.unit.control import task

HOLD = """
import pathlib, sys
from agent.instance import alone_in
with alone_in(pathlib.Path(sys.argv[1])):
    print(1, flush=True)
    sys.stdin.read()
"""


def test_a_second_agent_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    state = tmp_path / "agent"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with first:
        assert first.stdout is not None and first.stdout.readline() == b"1\n"
        with pytest.raises(InUse, match=rf"another agent \(process {first.pid}\) uses"), alone_in(state):
            pass
        first.kill()
        first.wait()
    with alone_in(state):
        pass


def test_what_fits_is_not_spoken_of() -> None:
    assert misfits([], Resources(), frozenset()) == []
    assert misfits([task("a")], task("a").resources, frozenset()) == []


def test_what_no_longer_fits_is_told() -> None:
    tasks = [
        task("a", 1500, 64),
        task("b", 500, 64, capabilities_add=("CAP_SYS_PTRACE",), seccomp="unconfined"),
        task("c", 0, 0, limits=TaskLimits(devices=(Device("/dev/fuse"),))),
    ]
    assert misfits(tasks, Resources(cpus=1000, mem=100), frozenset({"device /dev/fuse"})) == [
        "its tasks hold 1 CPU more than it has",
        "its tasks hold 28 MiB memory more than it has",
        "task b has capability CAP_SYS_PTRACE, which it no longer permits",
        "task b has seccomp unconfined, which it no longer permits",
    ]


def test_a_node_is_described() -> None:
    amounts = {"cpus": 2.0, "mem": 1024}
    node = {
        "id": "n1",
        "hostname": "host",
        "address": "192.0.2.1",
        "state": "online",
        "connected": False,
        "draining": True,
        "tasks": 3,
        "resources": amounts,
        "used": {"cpus": 0.5, "mem": 64},
        "attributes": {"rack": "a"},
        "rights": ["network host"],
        "errors": ["no link"],
        "misfits": ["too much"],
    }
    assert list(describe(node)) == [
        ("node", "n1 (host, 192.0.2.1)"),
        ("state", "online, draining, no session"),
        ("tasks", "3"),
        ("cpus", "0.5 of 2"),
        ("mem", "64 of 1024"),
        ("attributes", "rack=a"),
        ("permits", "network host"),
        ("problem", "no link"),
        ("problem", "too much"),
    ]
