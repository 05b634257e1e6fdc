"""Tepui itself in a lab: a master and an agent on every node, made with the commands that an operator uses."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lab.cluster import MASTER, Lab
from lab.errors import LabError
from lab.record import Daemon, Node

Settings = Mapping[str, str]

TEPUI = (sys.executable, "-m", "cli.main")
CPUS_PER_NODE = 2000  # thousandths: all nodes share one machine
MEM_PER_NODE_MIB = 2048
DISK_PER_NODE_MIB = 10240
ENROL_PORT = 8445
START_DEADLINE_S = 30.0
POLL_S = 0.1
NO_SETTINGS: Settings = MappingProxyType({})


def start_cluster(
    lab: Lab, nodes: int, settings: Settings = NO_SETTINGS, agents: Mapping[str, Settings] = MappingProxyType({})
) -> None:
    """A lab whose nodes have all joined and are connected. Removes it again when that fails. `settings` are variables
    (TEPUI_MASTER_...) of the master's environment, `agents` those (TEPUI_AGENT_...) of nodes' agents by name."""
    lab.up(nodes)
    try:
        members = lab.nodes()[1:]
        token = start_master(lab, nodes, settings)
        for node in members:
            join(lab, node, token)
            start_agent(lab, node, agents.get(node.name, NO_SETTINGS))
        wait_until(lambda: len(connected(lab)) == nodes, f"{nodes} nodes are connected", START_DEADLINE_S)
    except BaseException:
        lab.down()
        raise


def start_master(lab: Lab, uses: int, settings: Settings = NO_SETTINGS) -> str:
    """Returns a join token for that many nodes."""
    master = lab.node(MASTER)
    address, state = str(master.address), str(master.state)
    made = _run(lab, master, "master", "init", "--address", address, "--uses", str(uses), "--state", state, "--json")
    lab.start(MASTER, Daemon("master", (*TEPUI, "master", "run", "--state", state), tuple(settings.items())))
    wait_until(lambda: tepui(lab, "node", "list") == [], "the master answers", START_DEADLINE_S)
    return str(json.loads(made)["token"])


def join(lab: Lab, node: Node, token: str) -> None:
    """Get the node its certificate."""
    port = f"{lab.node(MASTER).address}:{ENROL_PORT}"
    _run(lab, node, "agent", "join", port, "--token", "-", "--name", node.name, "--state", str(node.state), stdin=token)


def start_agent(lab: Lab, node: Node, settings: Settings = NO_SETTINGS) -> None:
    variables = (*_limits(node), *settings.items())
    lab.start(node.name, Daemon("agent", (*TEPUI, "agent", "run", "--state", str(node.state)), variables))


def admin_file(lab: Lab) -> Path:
    return lab.node(MASTER).state / "admin.json"


def tepui(lab: Lab, *arguments: str) -> Any:
    """What `tepui ... --json`, run on the master's node, answers. Raises LabError with what it says on stderr."""
    done = lab.exec(MASTER, [*TEPUI, *arguments, "--json"], {"TEPUI_ADMIN": str(admin_file(lab))})
    if done.returncode != 0:
        raise LabError(f"tepui {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return json.loads(done.stdout)


def connected(lab: Lab) -> list[str]:
    """The nodes that have a session with the master."""
    return [node["id"] for node in tepui(lab, "node", "list") if node["connected"]]


def wait_until(condition: Any, what: str, deadline_s: float) -> None:
    """Poll until `condition()` is true. Raises LabError that names `what` and why the last attempt failed."""
    end = time.monotonic() + deadline_s
    reason = ""
    while True:
        try:
            if condition():
                return
        except LabError as error:
            reason = f" ({error})"
        if time.monotonic() > end:
            raise LabError(f"not within {deadline_s:g} s: {what}{reason}")
        time.sleep(POLL_S)


def _run(lab: Lab, node: Node, *arguments: str, stdin: str = "") -> str:
    done = lab.exec(node.name, [*TEPUI, *arguments], stdin=stdin)
    if done.returncode != 0:
        raise LabError(f"{node.name}: tepui {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return done.stdout


def _limits(node: Node) -> tuple[tuple[str, str], ...]:
    return (
        ("TEPUI_AGENT_CGROUP", node.cgroup),
        ("TEPUI_AGENT_CPUS", str(CPUS_PER_NODE)),
        ("TEPUI_AGENT_MEM", str(MEM_PER_NODE_MIB)),
        ("TEPUI_AGENT_DISK", str(DISK_PER_NODE_MIB)),
    )


def command(lab: Lab, node: str, argv: Sequence[str]) -> list[str]:
    """As `Lab.command`, with the administrator's credentials at hand and `tepui` in PATH."""
    path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return lab.command(node, argv, {"TEPUI_ADMIN": str(admin_file(lab)), "PATH": path})
