"""Tasks: what to run (`TaskSpec`), how far a run has come (`TaskState`), and what the agent saw of it (`TaskStatus`).

A task runs at most once and its state only grows, so of two observations the greater is right, whatever the order in
which they arrive. The idea of a single growing number is swarmkit's; the names of the terminal states are Mesos's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from model.fetch import Fetch
from model.health import Health, HealthCheck, Readiness, ReadinessCheck
from model.image import ImageSpec
from model.limits import TaskLimits, Tmpfs
from model.pod import Pod
from model.resources import Resources
from model.volume import WORKSPACE, VolumeMount


class TaskState(IntEnum):
    """Gaps leave room for later states. Everything from FINISHED up is terminal."""

    STAGING = 0  # the framework accepted an offer with it
    ASSIGNED = 64  # in the node's desired state
    ACCEPTED = 128  # on the agent's disk
    PREPARING = 192  # isolators make what the container needs
    STARTING = 256  # the launcher makes the container
    RUNNING = 320
    KILLING = 384
    FINISHED = 448
    FAILED = 512
    KILLED = 576
    REJECTED = 640  # the agent can not run it, and says why
    LOST = 704  # the node has been away for too long
    GONE = 768  # the node will not come back

    @property
    def terminal(self) -> bool:
        return self >= TaskState.FINISHED


MESOS_STATES = {
    TaskState.STAGING: "TASK_STAGING",
    TaskState.ASSIGNED: "TASK_STAGING",
    TaskState.ACCEPTED: "TASK_STAGING",
    TaskState.PREPARING: "TASK_STARTING",
    TaskState.STARTING: "TASK_STARTING",
    TaskState.RUNNING: "TASK_RUNNING",
    TaskState.KILLING: "TASK_KILLING",
    TaskState.FINISHED: "TASK_FINISHED",
    TaskState.FAILED: "TASK_FAILED",
    TaskState.KILLED: "TASK_KILLED",
    TaskState.REJECTED: "TASK_ERROR",
    TaskState.LOST: "TASK_LOST",
    TaskState.GONE: "TASK_GONE",
}

KEEP = "keep"  # as the address that a task asks for: the one that its owner's task before had

# A task id names directories, cgroups and chains: no slash, no leading dot, short enough for a file name with a suffix.
TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class Port:
    """A port the task listens on at its own address. Labels may ask for VIPs (`model.vip.parse_label`). What comes to
    port `host` of the node, if there is one, is led to it."""

    number: int
    name: str = ""
    protocols: tuple[Protocol, ...] = (Protocol.TCP,)
    labels: tuple[tuple[str, str], ...] = ()
    host: int | None = None


def sockets(ports: Iterable[Port]) -> Iterator[tuple[str, int]]:
    """Protocols and ports of the node that these ports take."""
    for port in ports:
        if port.host is not None:
            for protocol in port.protocols:
                yield protocol.value, port.host


@dataclass(frozen=True, slots=True)
class Rlimit:
    """`kind` is the kernel's name, as in OCI: `RLIMIT_NOFILE`."""

    kind: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Secret:
    """A file in /run/secrets. Its `value` is kept out of logs and of the agent's disk, where it is None."""

    name: str
    value: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Interface:
    """One more network that a task is on, beside `TaskSpec.network`: its link is eth1, eth2 and so on, in order."""

    network: str
    address: str = ""  # the one it is to have


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bits a second that go to and from a container by all its links; None: as much as there is."""

    ingress: int | None = None
    egress: int | None = None


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """Everything an agent needs to run a task. Never changes after the task was accepted, but for what a
    `model.adjustment.Adjustment` names.

    `owner` is what the framework calls the thing this task belongs to (`/web`). An empty `rootfs` means the node's own
    file system, read-only, under a private writable layer. `pids` bounds processes and threads together.
    `seccomp` is a profile in Docker's format, `unconfined`, or empty for the default. Capabilities are written like
    `CAP_NET_RAW`; those dropped may be `ALL`. With `read_only` nothing can be written but what is mounted: `tmpfs`,
    `volumes`, and the temporary directories that every container has. `shm` is the size of /dev/shm in MiB. With an
    `image`, which excludes `rootfs`, empty `argv`, `user` and `cwd` mean the image's. What is to `fetch` is in the
    workspace before the task starts. `address` is the one that the task is to have on its `network`, or `KEEP`,
    which the master replaces; empty: any. One that is `patient` is not given up because its node is away: that is for
    its framework to say.
    """

    id: str
    framework: str
    owner: str
    argv: tuple[str, ...]
    resources: Resources
    network: str
    env: tuple[tuple[str, str], ...] = ()
    ports: tuple[Port, ...] = ()
    user: str = "0:0"
    cwd: str = "/"
    rootfs: str = ""
    pids: int = 1024
    rlimits: tuple[Rlimit, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    kill_grace_s: float = 3.0
    seccomp: str = ""
    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    secrets: tuple[Secret, ...] = ()
    limits: TaskLimits = field(default_factory=TaskLimits)
    health_checks: tuple[HealthCheck, ...] = ()
    readiness_checks: tuple[ReadinessCheck, ...] = ()
    kill_signal: str = "SIGTERM"
    read_only: bool = False
    tmpfs: tuple[Tmpfs, ...] = ()
    shm: int = 64
    image: ImageSpec | None = None
    fetch: tuple[Fetch, ...] = ()
    volumes: tuple[VolumeMount, ...] = ()
    pod: Pod | None = None
    address: str = ""
    interfaces: tuple[Interface, ...] = ()
    bandwidth: Bandwidth | None = None
    patient: bool = False

    @property
    def needs_provision(self) -> bool:
        """Whether something has to be on the node before it can start: its image, or its workspace."""
        in_workspace = any(mount.destination.startswith(f"{WORKSPACE}/") for mount in self.volumes)
        return self.image is not None or bool(self.fetch) or in_workspace

    @property
    def attachments(self) -> tuple[Interface, ...]:
        """Every network that its container is on, with the address it is to have there. A pod is on its networks once:
        that counts with the first of its tasks."""
        if self.pod is not None and self.pod.members[0] != self.id:
            return ()
        return (Interface(self.network, self.address), *self.interfaces)

    @property
    def held(self) -> Resources:
        """What its node has less because of it: what a pod takes for itself counts with the first of its tasks."""
        if self.pod is None or self.pod.members[0] != self.id:
            return self.resources
        return self.resources + self.pod.resources


@dataclass(frozen=True, slots=True)
class Usage:
    """Read back from the kernel, limits as well as use. A limit of None means that the kernel has none set."""

    cpu_s: float = 0.0
    cpu_limit: float | None = None  # CPUs: quota / period
    mem_bytes: int = 0
    mem_limit_bytes: int | None = None
    pids: int = 0
    pids_limit: int | None = None
    cpu_throttled_s: float = 0.0  # in which it could have run, had the quota been greater
    mem_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    disk_bytes: int = 0  # of the writable layer
    disk_limit_bytes: int | None = None
    net_received_bytes: int = 0  # by the container, through its own link
    net_sent_bytes: int = 0
    net_received_packets: int = 0
    net_sent_packets: int = 0
    net_received_dropped: int = 0
    net_sent_dropped: int = 0


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """One observation of a task. `sequence` grows with each of them, so that attributes of RUNNING can change too; `at`
    is seconds since the epoch on the node's clock, and `since` when the task came into its state. `health` and
    `readiness` have one entry for each of the task's checks. `adjustment` is the number of the last one that was dealt
    with; `refused` says why it could not be done."""

    task_id: str
    state: TaskState
    sequence: int = 0
    at: float = 0.0
    reason: str = ""
    message: str = ""
    addresses: tuple[str, ...] = ()
    pid: int | None = None
    exit_code: int | None = None
    healthy: bool | None = None
    usage: Usage = field(default_factory=Usage)
    since: float = 0.0
    health: tuple[Health, ...] = ()
    readiness: tuple[Readiness, ...] = ()
    paused: bool = False
    adjustment: int = 0
    refused: str = ""


def newer(current: TaskStatus | None, seen: TaskStatus) -> bool:
    """Whether `seen` adds to `current`: states never go back, and nothing follows a terminal state."""
    if current is None:
        return True
    if current.state.terminal:
        return False
    return (seen.state, seen.sequence) > (current.state, current.sequence)
