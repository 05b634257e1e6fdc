"""Volumes as a container sees them, as the node does, and what is left of them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from isolators import project_quota
from isolators.base import Unsupported
from isolators.persistent import VOLUME_IDS, InUse, PersistentVolumes
from isolators.removal import remove_tree
from isolators.rights import Rights
from model.resources import Resources
from model.task import TaskSpec, TaskState
from model.volume import Propagation, VolumeKind, VolumeMount, parse_host_volume
from tests.kernel.agent import Agent, agent
from tests.kernel.namespaces import run
from tests.kernel.sandbox import Sandbox, exit_of, output, sandbox, task, until
from tests.oci import violations

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

MIB = 1 << 20
DWELL_S = 0.0002
OWNER, GROUP = 4242, 4343
Open = Callable[..., AbstractAsyncContextManager[Sandbox]]
KEPT = VolumeMount("/kept", VolumeKind.PERSISTENT, "db.1.kept", size=1)
SCRATCH = VolumeMount("/scratch", VolumeKind.EPHEMERAL, "scratch")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory of somebody's on the node, with a file in it that nobody else may read."""
    directory = tmp_path / "host"
    directory.mkdir(mode=0o755)
    (directory / "private").write_text("private\n")
    (directory / "private").chmod(0o600)
    (directory / "public").write_text("public\n")
    for path in (directory, *directory.iterdir()):
        os.chown(path, OWNER, GROUP)
    return directory


@pytest.fixture
def open_sandbox(tmp_path: Path) -> Open:
    """A sandbox on a node whose configuration permits these host volumes."""
    state = tmp_path / "agent" / "containers"

    @asynccontextmanager
    async def make(*permitted: str) -> AsyncIterator[Sandbox]:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with sandbox(state, Rights(host_volumes=frozenset(map(parse_host_volume, permitted)))) as made:
            yield made

    return make


def shell(script: str, *volumes: VolumeMount, name: str = "web.1", **fields: object) -> TaskSpec:
    return task(name, "sh", "-c", script, volumes=volumes, **fields)


def of(path: Path, **fields: object) -> VolumeMount:
    return VolumeMount("/volume", VolumeKind.HOST, str(path), **fields)  # type: ignore[arg-type]


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@pytest.mark.parametrize(("user", "seen"), [("0:0", "0:0"), ("1000:1000", "1000:1000")])
async def test_who_writes_to_a_host_volume_is_its_owner(open_sandbox: Open, host: Path, user: str, seen: str) -> None:
    script = "cat /volume/private && echo new > /volume/new && stat -c %u:%g /volume /volume/new"
    async with open_sandbox(f"{host}:rw") as node:
        ended, text = await node.run(shell(script, of(host), user=user))
    assert (ended.code, text.split()) == (0, ["private", seen, seen])
    assert owner(host / "new") == (OWNER, GROUP)


async def test_a_part_of_what_is_permitted_and_a_file_alone(open_sandbox: Open, host: Path) -> None:
    (host / "below/deep").mkdir(parents=True)
    (host / "below/deep/file").write_text("deep\n")
    (host / "link").symlink_to("below/deep")
    file = VolumeMount("/volume.txt", VolumeKind.HOST, str(host / "public"), read_only=True)
    async with open_sandbox(f"{host}:ro") as node:
        _, text = await node.run(shell("cat /volume/file /volume.txt", of(host / "link", read_only=True), file))
    assert text.split() == ["deep", "public"]


async def test_read_only_holds_below_too_and_shows_what_others_may_read(open_sandbox: Open, host: Path) -> None:
    (host / "below").mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", str(host / "below"))
    (host / "below").chmod(0o777)
    script = "cat /volume/public /volume/private; echo x > /volume/x; echo x > /volume/below/x"
    try:
        async with open_sandbox(f"{host}:rw") as node:
            _, text = await node.run(shell(script, of(host, read_only=True)))
    finally:
        run("umount", str(host / "below"))
    assert text.count("Read-only file system") == 2 and "public" in text and "private: Permission denied" in text


