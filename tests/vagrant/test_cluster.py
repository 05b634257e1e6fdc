"""What `vagrant up` brings up is a cluster: `script/test-vagrant` prepares the surroundings and calls this."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import NotYet, eventually

ROOT = Path(__file__).parents[2]
AGENTS = ("agent1", "agent2")
COMMAND_DEADLINE_S = 120.0
REQUESTS = 40
UP_DEADLINE_S = 1800.0
DEADLINE_S = 300.0

Task = dict[str, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """With the example's service on it."""
    try:
        vagrant("up")
        eventually(connected, "both nodes are connected", DEADLINE_S)
        run("master", "cd /opt/tepui && sudo tepui service run examples/web.json")
        yield
    finally:
        vagrant("destroy", "--force")


@pytest.fixture(scope="module")
def tasks(cluster: None) -> list[Task]:
    return eventually(running, "four tasks run", DEADLINE_S)


def test_tasks_run_on_both_nodes(tasks: list[Task]) -> None:
    assert {task["node"] for task in tasks} == set(AGENTS)


@pytest.mark.parametrize("node", AGENTS)
def test_limits_are_those_of_version_2(tasks: list[Task], node: str) -> None:
    task = next(task for task in tasks if task["node"] == node)
    group = run(node, f"cat /proc/{task['pid']}/cgroup").strip().removeprefix("0::")
    directory = f"/sys/fs/cgroup{group}"
    assert group.startswith("/tepui/")
    assert run(node, f"sudo cat {directory}/cpu.max {directory}/memory.max").split() == ["10000", "100000", "67108864"]
    assert run(node, "stat --file-system --format=%T /sys/fs/cgroup").strip() == "cgroup2fs"


@pytest.mark.parametrize("node", AGENTS)
def test_the_vip_answers_with_tasks_of_both_nodes(tasks: list[Task], node: str) -> None:
    (vip,) = json.loads(run("master", "sudo tepui vip list --json"))
    url = f"http://{vip['address']}:{vip['port']}/"
    nodes = {task["id"]: task["node"] for task in tasks}
    eventually(lambda: {nodes[task] for task in answers(node, url)} == set(AGENTS), "both nodes answer", DEADLINE_S)


def test_containers_outlive_their_agent(tasks: list[Task]) -> None:
    run("agent1", "sudo systemctl restart tepui-agent")
    eventually(connected, "the agent has come back", DEADLINE_S)
    assert {(task["id"], task["pid"]) for task in running()} == {(task["id"], task["pid"]) for task in tasks}


def answers(node: str, url: str) -> list[str]:
    """The ids of the tasks that answer to that many requests."""
    one = f"urlopen('{url}', timeout=9).read().decode()"
    ask = f"from urllib.request import urlopen; print(*({one} for _ in range({REQUESTS})))"
    return run(node, f'python3 -c "{ask}"').split()


def connected() -> bool:
    nodes = json.loads(run("master", "sudo tepui node list --json"))
    return {node["id"] for node in nodes if node["connected"]} == set(AGENTS)


def running() -> list[Task]:
    tasks: list[Task] = json.loads(run("master", "sudo tepui task list --json"))
    settled = len(tasks) == 4 and all(task["state"] == "RUNNING" for task in tasks)
    return tasks if settled else []


def vagrant(*arguments: str) -> None:
    """Its progress goes to the test's output, less the lines that it writes over."""
    argv = ["vagrant", *arguments]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=UP_DEADLINE_S)
    lines = [line.rpartition("\r")[2] for line in done.stdout.decode(errors="replace").split("\n")]
    print(*lines, sep="\n")
    assert done.returncode == 0, f"vagrant {' '.join(arguments)}: exit {done.returncode}"


def run(machine: str, command: str) -> str:
    argv = ["vagrant", "ssh", machine, "--no-tty", "--command", command]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S)
    if done.returncode != 0:
        raise NotYet(f"{machine}: {command}: exit {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout
