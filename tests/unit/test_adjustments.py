"""Adjusting a task that runs: what the books hold meanwhile, what a refusal takes back, and what the API answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agent import containers
from agent.adjust import outdated
from agent.checkpoint import CODEC, TaskRecord
from agent.containers import Containers, Directories
from isolators.base import Container, Isolator, IsolatorError, Limit
from master import adjustments
from master.adjustments import Adjustments, NotAdjustable, Refused, paused
from master.allocator import Shortage
from master.rest.adjustments import TaskChange, adjustments_router
from master.rest.app import create_app
from model.adjustment import Adjustment, adjustment_of
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus
from tests.unit.cluster import next_change, node, until
from tests.unit.control import Master, master, task
from tests.unit.node import Life
from tests.unit.test_allocator import running
from tests.unit.test_reconciler import spec, start, state

pytestmark = pytest.mark.anyio


def to(**changes: Any) -> Callable[[Adjustment], Adjustment]:
    return TaskChange(**changes).applied


@dataclass(frozen=True, slots=True)
class Cluster:
    """One node of 4 CPU and 4 GiB, on which `web.1` runs with 0.1 CPU and 32 MiB."""

    parts: Master
    adjustments: Adjustments
    api: httpx2.AsyncClient

    async def answer(self, refused: str = "") -> None:
        """As the task's node does, when it has heard of the adjustment."""
        await until(lambda: self.parts.record("web.1").before is not None)
        record = self.parts.record("web.1")
        done = record.before if refused and record.before is not None else adjustment_of(record.spec, record.paused)
        await self.parts.saw(
            "web.1",
            TaskState.RUNNING,
            addresses=record.status.addresses,
            paused=done.paused,
            adjustment=record.adjustment,
            refused=refused,
        )


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Cluster]:
    async with master(directory) as parts:
        await parts.nodes.connected(node("n1"))
        await parts.run("web.1", "n1", vip="/web:80")
        made = Adjustments(parts.tasks, parts.allocator)
        app = create_app(lambda token: True, [adjustments_router(parts.tasks, made)])
        transport = httpx2.ASGITransport(app=app)
        headers = {"Authorization": "Bearer any"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://master/api/v1", headers=headers) as api:
            yield Cluster(parts, made, api)


async def test_what_is_under_way_is_held_on_both_sides(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        asked = asyncio.create_task(made.adjustments.adjust("web.1", to(cpus=2, mem=16)))
        await until(lambda: made.parts.record("web.1").before is not None)
        assert made.parts.tasks.used("n1") == Resources(2000, 32)
        change = next_change(made.parts.desired, made.parts.desired.open("n1"))
        assert change is not None
        (item,) = (item for item in change.put if item.key == "task/web.1")
        assert (item.task.task.resources.cpus, item.task.task.resources.mem, item.task.adjustment) == (2000, 16, 1)
        await made.answer()
        assert (await asked).spec.resources == made.parts.tasks.used("n1") == Resources(2000, 16)


async def test_a_refusal_takes_it_back_also_in_the_store(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        asked = asyncio.create_task(made.adjustments.adjust("web.1", to(mem=8)))
        await made.answer(refused="memory limit 8 MiB: 20.0 MiB are in use")
        with pytest.raises(Refused, match="20.0 MiB are in use"):
            await asked
        assert made.parts.record("web.1").spec == task("web.1", vip="/web:80")
    async with master(tmp_path) as again:
        assert again.record("web.1").spec.resources == Resources(100, 32)


async def test_the_number_grows_after_a_refusal_too(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        for number in (1, 2):
            asked = asyncio.create_task(made.adjustments.adjust("web.1", to(mem=8)))
            await made.answer(refused="no")
            with pytest.raises(Refused):
                await asked
            assert made.parts.record("web.1").adjustment == number


async def test_a_restarted_master_hears_the_answer(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        await made.parts.tasks.adjust("web.1", replace(adjustment_of(task("web.1")), pids=7))
    async with master(tmp_path) as again:
        assert again.record("web.1").before is not None
        await again.saw("web.1", TaskState.RUNNING, adjustment=1)
        assert (again.record("web.1").before, again.record("web.1").spec.pids) == (None, 7)


async def test_a_node_that_is_away_delays_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjustments, "ANSWER_DEADLINE_S", 0.01)
    async with cluster(tmp_path) as made:
        assert (await made.api.post("/tasks/web.1/pause")).status_code == 202
        answer = await made.api.post("/tasks/web.1/resume")
        assert answer.status_code == 409 and "under way" in answer.json()["message"]


async def test_growth_takes_back_what_was_offered(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made, running(made.parts) as subscribe:
        framework = subscribe()
        first = await framework.offer()
        assert first.resources.cpus == 3900
        asked = asyncio.create_task(made.adjustments.adjust("web.1", to(cpus=3)))
        await made.answer()
        await asked
        await until(lambda: first.id not in framework.offers)
        assert (await framework.offer()).resources.cpus == 1000


async def test_more_than_is_free_is_refused_by_field(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        answer = await made.api.patch("/tasks/web.1", json={"cpus": 5, "mem": 64})
        assert answer.status_code == 409
        assert answer.json() == {
            "message": "Task 'web.1' can not grow: node n1 has 1 CPU too little",
            "details": [{"path": "/cpus", "errors": ["needs 1 CPU more than the node has free (3.9 CPU)"]}],
        }
        assert made.parts.record("web.1").adjustment == 0


async def test_a_node_short_of_something_else_does_not_hinder(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        await made.parts.nodes.connected(node("n1", cpus=4000, mem=16))
        with made.parts.allocator.reserved("n1", Resources(cpus=100)):
            pass
        with pytest.raises(Shortage), made.parts.allocator.reserved("n1", Resources(mem=1)):
            pass


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"cpus": 0}, "/cpus"),
        ({"cpus": "1"}, "/cpus"),
        ({"cpus": 1e300}, "/cpus"),
        ({"mem": -1}, "/mem"),
        ({"mem": 1.5}, "/mem"),
        ({"pids": 0}, "/pids"),
        ({"cpuset": "1-"}, "/cpuset"),
        ({"io_weight": 1001}, "/io_weight"),
        ({"colour": "red"}, "/colour"),
        ({}, "/"),
    ],
)
async def test_bad_changes_name_their_field(tmp_path: Path, body: dict[str, Any], path: str) -> None:
    async with cluster(tmp_path) as made:
        answer = await made.api.patch("/tasks/web.1", json=body)
        assert answer.status_code == 422 and [detail["path"] for detail in answer.json()["details"]] == [path]
        assert made.parts.record("web.1").adjustment == 0


async def test_pause_takes_it_out_of_its_vips_and_says_so(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        await until(lambda: any(vip.backends for vip in made.parts.discovery.table()))
        for verb, wanted in (("pause", True), ("resume", False)):
            asked = asyncio.create_task(made.api.post(f"/tasks/web/{verb}"))
            await made.answer()
            answer = await asked
            assert (answer.status_code, answer.json()["task"]["paused"]) == (200, wanted)
            assert len(made.parts.discovery.table()[0].backends) == (0 if wanted else 1)
        assert made.parts.record("web.1").adjustment == 2


async def test_what_is_so_already_needs_no_answer(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        assert (await made.adjustments.adjust("web.1", paused(False))).adjustment == 0


async def test_of_two_changes_from_the_same_state_one_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        before = adjustment_of(made.parts.record("web.1").spec)
        asked = asyncio.create_task(made.adjustments.adjust("web.1", to(pids=7)))
        await made.answer()
        await asked
        with pytest.raises(NotAdjustable, match="at the same moment"):
            await made.adjustments.adjust("web.1", lambda now: replace(before, pids=8))
        assert made.parts.record("web.1").spec.pids == 7


async def test_a_task_that_ends_is_left_alone(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        await made.parts.tasks.mark("web.1")
        with pytest.raises(NotAdjustable, match="being ended"):
            await made.adjustments.adjust("web.1", paused(True))
        await made.parts.tasks.end("web.1", TaskState.LOST, "gone")
        with pytest.raises(NotAdjustable, match="over"):
            await made.adjustments.adjust("web.1", paused(True))


async def test_the_end_of_a_task_ends_the_wait(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        asked = asyncio.create_task(made.adjustments.adjust("web.1", paused(True)))
        await until(lambda: made.parts.record("web.1").before is not None)
        await made.parts.tasks.end("web.1", TaskState.FAILED, "memory limit 32 MiB exceeded")
        with pytest.raises(Refused, match="memory limit 32 MiB exceeded"):
            await asked


def test_an_older_adjustment_is_none() -> None:
    one = adjustment_of(task("a"), number=1)
    status = TaskStatus("a", TaskState.RUNNING, adjustment=1)
    record = TaskRecord(task("a"), status, "boot")
    assert outdated(record, one) and not outdated(record, replace(one, number=2))
    assert outdated(replace(record, adjustment=replace(one, number=3)), replace(one, number=2))


async def test_an_adjustment_of_a_task_that_is_not_running_yet_waits(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.ready.clear()
    life.reconciler.assign(spec("a"), kill=False)
    life.reconciler.assign(spec("a"), kill=False, adjustment=adjustment_of(spec("a"), paused=True, number=1))
    assert CODEC.decode((tmp_path / "tasks/a.json").read_bytes()).adjustment is not None
    life.ready.set()
    await until(lambda: state(world, "a") is TaskState.RUNNING and world.master["a"].paused)
    assert CODEC.decode((tmp_path / "tasks/a.json").read_bytes()).adjustment is None
    await life.end()


@pytest.mark.parametrize("argv", [("sleep",), ("stubborn",)])
async def test_a_kill_thaws_it_first_also_by_another_agent(tmp_path: Path, argv: tuple[str, ...]) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a", *argv), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    life.reconciler.assign(spec("a", *argv), kill=False, adjustment=adjustment_of(spec("a", *argv), True, 1))
    await until(lambda: world.master["a"].paused)
    assert world.frozen == {world.programs["a"]}
    await life.end()
    again = Life(world)
    assert await again.begin()
    await until(lambda: state(world, "a") is TaskState.RUNNING and world.master["a"].paused)
    again.reconciler.assign(spec("a", *argv), kill=True)
    await until(lambda: state(world, "a") is TaskState.KILLED)
    assert world.frozen == set() and not world.master["a"].paused
    await again.end()


async def test_a_watch_that_fails_is_begun_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(containers, "WATCH_RETRY_S", 0.0)
    watched: list[str] = []

    class Flaky(Isolator):
        async def watch(self, container: Container) -> Limit | None:
            watched.append(container.id)
            if len(watched) < 3:
                raise IsolatorError("no descriptor left")
            return Limit("disk limit exceeded")

    made = Containers(Directories(tmp_path), (Isolator(), Flaky()), None)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        assert await made.watch(Container(spec("a"), made.sandbox("a", 0, "none"))) == Limit("disk limit exceeded")
    assert watched == ["a"] * 3


def resized(task: TaskSpec, number: int, pids: int) -> Adjustment:
    return replace(adjustment_of(task, number=number), pids=pids)


@pytest.mark.parametrize("die_at", range(1, 12))
async def test_it_is_done_in_the_end_whenever_the_agent_dies(tmp_path: Path, die_at: int) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a"), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    life.die_at = life.operations + die_at
    wanted = resized(spec("a"), 1, 9)
    try:
        life.reconciler.assign(spec("a"), kill=False, adjustment=wanted)
        await until(lambda: life.dead or world.master["a"].adjustment == 1)
    except asyncio.CancelledError:
        assert life.dead
    await life.end()
    again = Life(world)
    assert await again.begin()
    again.reconciler.assign(spec("a"), kill=False, adjustment=wanted)
    await until(lambda: world.master["a"].adjustment == 1)
    assert world.limits[world.programs["a"]] == 9 and world.master["a"].refused == ""
    await again.end()