@pytest.mark.parametrize(
    ("permitted", "source", "fields", "says"),
    [
        ((), "", {"read_only": True}, "not in host_volumes"),
        (("{host}:ro",), "", {}, "{host}:rw: not in host_volumes of this node's agent.toml"),
        (("{host}:rw",), "", {"propagation": Propagation.SHARED}, ":rshared: not in host_volumes"),
        (("{host}/below:rw",), "", {"read_only": True}, "not in host_volumes"),
        (("{host}:rw",), "-2", {"read_only": True}, "not in host_volumes"),
        (("{host}:ro",), "/nothing", {"read_only": True}, "is not there"),
        (("{host}:ro",), "/public/below", {"read_only": True}, "is not there"),
        (("{host}:ro",), "/out", {"read_only": True}, "a link in it leads out of {host}"),
        (("{host}:ro",), "/up", {"read_only": True}, "a link in it leads out of {host}"),
        (("{host}:ro",), "/magic", {"read_only": True}, "a link in it leads out of {host}"),
        (("{host}:ro",), "/round", {"read_only": True}, "or nowhere"),
        (("{host}:ro",), "/pipe", {"read_only": True}, "neither a directory nor a file"),
        (("{host}:rw",), "/roots", {}, "its owner or group is root"),
    ],
)
async def test_host_paths_that_are_refused(
    open_sandbox: Open, host: Path, permitted: tuple[str, ...], source: str, fields: dict[str, object], says: str
) -> None:
    (host / "out").symlink_to("/etc")
    (host / "up").symlink_to("../../../../../etc")
    (host / "magic").symlink_to("/proc/self/root")
    (host / "round").symlink_to("round")
    (host / "roots").mkdir()
    os.mkfifo(host / "pipe")
    async with open_sandbox(*(each.format(host=host) for each in permitted)) as node:
        with pytest.raises(Unsupported, match=says.format(host=host)):
            await node.start(shell("true", of(Path(f"{host}{source}"), **fields)))


async def test_the_agents_own_files_are_no_volume(open_sandbox: Open, tmp_path: Path) -> None:
    state = tmp_path / "agent" / "containers"
    async with open_sandbox(f"{tmp_path}:ro") as node:
        for path in (tmp_path, state.parent, state):
            with pytest.raises(Unsupported, match="the agent's own files are there"):
                await node.start(shell("true", of(path, read_only=True), name=f"web.{path.name}"))


async def test_nothing_of_the_kernels_own_by_a_mount(open_sandbox: Open, host: Path) -> None:
    (host / "below").mkdir()
    run("mount", "-t", "proc", "proc", str(host / "below"))
    try:
        async with open_sandbox(f"{host}:ro") as node:
            with pytest.raises(Unsupported, match="is on proc"):
                await node.start(shell("true", of(host / "below/sys", read_only=True)))
    finally:
        run("umount", str(host / "below"))


@pytest.mark.parametrize("destination", ["/", "/proc", "/proc/sys", "/sys", "/dev/x", "/a/../sys", "/a/", "relative"])
async def test_nothing_goes_over_the_kernels_files(open_sandbox: Open, destination: str) -> None:
    async with open_sandbox() as node:
        with pytest.raises(Unsupported, match="volume at"):
            await node.start(shell("true", VolumeMount(destination, VolumeKind.EPHEMERAL, "x")))


async def test_volumes_go_also_where_the_node_has_nothing_or_a_directory_of_its_own(
    open_sandbox: Open, host: Path
) -> None:
    deep = VolumeMount("/mnt/deep/below", VolumeKind.EPHEMERAL, "deep")
    own = VolumeMount("/usr/share", VolumeKind.PERSISTENT, "db.1.own", size=1)
    file = VolumeMount("/etc/made.conf", VolumeKind.HOST, str(host / "public"), read_only=True)
    nested = VolumeMount("/mnt/deep/below/nested", VolumeKind.EPHEMERAL, "nested")
    script = (
        "echo x > /mnt/deep/below/x && echo y > /mnt/deep/below/nested/y && echo z > /usr/share/z;"
        " cat /etc/made.conf; ls /mnt/deep/below /usr/share; stat -c %u:%a /usr /mnt; ls /usr/bin/env; touch /usr/y"
    )
    async with open_sandbox(f"{host}:ro") as node:
        _, text = await node.run(shell(script, nested, deep, own, file))
    mode = f"{os.stat('/usr').st_mode & 0o777:o}"
    assert text.split()[:6] == ["public", "/mnt/deep/below:", "nested", "x", "/usr/share:", "z"]
    assert f"65534:{mode}" in text and "/usr/bin/env" in text and "touch: cannot touch '/usr/y'" in text


