"""What both versions write and read, with a temporary directory standing in for cgroupfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from isolators.base import Container, IsolatorError
from isolators.cgroup.hierarchy import V1, V2
from isolators.cgroup.isolator import CgroupIsolator
from isolators.cgroup.v2 import CgroupsV2
from model.resources import Resources
from model.task import TaskSpec, Usage

pytestmark = pytest.mark.anyio

PREFIX = "tepui/n1"
CONTAINER = Container(
    "web.1",
    TaskSpec("web.1", "services", "/web", ("true",), Resources(cpus=1500, mem=64), "none", pids=7),
    Path("/b"),
    0,
)
V1_KINDS = ("cpu", "cpuacct", "memory", "pids")


@pytest.fixture
def v1(tmp_path: Path) -> CgroupIsolator:
    for kind in V1_KINDS:
        (tmp_path / kind).mkdir()
    return CgroupIsolator(PREFIX, V1(tuple((kind, tmp_path / kind) for kind in V1_KINDS)))


@pytest.fixture
def v2(tmp_path: Path) -> CgroupIsolator:
    return CgroupIsolator(PREFIX, V2(tmp_path))


def fill(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).write_text(text)


def find(directory: Path, pattern: str) -> list[Path]:
    return list(directory.rglob(pattern))


async def test_v1_limits(v1: CgroupIsolator, tmp_path: Path) -> None:
    part = await v1.prepare(CONTAINER)
    written = {path.name: path.read_text() for path in find(tmp_path, "web.1/*")}
    assert written == {
        "cpu.shares": "1536",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "150000",
        "memory.limit_in_bytes": str(64 << 20),
        "pids.max": "7",
    }
    assert part["linux"]["cgroupsPath"] == "/tepui/n1/web.1"


async def test_v1_swap_is_limited_where_it_is_counted(v1: CgroupIsolator, tmp_path: Path) -> None:
    await v1.prepare(CONTAINER)
    memory = tmp_path / "memory" / PREFIX / "web.1"
    fill(memory, {"memory.memsw.limit_in_bytes": "0"})
    await v1.update(CONTAINER, Resources(mem=128))
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == str(128 << 20)


async def test_v1_pid_goes_to_each_tree_once(v1: CgroupIsolator, tmp_path: Path) -> None:
    await v1.prepare(CONTAINER)
    await v1.isolate(CONTAINER, 42)
    assert [path.read_text() for path in find(tmp_path, "cgroup.procs")] == ["42"] * len(V1_KINDS)


async def test_v1_usage(v1: CgroupIsolator, tmp_path: Path) -> None:
    await v1.prepare(CONTAINER)
    base = {kind: tmp_path / kind / PREFIX / "web.1" for kind in V1_KINDS}
    fill(base["cpuacct"], {"cpuacct.usage": "2500000000\n"})
    fill(base["memory"], {"memory.usage_in_bytes": "4096\n"})
    fill(base["pids"], {"pids.current": "3\n"})
    assert await v1.usage(CONTAINER, Usage()) == Usage(2.5, 1.5, 4096, 64 << 20, 3, 7)


async def test_v1_absent_limits_are_none(v1: CgroupIsolator, tmp_path: Path) -> None:
    await v1.prepare(CONTAINER)
    base = {kind: tmp_path / kind / PREFIX / "web.1" for kind in V1_KINDS}
    fill(base["cpu"], {"cpu.cfs_quota_us": "-1\n"})
    fill(base["cpuacct"], {"cpuacct.usage": "0\n"})
    fill(base["memory"], {"memory.usage_in_bytes": "0\n", "memory.limit_in_bytes": "9223372036854771712\n"})
    fill(base["pids"], {"pids.current": "0\n", "pids.max": "max\n"})
    assert await v1.usage(CONTAINER, Usage()) == Usage()


async def test_v1_trees_that_share_a_mount(tmp_path: Path) -> None:
    mounts = {kind: tmp_path / ("cpu,cpuacct" if kind.startswith("cpu") else kind) for kind in V1_KINDS}
    isolator = CgroupIsolator(PREFIX, V1(tuple(mounts.items())))
    await isolator.prepare(CONTAINER)
    assert (tmp_path / "cpu,cpuacct" / PREFIX / "web.1" / "cpu.shares").read_text() == "1536"


async def test_v2_limits(v2: CgroupIsolator, tmp_path: Path) -> None:
    await v2.prepare(CONTAINER)
    written = {path.name: path.read_text() for path in (tmp_path / PREFIX / "web.1").iterdir()}
    assert written == {"cpu.weight": "59", "cpu.max": "150000 100000", "memory.max": str(64 << 20), "pids.max": "7"}


async def test_v2_swap_is_off_where_it_exists(v2: CgroupIsolator, tmp_path: Path) -> None:
    await v2.prepare(CONTAINER)
    fill(tmp_path / PREFIX / "web.1", {"memory.swap.max": "max\n"})
    await v2.update(CONTAINER, Resources(cpus=1000, mem=32))
    assert (tmp_path / PREFIX / "web.1" / "memory.swap.max").read_text() == "0"


async def test_v2_controllers_are_switched_on_down_to_the_prefix(v2: CgroupIsolator, tmp_path: Path) -> None:
    await v2.prepare(CONTAINER)
    switched = {path.parent for path in find(tmp_path, "cgroup.subtree_control")}
    assert switched == {tmp_path, tmp_path / "tepui", tmp_path / "tepui/n1"}
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


async def test_v2_usage(v2: CgroupIsolator, tmp_path: Path) -> None:
    await v2.prepare(CONTAINER)
    files = {"cpu.stat": "usage_usec 2500000\nuser_usec 1\n", "memory.current": "4096\n", "pids.current": "3\n"}
    fill(tmp_path / PREFIX / "web.1", files)
    assert await v2.usage(CONTAINER, Usage()) == Usage(2.5, 1.5, 4096, 64 << 20, 3, 7)


async def test_v2_kill_is_one_write(tmp_path: Path) -> None:
    cgroups = CgroupsV2(V2(tmp_path), PREFIX)
    cgroups.create("web.1")
    fill(tmp_path / PREFIX / "web.1", {"cgroup.events": "populated 1\nfrozen 0\n"})
    assert cgroups.kill("web.1")
    assert (tmp_path / PREFIX / "web.1" / "cgroup.kill").read_text() == "1"


async def test_v2_nothing_is_killed_in_an_empty_cgroup(tmp_path: Path) -> None:
    cgroups = CgroupsV2(V2(tmp_path), PREFIX)
    cgroups.create("web.1")
    fill(tmp_path / PREFIX / "web.1", {"cgroup.events": "populated 0\nfrozen 0\n"})
    assert not cgroups.kill("web.1")
    assert not cgroups.kill("never.1")


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_cleanup_accepts_what_was_never_prepared(version: str, request: pytest.FixtureRequest) -> None:
    isolator: CgroupIsolator = request.getfixturevalue(version)
    await isolator.cleanup(CONTAINER)
    await isolator.cleanup(CONTAINER)


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_errors_name_operation_and_container(version: str, request: pytest.FixtureRequest) -> None:
    isolator: CgroupIsolator = request.getfixturevalue(version)
    with pytest.raises(IsolatorError, match="read cgroup web.1"):
        await isolator.usage(CONTAINER, Usage())
    await isolator.prepare(CONTAINER)
    with pytest.raises(IsolatorError, match=r"create cgroup web.1.*File exists"):
        await isolator.prepare(CONTAINER)
