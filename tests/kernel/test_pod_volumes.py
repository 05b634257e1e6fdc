"""What containers of a pod share beyond their network: volumes that live as long as the pod, and the node's own. And
the images and files that each of them brings."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from isolators.persistent import VOLUME_IDS
from isolators.rights import Rights
from isolators.volumes import _ephemeral
from model.fetch import Fetch
from model.image import ImageSpec, Rules
from model.resources import Resources
from model.task import TaskSpec, TaskState
from model.volume import WORKSPACE, VolumeKind, VolumeMount, parse_host_volume
from tests.images import Entry, busybox, layer
from tests.kernel import remains
from tests.kernel.agent import Agent, agent
from tests.kernel.sandbox import CGROUPS, task, until
from tests.kernel.shelf import Shelf
from tests.kernel.test_pods import (
    FOREVER,
    RUNTIMES,
    as_before,
    assign,
    at_rest,
    ends,
    give_signal,
    of_process,
    on_signal,
    pod,
    run,
    said,
    successor,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

OWNER = 4242
SHARED = VolumeMount("/shared", VolumeKind.POD, "shared")
READ_ONLY = replace(SHARED, destination="/seen", read_only=True)
KEEP = "echo one > /shared/note; chmod 600 /shared/note; echo done; exec sleep infinity"
SEE = "cat /seen/note; stat -c %u:%a /seen /seen/note; touch /seen/x 2>&1 | grep -o Read-only; echo done"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory of somebody's on the node."""
    made = tmp_path / "host"
    made.mkdir(mode=0o755)
    os.chown(made, OWNER, OWNER)
    return made


