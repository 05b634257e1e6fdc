"""Master and agent as systemd runs them, in one machine, by the units of `packaging/systemd`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.sandboxes import SPARES
from cli.client import Admin, Client
from cli.problem import Problem
from tests import waiting
from tests.vm.machine import Machine
from tests.vm.tree import HOME

pytestmark = pytest.mark.timeout(900)

DEADLINE_S = 180.0
CONTAINERS = "/sys/fs/cgroup/tepui"
SETTINGS = "/var/lib/tepui/agent/agent.toml"
DROP_IN = "/etc/systemd/system/tepui-master.service.d"
BUNDLES = "/var/lib/tepui/agent/run/containers"
APP = {
    "id": "/web",
    "cmd": "trap 'exit 0' TERM; while :; do sleep 1 & wait; done",
    "instances": 2,
    "cpus": 0.25,
    "mem": 48,
    "networks": [{"mode": "container", "name": "overlay"}],
    "taskKillGracePeriodSeconds": 1,
}
MIB = 1 << 20
LIMITS = {
    "cpu.max": "25000 100000",
    "memory.max": str(48 * MIB),
    "memory.swap.max": "0",
    "memory.oom.group": "1",
    "pids.max": "1024",
}
WAITING = "tepui-maker"  # whoever waits for a task has the name of what made it

Task = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cluster:
    """The machine, and the API of the master in it. That is asked from here, where Python starts quickly."""

    vm: Machine
    api: Client

    def tasks(self) -> list[Task]:
        return list(self.api.get("/api/v1/tasks")["tasks"])

    def running(self, count: int) -> list[Task]:
        """All tasks, if they are as many and all of them run."""
        tasks = self.tasks()
        settled = len(tasks) == count and all(task["state"] == "RUNNING" and not task["killing"] for task in tasks)
        return tasks if settled else []

    def scale(self, instances: int) -> None:
        self.api.put("/v2/apps/web?force=true", {"instances": instances})

    def connected(self) -> bool:
        return [node["connected"] for node in self.api.get("/api/v1/nodes")["nodes"]] == [True]

    def systemctl(self, action: str) -> str:
        return self.vm.run(f"systemctl {action}").strip()

    def main_pid(self, unit: str) -> str:
        return self.systemctl(f"show --property=MainPID --value {unit}")

    def processes(self) -> dict[str, str]:
        """The first process of each container, with the time of its start."""
        look = 'stat --format="%n %Z" /proc/$(head -n 1 $directory/cgroup.procs)'
        lines = self.vm.run(f"for directory in {' '.join(self.groups())}; do {look}; done")
        return dict(line.split() for line in lines.splitlines())

    def groups(self) -> list[str]:
        """The cgroups of containers, less the spares'."""
        return [directory for directory, name in self._first_processes() if name != WAITING]

    def spares(self) -> list[str]:
        """Those of sandboxes that wait for a task."""
        return [directory for directory, name in self._first_processes() if name == WAITING]

    def _first_processes(self) -> list[tuple[str, str]]:
        """Their names, by cgroup; an empty one when there is none."""
        name = "cat /proc/$(head -n 1 $directory/cgroup.procs)/comm"
        look = f"for directory in {CONTAINERS}/*/; do [ -d $directory ] && echo $directory $({name}); done; true"
        parts = (line.partition(" ") for line in self.vm.run(look).splitlines())
        return [(directory, name) for directory, _, name in parts]


@pytest.fixture(scope="module")
def cluster(vm: Machine) -> Cluster:
    """With two tasks of an app, both running. An agent that takes long to start again is no lost node."""
    patience = shlex.quote(f"[Service]\nEnvironment=TEPUI_MASTER_LOST_AFTER_S={DEADLINE_S}\n")
    vm.run(f"mkdir {DROP_IN} && printf {patience} >{DROP_IN}/patience.conf")
    vm.run(f"{HOME}/vagrant/provision master 10.0.2.15")
    admin = json.loads(vm.run("cat /var/lib/tepui/master/admin.json"))
    made = Cluster(vm, Client(Admin(**admin | {"url": f"https://127.0.0.1:{vm.forward(8443)}"})))
    eventually(lambda: made.tasks() == [], "the master answers")
    token = made.api.post("/api/v1/tokens", {"ttl_s": 3600, "uses": 1})["token"]
    vm.run(f"{HOME}/vagrant/provision agent 10.0.2.15 node1", stdin=token.encode())
    made.api.post("/v2/apps", APP)
    eventually(lambda: made.running(2), "two tasks run")
    return made


def test_units_have_no_mistakes(cluster: Cluster) -> None:
    assert cluster.vm.run("systemd-analyze verify tepui-master.service tepui-agent.service") == ""


def test_the_master_is_confined(cluster: Cluster) -> None:
    """systemd rates what a unit may do from 0 to 10; the threshold is in tenths."""
    cluster.vm.run("systemd-analyze security --threshold=15 tepui-master.service")
    process = f"/proc/{cluster.main_pid('tepui-master')}"
    status = cluster.vm.run(f"cat {process}/status")
    assert "CapBnd:\t0000000000000000" in status and "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    assert cluster.vm.run(f"stat --format=%U {process}").strip() == "tepui"


