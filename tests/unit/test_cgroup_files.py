"""What both versions write and read, with a temporary directory standing in for cgroupfs.

A directory that is made in it is filled as the kernel does it, with the files of each controller and their defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isolators.base import BundlePart, Container, IsolatorError, Sandbox, Unsupported, merge
from isolators.cgroup import device_list, devices, tree
from isolators.cgroup.devices import DEFAULT, Rule
from isolators.cgroup.hierarchy import V1, V2
from isolators.cgroup.isolator import CgroupIsolator
from isolators.cgroup.v2 import CgroupsV2
from model.limits import HugePages, IoLimit, TaskLimits
from model.resources import Resources
from model.task import TaskSpec, Usage

pytestmark = pytest.mark.anyio

PREFIX = "tepui/n1"
CONTAINER = Container(
    TaskSpec("web.abc", "services", "/web", ("true",), Resources(cpus=1500, mem=64), "none", pids=7),
    Sandbox("web.1", Path("/b/web.1"), Path("/l/web.1"), 0, "none"),
)
NO_LIMIT = str((1 << 63) - 4096)
FILES_V1 = {
    "cpu": {"cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1", "cpu.cfs_burst_us": "0"},
    "cpuacct": {"cpuacct.usage": "0"},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
    "memory": {"memory.limit_in_bytes": NO_LIMIT, "memory.soft_limit_in_bytes": NO_LIMIT},
    "pids": {"pids.max": "max"},
    "blkio": {"blkio.throttle.read_bps_device": "", "blkio.throttle.write_bps_device": "", "blkio.bfq.weight": "100"},
    "devices": {"devices.list": "a *:* rwm\n"},
    "freezer": {"freezer.state": "THAWED"},
    "hugetlb": {"hugetlb.2MB.limit_in_bytes": NO_LIMIT, "hugetlb.2MB.rsvd.limit_in_bytes": NO_LIMIT},
}
FILES_V2 = {
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
    "memory.max": "max",
    "memory.high": "max",
    "memory.swap.max": "max",
    "memory.oom.group": "0",
    "memory.current": "0",
    "pids.max": "max",
    "cpuset.cpus": "",
    "cpuset.cpus.effective": "0-3",
    "io.max": "",
    "io.weight": "default 100",
    "hugetlb.2MB.max": "max",
    "cgroup.freeze": "0",
    "cgroup.events": "populated 0\nfrozen 0\n",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Rule, ...]]:
    """The rules of each device program that was attached: only a real cgroup takes one."""
    attached: list[tuple[Rule, ...]] = []
    monkeypatch.setattr(device_list, "attach", lambda directory, rules: attached.append(rules))
    return attached


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writable layer, and every device, is on 8:0."""
    monkeypatch.setattr(devices, "disk", lambda limit, layer: "8:0" if not limit.device else "8:16")


@pytest.fixture
def v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CgroupIsolator:
    def made(directory: Path) -> None:
        directory.mkdir()
        fill(directory, FILES_V1[directory.relative_to(tmp_path).parts[0]])

    monkeypatch.setattr(tree, "make", made)
    for kind in FILES_V1:
        (tmp_path / kind / PREFIX).mkdir(parents=True)
    for directory in (tmp_path / "cpuset", tmp_path / "cpuset/tepui", tmp_path / "cpuset" / PREFIX):
        fill(directory, {"cpuset.cpus": "0-3" if directory.name == "cpuset" else "", "cpuset.mems": ""})
    (tmp_path / "cpuset/cpuset.mems").write_text("0")
    return CgroupIsolator(PREFIX, hierarchy=V1(tuple((kind, tmp_path / kind) for kind in FILES_V1)))


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CgroupIsolator:
    def made(directory: Path) -> None:
        directory.mkdir()
        fill(directory, FILES_V2)

    monkeypatch.setattr(tree, "make", made)
    fill(tmp_path, {"cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma\n"})
    (tmp_path / PREFIX).mkdir(parents=True)
    fill(tmp_path / PREFIX, {"cpuset.cpus.effective": "0-3"})
    return CgroupIsolator(PREFIX, hierarchy=V2(tmp_path))


def fill(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).write_text(text)


def find(directory: Path, pattern: str) -> list[Path]:
    return list(directory.rglob(pattern))


def asking(**limits: Any) -> Container:
    return replace(CONTAINER, task=replace(CONTAINER.task, limits=TaskLimits(**limits)))


async def made(isolator: CgroupIsolator, container: Container) -> BundlePart:
    part = merge([await isolator.open(container.sandbox), await isolator.prepare(container)])
    await isolator.enforce(container)
    return part


