"""Real containers, looked at from inside and outside, and the ways in which starting and ending them goes wrong."""

from __future__ import annotations

import asyncio
import errno
import glob
import os
import resource
import signal
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.launcher import record
from agent.launcher.adopt import look
from agent.launcher.client import LaunchError
from agent.launcher.record import Identity
from isolators.base import Container
from isolators.rights import Rights
from model.task import Rlimit
from tests.kernel.sandbox import (
    ID_BASE,
    Change,
    Sandbox,
    alive,
    cgroups,
    exit_of,
    mounts_below,
    output,
    root_directory,
    sandbox,
    task,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

FOREVER = ("sleep", "infinity")
# Docker's default set less MKNOD and NET_RAW, as a mask of capability.h numbers.
CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 29, 31))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Sandbox]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with sandbox(state) as made:
        yield made


@pytest.fixture(params=["node", "directory"])
def rootfs(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of both kinds: the node's own file system, and a directory."""
    return "" if request.param == "node" else str(root_directory(tmp_path / "image"))


async def shell(node: Sandbox, script: str, **changes: Any) -> str:
    ended, text = await node.run(task("web.1", "sh", "-c", script, **changes))
    assert ended.code == 0, (ended, text)
    return text


async def test_program_is_pid_1_with_its_own_host_name_and_ids(node: Sandbox, rootfs: str) -> None:
    text = await shell(
        node, "echo $$; cat /proc/sys/kernel/hostname /proc/self/uid_map /proc/self/gid_map", rootfs=rootfs
    )
    pid, hostname, *maps = text.splitlines()
    assert (pid, hostname) == ("1", "web")
    assert [line.split() for line in maps] == [["0", str(ID_BASE), "65536"]] * 2


async def test_privileges_are_only_what_they_should_be(node: Sandbox, rootfs: str) -> None:
    text = await shell(node, "cat /proc/self/status", rootfs=rootfs)
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert {name: int(status[name], 16) for name in ("CapInh", "CapAmb")} == {"CapInh": 0, "CapAmb": 0}
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {CAPABILITIES}
    assert status["NoNewPrivs"] == "1"
    assert status["Groups"].strip() == ""


async def test_another_user_has_no_capabilities(node: Sandbox) -> None:
    text = await shell(node, "id -u; id -g; cat /proc/self/status", user="1000:100")
    assert text.splitlines()[:2] == ["1000", "100"]
    assert "CapPrm:\t0000000000000000" in text


async def test_only_its_own_namespaces(node: Sandbox) -> None:
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    _container, launch = await node.start(task("web.1", *FOREVER))
    inside = {kind: os.readlink(f"/proc/{launch.pid}/ns/{kind}") for kind in kinds}
    outside = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    assert [kind for kind in kinds if inside[kind] == outside[kind]] == []


async def test_host_network_is_the_nodes(tmp_path: Path) -> None:
    async with sandbox(tmp_path, Rights(host_network=True)) as node:
        _container, launch = await node.start(task("web.1", *FOREVER, network="host"))
        assert os.readlink(f"/proc/{launch.pid}/ns/net") == os.readlink("/proc/thread-self/ns/net")
        flags = {path: fields[5] for path, fields in mounts_of(launch.pid).items()}
    assert all(flags[path].startswith("ro,") for path in flags if path.startswith("/sys"))


async def test_mounts_are_those_of_the_bundle_and_nothing_of_the_node(node: Sandbox, rootfs: str) -> None:
    _, launch = await node.start(task("web.1", *FOREVER, rootfs=rootfs))
    points = mounts_of(launch.pid)
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    own = {"/", "/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/run", "/tmp"}
    others = set(points) - own - devices
    assert own | devices <= set(points)
    assert all(path.startswith(("/proc/", "/sys/")) for path in others), others
    assert "ro" in points["/sys"][5] and "ro" in points["/proc/sys"][5]
    assert "nodev" in points["/"][5]


async def test_files_of_the_node_are_as_closed_as_to_a_stranger(node: Sandbox, tmp_path: Path) -> None:
    secret = Path("/var/tmp") / f"tepui-test-{os.getpid()}"
    secret.mkdir(mode=0o700)
    try:
        text = await shell(
            node,
            f"for f in /etc/shadow {secret} /root; do cat $f/* $f 2>/dev/null && echo read $f; done;"
            "touch /etc/new 2>/dev/null && echo wrote; touch /new /tmp/new && echo ok; ls /tmp /proc/1/root/run",
        )
    finally:
        secret.rmdir()
    assert "read" not in text and "wrote" not in text
    assert "ok" in text
    assert not {"/new", "/tmp/new"} & {*glob.glob("/*"), *glob.glob("/tmp/*")}


async def test_masked_files_are_empty(node: Sandbox) -> None:
    assert await shell(node, "cat /proc/keys /proc/interrupts /proc/timer_list; ls /sys/firmware") == ""


async def test_state_of_the_agent_is_hidden(node: Sandbox) -> None:
    state = Path("/var/tmp") / f"tepui-state-{os.getpid()}"
    state.mkdir(mode=0o755)
    try:
        async with sandbox(state) as other:
            (state / "key").write_text("secret")
            _, text = await other.run(task("web.2", "sh", "-c", f"ls -A {state}; touch {state}/x"))
            assert "Read-only file system" in text and "key" not in text
    finally:
        for path in sorted(state.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        state.rmdir()


async def test_ids_in_a_directory_mean_ids_in_the_container(node: Sandbox, tmp_path: Path) -> None:
    image = root_directory(tmp_path / "image")
    (image / "data").mkdir()
    os.chown(image / "data", 1000, 1000)
    text = await shell(node, "stat -c %u:%g /bin/sh /data; touch /data/x /etc/x; stat -c %u /etc/x", rootfs=str(image))
    assert text.split() == ["0:0", "1000:1000", "0"]
    assert sorted(path.name for path in (image / "etc").iterdir()) == ["passwd"]  # the image has not changed


async def test_named_user_is_the_images(node: Sandbox, tmp_path: Path) -> None:
    image = root_directory(tmp_path / "image")
    assert (await shell(node, "id -u", rootfs=str(image), user="web")).split() == ["1000"]


async def test_only_the_standard_streams_are_open(node: Sandbox) -> None:
    _container, launch = await node.start(task("web.1", *FOREVER))
    # The program's loader opens libraries, and closes them again.
    await until(lambda: sorted(os.listdir(f"/proc/{launch.pid}/fd")) == ["0", "1", "2"], "no other descriptor is open")
    assert os.readlink(f"/proc/{launch.pid}/fd/0") == "/dev/null"


async def test_streams_can_be_opened_again(node: Sandbox) -> None:
    text = await shell(node, "echo out > /dev/stdout; echo err > /dev/stderr", user="1000:1000")
    assert text == "out\nerr\n"


async def test_devices_are_real_and_usable(node: Sandbox) -> None:
    text = await shell(node, "for d in null zero full random urandom tty; do stat -c '%F %t:%T' /dev/$d; done")
    numbers = ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0"]
    assert text.splitlines() == [f"character special file {number}" for number in numbers]


async def test_a_program_over_its_memory_limit_ends_by_sigkill(node: Sandbox) -> None:
    hog = "x=0123456789; while :; do x=$x$x; done"
    ended, _ = await node.run(task("web.1", "sh", "-c", hog))
    assert ended.signal == signal.SIGKILL


async def test_pids_limit_holds(node: Sandbox) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 100 & done; echo all"
    _ended, text = await node.run(task("web.1", "sh", "-c", script, pids=8))
    assert "annot fork" in text and "all" not in text


async def test_rlimits_are_set(node: Sandbox) -> None:
    limits = (Rlimit("RLIMIT_NOFILE", 100, 200), Rlimit("RLIMIT_CORE", 0, 0))
    text = await shell(node, "cat /proc/self/limits", rlimits=limits)
    rows = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()}
    assert rows["Max open files"] == ["100", "200"]
    assert rows["Max core file size"] == ["0", "0"]


def test_what_has_a_pid_and_is_no_process_is_gone() -> None:
    """As a process is, to the kernel, while its last traces are removed. A thread is such a thing for longer."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert record.open_process(Identity(thread.native_id, 0)) is None
    finally:
        ended.set()
        thread.join()


async def test_open_files_are_limited_alike_however_the_agent_was_started(node: Sandbox) -> None:
    text = await shell(node, "ulimit -Sn; ulimit -Hn")
    _, own = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert text.split() == ["1024", str(min(own, 524_288))]


async def test_environment_and_directory(node: Sandbox) -> None:
    text = await shell(node, "echo $PATH $WHO; pwd", env=(("WHO", "me"),), cwd="/usr")
    assert text.splitlines() == ["/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin me", "/usr"]


@pytest.mark.parametrize(
    ("argv", "cwd", "operation", "path", "number"),
    [
        (("/bin/missing",), "/", "execute", "/bin/missing", errno.ENOENT),
        (("missing",), "/", "execute", "missing", errno.ENOENT),
        (("/etc/passwd",), "/", "execute", "/etc/passwd", errno.EACCES),
        (("true",), "/missing", "change directory", "/missing", errno.ENOENT),
        (("true",), "/root", "change directory", "/root", errno.EACCES),
        (("true",), "/proc/self/fd/0", "change directory", "/proc/self/fd/0", errno.ENOTDIR),
    ],
)
async def test_what_can_not_be_executed_is_named(
    node: Sandbox, argv: tuple[str, ...], cwd: str, operation: str, path: str, number: int
) -> None:
    container = node.container(task("web.1", *argv, cwd=cwd))
    launch = await node.create(container)
    await node.prepare(container)
    with pytest.raises(LaunchError) as caught:
        await node.fill(container, launch)
    assert (caught.value.operation, caught.value.path, caught.value.errno) == (operation, path, number)
    assert not alive(launch.pid)
    assert path in (await exit_of(container)).error


async def test_descriptors_of_the_launcher_lead_nowhere(node: Sandbox) -> None:
    """CVE-2024-21626: a working directory through a descriptor that was left open."""
    for number in range(3, 16):
        container = node.container(task(f"web.{number}", "true", cwd=f"/proc/self/fd/{number}"))
        launch = await node.create(container)
        await node.prepare(container)
        with pytest.raises(LaunchError):
            await node.fill(container, launch)


async def test_links_in_an_image_do_not_lead_mounts_out(node: Sandbox, tmp_path: Path) -> None:
    image = root_directory(tmp_path / "image")
    (image / "run").symlink_to("../../../../../../../opt")
    before = mounts_below(Path("/opt"))
    assert (await shell(node, "touch /opt/x; ls /run", rootfs=str(image))) == "x\n"
    assert mounts_below(Path("/opt")) == before
    assert "x" not in os.listdir("/opt")


async def test_proc_is_not_mounted_through_a_link(node: Sandbox, tmp_path: Path) -> None:
    image = root_directory(tmp_path / "image")
    (image / "proc").symlink_to("tmp")
    container = node.container(task("web.1", "true", rootfs=str(image)))
    launch = await node.create(container)
    await node.prepare(container)
    with pytest.raises(LaunchError) as caught:
        await node.fill(container, launch)
    assert (caught.value.operation, caught.value.errno) == ("move /proc", errno.ELOOP)


async def test_a_mount_on_a_link_to_nowhere_is_made_inside(node: Sandbox, tmp_path: Path) -> None:
    image = root_directory(tmp_path / "image")
    (image / "etc/resolv.conf").symlink_to("../run/resolved/stub.conf")
    container = node.container(task("web.1", "cat", "/etc/resolv.conf", rootfs=str(image)))
    source = container.directory / "resolv.conf"
    source.write_text("nameserver 192.0.2.1\n")
    bind = {"destination": "/etc/resolv.conf", "type": "bind", "source": str(source), "options": ["bind", "ro"]}
    launch = await node.create(container)
    await node.prepare(container, lambda config: config["mounts"].append(bind))
    await node.fill(container, launch)
    await exit_of(container)
    assert output(container) == "nameserver 192.0.2.1\n"


async def test_a_bundle_that_asks_for_something_else_is_refused(node: Sandbox) -> None:
    def join(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"][0]["path"] = "/proc/1/ns/mnt"

    with pytest.raises(LaunchError, match="linux/namespaces"):
        await node.create(node.container(task("web.1", "true")), join)
    container = node.container(task("web.2", "true"))
    launch = await node.create(container)
    await node.prepare(container, join)
    with pytest.raises(LaunchError, match="linux/namespaces"):
        await node.fill(container, launch)
    assert not alive(launch.pid)


def without_network(config: dict[str, Any]) -> None:
    spaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [space for space in spaces if space["type"] != "network"]


def other_ids(config: dict[str, Any]) -> None:
    config["linux"]["uidMappings"] = [{"containerID": 0, "hostID": ID_BASE + 1, "size": 65536}]


def more_before(config: dict[str, Any]) -> None:
    bind = {"destination": "/mnt", "type": "bind", "source": "/opt", "options": ["bind"]}
    config["mounts"].insert(0, bind)


def less(config: dict[str, Any]) -> None:
    del config["mounts"][0]


@pytest.mark.parametrize("change", [without_network, other_ids, more_before, less])
async def test_a_bundle_that_differs_from_its_sandbox_is_refused(node: Sandbox, change: Change) -> None:
    container = node.container(task("web.1", "true"))
    launch = await node.create(container)
    await node.prepare(container, change)
    with pytest.raises(LaunchError, match="read bundle: (linux/|mounts: ).* the sandbox"):
        await node.fill(container, launch)
    assert not alive(launch.pid)


async def test_exit_code_is_recorded(node: Sandbox) -> None:
    ended, _ = await node.run(task("web.1", "sh", "-c", "exit 7"))
    assert (ended.code, ended.signal, ended.lost, ended.error) == (7, None, False, "")
    assert ended.at > 0


async def test_signal_is_recorded(node: Sandbox) -> None:
    container, launch = await node.start(task("web.1", *FOREVER))
    os.kill(launch.pid, signal.SIGKILL)
    ended = await exit_of(container)
    assert (ended.code, ended.signal) == (None, signal.SIGKILL)


async def test_containers_outlive_the_launcher(node: Sandbox) -> None:
    container, launch = await node.start(task("web.1", *FOREVER))
    assert node.launcher.pid is not None
    os.kill(node.launcher.pid, signal.SIGKILL)
    second, _other = await node.start(task("web.2", *FOREVER))  # the client starts another launcher
    assert look(container.directory) is not None and look(second.directory) is not None
    os.kill(launch.pid, signal.SIGTERM)  # pid 1 ignores what it has no handler for
    os.kill(launch.pid, signal.SIGKILL)
    assert (await exit_of(container)).signal == signal.SIGKILL


async def test_containers_outlive_the_agent(node: Sandbox) -> None:
    """The end of the agent's sockets is what launcher and keeper see of its death."""
    script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    container, launch = await node.start(task("web.1", "sh", "-c", script))
    await until(lambda: "ready" in output(container), "the trap is set")
    await node.launcher.stop()
    adopted = look(container.directory)
    assert adopted is not None and adopted.started and adopted.pid == launch.pid
    os.kill(launch.pid, signal.SIGTERM)
    assert (await exit_of(container)).code == 3


async def test_nothing_is_left_when_the_agent_ends_before_the_start(node: Sandbox) -> None:
    container = node.container(task("web.1", *FOREVER))
    launch = await node.create(container)
    await node.prepare(container)
    launch.keeper.close()
    await until(lambda: not alive(launch.pid), "container is gone")
    assert (await exit_of(container)).error == "aborted before the start"


async def test_abort_returns_when_the_container_is_gone(node: Sandbox) -> None:
    container = node.container(task("web.1", *FOREVER))
    launch = await node.create(container)
    await node.prepare(container)
    await launch.abort()
    assert not alive(launch.pid)
    await launch.abort()


async def test_a_killed_keeper_loses_the_exit_and_not_the_container(node: Sandbox) -> None:
    container, launch = await node.start(task("web.1", *FOREVER))
    os.kill(keeper_of(container), signal.SIGKILL)
    await until(lambda: not alive(keeper_of(container)), "keeper is gone")
    adopted = look(container.directory)
    assert adopted is not None and adopted.pid == launch.pid
    waiting = asyncio.create_task(exit_of(container))
    os.kill(launch.pid, signal.SIGKILL)
    assert (await waiting).lost
    assert look(container.directory) is None


async def test_a_keeper_killed_before_the_start_takes_the_container_along(node: Sandbox) -> None:
    container = node.container(task("web.1", *FOREVER))
    launch = await node.create(container)
    await node.prepare(container)
    os.kill(keeper_of(container), signal.SIGKILL)
    await until(lambda: not alive(launch.pid), "container is gone")
    with pytest.raises(LaunchError):
        await node.fill(container, launch)
    assert (await exit_of(container)).lost


async def test_a_reused_pid_is_not_taken_for_the_container(node: Sandbox) -> None:
    container, _launch = await node.start(task("web.1", "true"))
    await exit_of(container)
    seen = record.read_keeper(str(container.directory))
    assert seen is not None and seen.container is not None
    impostor = record.Identity(os.getpid(), seen.container.start)
    record.write_keeper(str(container.directory), record.Keeper(impostor, seen.boot_id, seen.phase, impostor))
    assert look(container.directory) is None
    assert (await exit_of(container)).code == 0


async def test_many_at_once(node: Sandbox) -> None:
    async with asyncio.TaskGroup() as group:
        runs = [
            group.create_task(node.run(task(f"web.{number}", "sh", "-c", f"exit {number}"))) for number in range(20)
        ]
    assert [run.result()[0].code for run in runs] == list(range(20))


async def test_streams_are_the_containers_users_alone_and_logs_the_agents(node: Sandbox) -> None:
    container, _ = await node.start(task("web.1", "true", user="5:6"))
    stream, log = (container.directory / "stdout.fifo").stat(), (container.directory / "stdout").stat()
    assert (stream.st_uid, stream.st_gid, stat.filemode(stream.st_mode)) == (ID_BASE + 5, ID_BASE + 6, "prw-------")
    assert (log.st_uid, log.st_gid, stat.filemode(log.st_mode)) == (0, 0, "-rw-------")


async def test_log_is_not_opened_through_a_link(node: Sandbox, tmp_path: Path) -> None:
    container = node.container(task("web.1", "true"))
    launch = await node.create(container)
    await node.prepare(container)
    (container.directory / "stdout").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LaunchError) as caught:
        await node.fill(container, launch)
    assert (caught.value.operation, caught.value.errno) == ("open log", errno.ELOOP)