def test_limits_are_the_kernels(cluster: Cluster) -> None:
    for task in cluster.running(2):
        group = cluster.vm.run(f"cat /proc/{task['pid']}/cgroup").strip().removeprefix("0::/tepui/")
        assert limits(cluster, f"{CONTAINERS}/{group}") == LIMITS
        told = task["limits"]
        assert (told["cpus"], told["mem_bytes"], told["pids"]) == (0.25, 48 * MIB, int(LIMITS["pids.max"]))


def test_systemd_reloaded_takes_no_controller_away(cluster: Cluster) -> None:
    before = cluster.vm.run(f"cat {CONTAINERS}/cgroup.controllers")
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(before.split())
    cluster.systemctl("daemon-reload")
    cluster.systemctl("daemon-reexec")
    assert cluster.vm.run(f"cat {CONTAINERS}/cgroup.controllers") == before


@pytest.mark.parametrize("action", ["restart tepui-agent", "kill --signal=KILL --kill-whom=main tepui-agent"])
def test_a_restart_of_the_agent_leaves_containers_alone(cluster: Cluster, action: str) -> None:
    before, agent = cluster.processes(), cluster.main_pid("tepui-agent")
    cluster.systemctl(action)
    eventually(lambda: cluster.main_pid("tepui-agent") not in ("0", agent), "systemd has started another agent")
    taken_over(cluster)
    assert cluster.processes() == before


def test_a_stop_of_the_agent_leaves_containers_alone_and_no_spares(cluster: Cluster) -> None:
    before = cluster.processes()
    eventually(lambda: len(cluster.spares()) == SPARES, "sandboxes wait for tasks")
    cluster.systemctl("stop tepui-agent")
    assert cluster.main_pid("tepui-agent") == "0"
    assert cluster.spares() == []
    assert cluster.processes() == before
    cluster.systemctl("start tepui-agent")
    taken_over(cluster)
    assert cluster.processes() == before


def test_crun_makes_containers_where_the_node_says_so(cluster: Cluster) -> None:
    before, groups = cluster.processes(), cluster.groups()
    cluster.vm.run(f"""echo 'runtime = "crun"' >>{SETTINGS}""")
    cluster.systemctl("restart tepui-agent")
    eventually(cluster.connected, "the agent has come back")
    cluster.scale(3)
    eventually(lambda: cluster.running(3), "a third task runs")
    eventually(lambda: len(set(cluster.groups()) - set(groups)) == 1, "spare sandboxes are made")
    (group,) = set(cluster.groups()) - set(groups)
    assert limits(cluster, group) == LIMITS
    assert cluster.vm.run(f"cat {BUNDLES}/{Path(group).name}/runtime/name") == "crun"
    cluster.vm.run(f"sed -i /^runtime/d {SETTINGS}")
    cluster.systemctl("restart tepui-agent")
    eventually(cluster.connected, "the agent has come back")
    cluster.scale(2)
    eventually(lambda: cluster.groups() == groups, "an agent that uses its own has ended it")
    assert cluster.processes() == before


def test_what_ended_while_the_agent_was_away_is_replaced(cluster: Cluster) -> None:
    victim, other = cluster.running(2)
    cluster.systemctl("stop tepui-agent")
    cluster.vm.run(f"kill -9 {victim['pid']}")
    cluster.systemctl("start tepui-agent")
    before = {victim["id"], other["id"]}
    eventually(lambda: {task["id"] for task in cluster.running(2)} - before, "it is replaced")
    assert other["pid"] in {task["pid"] for task in cluster.running(2)}
    eventually(lambda: len(cluster.groups()) == 2, "the cgroup of the one that ended is gone")


def test_a_restart_of_the_master_leaves_containers_alone(cluster: Cluster) -> None:
    before = cluster.processes()
    cluster.systemctl("restart tepui-master")
    eventually(cluster.connected, "the agent has found the new master")
    assert cluster.processes() == before


def test_nothing_is_left_of_a_service_that_is_removed(cluster: Cluster) -> None:
    cluster.api.delete("/v2/apps/web?force=true")
    eventually(lambda: cluster.groups() == [], "all cgroups are removed")
    assert f"{BUNDLES}/" not in cluster.vm.run("cat /proc/mounts")
    members = "/sys/fs/cgroup/system.slice/tepui-agent.service/cgroup.procs"
    names = f"for process in $(cat {members}); do cat /proc/$process/comm; done"
    # One keeper is kept ready, once nothing has been asked for a moment, and there is one for each spare sandbox.
    keepers = SPARES + 1
    eventually(lambda: cluster.vm.run(names).split().count("tepui-keeper") == keepers, "other keepers have ended")


def limits(cluster: Cluster, group: str) -> dict[str, str]:
    values = cluster.vm.run(f"cd {group} && cat {' '.join(LIMITS)}").splitlines()
    return dict(zip(LIMITS, values, strict=True))


def taken_over(cluster: Cluster) -> None:
    """The agent that is there now makes and ends containers."""
    eventually(cluster.connected, "the agent has come back")
    cluster.scale(3)
    eventually(lambda: cluster.running(3), "a third task runs")
    cluster.scale(2)
    eventually(lambda: cluster.running(2) and len(cluster.groups()) == 2, "the third task is gone")


def eventually(condition: Callable[[], object], what: str) -> None:
    """A master that does not answer is an answer that is not there yet."""

    def asked() -> object:
        try:
            return condition()
        except Problem as error:
            raise waiting.NotYet(str(error)) from error

    waiting.eventually(asked, what, DEADLINE_S)