def contents(base: Path) -> Callable[[str], str]:
    """Reads a file of the container's cgroup, whichever tree it is in."""
    return lambda name: find(base, f"web.1/{name}")[0].read_text()


async def test_v1_limits(v1: CgroupIsolator, tmp_path: Path) -> None:
    part = await made(v1, CONTAINER)
    read = contents(tmp_path)
    assert (read("cpu.shares"), read("cpu.cfs_quota_us"), read("cpu.cfs_burst_us")) == ("1536", "150000", "0")
    assert (read("memory.limit_in_bytes"), read("memory.soft_limit_in_bytes")) == (str(64 << 20), NO_LIMIT)
    assert (read("pids.max"), read("cpuset.cpus"), read("cpuset.mems")) == ("7", "0-3", "0")
    assert (read("devices.deny"), read("devices.allow")) == ("a", "c 136:* rw")
    assert read("hugetlb.2MB.limit_in_bytes") == "0"
    assert part["linux"]["cgroupsPath"] == "/tepui/n1/web.1"
    assert part["process"]["oomScoreAdj"] == 500


async def test_v1_everything_that_can_be_asked_for(v1: CgroupIsolator, tmp_path: Path) -> None:
    container = asking(
        mem_high=32,
        cpuset="1-2",
        cpu_burst_us=5000,
        io=(IoLimit(read_bps=1000), IoLimit("/dev/sdb", write_bps=2000)),
        io_weight=500,
        huge_pages=(HugePages("2MB", 8),),
    )
    part = await made(v1, container)
    read = contents(tmp_path)
    assert read("memory.soft_limit_in_bytes") == str(32 << 20)
    assert (read("cpuset.cpus"), read("cpu.cfs_burst_us")) == ("1-2", "5000")
    assert (read("blkio.throttle.read_bps_device"), read("blkio.bfq.weight")) == ("8:0 1000", "500")
    assert read("blkio.throttle.write_bps_device") == "8:16 2000"
    assert read("hugetlb.2MB.limit_in_bytes") == str(8 << 20)
    resources = part["linux"]["resources"]
    assert resources["cpu"]["cpus"] == "1,2"
    assert resources["blockIO"]["throttleReadBpsDevice"] == [{"major": 8, "minor": 0, "rate": 1000}]
    assert resources["hugepageLimits"] == [{"pageSize": "2MB", "limit": 8 << 20}]


async def test_v1_what_is_not_limited_any_more_is_set_free(v1: CgroupIsolator, tmp_path: Path) -> None:
    await made(v1, asking(mem_high=32, cpuset="1", cpu_burst_us=5000, io=(IoLimit(read_bps=1000),), io_weight=500))
    await v1.update(CONTAINER, Resources(cpus=250, mem=32))
    read = contents(tmp_path)
    assert (read("memory.limit_in_bytes"), read("memory.soft_limit_in_bytes")) == (str(32 << 20), "-1")
    assert (read("cpuset.cpus"), read("cpu.cfs_burst_us"), read("cpu.cfs_quota_us")) == ("0-3", "0", "25000")
    assert (read("blkio.throttle.read_bps_device"), read("blkio.bfq.weight")) == ("8:0 0", "100")


async def test_v1_swap_is_limited_where_it_is_counted(v1: CgroupIsolator, tmp_path: Path) -> None:
    await made(v1, CONTAINER)
    memory = tmp_path / "memory" / PREFIX / "web.1"
    fill(memory, {"memory.memsw.limit_in_bytes": "0"})
    await v1.update(CONTAINER, Resources(cpus=1500, mem=128))
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == str(128 << 20)
    await v1.update(asking(swap=16), Resources(cpus=1500, mem=64))
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == str(80 << 20)


async def test_v1_pid_goes_to_each_tree_once(v1: CgroupIsolator, tmp_path: Path) -> None:
    await made(v1, CONTAINER)
    await v1.isolate(CONTAINER.sandbox, 42)
    assert [path.read_text() for path in find(tmp_path, "web.1/cgroup.procs")] == ["42"] * len(FILES_V1)


async def test_v1_usage(v1: CgroupIsolator, tmp_path: Path) -> None:
    await made(v1, CONTAINER)
    fill_v1(tmp_path, usage=2_500_000_000, throttled=500_000_000)
    assert await v1.usage(CONTAINER, Usage()) == Usage(2.5, 1.5, 4096, 64 << 20, 3, 7, 0.5, 8192, 100, 200)