async def test_cleanup_kills_what_still_runs(node: Sandbox) -> None:
    _, launch = await node.start(task("web.1", "sh", "-c", "sleep 100 & sleep 100"))
    await node.clean()
    assert not alive(launch.pid)
    assert cgroups(node.prefix) == []
    await node.clean()


async def test_user_namespace_has_the_maps_that_were_asked_for(node: Sandbox) -> None:
    """From the beginning: files are mounted for its ids before there is a program."""
    launch = await node.create(node.container(task("web.1", "true")))
    maps = [read(f"/proc/{launch.pid}/{name}") for name in ("uid_map", "gid_map")]
    assert [each.split() for each in maps] == [["0", str(ID_BASE), "65536"]] * 2


async def test_a_sandbox_sees_nothing_of_the_node(node: Sandbox) -> None:
    launch = await node.create(node.container(task("web.1", "true")))
    points = mounts_of(launch.pid)
    own = {"/", "/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/run"}
    assert own <= set(points)
    assert all(path in own or path.startswith(("/proc/", "/sys/", "/dev/")) for path in points), points
    assert sorted(os.listdir(f"/proc/{launch.pid}/root")) == ["dev", "proc", "run", "sys"]
    assert os.readlink(f"/proc/{launch.pid}/cwd") == "/"


