"""Tasks on a node: at most once, cleared away before their end is told, whenever the agent is killed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent.checkpoint import CODEC, TaskRecord
from agent.last_steps import describe_exit
from agent.launcher.record import Exit
from agent.sandboxes import ID_RANGE_SIZE, ID_RANGE_START
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus
from tests.unit.cluster import until
from tests.unit.control import task
from tests.unit.node import ADDRESS, NETWORK, PID, Life, World, settled

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """All that is to happen has happened after some turns of the event loop."""

    async def in_this_one(function: Callable[..., Any], *arguments: Any) -> Any:
        await asyncio.sleep(0)
        result = function(*arguments)
        await asyncio.sleep(0)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncio.to_thread", in_this_one)
        patch.setattr("agent.sandboxes.QUIET_S", 0)
        patch.setattr("agent.sandboxes.SPARES", 2)
        yield


def spec(task_id: str, *argv: str, network: str = NETWORK) -> TaskSpec:
    return replace(task(task_id), argv=argv or ("sleep",), kill_grace_s=0.01, network=network)


def state(world: World, task_id: str) -> TaskState | None:
    status = world.master.get(task_id)
    return status.state if status else None


def saved(world: World, task_id: str) -> TaskRecord:
    return CODEC.decode((world.directory / "tasks" / f"{task_id}.json").read_bytes())


def comes_to(world: World, task_id: str, expected: TaskState) -> Callable[[], bool]:
    return lambda: state(world, task_id) is expected


def is_over(world: World, task_id: str) -> Callable[[], bool]:
    return lambda: (now := state(world, task_id)) is not None and now.terminal


async def start(directory: Path, *, spares: bool = False) -> tuple[World, Life]:
    world = World(directory)
    life = Life(world, spares=spares)
    assert await life.begin()
    await settled(world)
    return world, life


async def test_an_end_that_can_not_be_written_down_is_put_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, life = await start(tmp_path)
    for name in ("a", "b"):
        life.reconciler.assign(spec(name), kill=False)
    await until(lambda: world.running().keys() == {"a", "b"})

    def full(record: TaskRecord) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(life.checkpoint, "save", full)
        life.reconciler.assign(spec("a"), kill=True)
        assert await life.reconciler.settle() == ["task a is not written down: [Errno 28] No space left on device"]
        assert world.running().keys() == {"a", "b"}
    assert await life.reconciler.settle() == []
    await until(is_over(world, "a"))
    assert state(world, "a") is TaskState.KILLED and world.running().keys() == {"b"}
    await life.end()


async def test_a_task_whose_record_is_damaged_does_not_run_again(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    for name in ("a", "b"):
        life.reconciler.assign(spec(name), kill=False)
    await until(lambda: world.running().keys() == {"a", "b"})
    await life.end()
    (tmp_path / "tasks/a.json").write_bytes(b"{")
    for _ in range(2):
        again = Life(world)
        assert await again.begin()
        again.reconciler.assign(spec("a"), kill=False)
        await until(is_over(world, "a"))
        assert state(world, "a") is TaskState.LOST and "damaged" in world.master["a"].reason
        assert world.running().keys() == {"b"} and world.launched["a"] == 1
        await again.end()


async def test_a_task_from_acceptance_to_oblivion(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a"), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    assert world.master["a"].addresses == (ADDRESS,) and world.master["a"].pid == PID
    assert not life.reconciler.books.over("a")
    world.exit("a", Exit(code=0))
    await until(is_over(world, "a"))
    assert (world.master["a"].state, world.master["a"].exit_code) == (TaskState.FINISHED, 0)
    assert world.alive == {} and world.prepared == set() and life.reconciler.books.over("a")
    life.reconciler.withdraw("a")
    assert list((tmp_path / "tasks").iterdir()) == [] and life.reconciler.books.statuses() == []


@pytest.mark.parametrize("spares", [False, True])
@pytest.mark.parametrize(
    ("argv", "end", "reason"),
    [
        (("exit", "3"), TaskState.FAILED, "exited with 3"),
        (("fail", "prepare"), TaskState.FAILED, "no root file system"),
        (("fail", "refuse"), TaskState.REJECTED, "no such root file system"),
        (("fail", "start"), TaskState.FAILED, "exec: /nowhere: No such file or directory"),
    ],
)
async def test_ends_and_their_reasons(
    tmp_path: Path, argv: tuple[str, ...], end: TaskState, reason: str, spares: bool
) -> None:
    world, life = await start(tmp_path, spares=spares)
    life.reconciler.assign(spec("a", *argv), kill=False)
    await until(is_over(world, "a"))
    assert (world.master["a"].state, world.master["a"].reason) == (end, reason)
    await life.sandboxes.close()
    assert world.alive == {} and world.prepared == set()
    await life.end()


@pytest.mark.parametrize(
    ("network", "reason"),
    [("fail open", "no cgroup"), ("fail create", "clone: sandbox: Resource temporarily unavailable")],
)
async def test_a_sandbox_that_can_not_be_made_is_the_end(tmp_path: Path, network: str, reason: str) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a", network=network), kill=False)
    await until(is_over(world, "a"))
    assert (world.master["a"].state, world.master["a"].reason) == (TaskState.FAILED, reason)
    assert world.alive == {} and world.prepared == set() and world.keepers == {} and world.launched == {}
    await life.end()


async def test_a_start_with_a_spare_is_as_one_without(tmp_path: Path) -> None:
    logs = []
    for spares in (False, True):
        world, life = await start(tmp_path / str(spares), spares=spares)
        ready = world.waiting()
        life.reconciler.assign(spec("a"), kill=False)
        await until(comes_to(world, "a", TaskState.RUNNING))
        assert bool(ready) == spares == (world.programs["a"] in ready)
        assert world.programs["a"] == saved(world, "a").container
        world.exit("a", Exit(code=3))
        await until(is_over(world, "a"))
        logs.append(world.master_log)
        await life.end()
    late, early = ([replace(s, at=0, since=0) for s in log if s.state >= TaskState.RUNNING] for log in logs)
    assert late == early


async def test_the_spare_is_on_disk_with_the_acceptance(tmp_path: Path) -> None:
    world, life = await start(tmp_path, spares=True)
    life.ready.clear()
    life.reconciler.assign(spec("a"), kill=False)
    assert await life.reconciler.settle() == []
    accepted = saved(world, "a")
    assert accepted.status.state is TaskState.ACCEPTED and accepted.container in world.waiting()
    assert accepted.id_base == world.alive[accepted.container]
    assert (accepted.status.addresses, accepted.status.pid) == ((ADDRESS,), PID)
    await life.end()


async def test_a_task_that_is_killed_at_once_takes_no_spare(tmp_path: Path) -> None:
    world, life = await start(tmp_path, spares=True)
    ready = world.waiting()
    life.reconciler.assign(spec("a"), kill=True)
    await until(is_over(world, "a"))
    assert world.waiting() == ready
    await life.end()


async def test_a_spare_of_what_never_starts_is_cleared_away(tmp_path: Path) -> None:
    world, life = await start(tmp_path, spares=True)
    life.reconciler.assign(replace(spec("a"), resources=Resources(cpus=9000)), kill=False)
    await life.reconciler.settle()
    claimed = saved(world, "a").container
    await until(is_over(world, "a"))
    assert state(world, "a") is TaskState.REJECTED and claimed not in world.prepared | world.keepers.keys()
    await life.end()


async def test_a_task_whose_sandbox_went_with_the_agent_begins_again_in_another(tmp_path: Path) -> None:
    world, life = await start(tmp_path, spares=True)
    life.ready.clear()
    life.reconciler.assign(spec("a"), kill=False)
    await settled(world)
    before = saved(world, "a").container
    assert before in world.waiting() and state(world, "a") is TaskState.ACCEPTED
    await life.end()
    assert world.alive == {}
    again = Life(world)
    assert await again.begin()
    assert world.master["a"].addresses == () and world.master["a"].pid is None
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    assert world.programs["a"] not in ("", before) and world.launched == {"a": 1}
    assert world.prepared == world.keepers.keys() == {world.programs["a"]}
    await again.end()


async def test_what_can_never_fit_is_rejected(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(replace(spec("a"), resources=Resources(cpus=9000)), kill=False)
    await until(is_over(world, "a"))
    assert world.master["a"].reason == "this node has 5 CPU too little, even when empty"
    assert world.launched == {}


@pytest.mark.parametrize("argv", [("sleep",), ("stubborn",)])
async def test_a_kill_ends_it_with_or_without_its_consent(tmp_path: Path, argv: tuple[str, ...]) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a", *argv), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    for _ in range(2):
        life.reconciler.assign(spec("a", *argv), kill=True)
    await until(is_over(world, "a"))
    assert state(world, "a") is TaskState.KILLED
    life.reconciler.assign(spec("a", *argv), kill=True)
    assert state(world, "a") is TaskState.KILLED


async def test_a_kill_before_the_networks_are_there(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.ready.clear()
    life.reconciler.assign(spec("a"), kill=False)
    await settled(world)
    assert state(world, "a") is TaskState.ACCEPTED
    life.reconciler.assign(spec("a"), kill=True)
    await until(is_over(world, "a"))
    assert world.master["a"].reason == "killed before it was started" and world.launched == {}


async def test_a_full_disk_delays_the_news_but_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.books.RETRY_S", 0.01)
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a"), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    save, refused = life.checkpoint.save, []

    def full(record: Any) -> None:
        refused.append(record)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(life.checkpoint, "save", full)
    world.exit("a", Exit(code=7))
    await until(lambda: len(refused) > 2)
    assert state(world, "a") is TaskState.RUNNING and not life.reconciler.books.over("a")
    monkeypatch.setattr(life.checkpoint, "save", save)
    await until(is_over(world, "a"))
    assert world.master["a"].exit_code == 7


@pytest.mark.parametrize("spares", [False, True])
async def test_nobody_hears_of_a_task_and_nothing_of_it_runs_before_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spares: bool
) -> None:
    monkeypatch.setattr("agent.books.RETRY_S", 0.01)
    world, life = await start(tmp_path, spares=spares)
    begin = life.checkpoint.begin

    def full(record: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(life.checkpoint, "begin", full)
    for name in ("a", "b"):
        life.reconciler.assign(spec(name), kill=False)
    await settled(world)
    life.reconciler.assign(spec("b"), kill=True)
    told = [f"task {name} is not written down: [Errno 28] No space left on device" for name in "ab"]
    assert sorted(await life.reconciler.settle()) == told
    await settled(world)
    assert world.launched == {} and world.master == {} and life.reconciler.books.statuses() == []
    assert life.reconciler.books.unacknowledged("a") is None and not life.reconciler.books.over("a")
    monkeypatch.setattr(life.checkpoint, "begin", begin)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    await until(is_over(world, "b"))
    assert await life.reconciler.settle() == [] and saved(world, "b").kill
    assert world.launched["a"] == 1
    await life.end()


async def test_a_fault_of_ours_leaves_no_task_unattended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.reconciler.RETRY_S", 0.01)
    world, life = await start(tmp_path)
    calls = []

    async def broken(container: object) -> object:
        calls.append(container)
        raise KeyError("pid")

    monkeypatch.setattr(life.containers, "make", broken)
    life.reconciler.assign(spec("a"), kill=False)
    await until(lambda: bool(calls))
    monkeypatch.undo()
    life.reconciler.assign(spec("a"), kill=True)
    await life.end()
    again = Life(world)
    assert await again.begin()
    await until(is_over(world, "a"))
    assert state(world, "a") is TaskState.KILLED


async def test_clean_up_that_fails_does_not_hold_up_the_end(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a", network="fail cleanup"), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    world.exit("a", Exit(code=0))
    await until(is_over(world, "a"))
    assert set(world.keepers) == {world.programs["a"]}  # what is left is an orphan
    await life.end()
    assert await Life(world).begin()
    assert world.keepers == {}


async def test_one_container_that_resists_does_not_stop_the_agent(tmp_path: Path) -> None:
    """The agent died before the start, and what it had made can not be cleared away."""
    world, life = await start(tmp_path)
    life.sandboxes.take("fail cleanup")
    life.sandboxes.begin()
    await settled(world)
    life.ready.clear()
    life.reconciler.assign(spec("bad", network="fail cleanup"), kill=False)
    life.reconciler.assign(spec("good"), kill=False)
    await life.reconciler.settle()
    assert saved(world, "bad").container in world.waiting()
    await life.end()
    again = Life(world)
    assert await again.begin()
    await until(lambda: state(world, "good") is TaskState.RUNNING)
    assert "could not go on" in world.master["bad"].reason and state(world, "bad") is TaskState.FAILED
    await again.end()


async def test_a_restart_of_the_agent_touches_nothing_that_runs(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    for name in ("a", "b"):
        life.reconciler.assign(spec(name), kill=False)
    await until(lambda: len(world.alive) == 2 and state(world, "b") is TaskState.RUNNING)
    running = world.running()
    await life.end()
    world.exit("b", Exit(code=5))
    again = Life(world)
    assert await again.begin()
    await until(is_over(world, "b"))
    assert world.master["b"].exit_code == 5 and world.running() == {"a": running["a"]} and len(world.alive) == 1
    again.reconciler.withdraw_others(set())
    await until(lambda: again.reconciler.books.statuses() == [])
    assert world.alive == {}


async def test_what_a_later_agent_sees_is_newer(tmp_path: Path) -> None:
    """Although what the earlier one saw last was not on disk: law 5."""
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a"), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    for _ in range(3):
        life.reconciler.books.observe("a", TaskState.RUNNING)
    last = world.master["a"]
    await life.end()
    for _ in range(3):
        again = Life(world)
        assert await again.begin()
        assert world.master["a"].sequence > last.sequence and world.master["a"].since >= last.since
        last = world.master["a"]
        await again.end()


async def test_a_signal_that_there_is_not_is_refused_before_the_start(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(replace(spec("a"), kill_signal="SIGNONE"), kill=False)
    await until(is_over(world, "a"))
    assert (state(world, "a"), world.master["a"].reason) == (TaskState.REJECTED, "kill signal: 'SIGNONE' is no signal")
    assert world.launched == {}


async def test_a_kill_tells_how_it_proceeds(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a", "stubborn"), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    life.reconciler.assign(spec("a", "stubborn"), kill=True)
    await until(is_over(world, "a"))
    said = [status.message for status in world.master_log if status.state is TaskState.KILLING]
    assert said == ["", "SIGTERM sent, 0.01 s of grace", "SIGKILL sent after 0.01 s of grace"]
    assert world.master["a"].reason == "killed with SIGKILL after 0.01 s of grace"


async def test_after_a_reboot_everything_is_lost(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a"), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    await life.end()
    world.reboot()
    assert await Life(world).begin()
    assert (world.master["a"].state, world.master["a"].reason) == (TaskState.LOST, "the node was restarted")


async def test_a_container_whose_keeper_left_nothing_is_not_started_again(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a"), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    await life.end()
    world.keepers.clear()
    assert await Life(world).begin()
    assert state(world, "a") is TaskState.FAILED and world.launched == {"a": 1}


async def test_user_ids_are_given_again_only_when_their_container_is_cleared_away(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    for name, network in (("a", NETWORK), ("b", "fail cleanup"), ("c", NETWORK)):
        life.reconciler.assign(spec(name, network=network), kill=False)
    await until(lambda: len(world.running()) == 3)
    assert sorted(world.alive.values()) == [ID_RANGE_START + i * ID_RANGE_SIZE for i in range(3)]
    before = world.running()
    for name in "bc":
        world.exit(name, Exit(code=0))
        await until(is_over(world, name))
    for name in "de":
        life.reconciler.assign(spec(name), kill=False)
    await until(lambda: len(world.running()) == 3)
    assert before["b"] not in world.running().values()
    assert {world.running()["d"], world.running()["e"]} == {before["c"], ID_RANGE_START + 3 * ID_RANGE_SIZE}
    await life.end()


async def test_user_ids_of_an_earlier_agents_containers_are_not_given_again(tmp_path: Path) -> None:
    world, life = await start(tmp_path)
    life.reconciler.assign(spec("a"), kill=False)
    await until(lambda: state(world, "a") is TaskState.RUNNING)
    await life.end()
    again = Life(world)
    assert await again.begin()
    again.reconciler.assign(spec("b"), kill=False)
    await until(lambda: state(world, "b") is TaskState.RUNNING)
    assert world.running() == {"a": ID_RANGE_START, "b": ID_RANGE_START + ID_RANGE_SIZE}
    await again.end()


async def test_an_id_that_names_no_directory_is_refused(tmp_path: Path) -> None:
    _, life = await start(tmp_path)
    with pytest.raises(ValueError, match="not a task id"):
        life.reconciler.assign(spec("../../etc/passwd"), kill=False)
    assert list((tmp_path / "tasks").iterdir()) == []


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (Exit(code=1), "exited with 1"),
        (Exit(signal=9), "killed by SIGKILL"),
        (Exit(signal=40), "killed by signal 40"),
        (Exit(error="exec: /x: No such file or directory"), "exec: /x: No such file or directory"),
        (Exit(lost=True), "its exit code is lost: the keeper was killed"),
    ],
)
def test_exits_in_words(end: Exit, words: str) -> None:
    assert describe_exit(end) == words


class Story:
    """Drives lives of an agent in one world, as the master would: what is desired is sent again after each start."""

    def __init__(self, directory: Path, *, spares: bool) -> None:
        self.world = World(directory)
        self.spares = spares
        self.life = Life(self.world)
        self.desired: dict[str, tuple[TaskSpec, bool]] = {}
        self.withdrawn: set[str] = set()

    async def begin(self, die_at: int | None = None) -> None:
        self.life = Life(self.world, die_at, spares=self.spares)
        if await self.life.begin():
            await self.send(lambda: self.life.reconciler.withdraw_others(set(self.desired)))
            for task_spec, kill in list(self.desired.values()):
                await self.send(lambda task_spec=task_spec, kill=kill: self.life.reconciler.assign(task_spec, kill))  # type: ignore[misc]
        if self.life.dead:
            await self.begin()

    async def send(self, message: Callable[[], None]) -> None:
        if self.life.dead:
            return
        try:
            message()
        except asyncio.CancelledError:
            await self.life.end()

    async def assign(self, task_spec: TaskSpec, kill: bool = False) -> None:
        if task_spec.id not in self.withdrawn:
            known, killed = self.desired.get(task_spec.id, (task_spec, False))
            self.desired[task_spec.id] = known, kill or killed
            await self.send(lambda: self.life.reconciler.assign(known, kill or killed))
            await self.revive()

    async def withdraw(self, task_id: str) -> None:
        self.withdrawn.add(task_id)
        if self.desired.pop(task_id, None) is not None:
            await self.send(lambda: self.life.reconciler.withdraw(task_id))
            await self.revive()

    async def revive(self) -> None:
        """The next agent, if this one died meanwhile."""
        if self.life.dead:
            await self.life.end()
            await self.begin()

    async def restart(self, die_at: int | None = None) -> None:
        await self.life.end()
        await self.begin(die_at)

    async def finish(self) -> None:
        """Kill everything; then all must have ended, and the master must know how."""
        await self.revive()
        for task_spec, _ in list(self.desired.values()):
            await self.assign(task_spec, kill=True)
        async with asyncio.timeout(10):
            while not all(
                self.life.reconciler.books.over(task_id) for task_id in self.desired | dict.fromkeys(self.withdrawn)
            ):
                await asyncio.sleep(0.001)
                await self.revive()
        await self.revive()
        self.life.die_at = None
        await settled(self.world)
        for task_id in self.desired:
            status = self.status(task_id)
            assert status == self.world.master[task_id] and status.state.terminal
            saved = CODEC.decode((self.world.directory / "tasks" / f"{task_id}.json").read_bytes())
            assert saved.status == status
        assert {status.task_id for status in self.life.reconciler.books.statuses()} == set(self.desired)
        await self.life.sandboxes.close()
        assert self.world.alive == {} and self.world.prepared == set() and self.world.keepers == {}
        assert all(count <= 1 for count in self.world.launched.values())
        await self.life.end()

    def status(self, task_id: str) -> TaskStatus:
        return next(status for status in self.life.reconciler.books.statuses() if status.task_id == task_id)


async def killed_at(number: int, directory: Path, argv: tuple[str, ...], kill: bool, spares: bool) -> tuple[int, Story]:
    """A task's whole life, with the agent killed at that operation, and again at the same one of its next life."""
    story = Story(directory, spares=spares)
    await story.begin(die_at=number)
    first = story.life
    if spares:
        await settled(story.world)
        await story.revive()
    await story.assign(spec("a", *argv))
    await settled(story.world)
    if story.life.dead:
        await story.restart(die_at=number)
        await settled(story.world)
        await story.revive()
        await settled(story.world)
    if kill:
        await story.assign(spec("a", *argv), kill=True)
    else:
        story.world.exit("a", Exit(code=3))
    await settled(story.world)
    await story.revive()
    await settled(story.world)
    await story.finish()
    return first.operations, story