async def test_v1_absent_limits_are_none(v1: CgroupIsolator, tmp_path: Path) -> None:
    await made(v1, CONTAINER)
    fill_v1(tmp_path, usage=0, throttled=0)
    fill(tmp_path / "cpu" / PREFIX / "web.1", {"cpu.cfs_quota_us": "-1\n"})
    fill(tmp_path / "memory" / PREFIX / "web.1", {"memory.limit_in_bytes": "9223372036854771712\n"})
    fill(tmp_path / "pids" / PREFIX / "web.1", {"pids.max": "max\n"})
    usage = await v1.usage(CONTAINER, Usage())
    assert (usage.cpu_limit, usage.mem_limit_bytes, usage.pids_limit) == (None, None, None)


async def test_v1_oom_kills_are_a_limit_exceeded(v1: CgroupIsolator, tmp_path: Path) -> None:
    await made(v1, CONTAINER)
    fill_v1(tmp_path, usage=0, throttled=0)
    control = tmp_path / "memory" / PREFIX / "web.1" / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    assert await v1.exceeded(CONTAINER) is None
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    limit = await v1.exceeded(CONTAINER)
    assert limit is not None and limit.reason == "memory limit 64 MiB exceeded (peak 0.0 MiB)"


async def test_v1_trees_that_share_a_mount(tmp_path: Path) -> None:
    mounts = {kind: tmp_path / kind for kind in ("memory", "pids")}
    mounts |= {"cpu": tmp_path / "cpu,cpuacct", "cpuacct": tmp_path / "cpu,cpuacct"}
    cgroups = CgroupIsolator(PREFIX, hierarchy=V1(tuple(mounts.items())))
    cgroups._cgroups.create("web.1")
    assert (tmp_path / "cpu,cpuacct" / PREFIX / "web.1").is_dir()


async def test_v2_limits(v2: CgroupIsolator, tmp_path: Path, programs: list[tuple[Rule, ...]]) -> None:
    await made(v2, CONTAINER)
    read = contents(tmp_path)
    assert (read("cpu.weight"), read("cpu.max"), read("cpu.max.burst")) == ("59", "150000 100000", "0")
    assert (read("memory.max"), read("memory.high"), read("memory.swap.max")) == (str(64 << 20), "max", "0")
    assert (read("memory.oom.group"), read("pids.max"), read("hugetlb.2MB.max")) == ("1", "7", "0")
    assert (read("cpuset.cpus"), read("io.max"), read("io.weight")) == ("", "", "default 100")
    assert programs == [DEFAULT]


async def test_v2_everything_that_can_be_asked_for(v2: CgroupIsolator, tmp_path: Path) -> None:
    await made(
        v2,
        asking(
            swap=16,
            mem_high=32,
            cpuset="1-2",
            cpu_burst_us=5000,
            io=(IoLimit(read_bps=1000, write_iops=7),),
            io_weight=500,
            huge_pages=(HugePages("2MB", 8),),
        ),
    )
    read = contents(tmp_path)
    assert (read("memory.high"), read("memory.swap.max")) == (str(32 << 20), str(16 << 20))
    assert (read("cpuset.cpus"), read("cpu.max.burst")) == ("1-2", "5000")
    assert (read("io.max"), read("io.weight")) == ("8:0 rbps=1000 wbps=max riops=max wiops=7", "500")
    assert read("hugetlb.2MB.max") == str(8 << 20)


async def test_v2_what_is_not_limited_any_more_is_set_free(v2: CgroupIsolator, tmp_path: Path) -> None:
    await made(v2, asking(mem_high=32, cpuset="1", cpu_burst_us=5000, io=(IoLimit(read_bps=1000),), io_weight=500))
    await v2.update(CONTAINER, Resources(cpus=1000, mem=32))
    read = contents(tmp_path)
    assert (read("memory.high"), read("cpuset.cpus").strip(), read("cpu.max.burst")) == ("max", "0-3", "0")
    assert (read("io.max"), read("io.weight")) == ("8:0 rbps=max wbps=max riops=max wiops=max", "100")


async def test_v2_memory_in_use_is_not_taken_away_by_killing(v2: CgroupIsolator, tmp_path: Path) -> None:
    await made(v2, CONTAINER)
    fill(tmp_path / PREFIX / "web.1", {"memory.current": str(48 << 20)})
    with pytest.raises(IsolatorError, match="resize cgroup web.1: .* are in use"):
        await v2.update(CONTAINER, Resources(cpus=1500, mem=32))
    read = contents(tmp_path)
    assert (read("memory.max"), read("memory.high")) == (str(64 << 20), "max")


async def test_v2_controllers_are_switched_on_down_to_the_prefix(v2: CgroupIsolator, tmp_path: Path) -> None:
    await made(v2, CONTAINER)
    switched = {path.parent for path in find(tmp_path, "cgroup.subtree_control")}
    assert switched == {tmp_path, tmp_path / "tepui", tmp_path / "tepui/n1"}
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory +pids +cpuset +io +hugetlb"