async def test_a_sandbox_has_no_descriptor_of_a_directory_of_the_node(node: Sandbox) -> None:
    """CVE-2024-21626: nothing that was open when it was made leads out."""
    launch = await node.create(node.container(task("web.1", "true")))
    nodes_own = {line.split()[0] for line in read("/proc/self/mountinfo").splitlines()}
    descriptors = os.listdir(f"/proc/{launch.pid}/fd")
    directories = [n for n in descriptors if stat.S_ISDIR(os.stat(f"/proc/{launch.pid}/fd/{n}").st_mode)]
    mounts = {number: mount_of(read(f"/proc/{launch.pid}/fdinfo/{number}")) for number in directories}
    assert directories and [number for number, mount in mounts.items() if mount in nodes_own] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_sandbox_that_is_killed_waits_no_more(node: Sandbox, number: signal.Signals) -> None:
    container = node.container(task("web.1", "true"))
    launch = await node.create(container)
    assert launch.waits
    victim = keeper_of(container) if number is signal.SIGTERM else launch.pid
    os.kill(victim, number)
    await until(lambda: not launch.waits, "the sandbox is known to be gone")
    assert not alive(launch.pid)
    with pytest.raises(LaunchError):
        await node.prepare(container)
        await node.fill(container, launch)


def mounts_of(pid: int) -> dict[str, list[str]]:
    """The fields of mountinfo by mount point."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return {fields[4]: fields for fields in map(str.split, lines)}


def mount_of(fdinfo: str) -> str:
    return next(line.split()[1] for line in fdinfo.splitlines() if line.startswith("mnt_id:"))


def read(path: str) -> str:
    return Path(path).read_text()


def keeper_of(container: Container) -> int:
    keeper = record.read_keeper(str(container.directory))
    assert keeper is not None
    return keeper.keeper.pid


@pytest.mark.parametrize("victim", ["tepui-keeper", "tepui-maker"])
async def test_a_keeper_that_is_killed_before_it_has_anything_to_keep_is_replaced(node: Sandbox, victim: str) -> None:
    def waiting() -> list[int]:
        return children(node.launcher.pid or 0)

    await node.launcher.start()
    await until(lambda: any(map(children, waiting())), "a keeper and its maker wait")
    (keeper,) = waiting()
    (maker,) = children(keeper)
    os.kill(keeper if victim == "tepui-keeper" else maker, signal.SIGKILL)
    await until(lambda: len(waiting()) == 1 and keeper not in waiting(), "another one waits")


async def test_no_signal_that_the_agent_ignores_is_ignored_in_a_container(tmp_path: Path) -> None:
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGQUIT, signal.SIGHUP, signal.SIGTTOU)
    }
    try:
        async with sandbox(tmp_path) as made:
            ended, said = await made.run(task("web.1", "grep", "SigIgn", "/proc/self/status"))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.code == 0 and said.split() == ["SigIgn:", "0000000000000000"]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
