"""The bound of a container's writable layer where the file system enforces it: XFS with project quotas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isolators.disk import DiskIsolator
from isolators.persistent import PersistentVolumes
from model.resources import Resources
from model.task import Usage
from model.volume import VolumeKind, VolumeMount
from tests.kernel.agent import agent
from tests.kernel.namespaces import run
from tests.kernel.sandbox import Sandbox, alive, exit_of, output, sandbox, task, until
from tests.kernel.test_pods import FOREVER, pod, said
from tests.kernel.test_pods import run as run_pod

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

MIB = 1 << 20


@pytest.fixture
def xfs(host_mounts: None, tmp_path: Path) -> Iterator[Path]:
    image, point = tmp_path / "image", tmp_path / "xfs"
    with image.open("wb") as file:
        file.truncate(300 * MIB)
    run("mkfs.xfs", "-q", str(image))
    point.mkdir()
    run("mount", "-o", "loop,prjquota", str(image), str(point))
    yield point
    run("umount", str(point))


@pytest.fixture
async def node(xfs: Path) -> AsyncIterator[Sandbox]:
    state = xfs / "state"
    state.mkdir(mode=0o700)
    async with sandbox(state) as made:
        yield made


def disk(node: Sandbox) -> DiskIsolator:
    return next(isolator for isolator in node.isolators if isinstance(isolator, DiskIsolator))


def asking(mib: int) -> Resources:
    return Resources(cpus=500, mem=64, disk=mib)


async def test_a_write_beyond_the_limit_fails_and_the_task_goes_on(node: Sandbox) -> None:
    # Its output, and how it ended, are beside its layer here, and must have room before anything is said.
    script = (
        "said=$(head -c 8000000 /dev/zero 2>&1 > /var/tmp/x); size=$(stat -c %s /var/tmp/x);"
        " rm /var/tmp/x; sync; echo $size $said; echo still here"
    )
    ended, text = await node.run(task("web.1", "sh", "-c", script, resources=asking(4)))
    assert ended.code == 0
    assert "still here" in text
    assert "No space left" in text or "quota exceeded" in text
    assert 3 * MIB < int(text.split()[0]) <= 4 * MIB


async def test_what_is_deleted_can_be_used_again(node: Sandbox) -> None:
    script = "for i in 1 2 3 4; do head -c 3000000 /dev/zero > /var/tmp/x && rm /var/tmp/x || exit 1; done"
    ended, text = await node.run(task("web.1", "sh", "-c", script, resources=asking(4)))
    assert ended.code == 0, text


async def test_moving_stays_in_the_project(node: Sandbox) -> None:
    """A rename across projects would fail with EXDEV, which programs do not expect within one directory."""
    script = "cd /var/tmp && mkdir a && echo x > a/b && mv a c && mv c/b d && mv d c/e && cat c/e"
    ended, text = await node.run(task("web.1", "sh", "-c", script, resources=asking(4)))
    assert ended.code == 0, text


async def test_what_is_used_is_told(node: Sandbox) -> None:
    script = "head -c 2000000 /dev/zero > /var/tmp/x; sync; echo ready; exec sleep infinity"
    container, _ = await node.start(task("web.1", "sh", "-c", script, resources=asking(4)))
    await until(lambda: "ready" in output(container), "2 MB are written")
    usage = await disk(node).usage(container, Usage())
    assert 1.9 * MIB < usage.disk_bytes < 3 * MIB
    assert usage.disk_limit_bytes == 4 * MIB


async def test_the_limit_is_changed_in_place(node: Sandbox) -> None:
    script = "while ! head -c 6000000 /dev/zero > /var/tmp/x; do sleep 0.1; done 2>&-"
    container, _ = await node.start(task("web.1", "sh", "-c", script, resources=asking(1)))
    await disk(node).update(container, asking(16))
    assert (await exit_of(container)).code == 0


async def test_volumes_of_a_pod_have_what_it_asks_for_beside_its_tasks(xfs: Path) -> None:
    shared = VolumeMount("/shared", VolumeKind.POD, "shared")
    fill = "head -c 8000000 /dev/zero > /shared/x; stat -c %s /shared/x; exec sleep infinity"
    first, second = pod(FOREVER, ("sh", "-c", fill), resources=Resources(disk=4))
    async with agent(xfs / "agent") as made:
        specs = [replace(spec, volumes=(shared,)) for spec in (first, second)]
        statuses = await run_pod(made, specs)
        assert 3 * MIB < int(await said(made, specs[1], "\n")) <= 4 * MIB
        assert all(alive(status.pid or 0) for status in statuses)


async def test_a_persistent_volume_has_its_size_and_keeps_it(node: Sandbox) -> None:
    """Each its own, whoever writes to it, and not that of the layer."""
    mounts = tuple(VolumeMount(f"/{name}", VolumeKind.PERSISTENT, name, size=4) for name in ("one", "two"))
    script = "for v in one two; do head -c 8000000 /dev/zero > /$v/x; stat -c %s /$v/x; done; echo still here"
    for number in (1, 2):
        spec = task(f"web.{number}", "sh", "-c", script, resources=asking(1), volumes=mounts)
        container, _ = await node.start(spec)
        await exit_of(container)
        text = output(container)
        sizes = [int(line) for line in text.splitlines() if line.isdecimal()]
        assert "still here" in text and len(sizes) == 2 and all(3 * MIB < size <= 4 * MIB for size in sizes), text
        for isolator in reversed(node.isolators):
            await isolator.cleanup(container.sandbox)


async def test_an_ephemeral_volume_counts_as_the_layer(node: Sandbox) -> None:
    mount = VolumeMount("/scratch", VolumeKind.EPHEMERAL, "scratch")
    # Its output is beside its layer here, and must have room before anything is said.
    script = (
        "head -c 3000000 /dev/zero > /var/tmp/x; head -c 3000000 /dev/zero > /scratch/x 2>/dev/null;"
        " size=$(stat -c %s /scratch/x); rm /var/tmp/x; sync; echo $size"
    )
    _, text = await node.run(task("web.1", "sh", "-c", script, resources=asking(4), volumes=(mount,)))
    assert 0 < int(text.split()[0]) < 2 * MIB


async def test_nothing_is_left_of_a_volume_that_is_removed(node: Sandbox, xfs: Path) -> None:
    mount = VolumeMount("/one", VolumeKind.PERSISTENT, "one", size=4)
    await node.run(task("web.1", "sh", "-c", "mkdir -p /one/a/b; echo x > /one/a/b/c", volumes=(mount,)))
    await node.clean()
    await asyncio.to_thread(PersistentVolumes(xfs).remove, "one")
    report = run("xfs_quota", "-x", "-c", "report -p -n -N", str(xfs))
    assert [line for line in report.splitlines() if line.split() and line.split()[3] != "0"] == []


async def test_nothing_is_left_of_a_quota(node: Sandbox, xfs: Path) -> None:
    await node.run(task("web.1", "true", resources=asking(4)))
    await node.clean()
    report = run("xfs_quota", "-x", "-c", "report -p -n -N", str(xfs))
    assert [line for line in report.splitlines() if line.split() and line.split()[3] != "0"] == []