async def test_two_volumes_at_one_place_are_refused(open_sandbox: Open) -> None:
    async with open_sandbox() as node:
        with pytest.raises(Unsupported, match="two volumes at /scratch"):
            await node.start(shell("true", SCRATCH, VolumeMount("/scratch", VolumeKind.EPHEMERAL, "other")))


async def test_a_racer_does_not_lead_a_host_volume_out(open_sandbox: Open, host: Path, tmp_path: Path) -> None:
    """The directory is exchanged for a link to another, over and over, while containers start."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "secret").write_text("secret")
    (host / "way").mkdir()
    seen = []
    async with open_sandbox(f"{host}:ro") as node:
        with racing(host, victim):
            for number in range(600):
                if number >= 60 and "" in seen:
                    break
                spec = shell("ls /volume", of(host / "way", read_only=True), name=f"web.{number}")
                container = node.container(spec)
                try:
                    launch = await node.create(container)
                    await node.prepare(container)
                    await node.fill(container, launch)
                except Unsupported as error:
                    seen.append(str(error))
                else:
                    await exit_of(container)
                    seen.append(output(container))
                for isolator in reversed(node.isolators):
                    await isolator.cleanup(container.sandbox)
    assert "" in seen and not any("secret" in text for text in seen)


@pytest.mark.parametrize(
    ("propagation", "appears"), [(Propagation.PRIVATE, False), (Propagation.SLAVE, True), (Propagation.SHARED, True)]
)
async def test_mounts_of_the_node_appear_where_that_is_asked_for(
    open_sandbox: Open, host: Path, propagation: Propagation, appears: bool
) -> None:
    (host / "below").mkdir()
    run("mount", "--bind", str(host), str(host))
    run("mount", "--make-rshared", str(host))
    script = "echo ready; for i in $(seq 600); do [ -e /volume/below/go ] && break; sleep 0.05; done; ls /volume/below"
    try:
        async with open_sandbox(f"{host}:rshared") as node:
            container, _ = await node.start(shell(script, of(host, read_only=True, propagation=propagation)))
            await until(lambda: "ready" in output(container), "it runs")
            run("mount", "-t", "tmpfs", "tmpfs", str(host / "below"))
            (host / "below/later").write_text("")
            (host / "below/go").write_text("")
            if not appears:
                run("umount", str(host / "below"))
                (host / "below/go").write_text("")
            await exit_of(container)
            assert ("later" in output(container)) is appears
    finally:
        run("umount", "--recursive", str(host))


async def test_private_is_private_also_where_the_node_shares(open_sandbox: Open, host: Path) -> None:
    run("mount", "--bind", str(host), str(host))
    run("mount", "--make-rshared", str(host))
    try:
        async with open_sandbox(f"{host}:ro") as node:
            _, text = await node.run(shell("cat /proc/self/mountinfo", of(host, read_only=True), SCRATCH, KEPT))
    finally:
        run("umount", "--recursive", str(host))
    fields = {line.split()[4]: line.split(" - ")[0].split()[6:] for line in text.splitlines()}
    assert fields["/volume"] == fields["/scratch"] == fields["/kept"] == []


async def test_no_devices_and_no_privileges_by_a_volume(open_sandbox: Open, host: Path) -> None:
    async with open_sandbox(f"{host}:rw") as node:
        _, text = await node.run(shell("cat /proc/self/mountinfo", of(host), SCRATCH, KEPT))
    for line in text.splitlines():
        if line.split()[4] in ("/volume", "/scratch", "/kept"):
            assert {"nosuid", "nodev", "rw"} <= set(line.split()[5].split(","))


@pytest.mark.parametrize("user", ["0:0", "1000:1000"])
async def test_an_ephemeral_volume_is_made_with_the_task_and_gone_with_it(open_sandbox: Open, user: str) -> None:
    again = VolumeMount("/again", VolumeKind.EPHEMERAL, "scratch", read_only=True)
    async with open_sandbox() as node:
        script = "ls -A /scratch; echo x > /scratch/x && cat /again/x; stat -c %u:%g /scratch/x; echo y > /again/y"
        container, _ = await node.start(shell(script, SCRATCH, again, user=user))
        await exit_of(container)
        assert output(container).split()[:2] == ["x", user] and "Read-only" in output(container)
        (file,) = container.layer.glob("volumes/scratch/x")
        uid, gid = map(int, user.split(":"))
        assert owner(file) == (VOLUME_IDS + uid, VOLUME_IDS + gid)
        for isolator in reversed(node.isolators):
            await isolator.cleanup(container.sandbox)
        assert not (container.layer / "volumes").exists()


async def test_ephemeral_volumes_count_as_what_the_task_writes(tmp_path: Path) -> None:
    async with agent(tmp_path / "agent") as node:
        script = "head -c 3000000 /dev/zero > /scratch/x; exec sleep infinity"
        ended = await node.run(shell(script, SCRATCH, resources=Resources(cpus=500, mem=64, disk=1)))
    assert ended.state is TaskState.FAILED and ended.reason.startswith("disk limit 1 MiB exceeded (")


async def test_what_one_container_has_written_is_the_next_ones(tmp_path: Path) -> None:
    """Their ids are others on the node."""
    async with agent(tmp_path / "agent") as node:
        write = "echo mine > /kept/file && chown 33:33 /kept/file && chmod 600 /kept/file"
        assert (await node.run(shell(write, KEPT))).state is TaskState.FINISHED
        held = await node.sandboxes.make("none")  # so that the next has other ids
        read = "stat -c %u:%g:%a /kept/file; cat /kept/file; echo more >> /kept/file; cat /kept/file"
        await node.run(shell(read, KEPT, name="web.2"))
        assert node.directories.log("web.2", "stdout").read_text().split() == ["33:33:600", "mine", "mine", "more"]
        await node.sandboxes._discard(held)
    file = tmp_path / "agent/run/volumes/db.1.kept/file"
    assert owner(file) == (VOLUME_IDS + 33, VOLUME_IDS + 33)


async def test_the_top_of_a_persistent_volume_is_its_users(tmp_path: Path) -> None:
    async with agent(tmp_path / "agent") as node:
        for number, user in enumerate(("1000:100", "0:0", "33:33")):
            ended = await node.run(shell(f"echo x > /kept/{number}", KEPT, name=f"web.{number}", user=user))
            assert ended.state is TaskState.FINISHED, ended.reason


async def test_a_persistent_volume_is_for_one_container_at_a_time(tmp_path: Path) -> None:
    async with agent(tmp_path / "agent") as node:
        node.reconciler.assign(shell("exec sleep infinity", KEPT), kill=False)
        await node.reached("web.1", TaskState.RUNNING)
        ended = await node.run(shell("true", KEPT, name="web.2"))
        assert ended.state is TaskState.FAILED and "db.1.kept is still in use" in ended.reason


async def test_a_volume_over_its_size_ends_its_task_with_the_reason(tmp_path: Path) -> None:
    async with agent(tmp_path / "agent") as node:
        ended = await node.run(shell("head -c 3000000 /dev/zero > /kept/x; exec sleep infinity", KEPT))
    assert ended.state is TaskState.FAILED
    assert ended.reason.startswith("size 1 MiB of volume db.1.kept exceeded (")


async def test_a_persistent_volume_is_found_again_after_the_agents_death(tmp_path: Path) -> None:
    state = tmp_path / "agent"
    async with agent(state) as node:
        node.reconciler.assign(shell("echo x > /kept/x; echo ready; exec sleep infinity", KEPT), kill=False)
        await node.reached("web.1", TaskState.RUNNING)
        await until(lambda: node.directories.log("web.1", "stdout").read_text() == "ready\n", "it is written")
        await node.die()
        await live_again(node)
        await node.reached("web.1", TaskState.RUNNING)
        ended = await node.run(shell("true", KEPT, name="web.2"))
        assert "still in use" in ended.reason  # it knows who has it
        node.reconciler.assign(shell("", KEPT), kill=True)
        await node.reached("web.1", TaskState.KILLED)
        await node.run(shell("cat /kept/x", KEPT, name="web.3"))
        assert node.directories.log("web.3", "stdout").read_text() == "x\n"


async def live_again(node: Agent) -> None:
    """Another agent on what that one left."""
    await node.node.launcher.start()
    node.reports.clear()
    node.__post_init__()
    await node.reconciler.recover()


def test_removal_is_finished_by_the_next_agent(tmp_path: Path) -> None:
    kept = PersistentVolumes(tmp_path)
    path = kept.take("v", "c1", 1, (0, 0))
    (path / "file").write_text("x")
    with pytest.raises(InUse, match="volume v is still in use by container c1"):
        kept.take("v", "c2", 1, (0, 0))
    kept.release("c1")
    path.rename(path.with_name(".removed-v"))  # and then it died
    again = PersistentVolumes(tmp_path)
    again.recover({})
    assert list((tmp_path / "volumes").iterdir()) == []
    again.remove("v")
    again.take("w", "c1", 1, (0, 0))
    again.remove("w")
    assert list((tmp_path / "volumes").iterdir()) == []


def test_a_tree_that_is_hard_to_remove(tmp_path: Path) -> None:
    tree, kept = tmp_path / "tree", tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    tree.mkdir()
    (tree / "out").symlink_to(kept)
    (tree / "-rf *").write_text("")
    above = os.open(tree, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 255, dir_fd=above)
        below = os.open("d" * 255, os.O_RDONLY, dir_fd=above)
        os.symlink(kept, "out", dir_fd=below)
        os.close(above)
        above = below
    os.close(above)
    remove_tree(tree)
    remove_tree(tree)
    assert not tree.exists() and (kept / "file").read_text() == "x"


def test_each_volume_is_a_project_where_there_are_quotas(tmp_path: Path) -> None:
    image, point = tmp_path / "image", tmp_path / "xfs"
    with image.open("wb") as file:
        file.truncate(300 * MIB)
    run("mkfs.xfs", "-q", str(image))
    point.mkdir()
    run("mount", "-o", "loop", str(image), str(point))
    try:
        kept = PersistentVolumes(point)
        paths = [kept._made(name) for name in ("a", "b")]
        first = [kept._project(path) for path in paths]
        assert len(set(first)) == 2 and [kept._project(path) for path in paths] == first
        (paths[1] / "file").write_text("x")
        assert project_quota.project_of(paths[1] / "file") == first[1]
    finally:
        run("umount", str(point))


async def test_their_bundle_is_by_the_specification(open_sandbox: Open, host: Path) -> None:
    async with open_sandbox(f"{host}:rw") as node:
        container, _ = await node.start(shell("true", of(host), SCRATCH, KEPT))
        config = json.loads((container.directory / "config.json").read_text())
    assert violations({"ociVersion": "1.2.0", **config}) == []
    assert [mount["destination"] for mount in config["mounts"] if "uidMappings" in mount] == [
        "/kept",
        "/scratch",
        "/volume",
    ]


async def test_a_failed_start_leaves_nothing(open_sandbox: Open, host: Path) -> None:
    async with open_sandbox(f"{host}:rw") as node:
        last = VolumeMount("/zone", VolumeKind.HOST, "/nowhere")
        container = node.container(shell("true", of(host), SCRATCH, KEPT, last))
        await node.create(container)
        with pytest.raises(Unsupported, match="/nowhere"):
            await node.prepare(container)
        assert str(host) in open_files()
        await node.clean()
        assert str(host) not in open_files()
        assert not (container.layer / "volumes").exists()


def open_files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


@contextmanager
def racing(directory: Path, target: Path) -> Iterator[None]:
    """`directory/way` is a directory and a link to `target`, in turn."""
    ended = threading.Event()

    def race() -> None:
        way, aside = directory / "way", directory / "aside"
        while not ended.is_set():
            way.rename(aside)
            way.symlink_to(target)
            time.sleep(DWELL_S)
            way.unlink()
            aside.rename(way)
            time.sleep(DWELL_S)

    # A thread, for the exchange must go on while the event loop is busy.
    racer = threading.Thread(target=race)
    racer.start()
    try:
        yield
    finally:
        ended.set()
        racer.join()
