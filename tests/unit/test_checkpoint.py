"""What an agent has on disk, and what it does to one container, isolator by isolator."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.checkpoint import Checkpoint, TaskRecord
from agent.containers import Containers, Directories
from agent.launcher import record
from agent.launcher.client import Launch, Launcher, LaunchError
from isolators.base import BundlePart, Container, Isolator, IsolatorError, Sandbox
from model.network import Address
from model.task import TaskState, TaskStatus, Usage
from tests.unit.control import task

pytestmark = pytest.mark.anyio


def saved(task_id: str) -> TaskRecord:
    return TaskRecord(task(task_id), TaskStatus(task_id, TaskState.ACCEPTED, 1), "boot", "c", 1 << 20)


def test_what_was_saved_is_there_after_a_crash(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "tasks")
    for name in ("a", "a.json", "b" * 200):
        checkpoint.save(saved(name))
    assert Checkpoint(tmp_path / "tasks").load() == {name: saved(name) for name in ("a", "a.json", "b" * 200)}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "tasks").iterdir()} == {0o600}
    for _ in range(2):
        checkpoint.forget("a")
    assert set(checkpoint.load()) == {"a.json", "b" * 200}


def test_a_first_record_can_be_read_at_once_and_is_synced_before_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path)
    synced: list[str] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    descriptors = len(os.listdir("/proc/self/fd"))
    sync = checkpoint.begin(saved("a"))
    assert checkpoint.load() == {"a": saved("a")} and synced == []
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600
    sync()
    assert synced == [str(tmp_path / "a.json"), str(tmp_path)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_lives_only_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happened to the file that counts them."""
    lives = [Checkpoint(tmp_path / "tasks").new_life() for _ in range(3)]
    (tmp_path / "lives").write_text("")
    with capture_logs() as logs:
        lives += [Checkpoint(tmp_path / "tasks").new_life() for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr("agent.checkpoint.write_atomic", full)
        lives.append(Checkpoint(tmp_path / "tasks").new_life())
    assert lives == sorted(set(lives)) and lives[:3] == [0, 1, 2] and len(logs) == 1


def full(path: Path, data: bytes, mode: int) -> None:
    raise OSError(28, "No space left on device", str(path))


def test_a_damaged_file_costs_one_task(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    for name in ("a", "b"):
        checkpoint.save(saved(name))
    (tmp_path / "a.json").write_bytes((tmp_path / "a.json").read_bytes()[:40])
    (tmp_path / ".b.json.1a2b3c4d").write_bytes(b"half")
    with capture_logs() as logs:
        assert set(checkpoint.load()) == {"b"}
    assert [(entry["log_level"], Path(entry["path"]).name) for entry in logs] == [("error", "a.damaged")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.damaged", "b.json"]


class Recorder(Isolator):
    """Notes what it is asked to do, and fails where it is told to."""

    def __init__(self, name: str, log: list[str], failing: str = "") -> None:
        self.name = name
        self._log = log
        self._failing = failing

    async def open(self, sandbox: Sandbox) -> BundlePart:
        self._note("open")
        return {"annotations": {self.name: sandbox.id}}

    async def isolate(self, sandbox: Sandbox, pid: int) -> tuple[Address, ...]:
        self._note("isolate")
        return (IPv4Address("192.0.2.7"),) if self.name == "two" else ()

    async def prepare(self, container: Container) -> BundlePart:
        self._note("prepare")
        return {"tasks": [container.task.id]}

    async def enforce(self, container: Container) -> None:
        self._note("enforce")

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        self._log.append(f"{self.name} recovers {[c.id for c in known]}, releases {orphans}")

    async def usage(self, container: Container, usage: Usage) -> Usage:
        return Usage(usage.cpu_s + 1)

    async def cleanup(self, sandbox: Sandbox) -> None:
        self._note("cleanup")

    def _note(self, verb: str) -> None:
        self._log.append(f"{verb} {self.name}")
        if verb == self._failing:
            raise IsolatorError(f"{verb} {self.name}: no")


class Forge(Launcher):
    """Makes no process. Notes what it is asked to do, and fails where it is told to."""

    def __init__(self, log: list[str], failing: str = "") -> None:
        super().__init__()
        self._log = log
        self._failing = failing

    async def create(self, bundle: Path, frame: BundlePart, holder: Path | None = None) -> Launch:
        self.note("create", bundle)
        assert frame["ociVersion"] == "1.2.0" and "tasks" not in frame
        launch = Forged(self, bundle)
        return launch  # type: ignore[return-value]

    def note(self, verb: str, bundle: Path) -> None:
        self._log.append(verb)
        if verb == self._failing:
            raise LaunchError(verb, bundle.name, errno.EIO)


@dataclass
class Forged:
    """`agent.launcher.client.Launch`."""

    forge: Forge
    bundle: Path
    pid: int = 42

    async def fill(self, stdout: Path, stderr: Path, limits: object = None) -> None:
        assert stdout.parent == stderr.parent and stdout.parent.is_dir()
        assert (self.bundle / "config.json").exists()
        self.forge.note("fill", self.bundle)

    async def start(self) -> None:
        self.forge.note("start", self.bundle)

    async def abort(self) -> None:
        self.forge.note("abort", self.bundle)


def containers(directory: Path, log: list[str], failing: str = "") -> Containers:
    directories = Directories(directory)
    directories.make()
    isolators = [Recorder("one", log), Recorder("two", log, failing), Recorder("three", log)]
    return Containers(directories, isolators, Forge(log, failing))


def sandbox(kept: Containers, id: str = "c") -> Sandbox:
    return kept.sandbox(id, 1 << 20, "overlay")


async def noted(log: list[str]) -> None:
    log.append("noted")


def by_all(*verbs: str) -> list[str]:
    return [f"{verb} {name}" for verb in verbs for name in ("one", "two", "three")]


CLEARED = ["cleanup three", "cleanup two", "cleanup one"]


async def test_isolators_work_in_order_and_clean_up_in_reverse(tmp_path: Path) -> None:
    log: list[str] = []
    kept = containers(tmp_path, log)
    made = await kept.make(sandbox(kept))
    frame = {"ociVersion": "1.2.0", "annotations": {"one": "c", "two": "c", "three": "c"}}
    assert made.frame == frame and made.addresses == (IPv4Address("192.0.2.7"),)
    await kept.start(made, task("a"), partial(noted, log))
    container = Container(task("a"), made.sandbox)
    assert json.loads((container.directory / "config.json").read_text()) == frame | {"tasks": ["a", "a", "a"]}
    assert {path.stat().st_mode & 0o777 for path in (container.directory, container.layer)} == {0o700}
    assert (tmp_path / "logs" / "a").stat().st_mode & 0o777 == 0o700
    assert (await kept.usage(container)).cpu_s == 3
    for _ in range(2):  # the second time there is nothing left, which is no error
        await kept.cleanup(container.sandbox)
        assert not container.directory.exists() and not container.layer.exists()
    making = [*by_all("open"), "create", *by_all("isolate")]
    starting = [*by_all("prepare"), "fill", *by_all("enforce"), "noted", "start"]
    assert log == [*making, *starting, *CLEARED * 2]


async def test_clean_up_goes_on_after_a_failure_and_keeps_what_tells_of_it(tmp_path: Path) -> None:
    log: list[str] = []
    kept = containers(tmp_path, log, failing="cleanup")
    made = await kept.make(sandbox(kept))
    log.clear()
    with pytest.raises(ExceptionGroup, match="clean up c") as caught:
        await kept.cleanup(made.sandbox)
    assert [str(error) for error in caught.value.exceptions] == ["cleanup two: no"]
    assert log == CLEARED and made.sandbox.directory.exists()


@pytest.mark.parametrize(
    ("failing", "log"),
    [
        ("open", ["open one", "open two"]),
        ("create", [*by_all("open"), "create"]),
        ("isolate", [*by_all("open"), "create", *by_all("isolate"), "abort"]),  # all are over before clean-up begins
    ],
)
async def test_making_stops_at_the_first_failure(tmp_path: Path, failing: str, log: list[str]) -> None:
    done: list[str] = []
    kept = containers(tmp_path, done, failing)
    with pytest.raises((IsolatorError, LaunchError), match="create: c: Input/output error|two: no"):
        await kept.make(sandbox(kept))
    assert done == log


@pytest.mark.parametrize(
    ("failing", "log"),
    [
        ("prepare", ["prepare one", "prepare two", "abort"]),
        ("fill", [*by_all("prepare"), "fill", "abort"]),
        ("enforce", [*by_all("prepare"), "fill", "enforce one", "enforce two", "abort"]),
        ("start", [*by_all("prepare"), "fill", *by_all("enforce"), "noted", "start", "abort"]),
    ],
)
async def test_a_start_that_fails_takes_the_sandbox_along(tmp_path: Path, failing: str, log: list[str]) -> None:
    done: list[str] = []
    kept = containers(tmp_path, done, failing)
    made = await kept.make(sandbox(kept))
    done.clear()
    with pytest.raises((IsolatorError, LaunchError), match="(fill|start): c: Input/output error|two: no"):
        await kept.start(made, task("a"), partial(noted, done))
    assert done == log


async def test_bundles_that_belong_to_nobody_go(tmp_path: Path) -> None:
    log: list[str] = []
    kept = containers(tmp_path, log)
    for name in ("known", "orphan"):
        (tmp_path / "run" / "containers" / name / "rootfs").mkdir(parents=True)
        (tmp_path / "layers" / name / "upper").mkdir(parents=True)
    await kept.recover([Container(task("a"), sandbox(kept, "known"))])
    assert log == [f"{name} recovers ['known'], releases ['orphan']" for name in ("one", "two", "three")]
    for place in ("run/containers", "layers"):
        assert [path.name for path in (tmp_path / place).iterdir()] == ["known"]


async def test_what_a_reboot_has_left_of_a_container_goes(tmp_path: Path) -> None:
    """Its bundle was in memory."""
    log: list[str] = []
    kept = containers(tmp_path, log)
    (tmp_path / "layers" / "orphan" / "upper").mkdir(parents=True)
    await kept.recover([])
    assert log == [f"{name} recovers [], releases ['orphan']" for name in ("one", "two", "three")]
    assert list((tmp_path / "layers").iterdir()) == []


def test_a_signal_reaches_the_container_and_no_process_that_has_its_pid_now(tmp_path: Path) -> None:
    kept = containers(tmp_path, [])
    container = Container(task("a"), sandbox(kept))
    container.directory.mkdir()
    kept.kill(container)  # nobody there yet
    with subprocess.Popen(["sleep", "60"]) as process:
        alive = record.identify(process.pid)
        me = record.identify(os.getpid())
        assert alive and me
        earlier = record.Identity(alive.pid, alive.start - 1)
        for container_process in (None, earlier):
            keeper = record.Keeper(me, record.boot_id(), record.STARTING, container_process)
            record.write_keeper(str(container.directory), keeper)
            kept.kill(container)
            assert kept.ask(container, signal.SIGTERM)
        assert process.poll() is None
        record.write_keeper(str(container.directory), record.Keeper(me, record.boot_id(), record.STARTING, alive))
        assert not kept.ask(container, signal.SIGTERM)  # it has no handler
        kept.kill(container)
        assert process.wait(10) == -signal.SIGKILL
        kept.kill(container)