@pytest.mark.parametrize("spares", [False, True])
@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("argv", [("sleep",), ("exit", "3"), ("fail", "prepare"), ("fail", "start")])
def test_killed_at_every_operation(argv: tuple[str, ...], kill: bool, spares: bool) -> None:
    """Law 2. No exit code is lost either: 3 is reported unless the task never came to run or was killed."""
    number = 1
    while True:
        with tempfile.TemporaryDirectory() as directory, capture_logs() as logs:
            operations, story = asyncio.run(killed_at(number, Path(directory), argv, kill, spares))
        assert not [entry for entry in logs if entry["event"] == "step failed, trying again"]
        end = story.world.master["a"]
        if story.world.launched["a"] and not kill:
            assert (end.state, end.exit_code) == (TaskState.FAILED, 3), (number, end)
        if operations < number:
            assert number > 10
            return
        number += 1


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("assign"), st.sampled_from("abc"), st.sampled_from(["sleep", "stubborn", "exit 0", "fail start"])
        ),
        st.tuples(st.just("kill"), st.sampled_from("abc")),
        st.tuples(st.just("withdraw"), st.sampled_from("abc")),
        st.tuples(st.just("exit"), st.sampled_from("abc"), st.integers(0, 2)),
        st.tuples(st.just("restart"), st.integers(1, 40)),
        st.tuples(st.just("turns"), st.integers(1, 20)),
    ),
    max_size=20,
)


async def check(history: list[tuple[Any, ...]], directory: Path, spares: bool) -> None:
    story = Story(directory, spares=spares)
    await story.begin()
    for step in history:
        match step:
            case ("assign", name, argv):
                await story.assign(spec(name, *argv.split()))
            case ("kill", name) if name in story.desired:
                await story.assign(story.desired[name][0], kill=True)
            case ("withdraw", name):
                await story.withdraw(name)
            case ("exit", name, code):
                story.world.exit(name, Exit(code=code))
            case ("restart", die_at):
                await story.restart(die_at)
            case ("turns", turns):
                for _ in range(turns):
                    await asyncio.sleep(0)
        await story.revive()
    await story.finish()


@given(steps, st.booleans())
@settings(max_examples=160)
def test_whatever_happens_every_task_runs_at_most_once_and_ends(history: list[tuple[Any, ...]], spares: bool) -> None:
    with tempfile.TemporaryDirectory() as directory, capture_logs() as logs:
        asyncio.run(check(history, Path(directory), spares))
    assert not [entry for entry in logs if entry["event"] == "step failed, trying again"]
