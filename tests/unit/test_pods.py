"""Pods in the agent: a common start and one fate, whatever happens, and at whatever moment the agent is killed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.containers import Made
from agent.launcher.record import Exit
from agent.pods import HOLDER_KILLED
from model.pod import Pod
from model.task import TaskSpec, TaskState
from tests.unit.cluster import until
from tests.unit.node import Life, World, settled
from tests.unit.test_reconciler import Story, is_over, one_thread, spec, start

__all__ = ["one_thread"]
pytestmark = pytest.mark.anyio


def pod(*commands: str) -> list[TaskSpec]:
    """Of tasks `a`, `b` and so on, each of which does as its command says (tests/unit/node.py)."""
    members = tuple("abcdef"[: len(commands)])
    return [
        replace(spec(member, *command.split()), pod=Pod("p", member, members))
        for member, command in zip(members, commands, strict=True)
    ]


def ends(world: World) -> dict[str, tuple[TaskState, str]]:
    return {task: (status.state, status.reason) for task, status in world.master.items() if status.state.terminal}


def nothing_is_left(world: World) -> bool:
    return not (world.alive or world.prepared or world.keepers)


@pytest.mark.parametrize("spares", [False, True])
async def test_they_start_in_order_when_all_are_ready_and_end_with_the_first(tmp_path: Path, spares: bool) -> None:
    world, life = await start(tmp_path, spares=spares)
    for each in pod("sleep", "sleep", "sleep"):
        life.reconciler.assign(each, kill=False)
    await until(lambda: len(world.running()) == 3)
    await settled(world)
    assert list(world.programs) == ["a", "b", "c"]
    world.exit("b", Exit(code=0))
    await until(lambda: len(ends(world)) == 3)
    fate = (TaskState.KILLED, "its pod ended with b: exited with 0")
    assert ends(world) == {"a": fate, "b": (TaskState.FINISHED, "exited with 0"), "c": fate}
    await life.sandboxes.close()
    assert nothing_is_left(world)
    await life.end()


@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        ("fail prepare", TaskState.FAILED, "no root file system"),
        ("fail refuse", TaskState.REJECTED, "no such root file system"),
    ],
)
async def test_none_runs_when_one_can_not_be_prepared(
    tmp_path: Path, fault: str, state: TaskState, reason: str
) -> None:
    world, life = await start(tmp_path)
    for each in pod("sleep", fault, "sleep"):
        life.reconciler.assign(each, kill=False)
    await until(lambda: len(ends(world)) == 3)
    fate = (TaskState.KILLED, f"its pod ended with b: {reason}")
    assert ends(world) == {"a": fate, "b": (state, reason), "c": fate}
    assert world.launched == {} and nothing_is_left(world)
    await life.end()


async def test_those_that_run_end_when_a_later_one_can_not_be_executed(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    for each in pod("sleep", "fail start", "sleep"):
        life.reconciler.assign(each, kill=False)
    await until(lambda: len(ends(world)) == 3)
    assert {task: end for task, (end, _) in ends(world).items()} == {
        "a": TaskState.KILLED,
        "b": TaskState.FAILED,
        "c": TaskState.KILLED,
    }
    assert world.launched == {"a": 1} and nothing_is_left(world)
    await life.end()


async def test_a_pod_whose_sandbox_is_killed_ends(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    for each in pod("sleep", "sleep"):
        life.reconciler.assign(each, kill=False)
    await until(lambda: len(world.running()) == 2)
    (holder,) = world.alive.keys() - set(world.programs.values())
    world.end(holder, Exit(signal=9))
    await until(lambda: len(ends(world)) == 2)
    assert set(ends(world).values()) == {(TaskState.KILLED, HOLDER_KILLED)} and nothing_is_left(world)
    await life.end()


async def test_more_tasks_than_are_launched_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.first_steps.LAUNCHES_AT_ONCE", 1)
    world, life = await start(tmp_path)
    for each in pod(*["sleep"] * 5):
        life.reconciler.assign(each, kill=False)
    await until(lambda: len(world.running()) == 5)
    await life.end()


async def test_a_kill_while_another_one_is_being_prepared(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.ready.clear()
    specs = pod("sleep", "sleep")
    for each in specs:
        life.reconciler.assign(each, kill=False)
    life.reconciler.assign(specs[1], kill=True)
    life.ready.set()
    await until(lambda: len(ends(world)) == 2)
    assert world.launched == {} and nothing_is_left(world)
    await life.end()


async def test_a_kill_ends_the_wait_for_one_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, life = await start(tmp_path)
    specs, ready, prepare = pod("sleep", "sleep"), asyncio.Event(), life.containers.start

    async def slow(
        made: Made, task: TaskSpec, noted: Callable[[], Awaitable[None]], layers: tuple[Path, ...] = ()
    ) -> int:
        if task.id == "b":
            await ready.wait()
        return await prepare(made, task, noted, layers)

    monkeypatch.setattr(life.containers, "start", slow)
    for each in specs:
        life.reconciler.assign(each, kill=False)
    await settled(world)
    for each in specs:
        life.reconciler.assign(each, kill=True)
    await until(is_over(world, "a"))
    ready.set()
    await until(lambda: len(ends(world)) == 2)
    assert set(ends(world).values()) == {(TaskState.KILLED, "killed before it was started")}
    assert world.launched == {} and nothing_is_left(world)
    await life.end()


@pytest.mark.parametrize("network", ["fail open", "fail create"])
async def test_a_pod_whose_sandbox_can_not_be_made(tmp_path: Path, network: str) -> None:
    world, life = await start(tmp_path)
    for each in pod("sleep", "sleep", "sleep"):
        life.reconciler.assign(replace(each, network=network), kill=False)
    await until(lambda: len(ends(world)) == 3)
    (_, cause), *others = sorted(ends(world).values())
    assert set(others) == {(TaskState.KILLED, f"its pod could not be made: {cause}")}
    assert nothing_is_left(world)
    await life.end()


async def test_after_a_reboot_all_of_it_is_lost(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    for each in pod("sleep", "sleep"):
        life.reconciler.assign(each, kill=False)
    await until(lambda: len(world.running()) == 2)
    await life.end()
    world.reboot()
    assert await Life(world).begin()
    assert set(ends(world).values()) == {(TaskState.LOST, "the node was restarted")} and nothing_is_left(world)


async def test_a_task_whose_neighbour_was_forgotten_ends(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    for each in pod("sleep", "sleep"):
        life.reconciler.assign(each, kill=False)
    await until(lambda: len(world.running()) == 2)
    await life.end()
    (tmp_path / "tasks" / "a.json").write_text("damaged")
    again = Life(world)
    assert await again.begin()
    await until(is_over(world, "b"))
    assert ends(world)["b"] == (TaskState.KILLED, "a of its pod is not known any more") and nothing_is_left(world)
    await again.end()


async def killed_at(number: int, directory: Path, specs: Sequence[TaskSpec], spares: bool) -> tuple[int, Story]:
    """A pod's whole life, with the agent killed at that operation, and again at the same one of its next life. One of
    its tasks exits by itself."""
    story = Story(directory, spares=spares)
    await story.begin(die_at=number)
    first = story.life
    await settled(story.world)
    await story.revive()
    story.desired |= {each.id: (each, False) for each in specs}
    for each in specs:  # at once, as they come in one message
        await story.send(partial(story.life.reconciler.assign, each, kill=False))
    await story.revive()
    await settled(story.world)
    if story.life.dead:
        await story.restart(die_at=number)
        await settled(story.world)
        await story.revive()
        await settled(story.world)
    story.world.exit("a", Exit(code=3))
    await settled(story.world)
    await story.revive()
    async with asyncio.timeout(10):
        while not all(is_over(story.world, each.id)() for each in specs):
            await asyncio.sleep(0.001)
            await story.revive()
    ran = set(story.world.launched)
    await story.finish()
    assert ran in (set(), {each.id for each in specs}) or "fail" in specs[-1].argv
    return first.operations, story


@pytest.mark.parametrize(("last", "spares"), [("sleep", True), ("fail prepare", False), ("fail start", False)])
def test_killed_at_every_operation(last: str, spares: bool) -> None:
    """Nothing runs twice, nothing is left, and all end without the master: it asks for no end here."""
    specs = pod("sleep", last)
    number = 1
    while True:
        with tempfile.TemporaryDirectory() as directory, capture_logs() as logs:
            operations, story = asyncio.run(killed_at(number, Path(directory), specs, spares))
        assert not [entry for entry in logs if entry["event"] == "step failed, trying again"]
        if story.world.launched["a"] and last == "sleep":
            end = story.world.master["a"]
            assert (end.state, end.exit_code) == (TaskState.FAILED, 3), (number, end)
        if operations < number:
            assert number > 10
            return
        number += 1