@pytest.fixture
async def node(tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    monkeypatch.setenv(remains.MARK, str(tmp_path))
    rights = Rights(host_volumes=frozenset({parse_host_volume(f"{host}:rw")}))
    async with agent(tmp_path / "agent", rights) as made:
        yield made


@pytest.fixture
def shelf(node: Agent) -> Shelf:
    return Shelf(node.directories.state)


def shell(script: str) -> tuple[str, ...]:
    return "sh", "-c", script


def sharing(writer: str, reader: str, *mounts: VolumeMount, **changes: object) -> list[TaskSpec]:
    """Two that share a volume, and one that has nothing of it."""
    first, second, third = pod(shell(writer), on_signal(reader), FOREVER, **changes)
    return [replace(first, volumes=(SHARED, *mounts)), replace(second, volumes=(READ_ONLY,)), third]


def volumes(made: Agent) -> list[Path]:
    return list(made.directories.layers.glob("*/volumes/*"))


async def test_two_share_a_volume_which_one_may_only_read(node: Agent) -> None:
    before = await at_rest(node)
    specs = sharing(KEEP, SEE)
    statuses = await run(node, specs)
    await said(node, specs[0], "done\n")
    await give_signal(node, specs[1])
    assert await said(node, specs[1], "done\n") == "ready\none\n0:1777\n0:600\nRead-only\ndone\n"
    assert " /shared " not in of_process(statuses[2].pid, "mountinfo")
    (path,) = volumes(node)
    assert (path / "note").stat().st_uid == VOLUME_IDS
    node.reconciler.assign(specs[2], kill=True)
    await ends(node, specs)
    await as_before(node, before)
    assert list(node.directories.layers.iterdir()) == []


async def test_each_writes_as_who_it_is_and_all_may(node: Agent) -> None:
    write = shell("echo x > /shared/$(id -u); echo done; exec sleep infinity")
    users = zip(pod(write, write), ("0:0", "1000:1000"), strict=True)
    specs = [replace(spec, user=user, volumes=(SHARED,)) for spec, user in users]
    await run(node, specs)
    for spec in specs:
        await said(node, spec, "done\n")
    (path,) = volumes(node)
    assert {file.name: file.stat().st_uid - VOLUME_IDS for file in path.iterdir()} == {"0": 0, "1000": 1000}


async def test_a_volume_of_its_own_is_another_one_of_the_same_name(node: Agent) -> None:
    own = VolumeMount("/own", VolumeKind.EPHEMERAL, SHARED.source)
    specs = sharing(KEEP, "ls /seen; echo done", own)
    await run(node, specs)
    await said(node, specs[0], "done\n")
    await give_signal(node, specs[1])
    assert await said(node, specs[1], "done\n") == "ready\nnote\ndone\n"
    assert sorted(len(list(path.iterdir())) for path in volumes(node)) == [0, 1]


@pytest.mark.parametrize("by", RUNTIMES)
async def test_another_runtime_shares_them_alike(tmp_path: Path, by: str) -> None:
    async with agent(tmp_path / by, by=by) as made:
        specs = sharing(KEEP, "cat /seen/note; touch /seen/x 2>&1 | grep -o Read-only; echo done")
        await run(made, specs)
        await said(made, specs[0], "done\n")
        await give_signal(made, specs[1])
        assert await said(made, specs[1], "done\n") == "ready\none\nRead-only\ndone\n"
        made.reconciler.assign(specs[0], kill=True)
        await ends(made, specs)
        assert list(made.directories.layers.iterdir()) == []
    for path in CGROUPS.glob(f"*/{made.node.prefix}"):  # as in test_pods.py
        path.rmdir()


async def test_a_volume_outlives_the_agent_and_goes_with_the_pod(node: Agent) -> None:
    specs = sharing(KEEP, SEE)
    await run(node, specs)
    await said(node, specs[0], "done\n")
    async with successor(node) as again:
        await give_signal(again, specs[1])
        assert "one\n" in await said(again, specs[1], "done\n")
        os.kill(again.reconciler.books.records[specs[0].id].status.pid or 0, signal.SIGKILL)
        await ends(again, specs)
        assert list(again.directories.layers.iterdir()) == list(again.directories.bundles.iterdir()) == []


@pytest.mark.parametrize("milliseconds", range(0, 160, 20))
async def test_an_agent_killed_while_they_are_brought_and_shared_begins_again(
    node: Agent, shelf: Shelf, milliseconds: int
) -> None:
    reference = shelf.layout(layer(busybox()))
    image = ImageSpec(reference, rules=Rules.MESOS)
    write = "echo $0 >> /shared/log; exec sleep 3600"
    specs = [
        replace(spec, image=image, volumes=(SHARED,), cwd="", argv=("/bin/sh", "-c", write, spec.id))
        for spec in pod(FOREVER, FOREVER)
    ]
    assign(node, specs)
    assert await node.reconciler.settle() == []
    await asyncio.sleep(milliseconds / 1000)
    async with successor(node) as again:
        for spec in specs:
            assert (await again.reached(spec.id, TaskState.RUNNING)).state is TaskState.RUNNING
        (path,) = volumes(again)
        written = {f"{spec.id}\n" for spec in specs}
        await until(lambda: {*(path / "log").open()} == written, "each has written")
        again.reconciler.assign(specs[0], kill=True)
        await ends(again, specs)
        assert list(again.directories.layers.iterdir()) == []


async def test_what_is_in_them_counts_as_the_pods_own(node: Agent) -> None:
    fill = "head -c 3000000 /dev/zero > /shared/x; exec sleep infinity"
    first, second = pod(FOREVER, shell(fill), resources=Resources(disk=1))
    specs = [first, replace(second, volumes=(SHARED,))]
    await run(node, specs)
    (failed, reason), (killed, fate) = await ends(node, specs)
    assert failed is TaskState.FAILED and reason.startswith("disk limit of its pod 1 MiB exceeded (")
    assert killed is TaskState.KILLED and fate == f"its pod ended with c0: {reason}"


async def test_what_a_container_has_made_of_a_volume_stays_when_another_begins_again(tmp_path: Path) -> None:
    path = _ephemeral(tmp_path, "shared")
    assert (path.stat().st_mode & 0o7777, path.stat().st_uid) == (0o1777, VOLUME_IDS)
    path.chmod(0o700)
    os.chown(path, VOLUME_IDS + 1000, VOLUME_IDS)
    again = _ephemeral(tmp_path, "shared").stat()
    assert (again.st_mode & 0o7777, again.st_uid) == (0o700, VOLUME_IDS + 1000)


async def test_a_host_volume_is_written_to_as_its_owner(node: Agent, host: Path) -> None:
    mine = VolumeMount("/mine", VolumeKind.HOST, str(host))
    specs = pod(shell("echo x > /mine/x; echo done; exec sleep infinity"), on_signal("cat /mine/x; echo done"))
    specs = [replace(specs[0], volumes=(mine,)), replace(specs[1], volumes=(replace(mine, read_only=True),))]
    await run(node, specs)
    await said(node, specs[0], "done\n")
    await give_signal(node, specs[1])
    assert await said(node, specs[1], "done\n") == "ready\nx\ndone\n"
    assert (host / "x").stat().st_uid == OWNER


async def test_what_no_node_permits_ends_all(node: Agent) -> None:
    before = await at_rest(node)
    first, second = pod(FOREVER, FOREVER)
    specs = [first, replace(second, volumes=(SHARED, VolumeMount("/etc/x", VolumeKind.HOST, "/etc", read_only=True)))]
    assign(node, specs)
    (_, fate), (state, reason) = await ends(node, specs)
    assert state is TaskState.REJECTED and "not in host_volumes" in reason and fate.endswith(reason)
    await as_before(node, before)


async def test_a_task_in_no_pod_has_none_of_its_volumes(node: Agent) -> None:
    ended = await node.run(task("web.1", *FOREVER, volumes=(SHARED,)))
    assert ended.state is TaskState.REJECTED and "the task is in no pod" in ended.reason


async def test_each_has_its_own_image_and_files(node: Agent, shelf: Shelf) -> None:
    one = shelf.layout(layer(busybox()), layer([Entry("name", b"one")]), name="one")
    other = shelf.layout(layer(busybox()), config={"Entrypoint": ["sh", "-c"], "User": "web"}, name="other")
    (shelf.path / "extra").write_text("extra")
    note = "cat /name $MESOS_SANDBOX/extra > /shared/note; pwd; echo done; exec sleep 3600"
    wait = "until [ -s /seen/note ]; do sleep 0.02; done"
    show = f"{wait}; cat /seen/note; id -u; ls $MESOS_SANDBOX; pwd; echo done; exec sleep 3600"
    first, second = pod(shell(note), (show,), cwd="", user="")
    specs = [
        replace(
            first,
            image=ImageSpec(one, rules=Rules.MESOS),
            fetch=(Fetch(f"file://{shelf.path}/extra"),),
            volumes=(SHARED,),
        ),
        replace(second, image=ImageSpec(other, rules=Rules.MESOS, arguments=True), volumes=(READ_ONLY,)),
    ]
    await run(node, specs)
    assert await said(node, specs[0], "done\n") == f"{WORKSPACE}\ndone\n"
    assert await said(node, specs[1], "done\n") == f"oneextra1000\n{WORKSPACE}\ndone\n"


async def test_nobody_runs_when_an_image_can_not_be_had(node: Agent, shelf: Shelf) -> None:
    before = await at_rest(node)
    first, second = pod(shell("echo ran; exec sleep infinity"), FOREVER)
    specs = [first, replace(second, image=ImageSpec(f"oci:{shelf.path}/nothing:1"), cwd="")]
    assign(node, specs)
    (killed, fate), (_, reason) = await ends(node, specs)
    assert killed is TaskState.KILLED and "no OCI layout" in reason and fate == f"its pod ended with c1: {reason}"
    await as_before(node, before)


async def test_a_pod_is_killed_while_something_is_fetched(node: Agent, shelf: Shelf) -> None:
    before = await at_rest(node)
    os.mkfifo(shelf.path / "never")  # nobody writes to it
    first, second = pod(FOREVER, FOREVER)
    specs = [replace(first, volumes=(SHARED,)), replace(second, fetch=(Fetch(f"file://{shelf.path}/never"),), cwd="")]
    assign(node, specs)
    await node.reached(specs[1].id, TaskState.PREPARING)
    node.reconciler.assign(specs[0], kill=True)
    assert all(state >= TaskState.FAILED for state, _ in await ends(node, specs))
    (shelf.path / "never").unlink()
    await as_before(node, before)
