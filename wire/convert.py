"""Protocol messages to model and back, all of it (health in `wire/health.py`, networks in
`wire/networks.py`), so that no other file knows both.

Reading trusts nothing: a message of another version or of a broken peer raises ValueError, which ends the session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import lru_cache
from ipaddress import ip_address

from model.adjustment import Adjustment, adjustment_of
from model.fetch import Fetch
from model.image import ImageSpec, NodeImage, PullProgress, Rules
from model.limits import Device, HugePages, IoLimit, TaskLimits, Tmpfs
from model.network import Address
from model.node import HOST_PORTS, Node
from model.pod import Pod
from model.resources import Resources
from model.task import Bandwidth, Interface, Rlimit, Secret, TaskSpec, TaskState, TaskStatus, Usage
from model.volume import VOLUME_ID, Propagation, VolumeKind, VolumeMount
from wire import control_pb2 as pb
from wire import health
from wire.health import finite as _finite
from wire.ports import port_from_wire, port_to_wire


def resources_to_wire(resources: Resources) -> pb.Resources:
    return pb.Resources(cpus=resources.cpus, mem=resources.mem, disk=resources.disk, gpus=resources.gpus)


def resources_from_wire(message: pb.Resources) -> Resources:
    amounts = (message.cpus, message.mem, message.disk, message.gpus)
    if min(amounts) < 0:
        raise ValueError(f"resources must not be negative: {amounts}")
    return Resources(*amounts)


def task_to_wire(task: TaskSpec) -> pb.Task:
    return pb.Task(
        id=task.id,
        framework=task.framework,
        owner=task.owner,
        argv=task.argv,
        resources=resources_to_wire(task.resources),
        network=task.network,
        env=_pairs_to_wire(task.env),
        ports=map(port_to_wire, task.ports),
        user=task.user,
        cwd=task.cwd,
        rootfs=task.rootfs,
        pids=task.pids,
        rlimits=[pb.Rlimit(kind=limit.kind, soft=limit.soft, hard=limit.hard) for limit in task.rlimits],
        labels=_pairs_to_wire(task.labels),
        kill_grace_s=task.kill_grace_s,
        seccomp=task.seccomp,
        capabilities_add=task.capabilities_add,
        capabilities_drop=task.capabilities_drop,
        sysctls=_pairs_to_wire(task.sysctls),
        secrets=[pb.Pair(key=secret.name, value=secret.value or "") for secret in task.secrets],
        read_only=task.read_only,
        tmpfs=[pb.Tmpfs(**asdict(mount)) for mount in task.tmpfs],
        shm=task.shm,
        limits=limits_to_wire(task.limits),
        health_checks=map(health.check_to_wire, task.health_checks),
        readiness_checks=map(health.readiness_check_to_wire, task.readiness_checks),
        kill_signal=task.kill_signal,
        image=pb.Image(**asdict(task.image)) if task.image is not None else None,
        fetch=[pb.Fetch(**asdict(fetch)) for fetch in task.fetch],
        volumes=[pb.VolumeMount(**asdict(mount)) for mount in task.volumes],
        pod=pod_to_wire(task.pod) if task.pod else None,
        address=task.address,
        interfaces=[pb.Interface(**asdict(interface)) for interface in task.interfaces],
        bandwidth=pb.Bandwidth(**asdict(task.bandwidth)) if task.bandwidth else None,
    )


def task_from_wire(message: pb.Task) -> TaskSpec:
    return TaskSpec(
        id=message.id,
        framework=message.framework,
        owner=message.owner,
        argv=tuple(message.argv),
        resources=resources_from_wire(message.resources),
        network=message.network,
        env=_pairs_from_wire(message.env),
        ports=tuple(map(port_from_wire, message.ports)),
        user=message.user,
        cwd=message.cwd,
        rootfs=message.rootfs,
        pids=message.pids,
        rlimits=tuple(Rlimit(limit.kind, limit.soft, limit.hard) for limit in message.rlimits),
        labels=_pairs_from_wire(message.labels),
        kill_grace_s=_finite(message.kill_grace_s),
        seccomp=message.seccomp,
        capabilities_add=tuple(message.capabilities_add),
        capabilities_drop=tuple(message.capabilities_drop),
        sysctls=_pairs_from_wire(message.sysctls),
        secrets=tuple(Secret(secret.key, secret.value) for secret in message.secrets),
        read_only=message.read_only,
        tmpfs=tuple(Tmpfs(each.destination, each.size, each.mode, each.executable) for each in message.tmpfs),
        shm=message.shm,
        limits=limits_from_wire(message.limits) if message.HasField("limits") else TaskLimits(),
        health_checks=tuple(map(health.check_from_wire, message.health_checks)),
        readiness_checks=tuple(map(health.readiness_check_from_wire, message.readiness_checks)),
        kill_signal=message.kill_signal or "SIGTERM",
        image=image_from_wire(message.image) if message.HasField("image") else None,
        fetch=tuple(fetch_from_wire(fetch) for fetch in message.fetch),
        volumes=tuple(map(_volume_from_wire, message.volumes)),
        pod=pod_from_wire(message.id, message.pod) if message.HasField("pod") else None,
        address=message.address,
        interfaces=tuple(Interface(each.network, each.address) for each in message.interfaces),
        bandwidth=_bandwidth_from_wire(message.bandwidth) if message.HasField("bandwidth") else None,
    )


def _bandwidth_from_wire(message: pb.Bandwidth) -> Bandwidth:
    return Bandwidth(
        message.ingress if message.HasField("ingress") else None,
        message.egress if message.HasField("egress") else None,
    )


def pod_to_wire(pod: Pod) -> pb.Pod:
    return pb.Pod(
        id=pod.id,
        container=pod.container,
        members=pod.members,
        share_ipc=pod.share_ipc,
        share_pid=pod.share_pid,
        resources=resources_to_wire(pod.resources),
    )


def pod_from_wire(task_id: str, message: pb.Pod) -> Pod:
    if task_id not in message.members or len(set(message.members)) < len(message.members):
        raise ValueError(f"task {task_id}: is not one of the tasks of its pod")
    return Pod(
        id=message.id,
        container=message.container,
        members=tuple(message.members),
        share_ipc=message.share_ipc,
        share_pid=message.share_pid,
        resources=resources_from_wire(message.resources),
    )


def image_from_wire(message: pb.Image) -> ImageSpec:
    rules = Rules(message.rules)
    return ImageSpec(message.reference, message.force_pull, rules, message.arguments, message.pull_secret)


def pull_progress_from_wire(message: pb.PullProgress) -> PullProgress:
    return PullProgress(
        message.reference,
        message.layers,
        message.layers_done,
        message.bytes,
        message.bytes_done,
        message.note,
    )


def node_image_from_wire(message: pb.NodeImage) -> NodeImage:
    return NodeImage(
        message.reference,
        message.digest,
        message.bytes,
        message.pulled_at,
        message.used_at,
        tuple(message.tasks),
    )


def fetch_from_wire(message: pb.Fetch) -> Fetch:
    return Fetch(message.uri, message.destination, message.extract, message.executable, message.cache, message.digest)


def assignment_to_wire(task: TaskSpec, kill: bool, paused: bool, adjustment: int) -> pb.Assignment:
    return pb.Assignment(task=task_to_wire(task), kill=kill, paused=paused, adjustment=adjustment)


def assignment_from_wire(message: pb.Assignment) -> tuple[TaskSpec, bool, Adjustment]:
    """What to run, whether it shall end, and how it is to be adjusted."""
    task = task_from_wire(message.task)
    return task, message.kill, adjustment_of(task, message.paused, message.adjustment)


def limits_to_wire(limits: TaskLimits) -> pb.TaskLimits:
    return pb.TaskLimits(
        swap=limits.swap,
        mem_high=limits.mem_high,
        oom_score_adj=limits.oom_score_adj,
        cpuset=limits.cpuset,
        cpu_burst_us=limits.cpu_burst_us,
        io=[pb.IoLimit(**asdict(limit)) for limit in limits.io],
        io_weight=limits.io_weight,
        huge_pages=[pb.HugePages(size=pages.size, limit=pages.limit) for pages in limits.huge_pages],
        devices=[pb.Device(path=device.path, access=device.access) for device in limits.devices],
        cpu_limit=limits.cpu_limit,
        mem_limit=limits.mem_limit,
    )


def limits_from_wire(message: pb.TaskLimits) -> TaskLimits:
    return TaskLimits(
        swap=message.swap,
        mem_high=message.mem_high,
        oom_score_adj=message.oom_score_adj,
        cpuset=message.cpuset,
        cpu_burst_us=message.cpu_burst_us,
        io=tuple(
            IoLimit(limit.device, limit.read_bps, limit.write_bps, limit.read_iops, limit.write_iops)
            for limit in message.io
        ),
        io_weight=message.io_weight,
        huge_pages=tuple(HugePages(pages.size, pages.limit) for pages in message.huge_pages),
        devices=tuple(Device(device.path, device.access) for device in message.devices),
        cpu_limit=message.cpu_limit,
        mem_limit=message.mem_limit,
    )


def status_to_wire(status: TaskStatus) -> pb.Status:
    return pb.Status(
        task_id=status.task_id,
        state=status.state,
        sequence=status.sequence,
        at=status.at,
        reason=status.reason,
        message=status.message,
        addresses=status.addresses,
        pid=status.pid,
        exit_code=status.exit_code,
        healthy=status.healthy,
        paused=status.paused,
        adjustment=status.adjustment,
        refused=status.refused,
        usage=usage_to_wire(status.usage),
        since=status.since,
        health=map(health.health_to_wire, status.health),
        readiness=map(health.readiness_to_wire, status.readiness),
    )


def status_from_wire(message: pb.Status) -> TaskStatus:
    return TaskStatus(
        task_id=message.task_id,
        state=TaskState(message.state),
        sequence=message.sequence,
        at=_finite(message.at),
        reason=message.reason,
        message=message.message,
        addresses=tuple(map(_canonical, message.addresses)),
        pid=message.pid if message.HasField("pid") else None,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        healthy=message.healthy if message.HasField("healthy") else None,
        paused=message.paused,
        adjustment=message.adjustment,
        refused=message.refused,
        usage=usage_from_wire(message.usage) if message.HasField("usage") else Usage(),
        since=_finite(message.since),
        health=tuple(map(health.health_from_wire, message.health)),
        readiness=tuple(map(health.readiness_from_wire, message.readiness)),
    )


def usage_to_wire(usage: Usage) -> pb.Usage:
    return pb.Usage(
        cpu_s=usage.cpu_s,
        cpu_limit=usage.cpu_limit,
        mem_bytes=usage.mem_bytes,
        mem_limit_bytes=usage.mem_limit_bytes,
        pids=usage.pids,
        pids_limit=usage.pids_limit,
        cpu_throttled_s=usage.cpu_throttled_s,
        mem_peak_bytes=usage.mem_peak_bytes,
        io_read_bytes=usage.io_read_bytes,
        io_write_bytes=usage.io_write_bytes,
        disk_bytes=usage.disk_bytes,
        disk_limit_bytes=usage.disk_limit_bytes,
        net_received_bytes=usage.net_received_bytes,
        net_sent_bytes=usage.net_sent_bytes,
        net_received_packets=usage.net_received_packets,
        net_sent_packets=usage.net_sent_packets,
        net_received_dropped=usage.net_received_dropped,
        net_sent_dropped=usage.net_sent_dropped,
    )


def usage_from_wire(message: pb.Usage) -> Usage:
    return Usage(
        cpu_s=_finite(message.cpu_s),
        cpu_limit=_finite(message.cpu_limit) if message.HasField("cpu_limit") else None,
        mem_bytes=message.mem_bytes,
        mem_limit_bytes=message.mem_limit_bytes if message.HasField("mem_limit_bytes") else None,
        pids=message.pids,
        pids_limit=message.pids_limit if message.HasField("pids_limit") else None,
        cpu_throttled_s=_finite(message.cpu_throttled_s),
        mem_peak_bytes=message.mem_peak_bytes,
        io_read_bytes=message.io_read_bytes,
        io_write_bytes=message.io_write_bytes,
        disk_bytes=message.disk_bytes,
        disk_limit_bytes=message.disk_limit_bytes if message.HasField("disk_limit_bytes") else None,
        net_received_bytes=message.net_received_bytes,
        net_sent_bytes=message.net_sent_bytes,
        net_received_packets=message.net_received_packets,
        net_sent_packets=message.net_sent_packets,
        net_received_dropped=message.net_received_dropped,
        net_sent_dropped=message.net_sent_dropped,
    )


def usages_to_wire(usages: Mapping[str, Usage]) -> pb.UsageReport:
    return pb.UsageReport(tasks={task_id: usage_to_wire(usage) for task_id, usage in usages.items()})


def usages_from_wire(message: pb.UsageReport) -> dict[str, Usage]:
    return {task_id: usage_from_wire(usage) for task_id, usage in message.tasks.items()}


def hello_to_wire(node: Node, tasks: list[TaskStatus]) -> pb.Hello:
    return pb.Hello(
        hostname=node.hostname,
        boot_id=node.boot_id,
        address=str(node.address),
        resources=resources_to_wire(node.resources),
        attributes=dict(node.attributes),
        version=node.version,
        rights=sorted(node.rights),
        first_port=node.ports[0],
        last_port=node.ports[1],
        tasks=map(status_to_wire, tasks),
    )


def hello_from_wire(node_id: str, message: pb.Hello) -> tuple[Node, list[TaskStatus]]:
    """`node_id` comes from the peer's certificate, never from the message."""
    node = Node(
        id=node_id,
        hostname=message.hostname,
        boot_id=message.boot_id,
        address=_address(message.address),
        resources=resources_from_wire(message.resources),
        attributes=tuple(sorted(message.attributes.items())),
        version=message.version,
        rights=frozenset(message.rights),
        ports=_ports_from_wire(message.first_port, message.last_port),
    )
    return node, [status_from_wire(status) for status in message.tasks]


