"""What an agent has on disk, and what it does to one container, isolator by isolator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.checkpoint import Checkpoint, TaskRecord
from agent.containers import Containers, Directories
from agent.launcher import record
from agent.launcher.client import Launcher
from isolators.base import BundlePart, Container, Isolator, IsolatorError
from model.task import TaskState, TaskStatus, Usage
from tests.unit.control import task

pytestmark = pytest.mark.anyio


def saved(task_id: str) -> TaskRecord:
    return TaskRecord(task(task_id), TaskStatus(task_id, TaskState.ACCEPTED, 1), "boot", 1 << 20)


def test_what_was_saved_is_there_after_a_crash(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "tasks")
    for name in ("a", "a.json", "b" * 200):
        checkpoint.save(saved(name))
    assert Checkpoint(tmp_path / "tasks").load() == {name: saved(name) for name in ("a", "a.json", "b" * 200)}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "tasks").iterdir()} == {0o600}
    for _ in range(2):
        checkpoint.forget("a")
    assert set(checkpoint.load()) == {"a.json", "b" * 200}


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

    async def prepare(self, container: Container) -> BundlePart:
        self._note("prepare")
        return {"annotations": {self.name: container.id}}

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        self._log.append(f"{self.name} recovers {[c.id for c in known]}, releases {orphans}")

    async def usage(self, container: Container, usage: Usage) -> Usage:
        return Usage(usage.cpu_s + 1)

    async def cleanup(self, container: Container) -> None:
        self._note("cleanup")

    def _note(self, verb: str) -> None:
        self._log.append(f"{verb} {self.name}")
        if verb == self._failing:
            raise IsolatorError(f"{verb} {self.name}: no")


def containers(directory: Path, log: list[str], failing: str = "") -> Containers:
    directories = Directories(directory)
    directories.make()
    isolators = [Recorder("one", log), Recorder("two", log, failing), Recorder("three", log)]
    return Containers(directories, isolators, Launcher())


async def test_isolators_prepare_in_order_and_clean_up_in_reverse(tmp_path: Path) -> None:
    log: list[str] = []
    kept = containers(tmp_path, log)
    container = kept.container(task("a"), 1 << 20)
    await kept.prepare(container)
    bundle = json.loads((container.directory / "config.json").read_text())
    assert bundle == {"ociVersion": "1.2.0", "annotations": {"one": "a", "two": "a", "three": "a"}}
    assert container.directory.stat().st_mode & 0o777 == 0o700
    assert (await kept.usage(container)).cpu_s == 3
    for _ in range(2):  # the second time there is nothing left, which is no error
        await kept.cleanup(container)
        assert not container.directory.exists()
    order = ["prepare one", "prepare two", "prepare three", *["cleanup three", "cleanup two", "cleanup one"] * 2]
    assert log == order


async def test_clean_up_goes_on_after_a_failure_and_keeps_what_tells_of_it(tmp_path: Path) -> None:
    log: list[str] = []
    kept = containers(tmp_path, log, failing="cleanup")
    container = kept.container(task("a"), 1 << 20)
    await kept.prepare(container)
    with pytest.raises(ExceptionGroup, match="clean up a") as caught:
        await kept.cleanup(container)
    assert [str(error) for error in caught.value.exceptions] == ["cleanup two: no"]
    assert log[3:] == ["cleanup three", "cleanup two", "cleanup one"] and container.directory.exists()


async def test_preparation_stops_at_the_first_failure(tmp_path: Path) -> None:
    log: list[str] = []
    kept = containers(tmp_path, log, failing="prepare")
    with pytest.raises(IsolatorError, match="prepare two: no"):
        await kept.prepare(kept.container(task("a"), 1 << 20))
    assert log == ["prepare one", "prepare two"]


async def test_bundles_that_belong_to_nobody_go(tmp_path: Path) -> None:
    log: list[str] = []
    kept = containers(tmp_path, log)
    for name in ("known", "orphan"):
        (tmp_path / "containers" / name / "upper").mkdir(parents=True)
    await kept.recover([kept.container(task("known"), 1 << 20)])
    assert log == [f"{name} recovers ['known'], releases ['orphan']" for name in ("one", "two", "three")]
    assert [path.name for path in (tmp_path / "containers").iterdir()] == ["known"]


def test_a_signal_reaches_the_container_and_no_process_that_has_its_pid_now(tmp_path: Path) -> None:
    kept = containers(tmp_path, [])
    container = kept.container(task("a"), 1 << 20)
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
