"""Another OCI runtime makes containers' first processes: they are confined alike, and all around is as ever."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from isolators.base import Isolator, IsolatorError, Sandbox
from isolators.rights import NO_RIGHTS, Rights
from model.adjustment import adjustment_of
from model.network import Address
from model.resources import Resources
from model.task import Rlimit, Secret, TaskSpec, TaskState, TaskStatus
from model.volume import HostVolume, VolumeKind, VolumeMount
from tests.kernel import remains
from tests.kernel.agent import Agent, agent
from tests.kernel.sandbox import CGROUPS, alive, root_directory, task, until
from tests.oci import violations

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

RUNTIMES = [name for name in ("runc", "crun") if shutil.which(name)]
LOOK = """
cat /proc/self/uid_map /proc/self/gid_map
grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|Uid|Gid|Umask|Sig)' /proc/self/status
cat /proc/self/oom_score_adj; cat /proc/sys/kernel/hostname
grep -E 'open files|core file' /proc/self/limits
cat /proc/self/cgroup | sort; pwd; env | grep -v ^HOME= | sort
ls -l /proc/self/fd | sed 's/.*[0-9] -> /-> /' | grep -v -E '/proc/|pipe:|stdout|stderr'
echo x 2>&- > /proc/sys/kernel/domainname || echo read-only
cat /proc/keys /proc/timer_list; ls /sys/firmware; cat /proc/sys/kernel/msgmax
stat -c '%A %u %g %s %n' /run/secrets/*; cat /run/secrets/key
ls /proc | grep -x '[0-9]*' | head -n 1
cat /sys/class/net/lo/flags
unshare --user true 2>&- || echo filtered
"""
MOUNTS = "while read -r _ _ _ _ path options _; do echo $path $options; done < /proc/self/mountinfo | sort"
TRAP = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"
HUNGRY = "head -c 200M /dev/zero | tail -c 190M > /dev/null; sleep infinity"


@asynccontextmanager
async def node(directory: Path, by: str = "native", rights: Rights = NO_RIGHTS) -> AsyncIterator[Agent]:
    """Removes the prefix that a runtime makes in trees that we leave alone."""
    async with agent(directory, rights, by=by) as made:
        yield made
    for path in CGROUPS.glob(f"*/{made.node.prefix}"):
        path.rmdir()


@pytest.fixture(params=RUNTIMES)
async def by(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Agent]:
    async with node(tmp_path / "state", request.param) as made:
        yield made


async def trapping(made: Agent, spec: TaskSpec) -> TaskStatus:
    """When its trap is set: process 1 is sent no signal that it does not wait for."""
    made.reconciler.assign(spec, kill=False)
    running = await made.reached(spec.id, TaskState.RUNNING)
    log = made.directories.log(spec.id, "stdout")
    await until(lambda: "ready" in log.read_text(), "the trap is set")
    return running


def curious(name: str, *argv: str) -> TaskSpec:
    return task(
        name,
        *argv,
        user="1000:1000",
        rlimits=(Rlimit("RLIMIT_NOFILE", 512, 1024), Rlimit("RLIMIT_CORE", 0, 0)),
        sysctls=(("kernel.msgmax", "4096"),),
        secrets=(Secret("key", "sesame"),),
        env=(("COLOUR", "red"),),
        cwd="/tmp",
    )


