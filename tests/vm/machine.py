"""A virtual machine: QEMU started from a disk or from a snapshot, talked to by ssh and by QEMU's monitor, and ended.

Its only network is the port on the loopback interface that ssh comes by. What it costs in time is QEMU's translation of
every instruction, where the processor does not offer virtualisation: Python is some 14 times slower in there.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.waiting import NotYet

CONNECT_DEADLINE_S = 300.0
COMMAND_DEADLINE_S = 120.0
MONITOR_DEADLINE_S = 120.0
STOP_DEADLINE_S = 10.0
ATTEMPT_S = 20
POLL_S = 0.1

CPUS, MEMORY_MIB = 2, 2048
# A clock that needs no proof, and no work-arounds for the processor's faults: both take seconds of a slow machine.
KERNEL = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off tsc=reliable quiet loglevel=3"
RNDRESEEDCRNG = 0x5207  # linux/random.h


class Failed(NotYet):
    """A command in the machine failed, or QEMU did. The text is what it wrote."""


@dataclass(frozen=True, slots=True)
class Boot:
    """What a machine starts from. `disk` and what backs it is read only but for the part that `Machine` copies."""

    kernel: Path
    initrd: Path
    base: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Machine:
    """`directory` holds the sockets, the console's log and the disk. All of it is the caller's to remove."""

    directory: Path
    key: Path
    port: int
    process: subprocess.Popen[bytes]

    def run(self, command: str, deadline_s: float = COMMAND_DEADLINE_S, stdin: bytes = b"") -> str:
        """What a line of shell writes, run as root. Raises Failed."""
        done = self.attempt(command, deadline_s, stdin)
        if done.returncode != 0:
            raise Failed(f"in the machine: {command}: exit {done.returncode}\n{done.stdout.decode(errors='replace')}")
        return done.stdout.decode(errors="replace")

    def attempt(
        self, command: str, deadline_s: float = COMMAND_DEADLINE_S, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """The same, whatever its exit code. Standard output and error come together."""
        argv = [*self._ssh(), "root@127.0.0.1", command]
        try:
            return subprocess.run(
                argv, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=deadline_s
            )
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"").decode(errors="replace")
            raise Failed(f"in the machine: {command}: not done after {deadline_s:g} s\n{said}") from error

    def connect(self) -> None:
        """Returns when the machine can be talked to. One connection serves all commands."""
        end = time.monotonic() + CONNECT_DEADLINE_S
        while not self._connected():
            assert self.process.poll() is None, f"QEMU ended: {(self.directory / 'qemu.log').read_text()}"
            assert time.monotonic() < end, f"no answer from the machine; its console: {self.directory / 'console'}"
            time.sleep(POLL_S)

    def forward(self, port: int) -> int:
        """The port of this machine that leads to one of the virtual machine's, for as long as that runs."""
        ours = _free_port()
        argv = [*self._ssh(), "-O", "forward", "-L", f"127.0.0.1:{ours}:127.0.0.1:{port}", "root@127.0.0.1"]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        return ours

    def set_clock(self) -> None:
        """A snapshot's is behind, and its random numbers would be the same in each run."""
        reseed = f"import fcntl, os; fcntl.ioctl(os.open('/dev/urandom', os.O_WRONLY), {RNDRESEEDCRNG})"
        seed = f"cat >/dev/urandom && python3 -I -S -c {shlex.quote(reseed)}"
        self.run(f"date --set=@{time.time():.3f} && {seed}", stdin=os.urandom(64))

    def monitor(self, command: str) -> str:
        """What QEMU's monitor answers (its man page, "QEMU Monitor")."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(MONITOR_DEADLINE_S)
            connection.connect(str(self.directory / "monitor"))
            with connection.makefile("rw") as stream:
                stream.readline()  # it begins with its version
                _execute(stream, "qmp_capabilities", {})
                return str(_execute(stream, "human-monitor-command", {"command-line": command}))

    def stop(self) -> None:
        """At once, as a power cut does."""
        self.process.kill()
        self.process.wait(STOP_DEADLINE_S)

    def _connected(self) -> bool:
        """By a master connection of ssh's, which goes on in the background."""
        options = ["-o", "ControlMaster=yes", "-o", "ControlPersist=yes", "-o", f"ConnectTimeout={ATTEMPT_S}"]
        argv = [*self._ssh(), *options, "-f", "-N", "root@127.0.0.1"]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def _ssh(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "ControlPath": str(self.directory / "ssh"),
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
        }
        pairs = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port), *pairs]


@contextmanager
def started(boot: Boot, directory: Path, snapshot: str = "") -> Iterator[Machine]:
    """A machine that can be talked to, from `directory/disk.qcow2`, until the block ends."""
    port = _free_port()
    argv = command(boot, directory, port, snapshot)
    with (directory / "qemu.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    machine = Machine(directory, boot.key, port, process)
    try:
        machine.connect()
        yield machine
    finally:
        machine.stop()


def command(boot: Boot, directory: Path, port: int, snapshot: str = "") -> list[str]:
    """A snapshot can be loaded into exactly these devices only."""
    disk = f"file={directory / 'disk.qcow2'},backing.driver=qcow2,backing.file.filename={boot.base}"
    return [
        "qemu-system-x86_64",
        *("-machine", "q35", "-accel", _accelerator(), "-cpu", "max", "-smp", str(CPUS), "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{directory / 'console'}"),
        *("-qmp", f"unix:{directory / 'monitor'},server=on,wait=off"),
        *("-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", KERNEL),
        *("-drive", f"{disk},format=qcow2,if=virtio,cache=unsafe,discard=unmap"),
        *("-netdev", f"user,id=wire,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=wire"),
        *(["-loadvm", snapshot] if snapshot else []),
    ]


def _accelerator() -> str:
    """How QEMU runs the machine's instructions."""
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    hardware = {"vmx", "svm"} & set(flags) and os.access("/dev/kvm", os.R_OK | os.W_OK)
    return "kvm" if hardware else "tcg,thread=multi"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _execute(stream: TextIO, command: str, arguments: dict[str, str]) -> object:
    """Events come between question and answer."""
    stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    stream.flush()
    for line in stream:
        message = json.loads(line)
        if "return" in message:
            return message["return"]
        if "error" in message:
            raise Failed(f"QEMU's monitor: {command}: {message['error']['desc']}")
    raise Failed(f"QEMU's monitor: {command}: no answer")
