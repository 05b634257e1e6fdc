"""Which version a node has, from tables of mounts as kernels write them; and the numbers that are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolators.base import Unsupported
from isolators.cgroup.hierarchy import V1, V2, detect
from isolators.cgroup.limits import Limits, limits, oci_resources, parse_cpus
from isolators.mount import parse_mountinfo
from model.limits import HugePages, IoLimit, TaskLimits
from model.resources import Resources
from model.task import TaskSpec


def asks(resources: Resources, **changes: Any) -> Limits:
    task = TaskSpec("web.1", "services", "/web", ("true",), resources, "none")
    return limits(replace(task, **changes), resources)


HYBRID = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:10 master:1 - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_hybrid_is_version_1() -> None:
    found = detect(parse_mountinfo(HYBRID))
    both, base = Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup")
    assert isinstance(found, V1)
    assert found.unified == base / "unified"
    assert dict(found.mounts) == {"cpu": both, "cpuacct": both, "memory": base / "memory", "pids": base / "pids"}


def test_unified_is_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    assert detect(parse_mountinfo(f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw,nsdelegate\n")) == V2(tmp_path)


def test_missing_controllers_are_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    table = f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n31 23 0:2 / /c rw - cgroup cgroup rw,memory\n"
    with pytest.raises(Unsupported, match="cpu, pids"):
        detect(parse_mountinfo(table))


def test_escapes_in_mount_points() -> None:
    point = parse_mountinfo(
        r"36 35 98:0 /a\040b /mnt/c\011d\134e\012f rw master:1 - ext3 /dev/root rw,errors=x" + "\n"
    )[0]
    assert (point.root, point.path) == ("/a b", Path("/mnt/c\td\\e\nf"))


@pytest.mark.parametrize(
    ("cpus", "shares", "weight", "quota"),
    [
        (1, 2, 1, 1_000),
        (500, 512, 20, 50_000),
        (1000, 1024, 39, 100_000),
        (64_000, 65_536, 2500, 6_400_000),
    ],
)
def test_cpu(cpus: int, shares: int, weight: int, quota: int) -> None:
    found = asks(Resources(cpus=cpus, mem=64))
    assert (found.shares, found.weight, found.quota_us) == (shares, weight, quota)


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_more_cpu_is_never_less_weight(one: int, other: int) -> None:
    less, more = (asks(Resources(cpus=cpus, mem=64)) for cpus in sorted((one, other)))
    assert less.shares <= more.shares and less.quota_us <= more.quota_us
    assert 1 <= less.weight <= more.weight <= 10_000


def test_no_swap_beyond_memory() -> None:
    memory = oci_resources(asks(Resources(cpus=100, mem=64)))["memory"]
    assert memory == {"limit": 64 << 20, "swap": 64 << 20}


@pytest.mark.parametrize(
    ("text", "cpus"), [("", set()), ("0", {0}), ("0-2,5", {0, 1, 2, 5}), ("3,3-4", {3, 4}), ("8191", {8191})]
)
def test_cpu_lists(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["a", "-", "1-", "-1", "2-1", "1,,2", "0 ", "0x1", "\u0661", "8192", "0-99999999999"])
def test_cpu_lists_that_are_none(text: str) -> None:
    with pytest.raises(Unsupported, match="limits.cpuset"):
        asks(Resources(cpus=100, mem=64), limits=TaskLimits(cpuset=text))


@pytest.mark.parametrize(
    ("field", "resources", "changes"),
    [
        ("resources.cpus", Resources(0, 64), {}),
        ("resources.cpus", Resources(-1, 64), {}),
        ("resources.cpus", Resources(1 << 60, 64), {}),
        ("resources.mem", Resources(100, 0), {}),
        ("resources.mem", Resources(100, -64), {}),
        ("resources.disk", Resources(100, 64, -1), {}),
        ("pids", Resources(100, 64), {"pids": 0}),
        ("pids", Resources(100, 64), {"pids": 1 << 30}),
        ("limits.swap", Resources(100, 64), {"limits": TaskLimits(swap=-1)}),
        ("limits.mem_high", Resources(100, 64), {"limits": TaskLimits(mem_high=65)}),
        ("limits.oom_score_adj", Resources(100, 64), {"limits": TaskLimits(oom_score_adj=-1)}),
        ("limits.oom_score_adj", Resources(100, 64), {"limits": TaskLimits(oom_score_adj=1001)}),
        ("limits.cpu_burst_us", Resources(100, 64), {"limits": TaskLimits(cpu_burst_us=10_001)}),
        ("limits.io_weight", Resources(100, 64), {"limits": TaskLimits(io_weight=1001)}),
        ("limits.io.read_bps", Resources(100, 64), {"limits": TaskLimits(io=(IoLimit(read_bps=-1),))}),
        ("limits.io.write_iops", Resources(100, 64), {"limits": TaskLimits(io=(IoLimit(write_iops=1 << 60),))}),
        ("limits.huge_pages.2MB", Resources(100, 64), {"limits": TaskLimits(huge_pages=(HugePages("2MB", -1),))}),
    ],
)
def test_limits_that_no_node_can_honour_are_named(field: str, resources: Resources, changes: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match=f"^{field} is "):
        asks(resources, **changes)