def _ports_from_wire(first: int, last: int) -> tuple[int, int]:
    if (first, last) == (0, 0):  # an agent of before
        return HOST_PORTS
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{first}-{last} is no range of ports")
    return first, last


def volume_id_from_wire(text: str) -> str:
    if not VOLUME_ID.fullmatch(text):
        raise ValueError(f"{text!r} is no id of a volume")
    return text


def _volume_from_wire(message: pb.VolumeMount) -> VolumeMount:
    return VolumeMount(
        destination=message.destination,
        kind=VolumeKind(message.kind),
        source=message.source,
        read_only=message.read_only,
        propagation=Propagation(message.propagation),
        size=message.size,
    )


def _pairs_to_wire(pairs: tuple[tuple[str, str], ...]) -> list[pb.Pair]:
    return [pb.Pair(key=key, value=value) for key, value in pairs]


def _pairs_from_wire(pairs: Iterable[pb.Pair]) -> tuple[tuple[str, str], ...]:
    return tuple((pair.key, pair.value) for pair in pairs)


@lru_cache(1 << 14)  # it comes with every status of its task
def _canonical(text: str) -> str:
    return str(_address(text))


def _address(text: str) -> Address:
    """Without a zone: that of another machine means nothing here, and no rule or route can have it."""
    if "%" in text:
        raise ValueError(f"{text!r} is an address with a zone")
    return ip_address(text)
