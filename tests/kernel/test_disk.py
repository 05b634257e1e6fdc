"""The bound of a container's writable layer, measured; and the project ids that a quota of XFS goes by."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from isolators import base, project_quota
from isolators.disk import DiskIsolator
from isolators.disk_usage import MOST_NESTED, TooDeep, used_bytes
from isolators.mount import mount_points
from model.fetch import Fetch
from model.resources import Resources
from model.task import TaskState, Usage
from tests.kernel.agent import Agent, agent
from tests.kernel.namespaces import run
from tests.kernel.sandbox import Sandbox, output, sandbox, task, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

MIB = 1 << 20
SMALL = Resources(cpus=500, mem=64, disk=1)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Agent]:
    async with agent(tmp_path / "agent") as made:
        yield made


@pytest.fixture
async def sandboxed(tmp_path: Path) -> AsyncIterator[Sandbox]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with sandbox(state) as made:
        yield made


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A file system in a file, mounted in the mount namespace of the test."""
    image, point = tmp_path / "image", tmp_path / "xfs"
    with image.open("wb") as file:
        file.truncate(300 * MIB)
    run("mkfs.xfs", "-q", str(image))
    point.mkdir()
    run("mount", "-o", "loop", str(image), str(point))
    yield point
    run("umount", str(point))


async def test_a_task_over_its_disk_limit_fails_with_the_reason(node: Agent) -> None:
    script = "head -c 3000000 /dev/zero > /var/tmp/x; exec sleep infinity"
    ended = await node.run(task("web.1", "sh", "-c", script, resources=SMALL))
    assert ended.state is TaskState.FAILED
    assert ended.reason.startswith("disk limit 1 MiB exceeded (")
    assert ended.usage.disk_bytes > MIB
    assert ended.usage.disk_limit_bytes == MIB


async def test_a_task_below_its_limit_runs_on(node: Agent) -> None:
    ended = await node.run(task("web.1", "sh", "-c", "head -c 500000 /dev/zero > /var/tmp/x", resources=SMALL))
    assert ended.state is TaskState.FINISHED


async def test_what_is_fetched_is_the_tasks_disk(node: Agent, tmp_path: Path) -> None:
    file = tmp_path / "agent/large"
    file.write_bytes(bytes(3 * MIB))
    fetched = task("web.1", "sleep", "infinity", resources=SMALL, fetch=(Fetch(f"file://{file}"),))
    ended = await node.run(fetched)
    assert (ended.state, "disk limit 1 MiB exceeded" in ended.reason) == (TaskState.FAILED, True), ended.reason


async def test_memory_is_no_disk(node: Agent) -> None:
    ended = await node.run(task("web.1", "sh", "-c", "head -c 3000000 /dev/zero > /tmp/x", resources=SMALL))
    assert ended.state is TaskState.FINISHED


async def test_a_limit_is_changed_in_place(sandboxed: Sandbox) -> None:
    disk = next(isolator for isolator in sandboxed.isolators if isinstance(isolator, DiskIsolator))
    script = "head -c 3000000 /dev/zero > /var/tmp/x; echo ready; exec sleep infinity"
    container, _ = await sandboxed.start(
        task("web.1", "sh", "-c", script, resources=Resources(cpus=500, mem=64, disk=10))
    )
    await until(lambda: "ready" in output(container), "3 MB are written")
    await disk.update(container, SMALL)
    limit = await disk.watch(container)
    assert limit is not None and limit.reason.startswith("disk limit 1 MiB exceeded")
    assert (await disk.usage(container, Usage())).disk_limit_bytes == MIB


def test_names_of_one_file_count_once_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    before = used_bytes(tmp_path)
    (tmp_path / "below/file").write_bytes(bytes(MIB))
    os.link(tmp_path / "below/file", tmp_path / "again")
    (tmp_path / "out").symlink_to("/usr")
    os.sync()
    assert MIB <= used_bytes(tmp_path) - before < 2 * MIB


def test_a_hole_is_no_disk(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert used_bytes(tmp_path) < MIB


def test_directories_nested_to_make_counting_expensive(tmp_path: Path) -> None:
    above = os.open(tmp_path, os.O_RDONLY)
    for _ in range(MOST_NESTED + 2):
        os.mkdir("d", dir_fd=above)
        below = os.open("d", os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)
    with pytest.raises(TooDeep, match="nested more than"):
        used_bytes(tmp_path)
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_files_of_a_project_are_the_projects(xfs: Path) -> None:
    layer = xfs / "upper"
    layer.mkdir()
    project_quota.assign(layer, 1 << 20)
    (layer / "below").mkdir()
    (layer / "below/file").write_text("x")
    (xfs / "other").write_text("x")
    assert project_quota.project_of(layer / "below/file") == 1 << 20
    assert project_quota.project_of(xfs / "other") == 0


async def test_what_is_put_into_a_workspace_is_the_sandboxes_project(xfs: Path) -> None:
    disk = DiskIsolator(xfs)
    disk._quotas = True  # this kernel may have been built without
    made = base.Sandbox("c", xfs / "c", xfs / "c", 1 << 20, "none")
    made.layer.mkdir()
    await disk.open(made)
    (made.layer / "workspace/archive").mkdir(parents=True)
    (made.layer / "workspace/archive/file").write_text("x")
    assert project_quota.project_of(made.layer / "workspace/archive/file") == made.id_base


def test_quotas_are_used_where_they_are_enforced(xfs: Path) -> None:
    assert not project_quota.enforced(xfs / "state", mount_points())
    assert not project_quota.enforced(Path("/proc"), mount_points())
