"""What a task may ask of its file system and of resources that are free: seen from inside, and read back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from isolators.base import Unsupported
from model.limits import TaskLimits, Tmpfs
from model.resources import Resources
from model.task import TaskSpec, TaskState
from tests.kernel.agent import Agent, agent
from tests.kernel.sandbox import root_directory, task

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

WRITE = """
for path in /x /etc/x /scratch/x /tmp/x /run/x /dev/shm/x; do
    (: > $path) 2>&- && echo "$path written" || echo "$path closed"
done
"""


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Agent]:
    async with agent(tmp_path / "state") as made:
        yield made


async def lines(node: Agent, spec: TaskSpec) -> list[str]:
    ended = await node.run(spec)
    assert ended.state is TaskState.FINISHED, ended.reason
    return node.directories.log(spec.id, "stdout").read_text().splitlines()


@pytest.mark.parametrize("image", [False, True])
async def test_a_read_only_root_and_what_can_be_written_in_it(node: Agent, tmp_path: Path, image: bool) -> None:
    rootfs = str(root_directory(tmp_path / "image")) if image else ""
    spec = task("web.1", "sh", "-c", WRITE, rootfs=rootfs, read_only=True, tmpfs=(Tmpfs("/scratch"),))
    written = {line.split()[0] for line in await lines(node, spec) if line.endswith("written")}
    assert written == {"/scratch/x", "/tmp/x", "/run/x", "/dev/shm/x"}


async def test_temporary_file_systems_are_as_large_as_was_asked_for(node: Agent) -> None:
    fill = "for path in /small /dev/shm; do head -c 30M /dev/zero > $path/x 2>&-; stat -c %s $path/x; done"
    spec = task("web.1", "sh", "-c", fill, resources=Resources(500, 256), shm=16, tmpfs=(Tmpfs("/small", 8, "0700"),))
    assert await lines(node, spec) == [str(8 << 20), str(16 << 20)]


async def test_its_programs_run_only_where_that_was_asked_for(node: Agent) -> None:
    script = "for path in /a /b; do cp /bin/true $path/t && $path/t 2>&- && echo $path; done; stat -c %a /a"
    spec = task("web.1", "sh", "-c", script, tmpfs=(Tmpfs("/a", executable=True), Tmpfs("/b")))
    assert await lines(node, spec) == ["/a", "1777"]


async def test_a_bad_mount_is_refused_on_the_node_too(node: Agent) -> None:
    for mount in Tmpfs("/proc/self"), Tmpfs("/x", size=0), Tmpfs("/x", mode="7"), Tmpfs("/dev"):
        container = node.node.container(task(f"bad.{mount.mode}{mount.size}{mount.destination[1:3]}", "true"))
        with pytest.raises(Unsupported, match="tmpfs"):
            await node.node.isolators[0].prepare(replace(container, task=replace(container.task, tmpfs=(mount,))))
        container.directory.rmdir()
    node.node.containers.clear()


async def test_limits_above_what_is_asked_for(node: Agent) -> None:
    spec = task("web.1", "sleep", "infinity", limits=TaskLimits(cpu_limit=750, mem_limit=128))
    whole = task("web.2", "sleep", "infinity", limits=TaskLimits(cpu_limit=1 << 40, mem_limit=1 << 40))
    for each in spec, whole:
        node.reconciler.assign(each, kill=False)
    usage = (await node.reached("web.1", TaskState.RUNNING)).usage
    assert (usage.cpu_limit, usage.mem_limit_bytes) == (0.75, 128 << 20)
    usage = (await node.reached("web.2", TaskState.RUNNING)).usage
    assert (usage.cpu_limit, usage.mem_limit_bytes) == (
        os.cpu_count(),
        os.sysconf("SC_PHYS_PAGES") * 4096 // (1 << 20) << 20,
    )
