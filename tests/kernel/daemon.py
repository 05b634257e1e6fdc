"""A real agent, the daemon itself in a process of its own, and a master that it dials, in this process: what the agent
tells is seen as it comes, and everything of it can be killed.

The node is the network and mount namespace of the test, with an underlay that leads nowhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from agent.checkpoint import CODEC, TaskRecord
from agent.containers import Directories
from agent.launcher import record
from agent.launcher.record import Keeper
from isolators.cgroup.hierarchy import V1, detect
from isolators.mount import mount_points
from master.tasks import TaskRecord as Known
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus
from netns.link import VETH_PREFIX
from pki.identity import Role
from tests.kernel import remains
from tests.kernel.cgroup_files import CGROUPS, directories, remove_prefix
from tests.kernel.namespaces import ip, run
from tests.patience import PATIENCE
from tests.unit.control import Certificates, Master, certificates, master, serving

NAME = "n1"
UNDERLAY = ip_address("192.0.2.1")
DEADLINE_S = 60.0 * PATIENCE
POLL_S = 0.01
LAUNCHER, KEEPER, MAKER = "tepui-launcher", "tepui-keeper", "tepui-maker"


@dataclass
class NodeDaemon:
    """`told` is every status that an agent has sent, in the order in which they came."""

    state: Path
    master: Master
    target: str
    prefix: str
    process: subprocess.Popen[bytes] | None = None
    told: list[TaskStatus] = field(default_factory=list)
    began_at: int = 0  # in the log
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def directories(self) -> Directories:
        return Directories(self.state)

    @property
    def cni_socket(self) -> Path:
        return self.state / "cni.sock"

    @property
    def log(self) -> Path:
        return self.state.with_name("agent.log")

    def begin(self) -> subprocess.Popen[bytes]:
        settings = {
            "MASTER": self.target,
            "ADDRESS": str(UNDERLAY),
            "CGROUP": self.prefix,
            "CPUS": "4000",
            "MEM": "4096",
            "DISK": "4096",
            "CNI_SOCKET": str(self.cni_socket),
            **self.settings,
        }
        env = {
            **os.environ,
            remains.MARK: self.mark,
            **{f"TEPUI_AGENT_{key}": value for key, value in settings.items()},
        }
        argv = [sys.executable, "-m", "cli.main", "agent", "run", "--state", str(self.state)]
        with self.log.open("ab") as log:
            self.began_at = log.tell()
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        return self.process

    @property
    def mark(self) -> str:
        return str(self.state)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Returns when it has ended."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(DEADLINE_S)
        self.process = None

    async def connected(self) -> None:
        """Until it has a session, and has applied what it was told by it."""
        await self.at_work()
        await until(self.connected_now, "the agent has a session", self.tail)

    async def at_work(self) -> None:
        """Until this agent has said that it is, whatever the master has not heard yet of the end of the one before."""
        await until(lambda: "reconciled" in self.said(), "the agent is at work", self.tail)

    def said(self) -> list[object]:
        """Events that this agent has logged."""
        with self.log.open(encoding="utf-8") as log:
            log.seek(self.began_at)
            return [json.loads(line)["event"] for line in log if line.startswith("{")]

    def connected_now(self) -> bool:
        return any(view.node.id == NAME and view.connected for view in self.master.nodes.all())

    async def run(self, *specs: TaskSpec) -> None:
        """Returns when all of them run."""
        await self.master.tasks.add(NAME, list(specs))
        await until(lambda: self.in_state(TaskState.RUNNING) >= {spec.id for spec in specs}, "all run", self.tail)

    def in_state(self, *states: TaskState) -> set[str]:
        return {known.spec.id for known in self.known() if known.status.state in states}

    def known(self) -> list[Known]:
        return self.master.tasks.on(NAME)

    async def end_all(self) -> None:
        """As when the cluster wants none of them any more: killed, acknowledged and forgotten."""
        for known in self.known():
            await self.master.tasks.mark(known.spec.id, drained=True)
        await until(lambda: all(known.over for known in self.known()), "all have ended", self.tail)
        for known in self.known():
            await self.master.tasks.acknowledge(known.spec.id, known.status.sequence)
        await until(lambda: self.records() == {}, "all are forgotten", self.tail)

    def records(self) -> dict[str, TaskRecord]:
        """The agent's books, as an agent that starts now would read them."""
        found = {}
        for path in self.directories.tasks.glob("[!.]*.json"):
            with suppress(FileNotFoundError):
                found[path.stem] = CODEC.decode(path.read_bytes())
        return found

    def keepers(self) -> dict[str, Keeper]:
        """By container."""
        noted = {path.name: record.read_keeper(str(path)) for path in self.directories.bundles.glob("*")}
        return {name: keeper for name, keeper in noted.items() if keeper is not None}

    def processes(self, name: str) -> list[int]:
        """Of this agent and of earlier ones, that are called so."""
        return [pid for pid in marked(self.mark) if _comm(pid) == name]

    def output(self, task_id: str) -> str:
        log = self.directories.log(task_id, "stdout")
        return "".join(path.read_text() for path in sorted(log.parent.glob("stdout*"), reverse=True) if _is_log(path))

    def events(self) -> list[dict[str, str]]:
        """What agents have logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-12:])

    def traces(self) -> dict[str, set[str]]:
        """What there is of containers, each kind by their ids."""
        leases = self.state / "leases/overlay"
        owners = [json.loads(path.read_text()) for path in leases.glob("[0-9]*") if path.suffix != ".rested"]
        mounts = (point.path for point in mount_points() if point.path.is_relative_to(self.directories.bundles))
        return {
            "bundles": {path.name for path in self.directories.bundles.glob("*")},
            "layers": {path.name for path in self.directories.layers.glob("*")},
            "mounts": {path.relative_to(self.directories.bundles).parts[0] for path in mounts},
            "cgroups": {path.name for path in directories(self.prefix)},
            "leases": {owner["container"] for owner in owners},
            "links": {link["ifname"] for link in ip("link") if link["ifname"].startswith(VETH_PREFIX)},
        }

    def limit_descriptors(self, more: int) -> None:
        """The agent can open so many more than it has open, whatever it wants them for."""
        assert self.process is not None
        used = max(map(int, os.listdir(f"/proc/{self.process.pid}/fd"))) + 1
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (min(used + more, hard), hard))

    def unlimit_descriptors(self) -> None:
        if self.process is not None:
            _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (hard, hard))


@asynccontextmanager
async def node_daemon(directory: Path, state: Path | None = None, **settings: str) -> AsyncIterator[NodeDaemon]:
    """An agent that is connected. Ends everything that it has made, and checks that nothing is left of it."""
    issued = certificates(directory / "certificates")
    state = state or directory / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    (directory / "master").mkdir()
    prefix = f"tepui-test-{os.getpid()}"
    async with master(directory / "master") as parts, serving(parts, issued.issue(Role.MASTER, "m1")) as target:
        node = NodeDaemon(state, parts, target, prefix, settings=settings)
        _enrol(issued, state)
        _listen_in(node)
        make_underlay()
        node.begin()
        try:
            await node.connected()
            yield node
            await _put_away(node)
        finally:
            _remove(node)


async def until(condition: Callable[[], object], what: str, tail: Callable[[], str] = str) -> None:
    """Polls. Fails the test with `what` after the deadline, and with what the agent has said last."""
    loop = asyncio.get_running_loop()
    end = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < end, f"not so after {DEADLINE_S:g} s: {what}\n{tail()}"
        await asyncio.sleep(POLL_S)


def marked(mark: str) -> Iterator[int]:
    """Processes whose environment bears the mark; a program in a container has another environment."""
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if f"{remains.MARK}={mark}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                yield int(directory.name)


def cgroup_processes(prefix: str) -> set[int]:
    found: set[int] = set()
    for directory in directories(prefix):
        with suppress(FileNotFoundError, OSError):
            found |= set(map(int, (directory / "cgroup.procs").read_text().split()))
    return found


def frozen(prefix: str, container: str) -> bool:
    if isinstance(detect(mount_points()), V1):
        return (CGROUPS / "freezer" / prefix / container / "freezer.state").read_text().strip() == "FROZEN"
    return (CGROUPS / prefix / container / "cgroup.freeze").read_text().strip() == "1"


def spec(name: str, line: str, network: str = "none", **changes: object) -> TaskSpec:
    """A task that runs a line of shell, and gets little time to end."""
    small: dict[str, object] = {"kill_grace_s": 0.2, **changes}
    argv = ("sh", "-c", line)
    return TaskSpec(name, "services", "/test", argv, Resources(cpus=10, mem=16), network, **small)  # type: ignore[arg-type]


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _is_log(path: Path) -> bool:
    return path.suffix != ".index"


def _enrol(issued: Certificates, state: Path) -> None:
    issued.issue(Role.AGENT, NAME)
    shutil.copytree(issued.directory / NAME, state / "pki")


def _listen_in(daemon: NodeDaemon) -> None:
    tasks = daemon.master.tasks
    observe = tasks.observe

    async def overheard(node: str, *statuses: TaskStatus) -> None:
        daemon.told.extend(statuses)
        await observe(node, *statuses)

    tasks.observe = overheard  # type: ignore[method-assign]


def make_underlay() -> None:
    if any(link["ifname"] == "card" for link in ip("link")):
        return
    run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    run("ip", "addr", "add", f"{UNDERLAY}/24", "dev", "card")
    for link in ("card", "wire"):
        run("ip", "link", "set", link, "up")


async def _put_away(node: NodeDaemon) -> None:
    if node.process is None:
        node.begin()
    await node.end_all()
    node.kill(signal.SIGTERM)
    await until(lambda: not any(node.traces().values()), "nothing is left of containers", lambda: str(node.traces()))
    await until(lambda: not list(marked(node.mark)), "no process is left", node.tail)


def _remove(node: NodeDaemon) -> None:
    """Also after a test that failed."""
    for pid in (*marked(node.mark), *cgroup_processes(node.prefix)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if node.process is not None:
        node.process.wait(DEADLINE_S)
    for point in reversed(mount_points()):
        if point.path.is_relative_to(node.state) and point.path != node.state:
            run("umount", "-l", str(point.path))
    for directory in directories(node.prefix):
        _remove_cgroup(directory)
    remove_prefix(node.prefix)


def _remove_cgroup(directory: Path) -> None:
    for below in directory.glob("*/"):
        _remove_cgroup(below)
    with suppress(OSError):  # a process has not quite ended: then the prefix stays, which fails the test
        directory.rmdir()