async def seen_in(made: Agent, script: str) -> list[str]:
    ended = await made.run(curious("web.1", "sh", "-c", script))
    assert ended.state is TaskState.FINISHED, ended.reason
    return made.directories.log("web.1", "stdout").read_text().splitlines()


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_it_confines_alike(tmp_path: Path, runtime: str) -> None:
    async with node(tmp_path / "ours") as made:
        ours = await seen_in(made, LOOK)
    async with node(tmp_path / "theirs", runtime) as made:
        theirs = await seen_in(made, LOOK)
    assert "NoNewPrivs:\t1" in ours and "Seccomp:\t2" in ours and "filtered" in ours and "sesame1" in ours
    assert theirs == ours


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_it_mounts_alike_and_nothing_of_the_node_besides(tmp_path: Path, runtime: str) -> None:
    found = []
    for by in ("native", runtime):
        async with node(tmp_path / by, by) as made:
            found.append({line.split()[0]: set(line.split()[1].split(",")) for line in await seen_in(made, MOUNTS)})
    ours, theirs = found
    of_kernel = re.compile("/proc/|/sys/|/dev/(?!shm|mqueue|pts)")  # single files, and what hides or protects them
    for path, options in theirs.items():
        guards = {"ro"} if of_kernel.match(path) else {"ro", "nosuid", "nodev", "noexec"}
        assert ours.get(path, set()) & guards <= options, path
    assert {path for path in ours.keys() ^ theirs.keys() if not of_kernel.match(path)} == set()


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_it_has_volumes_alike(tmp_path: Path, runtime: str) -> None:
    """Read-only ones, mapped ones, and one that was found below a permitted directory."""
    host = tmp_path / "host"
    host.mkdir()
    os.chown(host, 4242, 4343)
    volumes = (
        VolumeMount("/own", VolumeKind.HOST, str(host)),
        VolumeMount("/read", VolumeKind.HOST, str(host), read_only=True),
        VolumeMount("/kept", VolumeKind.PERSISTENT, "db.1.kept", size=1),
        VolumeMount("/kept/scratch", VolumeKind.EPHEMERAL, "scratch"),
    )
    script = """
        for d in own read kept kept/scratch; do echo x > /$d/x && stat -c %n:%u:%g:%a /$d /$d/x; done 2>&-
        grep -E ' /(own|read|kept|kept/scratch) ' /proc/self/mountinfo | cut -d ' ' -f 5,6,7
    """
    seen = []
    for by in ("native", runtime):
        rights = Rights(host_volumes=frozenset({HostVolume(str(tmp_path), "rw")}))
        async with node(tmp_path / by, by, rights) as made:
            ended = await made.run(task("web.1", "sh", "-c", script, user="1000:1000", volumes=volumes))
            assert ended.state is TaskState.FINISHED, ended.reason
            seen.append(made.directories.log("web.1", "stdout").read_text().splitlines())
        assert ((host / "x").stat().st_uid, (host / "x").stat().st_gid) == (4242, 4343)
        (host / "x").unlink()
    assert seen[0] == seen[1]
    assert "/own/x:1000:1000:644" in seen[0] and not any(line.startswith("/read/x") for line in seen[0])


async def test_the_way_to_a_container_stays_closed(by: Agent) -> None:
    by.reconciler.assign(task("web.1", "sleep", "infinity"), kill=False)
    await by.reached("web.1", TaskState.RUNNING)
    assert by.directories.state.stat().st_mode & 0o777 == by.directories.bundles.stat().st_mode & 0o777 == 0o700


async def test_its_bundle_is_a_valid_one(by: Agent) -> None:
    by.reconciler.assign(task("web.1", "sleep", "infinity"), kill=False)
    await by.reached("web.1", TaskState.RUNNING)
    (bundle,) = by.directories.bundles.glob("*/runtime/config.json")
    config = json.loads(bundle.read_text())
    assert violations(config | {"ociVersion": "1.2.0"}) == [] and set(config["linux"]["resources"]) == {"devices"}


async def test_its_exit_code_is_seen(by: Agent) -> None:
    ended = await by.run(task("web.1", "sh", "-c", "exit 7"))
    assert (ended.state, ended.exit_code, ended.reason) == (TaskState.FAILED, 7, "exited with 7")


async def test_a_kill_is_seen_and_answered(by: Agent) -> None:
    spec = task("web.1", "sh", "-c", TRAP, kill_grace_s=15.0)
    await trapping(by, spec)
    by.reconciler.assign(spec, kill=True)
    ended = await by.reached("web.1", TaskState.FINISHED)
    assert (ended.state, ended.exit_code) == (TaskState.KILLED, 5)


async def test_limits_hold_and_the_one_that_was_hit_is_named(by: Agent) -> None:
    spec = task("web.1", "sh", "-c", HUNGRY, resources=Resources(cpus=500, mem=64))
    by.reconciler.assign(spec, kill=False)
    running = await by.reached("web.1", TaskState.RUNNING)
    assert (running.usage.cpu_limit, running.usage.mem_limit_bytes) == (0.5, 64 << 20)
    ended = await by.reached("web.1", TaskState.FINISHED)
    assert "memory limit 64 MiB exceeded" in ended.reason


async def test_it_is_resized_and_paused(by: Agent) -> None:
    spec = task("web.1", "sleep", "infinity")
    by.reconciler.assign(spec, kill=False)
    await by.reached("web.1", TaskState.RUNNING)
    by.reconciler.assign(spec, kill=False, adjustment=replace(adjustment_of(spec, paused=True, number=1), pids=77))
    await until(lambda: any(status.adjustment == 1 for status in by.reports), "it is answered")
    assert (by.reports[-1].paused, by.reports[-1].usage.pids_limit) == (True, 77)