async def test_v2_usage(v2: CgroupIsolator, tmp_path: Path) -> None:
    await made(v2, CONTAINER)
    files = {
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\nthrottled_usec 500000\n",
        "memory.current": "4096\n",
        "memory.peak": "8192\n",
        "pids.current": "3\n",
        "io.stat": "8:0 rbytes=60 wbytes=200 rios=1\n8:16 rbytes=40 wbytes=0\n8:32\n",
    }
    fill(tmp_path / PREFIX / "web.1", files)
    assert await v2.usage(CONTAINER, Usage()) == Usage(2.5, 1.5, 4096, 64 << 20, 3, 7, 0.5, 8192, 100, 200)


async def test_v2_pause_and_resume(v2: CgroupIsolator, tmp_path: Path) -> None:
    await made(v2, CONTAINER)
    fill(tmp_path / PREFIX / "web.1", {"cgroup.events": "populated 1\nfrozen 1\n"})
    await v2.pause(CONTAINER)
    assert (tmp_path / PREFIX / "web.1" / "cgroup.freeze").read_text() == "1"
    await v2.resume(CONTAINER)
    assert (tmp_path / PREFIX / "web.1" / "cgroup.freeze").read_text() == "0"


async def test_v2_kill_is_one_write(v2: CgroupIsolator, tmp_path: Path) -> None:
    await made(v2, CONTAINER)
    cgroups = CgroupsV2(V2(tmp_path), PREFIX)
    fill(tmp_path / PREFIX / "web.1", {"cgroup.events": "populated 1\nfrozen 0\n"})
    assert cgroups.kill("web.1")
    assert (tmp_path / PREFIX / "web.1" / "cgroup.kill").read_text() == "1"


async def test_v2_nothing_is_killed_in_an_empty_cgroup(v2: CgroupIsolator, tmp_path: Path) -> None:
    await made(v2, CONTAINER)
    cgroups = CgroupsV2(V2(tmp_path), PREFIX)
    assert not cgroups.kill("web.1")
    assert not cgroups.kill("never.1")


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"cpuset": "0-4"}, "CPU 4 is not one"),
        ({"huge_pages": (HugePages("3MB", 8),)}, "huge pages of 3MB: this node has 2MB"),
    ],
)
async def test_what_this_node_has_not_is_refused(
    version: str, limits: dict[str, Any], reason: str, request: pytest.FixtureRequest
) -> None:
    isolator: CgroupIsolator = request.getfixturevalue(version)
    with pytest.raises(Unsupported, match=reason):
        await made(isolator, asking(**limits))


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_weight_that_the_kernel_has_no_file_for_is_refused(
    version: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(FILES_V1["blkio"], "blkio.bfq.weight")
    monkeypatch.delitem(FILES_V2, "io.weight")
    isolator: CgroupIsolator = request.getfixturevalue(version)
    with pytest.raises(Unsupported, match="weighs no input and output"):
        await made(isolator, asking(io_weight=10))


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_cleanup_accepts_what_was_never_prepared(version: str, request: pytest.FixtureRequest) -> None:
    isolator: CgroupIsolator = request.getfixturevalue(version)
    await isolator.cleanup(CONTAINER.sandbox)
    await isolator.cleanup(CONTAINER.sandbox)


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_errors_name_operation_and_container(version: str, request: pytest.FixtureRequest) -> None:
    isolator: CgroupIsolator = request.getfixturevalue(version)
    with pytest.raises(IsolatorError, match="read cgroup web.1"):
        await isolator.usage(CONTAINER, Usage())
    await made(isolator, CONTAINER)
    with pytest.raises(IsolatorError, match=r"create cgroup web.1.*File exists"):
        await made(isolator, CONTAINER)


def fill_v1(base: Path, usage: int, throttled: int) -> None:
    """What the kernel counts."""
    counted = "8:0 Read 60\n8:0 Write 200\n8:0 Total 260\n8:16 Read 40\n8:16 Write 0\nTotal 300\n"
    for kind, files in {
        "cpu": {"cpu.stat": f"nr_periods 9\nnr_throttled 1\nthrottled_time {throttled}\n"},
        "cpuacct": {"cpuacct.usage": f"{usage}\n"},
        "memory": {"memory.usage_in_bytes": "4096\n", "memory.max_usage_in_bytes": "8192\n" if usage else "0\n"},
        "pids": {"pids.current": "3\n"},
        "blkio": {"blkio.throttle.io_service_bytes": counted},
    }.items():
        fill(base / kind / PREFIX / "web.1", files)
