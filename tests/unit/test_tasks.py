"""The master's tasks: on disk before anybody hears of them, never backwards, and forgotten without a trace."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import replace
from typing import Any

import pytest

from master.store.base import StoreError
from master.store.sqlite import SqliteStore
from master.tasks import PREFIX, TaskRecord, Tasks
from model.pod import Pod
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus, Usage
from tests.unit.control import task

pytestmark = pytest.mark.anyio


@pytest.fixture
def tasks(store: SqliteStore) -> Tasks:
    return Tasks(store)


def status(task_id: str, state: TaskState, sequence: int) -> TaskStatus:
    return TaskStatus(task_id, state, sequence, at=1.0)


def state_of(tasks: Tasks, task_id: str) -> TaskState:
    record = tasks.get(task_id)
    assert record is not None
    return record.status.state


async def reloaded(store: SqliteStore) -> Tasks:
    tasks = Tasks(store)
    await tasks.load()
    return tasks


async def test_added_tasks_are_on_disk_when_listeners_hear_of_them(store: SqliteStore, tasks: Tasks) -> None:
    heard: list[tuple[TaskRecord | None, TaskRecord | None]] = []
    tasks.listen(lambda before, after: heard.append((before, after)))
    await tasks.add("n1", [task("a"), task("b")])
    assert [after.spec.id for before, after in heard if before is None and after] == ["a", "b"]
    assert (await reloaded(store)).all() == tasks.all()
    assert {record.status.state for record in tasks.all()} == {TaskState.ASSIGNED}


async def test_an_id_that_was_used_takes_none_of_them(store: SqliteStore, tasks: Tasks) -> None:
    await tasks.add("n1", [task("a")])
    with pytest.raises(ValueError, match="task a: this id was used before"):
        await tasks.add("n1", [task("b"), task("a")])
    with pytest.raises(ValueError, match="twice"):
        await tasks.add("n1", [task("c"), task("c")])
    assert [record.spec.id for record in tasks.all()] == ["a"] == [r.spec.id for r in (await reloaded(store)).all()]


async def test_old_news_and_foreign_news_change_nothing(tasks: Tasks) -> None:
    await tasks.add("n1", [task("a")])
    await tasks.observe("n1", status("a", TaskState.RUNNING, 4))
    for node, late in [
        ("n1", status("a", TaskState.STARTING, 3)),
        ("n1", status("a", TaskState.STARTING, 9)),
        ("n1", status("a", TaskState.RUNNING, 4)),
        ("n2", status("a", TaskState.FAILED, 9)),
        ("n1", status("unknown", TaskState.FAILED, 9)),
    ]:
        await tasks.observe(node, late)
        assert state_of(tasks, "a") is TaskState.RUNNING
    await tasks.observe("n1", status("a", TaskState.FAILED, 5))
    await tasks.observe("n1", status("a", TaskState.LOST, 6))
    await tasks.end("a", TaskState.LOST, "too late")
    assert state_of(tasks, "a") is TaskState.FAILED
    assert await tasks.mark("a") is None


async def test_a_task_is_forgotten_with_the_last_acknowledgement(store: SqliteStore, tasks: Tasks) -> None:
    await tasks.add("n1", [task("a")])
    await tasks.observe("n1", status("a", TaskState.RUNNING, 4))
    await tasks.acknowledge("a", 4)
    await tasks.end("a", TaskState.LOST, "its node is gone")
    await tasks.acknowledge("a", 4)
    assert state_of(tasks, "a") is TaskState.LOST
    await tasks.acknowledge("a", 5)
    await tasks.acknowledge("a", 5)
    assert tasks.get("a") is None and tasks.on("n1") == [] and await store.range(PREFIX) == []


async def test_marks_survive_a_restart(store: SqliteStore, tasks: Tasks) -> None:
    await tasks.add("n1", [task("a"), task("b")])
    await tasks.mark("a")
    await tasks.mark("b", drained=True)
    await tasks.mark("b")
    marks = {r.spec.id: (r.killing, r.drained) for r in (await reloaded(store)).all()}
    assert marks == {"a": (True, False), "b": (True, True)}


async def test_what_happens_at_once_is_not_lost(store: SqliteStore, tasks: Tasks) -> None:
    """A kill, a status and an acknowledgement of one task, all waiting for the disk at the same time."""
    await tasks.add("n1", [task("a")])
    await asyncio.gather(
        tasks.observe("n1", status("a", TaskState.ACCEPTED, 1)),
        tasks.mark("a"),
        tasks.observe("n1", status("a", TaskState.RUNNING, 4)),
        tasks.mark("a", drained=True),
        tasks.observe("n1", status("a", TaskState.PREPARING, 2)),
        tasks.acknowledge("a", 1),
    )
    record = tasks.get("a")
    assert record is not None and record.killing and record.drained and record.acknowledged == 1
    assert record.status.state is TaskState.RUNNING
    (saved,) = (await reloaded(store)).all()
    assert (saved.status, saved.killing, saved.drained) == (record.status, True, True)


async def test_what_the_disk_refused_did_not_happen(store: SqliteStore, tasks: Tasks) -> None:
    await tasks.add("n1", [task("a")])
    heard: list[TaskRecord | None] = []
    tasks.listen(lambda before, after: heard.append(after))
    await store.close()
    for attempt in (
        tasks.mark("a"),
        tasks.end("a", TaskState.LOST, ""),
        tasks.observe("n1", status("a", TaskState.KILLED, 3)),
    ):
        with pytest.raises(StoreError):
            await attempt
    assert heard == [] and state_of(tasks, "a") is TaskState.ASSIGNED


async def test_locks_of_tasks_that_nobody_knows_do_not_gather(tasks: Tasks) -> None:
    for number in range(100):
        await tasks.observe("n1", status(f"unknown-{number}", TaskState.RUNNING, 1))
        await tasks.acknowledge(f"unknown-{number}", 1)
    gc.collect()
    assert len(tasks._locks) == 0


async def test_a_nodes_tasks_and_what_they_use(tasks: Tasks) -> None:
    await tasks.add("n1", [task("a", cpus=100), task("b", cpus=250)])
    await tasks.add("n2", [task("c", cpus=70)])
    assert {record.spec.id for record in tasks.on("n1")} == {"a", "b"}
    assert (tasks.used("n1"), tasks.used("n2"), tasks.used("n3")) == (
        Resources(350, 64),
        Resources(70, 32),
        Resources(),
    )
    await tasks.end("a", TaskState.FAILED, "")
    assert tasks.used("n1") == Resources(250, 32) and len(tasks.on("n1")) == 2
    await tasks.acknowledge("a", 1)
    assert [record.spec.id for record in tasks.on("n1")] == ["b"]


async def test_asking_every_node_of_a_large_cluster_is_cheap(tasks: Tasks) -> None:
    nodes = [f"n{number}" for number in range(200)]
    for node in nodes:
        await tasks.add(node, [task(f"{node}.{number}") for number in range(25)])
    began = time.perf_counter()
    for _ in range(20):
        assert all(tasks.used(node).cpus == 2500 for node in nodes)
    assert time.perf_counter() - began < 1.0


async def test_what_a_task_takes_is_its_nodes_to_say_and_no_news(store: SqliteStore, tasks: Tasks) -> None:
    await tasks.add("n1", [task("a"), task("b")])
    await tasks.observe("n1", status("b", TaskState.FINISHED, 4))
    heard: list[object] = []
    tasks.listen(lambda before, after: heard.append(after))
    tasks.measure("n2", {"a": Usage(pids=1)})
    tasks.measure("n1", {"a": Usage(pids=2), "b": Usage(pids=3), "unknown": Usage(pids=4)})
    assert [record.status.usage.pids for record in tasks.all()] == [2, 0] and heard == []
    assert state_of(tasks, "a") is TaskState.ASSIGNED


def pod(*ids: str, **shared: Any) -> list[TaskSpec]:
    return [replace(task(each), pod=Pod("p", each, ids, **shared)) for each in ids]


async def test_a_pod_is_marked_as_a_whole_in_one_write(store: SqliteStore, tasks: Tasks) -> None:
    await tasks.add("n1", pod("a", "b", "c"))
    await tasks.observe("n1", status("c", TaskState.FAILED, 4))
    before = await store.revision()
    marked = await tasks.mark("b")
    assert marked is not None and marked.spec.id == "b" and await store.revision() == before + 1
    assert {record.spec.id: record.killing for record in (await reloaded(store)).all()} == {
        "a": True,
        "b": True,
        "c": False,
    }
    await asyncio.gather(tasks.mark("a", drained=True), tasks.mark("b", drained=True), tasks.mark("c"))
    assert [record.drained for record in tasks.all()] == [True, True, False]


async def test_what_a_pod_takes_for_itself_counts_once(tasks: Tasks) -> None:
    await tasks.add("n1", pod("a", "b", resources=Resources(50, 16)))
    assert tasks.used("n1") == Resources(250, 80)
