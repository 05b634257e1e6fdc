"""Limits that the real kernel holds, on containers that run: reached, changed in place, and read back."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isolators.base import Container, IsolatorError, Unsupported
from isolators.cgroup import bpf, device_list, device_program
from isolators.cgroup.devices import DEFAULT, Rule
from isolators.cgroup.hierarchy import V1, detect
from isolators.cgroup.isolator import CgroupIsolator
from isolators.cgroup.memory import FileNews
from isolators.mount import mount_points
from isolators.rights import Rights
from model.limits import Device, HugePages, IoLimit, TaskLimits
from model.resources import Resources
from model.task import Usage
from tests.kernel.cgroup_files import CgroupFiles, directories, files
from tests.kernel.sandbox import DEADLINE_S, Sandbox, alive, exit_of, output, sandbox, task, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

FOREVER = ("sleep", "infinity")
SPIN = ("sh", "-c", "while :; do :; done")
HOG = ("sh", "-c", "x=0123456789; while :; do x=$x$x; done")
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Sandbox]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with sandbox(state) as made:
        yield made


@pytest.fixture
def unified() -> Iterator[Path]:
    """A cgroup of our own in the version 2 tree, which a hybrid node has too."""
    found = detect(mount_points())
    mount = found.unified if isinstance(found, V1) else found.mount
    assert mount is not None, "this machine has no version 2 tree"
    directory = mount / f"tepui-test-{os.getpid()}-v2"
    directory.mkdir()
    yield directory
    directory.rmdir()


def limiter(node: Sandbox) -> CgroupIsolator:
    return next(isolator for isolator in node.isolators if isinstance(isolator, CgroupIsolator))


def limits(node: Sandbox) -> CgroupFiles:
    return files(node.prefix, "web.1")


def having(container: Container, pids: int = 1024, **limits: object) -> Container:
    """The same container, asking for something else."""
    changed = TaskLimits(**limits)  # type: ignore[arg-type]
    return replace(container, task=replace(container.task, pids=pids, limits=changed))


async def test_memory_limit_is_reported_with_its_peak(node: Sandbox) -> None:
    container, launch = await node.start(task("web.1", *HOG))
    limit = await asyncio.wait_for(limiter(node).watch(container), DEADLINE_S)
    assert limit is not None
    assert limit.reason == "memory limit 64 MiB exceeded (peak 64.0 MiB)"
    await until(lambda: not alive(launch.pid), "container is gone")
    assert await limiter(node).exceeded(container) == limit


async def test_the_kill_of_any_process_is_seen(node: Sandbox) -> None:
    container, launch = await node.start(task("web.1", "sh", "-c", f"({HOG[2]}); exec sleep infinity"))
    assert await asyncio.wait_for(limiter(node).watch(container), DEADLINE_S) is not None
    if isinstance(detect(mount_points()), V1):  # kills one process; version 2 all of them (memory.oom.group)
        assert alive(launch.pid)
    else:
        await until(lambda: not alive(launch.pid), "all are killed")


async def test_a_watch_that_begins_late_ends_at_once(node: Sandbox) -> None:
    container, _ = await node.start(task("web.1", *HOG))
    await exit_of(container)
    assert await asyncio.wait_for(limiter(node).watch(container), 1) is not None


async def test_a_watch_can_be_given_up(node: Sandbox) -> None:
    before = len(os.listdir("/proc/self/fd"))
    container, _ = await node.start(task("web.1", *FOREVER))
    started = len(os.listdir("/proc/self/fd"))
    watching = asyncio.create_task(limiter(node).watch(container))
    await until(lambda: len(os.listdir("/proc/self/fd")) > started, "watch has opened its descriptor")
    watching.cancel()
    await asyncio.wait({watching})
    assert len(os.listdir("/proc/self/fd")) == started >= before
    assert await limiter(node).exceeded(container) is None


async def test_swap_counts_against_the_limit_unless_asked_for(node: Sandbox) -> None:
    container, _ = await node.start(task("web.1", *FOREVER))
    assert limits(node).swap_max() == 0
    await limiter(node).update(having(container, swap=16), Resources(cpus=500, mem=64))
    assert limits(node).swap_max() == 16 * MIB


async def test_everything_is_resized_while_it_runs(node: Sandbox) -> None:
    container, launch = await node.start(task("web.1", *FOREVER))
    wanted = having(
        container,
        pids=7,
        mem_high=16,
        cpuset="1",
        cpu_burst_us=10_000,
        io=(IoLimit(read_bps=MIB, write_iops=9),),
        huge_pages=(HugePages("2MB", 4),),
    )
    await limiter(node).update(wanted, Resources(cpus=250, mem=32))
    now = limits(node)
    assert (now.memory_max(), now.memory_high(), now.swap_max()) == (32 * MIB, 16 * MIB, 0)
    assert (now.cpu_quota_us(), now.cpu_burst_us()) == (25_000, 10_000)
    assert os.sched_getaffinity(launch.pid) == {1}
    assert now.pids_max() == 7
    assert now.io_max() == {"rbps": MIB, "wiops": 9}
    assert now.huge_pages_max("2MB") == 4 * MIB
    await limiter(node).update(container, Resources(cpus=500, mem=64))
    assert (now.memory_max(), now.memory_high(), now.swap_max()) == (64 * MIB, None, 0)
    assert (now.cpu_quota_us(), now.cpu_burst_us()) == (50_000, 0)
    assert os.sched_getaffinity(launch.pid) == os.sched_getaffinity(0)
    assert now.io_max() == {}
    assert now.huge_pages_max("2MB") == 0
    assert alive(launch.pid)


async def test_memory_in_use_is_not_taken_away(node: Sandbox) -> None:
    script = "x=0123456789; while [ ${#x} -lt 20000000 ]; do x=$x$x; done; echo ready; exec sleep infinity"
    container, launch = await node.start(task("web.1", "sh", "-c", f"{script} & wait"))
    limit = limiter(node)
    resident = "head -c 30000000 /dev/zero > /tmp/x; echo ready; sleep infinity"
    await limit.update(container, Resources(cpus=500, mem=128))
    other = task("web.2", "sh", "-c", resident)
    second, _ = await node.start(other)
    await until(lambda: "ready" in output(second), "30 MB of a tmpfs are used")
    with pytest.raises(IsolatorError, match="memory limit 8 MiB: .* are in use"):
        await limit.update(second, Resources(cpus=500, mem=8))
    assert (await limit.usage(second, Usage())).mem_limit_bytes == 64 * MIB
    assert alive(launch.pid)


async def test_cpuset_holds_from_the_first_instruction(node: Sandbox) -> None:
    ended, text = await node.run(task("web.1", "sh", "-c", "cat /proc/self/status", limits=TaskLimits(cpuset="1")))
    assert ended.code == 0
    assert "Cpus_allowed_list:\t1\n" in text


async def test_what_was_throttled_is_counted(node: Sandbox) -> None:
    container, _ = await node.start(task("web.1", *SPIN, resources=Resources(cpus=50, mem=32)))
    await until(limits(node).cpu_throttled, "quota was reached")
    usage = await limiter(node).usage(container, Usage())
    assert usage.cpu_throttled_s > 0
    assert usage.mem_peak_bytes >= usage.mem_bytes > 0


async def test_oom_score_is_the_tasks(node: Sandbox) -> None:
    _, text = await node.run(task("web.1", "cat", "/proc/self/oom_score_adj", limits=TaskLimits(oom_score_adj=900)))
    assert text == "900\n"


async def test_reading_is_as_slow_as_asked(node: Sandbox) -> None:
    """1 MiB past the page cache at 1 MiB/s, of which the kernel grants the first tenth of a second at once."""
    source = Path("/var/tmp") / f"tepui-test-{os.getpid()}"
    source.write_bytes(os.urandom(MIB))
    source.chmod(0o644)
    os.sync()
    try:
        argv = ("dd", f"if={source}", "of=/dev/null", "bs=64k", "iflag=direct", "status=none")
        loop = asyncio.get_running_loop()
        container, _ = await node.start(task("web.1", *argv, limits=TaskLimits(io=(IoLimit(read_bps=MIB),))))
        began = loop.time()
        ended = await exit_of(container)
        assert ended.code == 0, output(container)
        assert loop.time() - began > 0.7
        assert (await limiter(node).usage(container, Usage())).io_read_bytes >= MIB
    finally:
        source.unlink()


async def test_a_paused_task_stands_still_and_goes_on(node: Sandbox) -> None:
    container, _ = await node.start(task("web.1", *SPIN))
    used = limits(node)
    await limiter(node).pause(container)
    before = used.cpu_used_us()
    assert used.cpu_used_us() == before
    await limiter(node).resume(container)
    await until(lambda: used.cpu_used_us() != before, "it uses CPU time again")
    await limiter(node).resume(container)


async def test_a_paused_task_can_be_cleaned_up(node: Sandbox) -> None:
    container, launch = await node.start(task("web.1", *SPIN))
    await limiter(node).pause(container)
    await node.clean()
    assert not alive(launch.pid)


async def test_only_devices_of_the_list_can_be_opened(node: Sandbox) -> None:
    """`/dev/kmsg` has no place in a container; here it gets there by a way that is not ours."""
    container = node.container(task("web.1", "sh", "-c", "cat < /stray; head -c 1 /dev/zero > /dev/null && echo ok"))
    stray = container.directory / "stray"
    os.mknod(stray, 0o20666, os.makedev(1, 11))
    stray.chmod(0o666)
    bind = {"destination": "/stray", "type": "bind", "source": str(stray), "options": ["bind"]}
    launch = await node.create(container)
    await node.prepare(container, lambda config: config["mounts"].append(bind))
    await node.fill(container, launch)
    await exit_of(container)
    assert "Operation not permitted" in output(container)
    assert "ok\n" in output(container)


async def test_a_device_is_lent_to_who_asks(node: Sandbox) -> None:
    lender = CgroupIsolator(node.prefix, Rights(devices=frozenset({"/dev/full"})))
    node.isolators[node.isolators.index(limiter(node))] = lender
    asks = TaskLimits(devices=(Device("/dev/full", "r"),))
    _, text = await node.run(task("web.1", "head", "-c", "1", "/dev/full", limits=asks))
    assert text == "\0"


async def test_a_device_program_is_loaded_and_obeyed(unified: Path) -> None:
    script = "read go; head -c 1 /dev/zero; head -c 1 /dev/full | tr '\\0' f"
    device_list.attach(unified, DEFAULT)
    assert opens(unified, script) == "\0f"
    device_list.attach(unified, ())
    assert opens(unified, script) == ""
    device_list.attach(unified, (Rule("c", 1, 7, "r"),))
    assert opens(unified, script) == "f"


async def test_a_device_program_tolerates_another_and_replaces_it(unified: Path) -> None:
    """OCI runtimes attach one of their own to the cgroup that they are given."""
    script = "read go; head -c 1 /dev/zero; head -c 1 /dev/full | tr '\\0' f"
    device_list.attach(unified, DEFAULT)
    attach_beside(unified, (Rule("c", 1, 7, "r"),))
    assert opens(unified, script) == "f"
    device_list.attach(unified, DEFAULT)
    assert opens(unified, script) == "\0f"


async def test_news_of_a_version_2_file_arrive(unified: Path) -> None:
    loop = asyncio.get_running_loop()
    news = FileNews(unified / "cgroup.events")
    heard = asyncio.Event()
    loop.add_reader(news.fileno(), heard.set)
    try:
        for _ in range(2):
            await asyncio.to_thread(opens, unified, "read go")
            await asyncio.wait_for(heard.wait(), 10)
            news.drain()
            heard.clear()
    finally:
        loop.remove_reader(news.fileno())
        news.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resources": Resources(cpus=0, mem=64)}, "resources.cpus is 0"),
        ({"resources": Resources(cpus=-1, mem=64)}, "resources.cpus is -1"),
        ({"resources": Resources(cpus=100, mem=0)}, "resources.mem is 0"),
        ({"pids": 0}, "pids is 0"),
        ({"limits": TaskLimits(cpuset="64")}, "CPU 64 is not one that containers of this node may use"),
        ({"limits": TaskLimits(cpuset="x")}, "limits.cpuset 'x'"),
        ({"limits": TaskLimits(io=(IoLimit("/dev/missing", 1),))}, "limits.io /dev/missing: No such file"),
        ({"limits": TaskLimits(io=(IoLimit("/dev/null", 1),))}, "/dev/null: is not a block device"),
        ({"limits": TaskLimits(devices=(Device("/dev/vda"),))}, "/dev/vda: is not a device that this node lends"),
        ({"limits": TaskLimits(huge_pages=(HugePages("3MB", 1),))}, "huge pages of 3MB: this node has"),
    ],
)
async def test_limits_that_are_refused_leave_nothing(node: Sandbox, changes: dict[str, object], reason: str) -> None:
    container = node.container(task("web.1", "true", **changes))
    await limiter(node).open(container.sandbox)
    with pytest.raises(Unsupported, match=reason):
        await limiter(node).prepare(container)
        await limiter(node).enforce(container)
    await limiter(node).cleanup(container.sandbox)
    assert directories(node.prefix) == []


def attach_beside(cgroup: Path, rules: tuple[Rule, ...]) -> None:
    directory, program = os.open(cgroup, os.O_RDONLY), bpf.load_device_program(device_program.program(rules))
    attributes = struct.pack("=IIII", directory, program, bpf.BPF_CGROUP_DEVICE, bpf.BPF_F_ALLOW_MULTI)
    bpf._bpf(bpf.BPF_PROG_ATTACH, attributes, "attach")
    for descriptor in (directory, program):
        os.close(descriptor)


def opens(cgroup: Path, script: str) -> str:
    """What a shell in the cgroup reads from devices."""
    process = subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    (cgroup / "cgroup.procs").write_text(str(process.pid))
    text, _ = process.communicate(b"go\n", timeout=10)
    return text.decode(errors="replace")
