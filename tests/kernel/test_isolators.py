"""Isolators against the real kernel, without a launcher where none is needed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest

import model.network
from isolators import base
from isolators.base import Container, IsolatorError, Unsupported
from isolators.cgroup.isolator import CgroupIsolator
from isolators.filesystem import FilesystemIsolator
from isolators.mount import open_in_root
from isolators.namespaces import hostname
from isolators.network import NetworkIsolator
from isolators.rlimits import RlimitsIsolator
from model.network import Address, Block, NetworkKind
from model.pod import Pod
from model.resources import Resources
from model.task import Bandwidth, Interface, Port, Rlimit, TaskSpec, Usage
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.firewall.table import Guest
from netns.networks import Networks
from tests.kernel.cgroup_files import directories, files, remove_prefix
from tests.kernel.namespaces import NetnsProcess, run
from tests.kernel.sandbox import (
    ID_BASE,
    Sandbox,
    cgroups,
    mounts_below,
    root_directory,
    sandbox,
    task,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

PREFIX = f"tepui-test-{os.getpid()}"
V1_TREES = {"cpu", "memory", "pids"}


@pytest.fixture
def limiter() -> Iterator[CgroupIsolator]:
    yield CgroupIsolator(PREFIX)
    left = cgroups(PREFIX)
    remove_prefix(PREFIX)
    assert left == []


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Sandbox]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with sandbox(state) as made:
        yield made


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "infinity"])
    yield process
    process.kill()
    process.wait()


def made(spec: TaskSpec, directory: Path, id: str = "") -> Container:
    id = id or spec.id
    for path in (directory / id, directory / "layers" / id):
        path.mkdir(mode=0o700, parents=True)
    return Container(spec, base.Sandbox(id, directory / id, directory / "layers" / id, ID_BASE, spec.network))


async def limited(limiter: CgroupIsolator, container: Container, pid: int) -> None:
    await limiter.open(container.sandbox)
    await limiter.isolate(container.sandbox, pid)
    await limiter.prepare(container)
    await limiter.enforce(container)


async def mounted(isolator: FilesystemIsolator, container: Container) -> None:
    """For a process in the user namespace of the node."""
    await isolator.open(container.sandbox)
    await isolator.isolate(container.sandbox, os.getpid())
    await isolator.prepare(container)
    await isolator.enforce(container)


async def test_limits_are_read_back_and_changed(
    limiter: CgroupIsolator, sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    container = made(task("web.1", "true", resources=Resources(cpus=1500, mem=64), pids=9), tmp_path)
    await limited(limiter, container, sleeper.pid)
    usage = await limiter.usage(container, Usage())
    assert (usage.cpu_limit, usage.mem_limit_bytes, usage.pids_limit, usage.pids) == (1.5, 64 << 20, 9, 1)
    await limiter.update(container, Resources(cpus=250, mem=32))
    usage = await limiter.usage(container, Usage())
    assert (usage.cpu_limit, usage.mem_limit_bytes) == (0.25, 32 << 20)
    assert trees_with(f"/{PREFIX}/web.1", sleeper.pid) in ({""}, V1_TREES)
    await limiter.cleanup(container.sandbox)
    assert sleeper.wait() == -signal.SIGKILL


async def test_orphans_are_killed_and_known_ones_kept(
    limiter: CgroupIsolator, sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    kept, orphan = (made(task(name, "true"), tmp_path) for name in ("kept.1", "orphan.1"))
    for container in (kept, orphan):
        await limiter.open(container.sandbox)
    await limiter.isolate(orphan.sandbox, sleeper.pid)
    for directory in directories(PREFIX):
        (directory / "below").mkdir()
    await CgroupIsolator(PREFIX).recover([kept], [])
    assert {Path(path).name for path in cgroups(PREFIX)} == {"kept.1"}
    assert sleeper.wait() == -signal.SIGKILL
    await limiter.cleanup(kept.sandbox)


async def test_a_process_that_is_gone_can_not_be_limited(limiter: CgroupIsolator, tmp_path: Path) -> None:
    container = made(task("web.1", "true"), tmp_path)
    await limiter.open(container.sandbox)
    with pytest.raises(IsolatorError, match="move process 4194304 to cgroup web.1"):
        await limiter.isolate(container.sandbox, 1 << 22)
    await limiter.cleanup(container.sandbox)


async def test_cpu_quota_holds(node: Sandbox) -> None:
    loop = asyncio.get_running_loop()
    container, _ = await node.start(
        task("web.1", "sh", "-c", "while :; do :; done", resources=Resources(cpus=100, mem=32))
    )
    limiter = next(isolator for isolator in node.isolators if isinstance(isolator, CgroupIsolator))
    await until_cpu(limiter, container, 0.02)
    first, began = (await limiter.usage(container, Usage())).cpu_s, loop.time()
    await until_cpu(limiter, container, first + 0.1)
    assert (await limiter.usage(container, Usage())).cpu_s - first < (loop.time() - began) * 0.1 + 0.05


async def test_overlays_of_unknown_containers_are_unmounted(node: Sandbox, tmp_path: Path) -> None:
    state = tmp_path / "with space"
    isolator = FilesystemIsolator(state)
    kept, orphan = (made(task(name, "true"), state) for name in ("kept.1", "orphan.1"))
    for container in (kept, orphan):
        await mounted(isolator, container)
    await FilesystemIsolator(state).recover([kept], ["orphan.1"])
    assert mounts_below(state) == [kept.rootfs]
    await isolator.cleanup(kept.sandbox)
    await isolator.cleanup(kept.sandbox)
    assert mounts_below(state) == []


async def test_a_busy_overlay_is_unmounted(node: Sandbox, tmp_path: Path) -> None:
    isolator = FilesystemIsolator(tmp_path)
    container = made(task("web.1", "true"), tmp_path)
    await mounted(isolator, container)
    with (container.rootfs / "held").open("w"):
        await isolator.cleanup(container.sandbox)
        assert mounts_below(container.directory) == []


async def test_the_nodes_own_files_are_not_idmapped(node: Sandbox, tmp_path: Path) -> None:
    isolator = FilesystemIsolator(tmp_path)
    container = made(task("web.1", "true"), tmp_path)
    await mounted(isolator, container)
    assert (container.rootfs / "etc/shadow").stat().st_uid == 0
    assert container.rootfs.stat().st_uid == ID_BASE
    await isolator.cleanup(container.sandbox)


async def test_an_image_is_idmapped_and_not_changed(node: Sandbox, tmp_path: Path) -> None:
    image = root_directory(tmp_path / "image", programs=["true"])
    container = node.container(task("web.1", "true", rootfs=str(image)))
    await node.create(container)
    await node.prepare(container)
    assert (container.rootfs / "bin/true").stat().st_uid == ID_BASE
    assert (image / "bin/true").stat().st_uid == 0


async def test_the_user_namespace_of_a_sandbox_is_held_until_its_files_are_mounted(node: Sandbox) -> None:
    before = user_namespaces()
    used, unused = (node.container(task(name, "true")) for name in ("web.1", "web.2"))
    for container in (used, unused):
        await node.create(container)
    assert len(user_namespaces() - before) == 2
    await node.prepare(used)
    assert len(user_namespaces() - before) == 1
    await node.clean()
    assert user_namespaces() == before


def test_a_look_up_on_a_busy_node_is_not_given_up(tmp_path: Path) -> None:
    """Another process renames files all the time, each time making what is looked up uncertain."""
    (tmp_path / "root/below").mkdir(parents=True)
    (tmp_path / "root/file").write_text("x")
    (tmp_path / "a").touch()
    rename = "import os\nwhile True: os.rename('a', 'b'); os.rename('b', 'a')"
    renaming = subprocess.Popen([sys.executable, "-I", "-S", "-c", rename], cwd=tmp_path)
    try:
        for _ in range(5000):
            os.close(open_in_root(tmp_path / "root", "below/../below/../file"))
    finally:
        renaming.kill()
        renaming.wait()


async def test_a_missing_image_is_refused(node: Sandbox, tmp_path: Path) -> None:
    isolator = FilesystemIsolator(tmp_path)
    container = made(task("web.1", "true", rootfs="/missing"), tmp_path)
    with pytest.raises(Unsupported, match="/missing is not a directory"):
        await mounted(isolator, container)
    await isolator.cleanup(container.sandbox)


async def test_a_path_that_overlay_mounts_can_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="state directory"):
        FilesystemIsolator(Path("/var/lib/a,b"))


@pytest.mark.parametrize(
    "limits",
    [
        (Rlimit("RLIMIT_NONSENSE", 1, 1),),
        (Rlimit("RLIMIT_NOFILE", 2, 1),),
        (Rlimit("RLIMIT_NOFILE", -1, 1),),
        (Rlimit("RLIMIT_NOFILE", 1, 1), Rlimit("RLIMIT_NOFILE", 2, 2)),
    ],
)
async def test_rlimits_that_are_refused(limits: tuple[Rlimit, ...], tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="rlimits"):
        await RlimitsIsolator().prepare(made(task("web.1", "true", rlimits=limits), tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"), [("web_1.abc", "web-1"), ("a" * 80, "a" * 63), ("x" * 62 + "-y", "x" * 62)]
)
def test_host_names_are_one_label(name: str, expected: str) -> None:
    assert hostname(name) == expected


@dataclass
class Network:
    """A driver that gives 192.0.2.7 and up, and keeps a list of what it was asked to do."""

    calls: list[str] = field(default_factory=list)
    attached: dict[str, list[Address]] = field(default_factory=dict)
    fails: bool = False

    def known(self) -> frozenset[str]:
        return frozenset()

    def validate(self, spec: NetworkSpec) -> None: ...

    async def configure(self, spec: NetworkSpec) -> None: ...

    async def remove(self, network: str) -> None: ...

    async def attach(self, attachment: Attachment) -> tuple[Address, ...]:
        self.calls.append(f"attach {attachment.container} {attachment.netns_pid}")
        if self.fails:
            raise NetworkError("attach c1: no")
        given = self.attached.setdefault(attachment.container, [])
        given.append(attachment.address or IPv4Address("192.0.2.7") + len(given))
        if attachment.interface != "eth0" or attachment.address is not None:
            self.calls[-1] += f" {attachment.network} {attachment.interface} {given[-1]}"
        return (given[-1],)

    underlay = IPv4Address("192.0.2.1")

    def gateways(self, container: str) -> tuple[Address, ...]:
        return ()

    def addresses(self, container: str) -> tuple[Address, ...]:
        return tuple(self.attached.get(container, ()))

    async def detach(self, container: str) -> None:
        self.calls.append(f"detach {container}")

    async def limit(self, container: str, bandwidth: Bandwidth | None) -> None:
        self.calls.append(f"limit {container} {bandwidth}")

    async def gc(self, valid: frozenset[str]) -> None:
        self.calls.append(f"gc {sorted(valid)}")

    async def mend(self, network: str) -> list[str]:
        return []

    def released(self) -> tuple[Block, ...]:
        return ()


async def test_network_is_attached_and_hosts_tells(tmp_path: Path) -> None:
    driver = Network()
    isolator = NetworkIsolator(driver, NftFirewall())
    container = made(task("web.1", "true", network="prod"), tmp_path, "c1")
    assert await isolator.open(container.sandbox) == {}
    assert await isolator.isolate(container.sandbox, 42) == (IPv4Address("192.0.2.7"),)
    part = await isolator.prepare(container)
    assert "192.0.2.7 web\n" in (container.directory / "hosts").read_text()
    assert {mount["destination"] for mount in part["mounts"]} == {"/etc/hosts", "/etc/resolv.conf"}
    assert {Path(mount["source"]).parent for mount in part["mounts"]} == {container.directory}
    await isolator.cleanup(container.sandbox)
    await isolator.recover([container], [])
    assert driver.calls == ["attach c1 42", "detach c1", "gc ['c1']"]


@dataclass
class Guards(NftFirewall):
    """A firewall that keeps a list of what it was asked to do, in that of the driver."""

    calls: list[str]
    guests: list[Guest] = field(default_factory=list)
    fails: bool = False

    async def admit(self, guest: Guest) -> None:
        self.calls.append(f"admit {guest.container}")
        self.guests.append(guest)
        if self.fails:
            raise NetworkError("publish 8080/tcp of c1: db.1 has it")

    async def dismiss(self, container: str) -> None:
        self.calls.append(f"dismiss {container}")
        if self.fails:
            raise NetworkError("dismiss c1: no")

    async def recover(self, guests: tuple[Guest, ...]) -> None:
        self.calls.append(f"recover {[guest.container for guest in guests]}")


PUBLISHED = Port(80, host=8080)
FIRST, SECOND = IPv4Address("192.0.2.7"), IPv4Address("198.51.100.9")


async def test_all_networks_are_attached_and_the_guest_admitted_before_its_program_runs(tmp_path: Path) -> None:
    driver = Network()
    isolator = NetworkIsolator(driver, guards := Guards(driver.calls))
    wanted = (Interface("back", str(SECOND)), Interface("third"))
    spec = task("web.1", "true", network="prod", ports=(PUBLISHED, Port(81)), bandwidth=Bandwidth(egress=10**6))
    container = made(spec, tmp_path, "c1")
    sandbox = replace(container.sandbox, address=str(FIRST), interfaces=wanted)
    container = replace(container, sandbox=sandbox)
    addresses = await isolator.isolate(sandbox, 42)
    assert addresses == (FIRST, SECOND, IPv4Address("192.0.2.9")) and guards.guests == []
    await isolator.prepare(container)
    hosts = (container.directory / "hosts").read_text()
    assert all(f"{address} web\n" in hosts for address in addresses)
    assert guards.guests == [Guest("c1", "services/test", addresses, (PUBLISHED,))]
    await isolator.cleanup(sandbox)
    assert driver.calls == [
        "attach c1 42 prod eth0 192.0.2.7",
        "attach c1 42 back eth1 198.51.100.9",
        "attach c1 42 third eth2 192.0.2.9",
        "admit c1",
        f"limit c1 {spec.bandwidth}",
        "dismiss c1",
        "detach c1",
    ]


async def test_each_of_a_pods_containers_is_a_guest_with_the_pods_addresses(tmp_path: Path) -> None:
    driver = Network()
    isolator = NetworkIsolator(driver, guards := Guards(driver.calls))
    pod, bandwidth = Pod("pod.1", "a", ("web.1", "web.2")), Bandwidth(ingress=10**6)
    holder = made(task("pod.1", "true", network="prod"), tmp_path, "h")
    await isolator.isolate(holder.sandbox, 42)
    held = base.Holder("h", holder.directory, holder.layer, 42, ("network",))
    for name in pod.members:
        member = made(task(name, "true", network="prod", pod=pod, bandwidth=bandwidth), tmp_path, f"c-{name}")
        member = replace(member, sandbox=replace(member.sandbox, holder=held))
        assert await isolator.isolate(member.sandbox, 43) == (FIRST,)
        await isolator.prepare(member)
        await isolator.cleanup(member.sandbox)
    assert [(guest.container, guest.addresses) for guest in guards.guests] == [
        ("c-web.1", (FIRST,)),
        ("c-web.2", (FIRST,)),
    ]
    assert [call for call in driver.calls if "limit" in call] == [f"limit h {bandwidth}"]
    assert not any("detach" in call for call in driver.calls)


async def test_who_may_not_be_admitted_does_not_start_and_is_cleared_away_all_the_same(tmp_path: Path) -> None:
    driver = Network()
    isolator = NetworkIsolator(driver, Guards(driver.calls, fails=True))
    container = made(task("web.1", "true", network="prod", ports=(PUBLISHED,)), tmp_path, "c1")
    await isolator.isolate(container.sandbox, 42)
    with pytest.raises(IsolatorError, match=r"8080/tcp of c1: db\.1 has it"):
        await isolator.prepare(container)
    with pytest.raises(IsolatorError, match="dismiss c1: no"):
        await isolator.cleanup(container.sandbox)
    assert driver.calls[-2:] == ["dismiss c1", "detach c1"]


async def test_after_a_restart_the_firewall_is_told_who_is_here(tmp_path: Path) -> None:
    driver = Network()
    isolator = NetworkIsolator(driver, Guards(driver.calls))
    known = [made(task(name, "true", network=on), tmp_path) for name, on in (("a", "prod"), ("b", "host"))]
    for each in known:
        await isolator.isolate(each.sandbox, 42)
    await isolator.recover(known, [])
    assert driver.calls[-2:] == ["recover ['a']", "gc ['a']"]


async def test_what_is_no_address_is_refused(tmp_path: Path) -> None:
    sandbox = replace(made(task("web.1", "true", network="prod"), tmp_path).sandbox, address="keep")
    with pytest.raises(Unsupported, match="network \"prod\": 'keep' is no address"):
        await NetworkIsolator(Network(), NftFirewall()).isolate(sandbox, 42)


async def test_a_guest_has_the_addresses_that_the_kernel_has(
    host_netns: None, tmp_path: Path, spawn: Callable[..., NetnsProcess]
) -> None:
    for argument in ("link add card type veth peer wire", "addr add 192.0.2.1/24 dev card", "link set card up"):
        run("ip", *argument.split())
    prod = NetworkSpec(
        model.network.Network("prod", NetworkKind.BRIDGE, (ip_network("10.9.0.0/16"),)),
        (Block("prod", "n1", ip_network("10.9.1.0/24")),),
    )
    process, guards = spawn(), Guards([])
    async with Networks(tmp_path / "networks", "n1", "boot-1", ip_address("192.0.2.1")) as driver:
        await driver.configure(prod)
        isolator = NetworkIsolator(driver, guards)
        container = made(task("web.1", "true", network="prod"), tmp_path, "c1")
        await isolator.isolate(container.sandbox, process.pid)
        await isolator.prepare(container)
        (guest,) = guards.guests
        (link,) = (link for link in process.ip("addr") if link["ifname"] == "eth0")
        assert [str(address) for address in guest.addresses] == [each["local"] for each in link["addr_info"]]
        await isolator.cleanup(container.sandbox)
    assert {link["ifname"] for link in process.ip("link")} == {"lo"}
    assert guards.calls == ["admit c1", "dismiss c1"]


@pytest.mark.parametrize("network", ["host", "none"])
async def test_host_and_none_need_no_driver(network: str, tmp_path: Path) -> None:
    driver = Network()
    isolator = NetworkIsolator(driver, NftFirewall())
    container = made(task("web.1", "true", network=network), tmp_path)
    assert await isolator.isolate(container.sandbox, 42) == ()
    await isolator.prepare(container)
    await isolator.cleanup(container.sandbox)
    await isolator.recover([container], [])
    assert driver.calls == ["gc []"]


async def test_network_errors_are_isolator_errors(tmp_path: Path) -> None:
    isolator = NetworkIsolator(Network(fails=True), NftFirewall())
    container = made(task("web.1", "true", network="prod"), tmp_path, "c1")
    with pytest.raises(IsolatorError, match=r"attach c1: no"):
        await isolator.isolate(container.sandbox, 42)


def trees_with(path: str, pid: int) -> set[str]:
    """Which controllers' trees, of those that limit, have the process at `path`; version 2 has one without a name."""
    lines = [line.split(":") for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    found = {name for _, names, at in lines if at == path for name in names.split(",")}
    return found & V1_TREES or found & {""}


def user_namespaces() -> set[str]:
    """Descriptors of this process that are open on one."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("user:["):
                found.add(name)
    return found


async def until_cpu(limiter: object, container: Container, seconds: float) -> None:
    assert isinstance(limiter, CgroupIsolator)
    used = files(PREFIX, container.id)
    await until(lambda: used.cpu_used_us() >= seconds * 1e6, f"{seconds:g} s of CPU used")
