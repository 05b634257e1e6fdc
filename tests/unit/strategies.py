"""Hypothesis strategies for the model's objects, as they may come over the wire or from disk."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st

from model.fetch import Fetch
from model.health import Health, HealthCheck, ProbeKind, Readiness, ReadinessCheck
from model.image import ImageSpec, Rules
from model.limits import Device, HugePages, IoLimit, TaskLimits, Tmpfs
from model.network import Address, Block, Network, NetworkKind, Subnet, Vtep
from model.node import Node
from model.pod import Pod
from model.resources import Resources
from model.task import Port, Protocol, Rlimit, TaskSpec, TaskState, TaskStatus, Usage
from model.vip import Backend, Vip
from model.volume import Propagation, VolumeKind, VolumeMount

texts = st.text(max_size=8)
names = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,8}", fullmatch=True)
pairs = st.lists(st.tuples(texts, texts), max_size=3).map(tuple)
numbers = st.integers(0, 2**31 - 1)
seconds = st.floats(0, 1e12, allow_nan=False)
ports = st.integers(1, 65535)
protocols = st.sampled_from(Protocol)
addresses: st.SearchStrategy[Address] = st.one_of(st.builds(IPv4Address, numbers), st.builds(IPv6Address, numbers))
resources = st.builds(Resources, numbers, numbers, numbers, numbers)
states = st.sampled_from(TaskState)


def _subnet(bits: int, prefix: int, wide: bool) -> Subnet:
    if wide:
        return IPv6Network((bits << 96, 64 + prefix), strict=False)
    return IPv4Network((bits, prefix), strict=False)


subnets = st.builds(_subnet, numbers, st.integers(8, 30), st.booleans())
usages = st.builds(
    Usage,
    cpu_s=seconds,
    cpu_limit=st.none() | seconds,
    mem_bytes=numbers,
    mem_limit_bytes=st.none() | numbers,
    pids=numbers,
    pids_limit=st.none() | numbers,
    cpu_throttled_s=seconds,
    mem_peak_bytes=numbers,
    io_read_bytes=numbers,
    io_write_bytes=numbers,
    disk_bytes=numbers,
    disk_limit_bytes=st.none() | numbers,
    net_received_bytes=numbers,
    net_sent_bytes=numbers,
    net_received_packets=numbers,
    net_sent_packets=numbers,
    net_received_dropped=numbers,
    net_sent_dropped=numbers,
)
instants = st.none() | seconds
healths = st.builds(Health, instants, instants, instants, st.integers(0, 2**31), texts)
health_checks = st.builds(
    HealthCheck,
    kind=st.sampled_from(ProbeKind),
    port=ports,
    path=texts,
    argv=st.lists(texts, max_size=2).map(tuple),
    own_address=st.booleans(),
    ipv6=st.booleans(),
    ignore_1xx=st.booleans(),
    grace_s=seconds,
    interval_s=seconds,
    timeout_s=seconds,
    delay_s=seconds,
    max_failures=st.integers(0, 2**31),
)
readiness_checks = st.builds(
    ReadinessCheck,
    name=texts,
    kind=st.sampled_from(ProbeKind),
    port=ports,
    path=texts,
    interval_s=seconds,
    timeout_s=seconds,
    ready_codes=st.lists(st.integers(100, 999), max_size=3).map(tuple),
    keep_response=st.booleans(),
)
readinesses = st.builds(Readiness, st.booleans(), st.none() | st.integers(100, 999), texts, texts, texts)
statuses = st.builds(
    TaskStatus,
    task_id=names,
    state=states,
    sequence=numbers,
    at=seconds,
    reason=texts,
    message=texts,
    addresses=st.lists(addresses.map(str), max_size=2).map(tuple),
    pid=st.none() | numbers,
    exit_code=st.none() | st.integers(-(2**31), 2**31 - 1),
    healthy=st.none() | st.booleans(),
    usage=usages,
    since=seconds,
    health=st.lists(healths, max_size=2).map(tuple),
    readiness=st.lists(readinesses, max_size=2).map(tuple),
    paused=st.booleans(),
    adjustment=numbers,
    refused=texts,
)
limits = st.builds(
    TaskLimits,
    swap=numbers,
    mem_high=numbers,
    oom_score_adj=st.integers(-1000, 1000),
    cpu_limit=numbers,
    mem_limit=numbers,
    cpuset=texts,
    cpu_burst_us=numbers,
    io=st.lists(st.builds(IoLimit, texts, numbers, numbers, numbers, numbers), max_size=2).map(tuple),
    io_weight=numbers,
    huge_pages=st.lists(st.builds(HugePages, texts, numbers), max_size=2).map(tuple),
    devices=st.lists(st.builds(Device, texts, texts), max_size=2).map(tuple),
)
volumes = st.builds(
    VolumeMount,
    destination=texts,
    kind=st.sampled_from(VolumeKind),
    source=texts,
    read_only=st.booleans(),
    propagation=st.sampled_from(Propagation),
    size=numbers,
)
pods = st.builds(Pod, names, texts, st.just(()), st.booleans(), st.booleans(), resources)


def _in_its_pod(spec: TaskSpec) -> TaskSpec:
    return replace(spec, pod=replace(spec.pod, members=("other one", spec.id))) if spec.pod else spec


specs = st.builds(
    TaskSpec,
    id=names,
    framework=texts,
    owner=texts,
    argv=st.lists(texts, max_size=3).map(tuple),
    resources=resources,
    network=names,
    env=pairs,
    ports=st.lists(
        st.builds(Port, ports, texts, st.lists(protocols, max_size=2, unique=True).map(tuple), pairs), max_size=2
    ).map(tuple),
    user=texts,
    cwd=texts,
    rootfs=texts,
    read_only=st.booleans(),
    tmpfs=st.lists(st.builds(Tmpfs, texts, numbers, texts, st.booleans()), max_size=2).map(tuple),
    shm=numbers,
    pids=numbers,
    rlimits=st.lists(st.builds(Rlimit, texts, numbers, numbers), max_size=2).map(tuple),
    labels=pairs,
    kill_grace_s=seconds,
    limits=limits,
    health_checks=st.lists(health_checks, max_size=2).map(tuple),
    readiness_checks=st.lists(readiness_checks, max_size=2).map(tuple),
    kill_signal=st.sampled_from(["SIGTERM", "SIGINT", "SIGRTMIN+3"]),
    image=st.none() | st.builds(ImageSpec, texts, st.booleans(), st.sampled_from(Rules), st.booleans(), texts),
    fetch=st.lists(st.builds(Fetch, texts, texts, st.booleans(), st.booleans(), st.booleans(), texts), max_size=2).map(
        tuple
    ),
    volumes=st.lists(volumes, max_size=2).map(tuple),
    pod=st.none() | pods,
).map(_in_its_pod)
nodes = st.builds(
    Node,
    id=names,
    hostname=texts,
    boot_id=texts,
    address=addresses,
    resources=resources,
    attributes=st.dictionaries(texts, texts, max_size=2).map(lambda pairs: tuple(sorted(pairs.items()))),
    version=texts,
    rights=st.frozensets(texts, max_size=2),
    ports=st.lists(st.integers(1, 65535), min_size=2, max_size=2).map(lambda pair: (min(pair), max(pair))),
)
networks = st.builds(
    Network,
    name=names,
    kind=st.sampled_from(NetworkKind),
    subnets=st.lists(subnets, max_size=2).map(tuple),
    block_prefix=st.integers(0, 128),
    vni=st.none() | st.integers(0, 2**24 - 1),
    block_prefix6=st.integers(0, 128),
    mtu=st.none() | st.integers(68, 65535),
    internal=st.booleans(),
    cni=texts,
)
blocks = st.builds(Block, network=names, node=names, subnet=subnets)
peers = st.tuples(names, names, addresses, names, st.lists(subnets, max_size=2), st.lists(addresses, max_size=2)).map(
    lambda t: Vtep(t[0], t[1], t[2], t[3], tuple(Block(t[0], t[1], s) for s in t[4]), tuple(t[5]))
)
vips = st.builds(
    Vip,
    address=addresses,
    port=ports,
    protocol=protocols,
    name=texts,
    backends=st.lists(
        st.builds(
            Backend, names, names, addresses, ports, st.integers(0, 100), st.none() | st.tuples(addresses, ports)
        ),
        max_size=3,
    ).map(tuple),
    affinity_s=numbers,
    prefer_local=st.booleans(),
    external=st.booleans(),
)