UNEXECUTABLE = {
    "no-such-program": "entrypoint missing: there is no no-such-program in its file system",
    "/no/such/program": "entrypoint missing: there is no /no/such/program in its file system",
    "/etc/passwd": "not executable: /etc/passwd has mode 0644",
}


@pytest.mark.parametrize("runtime", ["native", *RUNTIMES])
async def test_why_a_program_can_not_be_executed_is_told_alike(tmp_path: Path, runtime: str) -> None:
    async with node(tmp_path, runtime) as made:
        for number, (program, reason) in enumerate(UNEXECUTABLE.items()):
            ended = await made.run(task(f"web.{number}", program))
            assert (ended.state, ended.reason) == (TaskState.FAILED, reason)


async def test_an_image_is_idmapped_for_it_too(by: Agent, tmp_path: Path) -> None:
    image = root_directory(tmp_path / "image")
    ended = await by.run(task("web.1", "stat", "-c", "%u %g", "/bin/sh", rootfs=str(image)))
    assert (ended.state, ended.reason) == (TaskState.FINISHED, "exited with 0")
    assert by.directories.log("web.1", "stdout").read_text() == "0 0\n"


async def crashed(made: Agent) -> Agent:
    """The agent's successor: as after SIGKILL, nothing was put in order."""
    await made.reconciler.close()
    again = Agent(made.node, made.directories)
    await again.reconciler.recover()
    made.reconciler.books.records.clear()
    return again


async def test_an_agent_that_was_killed_finds_it_again(by: Agent) -> None:
    before = await trapping(by, task("web.1", "sh", "-c", TRAP))
    again = await crashed(by)
    assert before.pid is not None and alive(before.pid)
    os.kill(before.pid, signal.SIGTERM)
    ended = await again.reached("web.1", TaskState.FINISHED)
    assert (ended.exit_code, ended.reason) == (5, "exited with 5")
    await again.reconciler.close()


Fault = Callable[[Agent, TaskStatus], None]


def look(made: Agent) -> remains.Remains:
    """Other mounts of the machine come and go with whatever else runs on it."""
    state = made.directories.bundles
    found = remains.look(state, made.node.prefix, "")
    return replace(found, mounts=frozenset(path for path in found.mounts if path.startswith(str(state))))


def kill_container(made: Agent, running: TaskStatus) -> None:
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)


def withdraw(made: Agent, running: TaskStatus) -> None:
    made.reconciler.withdraw(running.task_id)


@pytest.mark.parametrize("fault", [kill_container, withdraw])
async def test_nothing_is_left(by: Agent, fault: Fault) -> None:
    before = look(by)
    by.reconciler.assign(task("web.1", "sleep", "infinity", secrets=(Secret("key", "sesame"),)), kill=False)
    running = await by.reached("web.1", TaskState.RUNNING)
    fault(by, running)
    await by.reached("web.1", TaskState.FINISHED)
    assert remains.difference(before, look(by)) == ""


class Failing(Isolator):
    name = "failing"

    async def isolate(self, sandbox: Sandbox, pid: int) -> tuple[Address, ...]:
        raise IsolatorError(f"no address for {pid}")


async def test_what_is_not_connected_never_runs_and_leaves_nothing(by: Agent) -> None:
    before = look(by)
    by.node.isolators.append(Failing())
    ended = await by.run(task("web.1", "sh", "-c", "echo ran"))
    assert ended.state is TaskState.FAILED and ended.reason.startswith("no address for")
    assert not by.directories.log("web.1", "stdout").exists()
    assert remains.difference(before, look(by)) == ""


async def test_an_orphan_of_it_is_cleared_away(by: Agent) -> None:
    by.reconciler.assign(task("web.1", "sleep", "infinity"), kill=False)
    running = await by.reached("web.1", TaskState.RUNNING)
    await by.reconciler.close()
    (by.directories.tasks / "web.1.json").unlink()
    again = await crashed(by)
    assert running.pid is not None and not alive(running.pid)
    assert list(by.directories.bundles.iterdir()) == [] and not list(CGROUPS.glob(f"*/{by.node.prefix}/*/"))
    await again.reconciler.close()
