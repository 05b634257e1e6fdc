"""A lab, as those use it who run one: the demo, the cluster tests and `tepui lab`.

`up` writes the record, makes a cgroup for each node, starts process 1 of every node at once (`lab/init.py`), joins
them (`lab/fabric.py`) and has them start their daemons. `down` kills and removes by name alone, so it needs nothing
of what `up` knew. The master is a node like the others. All verbs are synchronous and take milliseconds; from a
coroutine call them with `asyncio.to_thread`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import cgroups, control, fabric, record
from lab.control import NodeStatus
from lab.errors import LabError
from lab.fabric import Result
from lab.record import Daemon, Node

MASTER = "master"
FABRIC = "fabric"
MAX_NODES = 200
SPAWN_DEADLINE_S = 10.0
EXEC_DEADLINE_S = 60.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Lab:
    """Labs with different names have nothing in common."""

    name: str

    def __post_init__(self) -> None:
        record.check_name(self.name)

    def up(self, nodes: int = 3, daemons: Callable[[Node], Sequence[Daemon]] = lambda node: ()) -> tuple[Node, ...]:
        """Make `master` and `nodes` nodes (`n1`, `n2`, ...). What was made is removed again when that fails."""
        refuse_without_means()
        if not 1 <= nodes <= MAX_NODES:
            raise LabError(f"{nodes} nodes: from 1 to {MAX_NODES}")
        self._reserve()
        try:
            return self._make(nodes, daemons)
        except BaseException:
            self.down()
            raise

    def nodes(self) -> tuple[Node, ...]:
        """The master first. Raises LabError when there is no such lab."""
        return record.read(self.name)

    def node(self, name: str) -> Node:
        for node in self.nodes():
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes())
        raise LabError(f"there is no node {name!r} in lab {self.name!r}: it has {known}")

    def start(self, node: str, *daemons: Daemon) -> NodeStatus:
        """Have `node` run `daemons` too, now and after every boot."""
        self.node(node)
        record.write(self.name, record.with_daemons(self.nodes(), node, daemons))
        for daemon in daemons:
            self._start(self.node(node), daemon)
        return self.status(node)

    def status(self, node: str) -> NodeStatus:
        """Raises LabError when the node is off."""
        return self._ask(node, do="status")

    def is_on(self, node: str) -> bool:
        return control.find(self._control(self.node(node).name)) is not None

    def command(self, node: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
        """What runs `argv` on `node`, as root and in the caller's directory. It ends when its parent does."""
        variables = [f"{key}={value}" for key, value in {"PATH": PATH, **(env or {})}.items()]
        enter = ["nsenter", "-t", str(self.status(node).pid), "-m", "-u", "-i", "-n", "-p", f"--wdns={os.getcwd()}"]
        return [*enter, "--", "setpriv", "--pdeathsig", "KILL", "--", "env", *variables, *argv]

    def exec(
        self,
        node: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        deadline_s: float = EXEC_DEADLINE_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` on `node` to its end. Raises subprocess.TimeoutExpired, and does not look at the exit code."""
        command = self.command(node, argv, env)
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=deadline_s)

    def within(self, node: str, verb: Callable[[], Result]) -> Result:
        """`verb()` in the node's network namespace, in a thread of this process; sockets it returns stay there."""
        return fabric.in_network(self.status(node).pid, verb)

    def kill_daemon(self, node: str, daemon: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the daemon's process and to no other. It is started again if it ends of that."""
        self._ask(node, do="kill", name=daemon, signal=number)

    def hold(self, node: str, daemon: str, number: int = signal.SIGTERM) -> None:
        """As `kill_daemon`, but it is not started again until `release`."""
        self._ask(node, do="hold", name=daemon, signal=number)

    def release(self, node: str, daemon: str) -> None:
        self._ask(node, do="release", name=daemon)

    def power_off(self, node: str) -> None:
        """Everything on the node dies at once; its state directory remains. Accepts one that is off."""
        off = self.node(node)
        cgroups.remove(self._init_cgroup(node))
        cgroups.remove(off.cgroup)
        fabric.disconnect(self._fabric_pid(), node)
        self._control(node).unlink(missing_ok=True)

    def boot(self, node: str) -> NodeStatus:
        """Switch a node on: a new boot id, the same address, state directory and daemons."""
        target = self.node(node)
        if self.is_on(node):
            raise LabError(f"boot {node}: it is on")
        self._boot([target.name])
        self._connect(target)
        return self.status(node)

    def cut(self, node: str) -> None:
        """Cut the node's cable: it can neither reach the others nor be reached."""
        fabric.set_cable(self._fabric_pid(), self.node(node).name, up=False)

    def join(self, node: str) -> None:
        fabric.set_cable(self._fabric_pid(), self.node(node).name, up=True)

    def down(self) -> bool:
        """Remove everything of this lab, errors (ExceptionGroup) or not. Returns whether there was anything."""
        refuse_without_means()
        errors: list[Exception] = []
        existed = [_attempt(remove, errors) for remove in (self._remove_cgroups, self._remove_run, self._remove_state)]
        if errors:
            raise ExceptionGroup(f"remove lab {self.name}", errors)
        return any(existed)

    def _reserve(self) -> None:
        if self.name in record.names():
            raise LabError(f"there is a lab {self.name!r} already; remove it with: tepui lab down --name {self.name}")
        try:
            (record.RUN / self.name).mkdir(mode=0o700, parents=True)
        except FileExistsError as error:
            raise LabError(f"lab {self.name!r} is being made by somebody else") from error

    def _make(self, count: int, daemons: Callable[[Node], Sequence[Daemon]]) -> tuple[Node, ...]:
        nodes = tuple(self._planned(name, number, daemons) for name, number in _numbers(count))
        record.write(self.name, nodes)
        for node in nodes:
            node.log("").parent.mkdir(parents=True, mode=0o700)
        self._boot([FABRIC, *(node.name for node in nodes)])
        fabric.create(self._fabric_pid())
        for node in nodes:
            self._connect(node)
        return nodes

    def _planned(self, name: str, number: int, daemons: Callable[[Node], Sequence[Daemon]]) -> Node:
        node = Node(self.name, name, fabric.SUBNET[number])
        return Node(self.name, name, node.address, tuple(daemons(node)))

    def _boot(self, names: Sequence[str]) -> None:
        """Start process 1 of each, and return when all are made."""
        spawned = {name: self._spawn(name) for name in names}
        for name, process in spawned.items():
            if process.wait(SPAWN_DEADLINE_S) != 0:
                raise LabError(f"boot {name}: {_last_line(self._init_log(name))}")
        for name in names:
            control.wait_ready(self._control(name))

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        cgroup = cgroups.create(self._init_cgroup(name))
        program = Path(__file__).with_name("init.py")
        argv = [sys.executable, "-I", "-S", str(program), name, str(cgroup), str(self._control(name))]
        env = {"PATH": PATH, "LANG": "C.UTF-8"}
        with self._init_log(name).open("a") as log:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )

    def _connect(self, node: Node) -> None:
        fabric.connect(self._fabric_pid(), self.status(node.name).pid, node.name, node.address)
        for daemon in node.daemons:
            self._start(node, daemon)

    def _start(self, node: Node, daemon: Daemon) -> None:
        log = str(node.log(daemon.name))
        self._ask(node.name, do="start", name=daemon.name, argv=daemon.argv, env=dict(daemon.env), log=log)

    def _ask(self, node: str, **command: object) -> NodeStatus:
        self.node(node)
        try:
            return control.ask(self._control(node), **command)
        except OSError as error:
            raise LabError(f"{command['do']}: {node} is off; switch it on with: tepui lab boot {node}") from error

    def _fabric_pid(self) -> int:
        return control.wait_ready(self._control(FABRIC)).pid

    def _control(self, name: str) -> Path:
        return record.RUN / self.name / f"{name}.sock"

    def _init_log(self, name: str) -> Path:
        return record.RUN / self.name / f"{name}.log"

    def _init_cgroup(self, name: str) -> str:
        # No node is called that, and processes sit in leaves only, as version 2 demands.
        return f"{record.CGROUP}/{self.name}/_init/{name}"

    def _remove_cgroups(self) -> bool:
        existed = cgroups.remove(f"{record.CGROUP}/{self.name}")
        cgroups.remove_empty(record.CGROUP)
        return existed

    def _remove_run(self) -> bool:
        return _remove_directory(record.RUN / self.name)

    def _remove_state(self) -> bool:
        return _remove_directory(record.STATE / self.name)


def refuse_without_means() -> None:
    """Raises LabError that says what is missing, before anything is changed."""
    if os.geteuid() != 0:
        raise LabError("a lab needs root for namespaces and cgroups: run it with sudo")
    cgroups.unified()
    for program in ("nsenter", "setpriv"):
        if shutil.which(program) is None:
            raise LabError(f"a lab needs {program}: apt-get install util-linux")


def _numbers(count: int) -> list[tuple[str, int]]:
    """Names, and the last part of the address."""
    return [(MASTER, 2), *((f"n{number}", 10 + number) for number in range(1, count + 1))]


def _attempt(remove: Callable[[], bool], errors: list[Exception]) -> bool:
    try:
        return remove()
    except (LabError, OSError) as error:
        errors.append(error)
        return True


def _remove_directory(path: Path) -> bool:
    existed = path.exists()
    if existed:
        shutil.rmtree(path)
    with suppress(OSError):  # other labs are in it, or it never was
        path.parent.rmdir()
    return existed


def _last_line(log: Path) -> str:
    lines = log.read_text().splitlines()
    return lines[-1] if lines else "it ended without a word"
