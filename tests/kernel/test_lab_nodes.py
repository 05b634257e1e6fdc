"""The lab: its nodes are machines to themselves, lose power and cables, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from lab import cgroups, record
from lab.cluster import Lab
from lab.errors import LabError
from lab.record import Daemon, Node

UP_DEADLINE_S = 5.0
DEADLINE_S = 10.0
CONNECT_DEADLINE_S = 0.5

# A real server that says who it is, and an orphan that must end up with process 1.
SERVER = """
import os, socket, socketserver, subprocess
class Hello(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(f"{socket.gethostname()} {os.getpid()}".encode())
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
subprocess.run(["sh", "-c", "sleep 1000 &"])
print("serving", flush=True)
Server(("0.0.0.0", 8000), Hello).serve_forever()
"""


def web(node: Node) -> list[Daemon]:
    return [Daemon("web", (sys.executable, "-I", "-S", "-c", SERVER))]


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(f"t-{uuid4().hex[:10]}")
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture
def running(lab: Lab) -> Lab:
    lab.up(3, web)
    for node in lab.nodes():
        eventually(partial(hello, lab, node.name, node.name))
    return lab


def eventually(predicate: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not predicate():
        assert time.monotonic() < deadline, f"not true after {deadline_s:g} s"
        time.sleep(0.01)


def hello(lab: Lab, source: str, target: str) -> str | None:
    """What the server on `target` says to a client on `source`; None when it can't be reached."""
    address = str(lab.node(target).address)

    def call() -> str | None:
        try:
            with socket.create_connection((address, 8000), timeout=CONNECT_DEADLINE_S) as connection:
                return connection.recv(1000).decode()
        except OSError:
            return None

    return lab.within(source, call)


def machine() -> list[str]:
    """The machine's own network, as its process 1 sees it."""
    commands = ("ip -j link", "ip -j route show table all", "ip netns", "iptables-save")
    enter = ["nsenter", "-t", "1", "-n", "-m"]
    outputs = [subprocess.run([*enter, *line.split()], capture_output=True, text=True).stdout for line in commands]
    return ["\n".join(line for line in output.splitlines() if not line.startswith("#")) for output in outputs]


def leftovers(lab: Lab) -> list[str]:
    places = [record.RUN / lab.name, record.STATE / lab.name]
    places += [hierarchy / record.CGROUP / lab.name for hierarchy in cgroups.hierarchies()]
    return [str(place) for place in places if place.exists()] + processes(lab)


def processes(lab: Lab) -> list[str]:
    """Processes of the machine that have the lab's name on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue  # it has ended
        if f"/{lab.name}/".encode() in line:
            found.append(line.replace(b"\0", b" ").decode())
    return found


def test_nodes_are_up_soon_and_reach_one_another(lab: Lab) -> None:
    began = time.monotonic()
    lab.up(3, web)
    assert time.monotonic() - began < UP_DEADLINE_S
    assert [node.name for node in lab.nodes()] == ["master", "n1", "n2", "n3"]
    for source in ("master", "n1", "n3"):
        eventually(partial(hello, lab, source, "n2"))


def test_node_has_its_own_network_only(running: Lab) -> None:
    links = json.loads(running.exec("n1", ["ip", "-j", "link"]).stdout)
    assert sorted(link["ifname"] for link in links) == ["eth0", "lo"]
    assert {link["mtu"] for link in links if link["ifname"] == "eth0"} == {1500}
    routes = json.loads(running.exec("n1", ["ip", "-j", "route"]).stdout)
    assert [route["dst"] for route in routes] == ["10.77.0.0/24"]
    outside = running.exec("n1", ["ip", "route", "get", "192.0.2.1"])
    assert outside.returncode != 0
    assert "unreachable" in outside.stderr


def test_node_has_its_own_names_processes_and_run(running: Lab) -> None:
    assert running.exec("n1", ["hostname"]).stdout == "n1\n"
    assert running.exec("n1", ["cat", "/proc/1/comm"]).stdout.startswith("python")
    assert running.exec("n1", ["ls", "/run"]).stdout.split() == ["boot_id", "lock", "proc"]
    ids = {running.exec(name, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout for name in ("n1", "n2", "n3")}
    machines_own = Path("/proc/sys/kernel/random/boot_id").read_text()
    assert len(ids | {machines_own}) == 4
    assert f"{running.status('n1').boot_id}\n" in ids


def test_user_namespaces_in_a_node_can_mount_proc(running: Lab) -> None:
    done = running.exec("n1", ["unshare", "--user", "-r", "-p", "-f", "--mount-proc", "cat", "/proc/self/comm"])
    assert (done.returncode, done.stdout) == (0, "cat\n"), done.stderr


def test_mounts_of_a_node_stay_in_it(running: Lab) -> None:
    target = running.node("n1").state
    assert running.exec("n1", ["mount", "-t", "tmpfs", "ours", str(target)]).returncode == 0
    assert str(target) in running.exec("n1", ["cat", "/proc/mounts"]).stdout
    assert str(target) not in Path("/proc/mounts").read_text()
    assert str(target) not in running.exec("n2", ["cat", "/proc/mounts"]).stdout


def test_the_machine_is_as_before(lab: Lab) -> None:
    before = machine()
    lab.up(2, web)
    assert machine() == before
    lab.exec("n1", ["ip", "link", "add", "name", "other", "type", "bridge"])
    lab.power_off("n2")
    assert machine() == before
    assert lab.down()
    assert machine() == before
    assert leftovers(lab) == []


def test_killed_daemon_is_started_again(running: Lab) -> None:
    first = running.status("n1").daemons["web"].pid
    running.kill_daemon("n1", "web")
    eventually(lambda: running.status("n1").daemons["web"].pid not in (None, first))
    assert running.status("n1").daemons["web"].starts == 2
    eventually(lambda: hello(running, "n2", "n1") == f"n1 {running.status('n1').daemons['web'].pid}")


def test_held_daemon_stays_down_until_released(running: Lab) -> None:
    running.hold("n1", "web")
    eventually(lambda: running.status("n1").daemons["web"].pid is None)
    assert hello(running, "n2", "n1") is None
    running.release("n1", "web")
    eventually(lambda: hello(running, "n2", "n1"))
    assert running.status("n1").daemons["web"].starts == 2


def test_orphans_outlive_the_daemon_and_are_reaped(running: Lab) -> None:
    running.kill_daemon("n1", "web")
    eventually(lambda: running.status("n1").daemons["web"].starts == 2)
    eventually(lambda: _states(running, "sleep") == ["S", "S"])
    running.exec("n1", ["pkill", "-9", "sleep"])
    eventually(lambda: _states(running, "sleep") == [])


def _states(lab: Lab, program: str) -> list[str]:
    """The states of children of process 1 with this name: Z would be one that is not reaped."""
    table = lab.exec("n1", ["ps", "-e", "-o", "ppid=,stat=,comm="]).stdout
    rows = [row.split() for row in table.splitlines()]
    return [row[1][0] for row in rows if row[0] == "1" and row[2] == program]


def test_program_that_is_not_there_is_said_in_the_log(lab: Lab) -> None:
    lab.up(1)
    lab.start("n1", Daemon("ghost", ("/nowhere/ghost",)))
    assert lab.status("n1").daemons["ghost"].pid is None
    assert "start ghost: /nowhere/ghost: No such file or directory" in (record.RUN / lab.name / "n1.log").read_text()


def test_output_and_environment_of_a_daemon(lab: Lab) -> None:
    lab.up(1)
    lab.start("n1", Daemon("env", ("sh", "-c", "echo $COLOUR; exec sleep 1000"), (("COLOUR", "green"),)))
    eventually(lambda: lab.node("n1").log("env").read_text() == "green\n")


def test_power_cut_and_boot(running: Lab) -> None:
    before = running.status("n1").boot_id
    kept = running.node("n1").state / "kept"
    running.exec("n1", ["touch", str(kept)])
    running.power_off("n1")
    assert not running.is_on("n1")
    assert hello(running, "n2", "n1") is None
    with pytest.raises(LabError, match="n1 is off"):
        running.exec("n1", ["true"])
    after = running.boot("n1")
    assert after.boot_id != before
    assert kept.exists()
    eventually(lambda: hello(running, "n2", "n1"))
    with pytest.raises(LabError, match="it is on"):
        running.boot("n1")


def test_power_is_cut_while_the_kernel_cleans_up(lab: Lab) -> None:
    lab.up(2, web)
    boots = set()
    for _ in range(20):
        lab.power_off("n1")
        boots.add(lab.boot("n1").boot_id)
    assert len(boots) == 20
    eventually(partial(hello, lab, "n2", "n1"))


def test_power_cut_takes_the_cgroups_of_the_node(running: Lab) -> None:
    made = [hierarchy / running.node("n1").cgroup / "web.1" for hierarchy in cgroups.hierarchies()]
    for cgroup in made:
        cgroup.mkdir(parents=True)
    running.power_off("n1")
    assert not any(cgroup.exists() for cgroup in made)


def test_cut_cable(running: Lab) -> None:
    running.cut("n1")
    assert hello(running, "n2", "n1") is None
    assert hello(running, "n1", "n1")
    assert hello(running, "n2", "n3")
    running.join("n1")
    eventually(lambda: hello(running, "n2", "n1"))


def test_two_labs_with_the_same_addresses(running: Lab) -> None:
    other = Lab(f"{running.name[:12]}-b")
    try:
        other.up(1)
        assert other.node("n1").address == running.node("n1").address
        assert hello(other, "master", "n1") is None
        assert other.down()
        assert hello(running, "n2", "n1")
    finally:
        other.down()


def test_command_on_a_node_ends_with_who_started_it(running: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        running.exec("n1", ["sh", "-c", "exec sleep 4321"], deadline_s=0.5)
    eventually(lambda: "4321" not in running.exec("n1", ["ps", "-e", "-o", "args="]).stdout)


def test_down_of_no_lab_and_up_of_one_that_is() -> None:
    lab = Lab(f"t-{uuid4().hex[:10]}")
    assert not lab.down()
    with pytest.raises(LabError, match="there is no lab"):
        lab.nodes()
    try:
        lab.up(1)
        with pytest.raises(LabError, match="there is a lab"):
            lab.up(1)
        assert lab.is_on("n1")
    finally:
        assert lab.down()


@pytest.mark.parametrize("name", ["", "..", "a/b", "Upper", "9th", "sixteen-letters-x"])
def test_bad_name(name: str) -> None:
    with pytest.raises(LabError, match="a name has"):
        Lab(name)


# What `up` makes one after the other, and is killed at.
MILESTONES = {
    "reserved": "",
    "recorded": "lab.json",
    "first socket": "fabric.sock",
    "last log": "n3.log",
    "last socket": "n3.sock",
}


@pytest.mark.parametrize("milestone", MILESTONES)
def test_killed_in_the_middle_of_up(lab: Lab, milestone: str) -> None:
    program = "import sys; from lab.cluster import Lab; Lab(sys.argv[1]).up(3)"
    up = subprocess.Popen([sys.executable, "-c", program, lab.name], cwd=Path(__file__).parents[2])
    try:
        eventually((record.RUN / lab.name / MILESTONES[milestone]).exists)
    finally:
        os.kill(up.pid, signal.SIGKILL)
        up.wait(DEADLINE_S)
    assert lab.name in record.names()
    assert lab.down()
    eventually(lambda: leftovers(lab) == [])
    assert not lab.down()


def test_up_that_fails_removes_what_it_made(lab: Lab) -> None:
    def daemons(node: Node) -> list[Daemon]:
        return [Daemon("web", ("true",)), Daemon("web", ("true",))]

    with pytest.raises(LabError, match="start web on master: .*there is a daemon web"):
        lab.up(1, daemons)
    assert leftovers(lab) == []
