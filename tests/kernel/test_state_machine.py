"""Random sequences of what a master wants and of what goes wrong, against a real agent with real containers. After each
that has settled the kernel, the agent's books and what the master was told must say the same.

A few short ones as a rule; TEPUI_TEST_RANDOM_S=600 goes on with longer ones for so many seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent.sandboxes import NETWORKS, SPARES
from model.adjustment import adjustment_of
from model.task import TaskState, TaskStatus
from netns.link import veth_name
from tests.kernel.daemon import KEEPER, LAUNCHER, MAKER, NodeDaemon, frozen, node_daemon, spec, until
from tests.kernel.namespaces import run

SECONDS = float(os.environ.get("TEPUI_TEST_RANDOM_S", "0"))
SHORT = settings(max_examples=3, stateful_step_count=14)
LONG = settings(max_examples=3, stateful_step_count=40)
STATE_SIZE = "48m"
NETWORK_NAMES = ["none", "overlay"]
MOST_TASKS = 12
EXIT_CODE = 7
PROGRAMS = {
    "stays": "echo started; exec sleep infinity",
    "heeds": "echo started; trap 'exit 0' TERM; while :; do sleep 0.05; done",
    "ends": f"echo started; sleep 0.2; exit {EXIT_CODE}",
    "ignores": "trap '' TERM; echo started; sleep infinity & wait; wait",
}
T = TypeVar("T")
Picked = st.integers(min_value=0, max_value=1 << 16)


class Agent(RuleBasedStateMachine):
    """Which rule comes next depends on rules alone, for hypothesis wants to be able to repeat that; what one meets with
    does not.

    `excused` are tasks that need not have run, or whose end may be another one's fault than their own: they were about
    to start, or to end, when something was taken from their agent that it can not do without."""

    directory: Path
    loop: asyncio.AbstractEventLoop
    number = 0

    def __init__(self) -> None:
        super().__init__()
        self.stack = AsyncExitStack()
        self.started: dict[str, str] = {}  # tasks, and what they run
        self.shot: set[str] = set()
        self.orphaned: set[str] = set()
        self.excused: set[str] = set()
        self.full = False
        self.short_of_descriptors = False
        self.disturbed = False

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize()
    def boot(self) -> None:
        Agent.number += 1
        directory = self.directory / str(Agent.number)
        state = directory / "state"
        state.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", f"mode=0700,size={STATE_SIZE}", "tmpfs", str(state))
        self.stack.callback(run, "umount", "-l", str(state))
        self.node: NodeDaemon = self.wait(self.stack.enter_async_context(node_daemon(directory, state)))

    @property
    def living(self) -> list[str]:
        return sorted(known.spec.id for known in self.node.known() if not known.over)

    @rule(program=st.sampled_from(sorted(PROGRAMS)), network=st.sampled_from(NETWORK_NAMES), count=st.integers(1, 3))
    def assign(self, program: str, network: str, count: int) -> None:
        if len(self.living) > MOST_TASKS:
            return
        names = [f"{program}.{len(self.started) + number}" for number in range(count)]
        self.started |= dict.fromkeys(names, program)
        if self.full or self.short_of_descriptors:
            self.excused |= set(names)
        self.wait(self.node.master.tasks.add("n1", [spec(name, PROGRAMS[program], network) for name in names]))

    @rule(which=Picked)
    def kill(self, which: int) -> None:
        if living := self.living:
            self.wait(self.node.master.tasks.mark(self.pick(living, which), drained=True))

    @rule(which=Picked, mem=st.sampled_from([16, 24, 40]), paused=st.booleans())
    def adjust(self, which: int, mem: int, paused: bool) -> None:
        if not (living := self.living):
            return
        known = self.node.master.record(self.pick(living, which))
        now = adjustment_of(known.spec, known.paused, known.adjustment)
        wanted = replace(now, resources=replace(now.resources, mem=mem), paused=paused)
        self.wait(self.node.master.tasks.adjust(known.spec.id, wanted))

    @rule()
    def forget(self) -> None:
        for known in self.node.known():
            if known.over:
                self.check_end(known.status)
                self.wait(self.node.master.tasks.acknowledge(known.spec.id, known.status.sequence))

    @rule(number=st.sampled_from([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    @precondition(lambda self: self.node.process is not None)
    def kill_agent(self, number: int) -> None:
        self.node.kill(number)
        self.short_of_descriptors = False

    @rule()
    @precondition(lambda self: self.node.process is None)
    def begin_agent(self) -> None:
        self.node.begin()

    @rule(whom=st.sampled_from([LAUNCHER, KEEPER, KEEPER, MAKER]), which=Picked)
    def kill_one_of(self, whom: str, which: int) -> None:
        pids = self.node.processes(whom)
        if pids:
            pid = self.pick(sorted(pids), which)
            if whom == KEEPER:
                self.bereave(pid)
            self.shoot(pid)

    @rule(which=Picked)
    def kill_container(self, which: int) -> None:
        """A task's, or one that waits for a task."""
        keepers = self.node.keepers()
        if keepers and (process := keepers[name := self.pick(sorted(keepers), which)].container) is not None:
            self.shot |= {task for task, record in self.node.records().items() if record.container == name}
            self.disturb()
            self.shoot(process.pid)

    @rule(full=st.booleans())
    def fill_disk(self, full: bool) -> None:
        if full:
            self.disturb()
            self.disturbed = self.full = True
            with suppress(OSError), (self.node.state / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
        else:
            self.empty_disk()

    @rule(more=st.integers(min_value=0, max_value=12))
    @precondition(lambda self: self.node.process is not None and not self.short_of_descriptors)
    def take_descriptors(self, more: int) -> None:
        self.wait(self.node.at_work())
        self.disturb()
        self.disturbed = self.short_of_descriptors = True
        self.node.limit_descriptors(more)

    @rule(tenths=st.integers(min_value=0, max_value=5))
    def pass_time(self, tenths: int) -> None:
        self.wait(asyncio.sleep(tenths / 20))

    @rule()
    def settle(self) -> None:
        self.empty_disk()
        self.node.unlimit_descriptors()
        self.short_of_descriptors = False
        if self.node.process is None:
            self.node.begin()
        self.wait(self.settled())
        self.compare()

    @invariant()
    def the_agent_lives(self) -> None:
        node = getattr(self, "node", None)
        if node is not None and node.process is not None:
            assert node.process.poll() is None, f"the agent has ended\n{node.tail()}"

    def teardown(self) -> None:
        try:
            if hasattr(self, "node"):
                self.settle()
        finally:
            self.wait(self.stack.aclose())

    async def settled(self) -> None:
        node = self.node
        await node.connected()
        await until(lambda: not self.unsettled(), "it is at rest", lambda: f"{self.unsettled()}\n{node.tail()}")
        await until(lambda: not self.differences(), "all agree", lambda: f"{self.differences()}\n{node.tail()}")

    def unsettled(self) -> list[str]:
        """Tasks of which something is still to happen."""
        return [known.spec.id for known in self.node.known() if not self.at_rest(known.spec.id)]

    def at_rest(self, name: str) -> bool:
        known = self.node.master.record(name)
        if known.over:
            return True
        ends = (self.started[name] == "ends" and not known.paused) or (name in self.shot and not known.paused)
        return known.status.state is TaskState.RUNNING and not known.killing and known.before is None and not ends

    def differences(self) -> list[str]:
        """Between the containers that there should be and what there is of them."""
        node = self.node
        records, known = node.records(), {each.spec.id: each for each in node.known()}
        found = [f"books: {name}" for name in records.keys() ^ known.keys()]
        found += [
            f"{name}: {records[name].status.state.name} in the books"
            for name in records.keys() & known.keys()
            if known[name].over and records[name].status.state is not known[name].status.state
        ]
        alive = {record.container: record for name, record in records.items() if not known[name].over}
        traces = node.traces()
        ahead = traces["bundles"] - alive.keys()
        connected = {name for name, record in alive.items() if record.spec.network == "overlay"}
        for kind in ("bundles", "layers", "cgroups"):
            found += [f"{kind}: {name}" for name in traces[kind] ^ (alive.keys() | ahead)]
        found += [f"mounts: {name}" for name in traces["mounts"] - ahead ^ alive.keys()]
        found += [f"leases: {name}" for name in traces["leases"] - ahead ^ connected]
        links = {veth_name(name) for name in ahead}
        found += [f"links: {name}" for name in traces["links"] - links ^ {veth_name(name) for name in connected}]
        if len(ahead) > NETWORKS * SPARES:
            found.append(f"{len(ahead)} sandboxes ahead")
        for name, most in (
            (LAUNCHER, 1),
            (KEEPER, len(traces["bundles"]) + 1),
            (MAKER, 2 * len(ahead) + 1),
        ):  # the first process of a sandbox is called like its maker
            if (count := len(node.processes(name))) > most:
                found.append(f"{count} {name}")
        return found

    def compare(self) -> None:
        node = self.node
        for known in node.known():
            name = known.spec.id
            if known.over:
                self.check_end(known.status)
            else:
                assert known.status.pid and Path(f"/proc/{known.status.pid}").exists(), f"{name} is dead\n{node.tail()}"
                container = node.records()[name].container
                assert frozen(node.prefix, container) == known.paused, name
                assert known.status.usage.mem_limit_bytes == known.spec.resources.mem << 20 or name in self.excused, (
                    name
                )
            if known.status.state in (TaskState.RUNNING, TaskState.FINISHED) and name not in self.excused:
                assert node.output(name) in ("", "started\n"), f"{name}: {node.output(name)!r}"
        self.check_told()
        if not self.disturbed:
            faults = [event for event in node.events() if "exception" in event]
            assert not faults, faults

    def check_end(self, status: TaskStatus) -> None:
        name = status.task_id
        known = self.node.master.record(name)
        if name in self.excused or known.killing:
            return
        reason = f"{name}: {status.state.name}, {status.reason}\n{self.node.tail()}"
        if name in self.shot:
            assert status.state is TaskState.FAILED, reason
        elif name in self.orphaned:
            assert self.started[name] == "ends" and "lost" in status.reason, reason
        else:
            assert self.started[name] == "ends" and status.exit_code == EXIT_CODE, reason

    def check_told(self) -> None:
        """Sequences grow, the same one is the same observation, and nothing follows an end."""
        last: dict[str, TaskStatus] = {}
        for status in self.node.told:
            before = last.get(status.task_id)
            if before is not None and status.sequence <= before.sequence:
                continue  # told again
            if before is not None:
                assert not before.state.terminal, f"{before} was followed by {status}"
            last[status.task_id] = status
        ends: dict[str, set[tuple[object, ...]]] = {}
        for status in self.node.told:
            if status.state.terminal:
                end = (status.state, status.sequence, status.reason, status.exit_code)
                ends.setdefault(status.task_id, set()).add(end)
        assert all(len(each) == 1 for each in ends.values()), ends

    def disturb(self) -> None:
        """Who is about to start or to end is excused."""
        self.excused |= {known.spec.id for known in self.node.known() if not self.at_rest(known.spec.id)}

    def bereave(self, keeper: int) -> None:
        self.disturb()
        mine = {name for name, noted in self.node.keepers().items() if noted.keeper.pid == keeper}
        self.orphaned |= {task for task, record in self.node.records().items() if record.container in mine}

    def empty_disk(self) -> None:
        (self.node.state / "filler").unlink(missing_ok=True)
        self.full = False

    @staticmethod
    def pick(among: list[T], which: int) -> T:
        return among[which % len(among)]

    @staticmethod
    def shoot(pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield made
    asyncio.set_event_loop(None)
    made.close()


@pytest.mark.timeout(2 * SECONDS + 300)
@pytest.mark.usefixtures("host_mounts")
def test_random_sequences(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    Agent.directory, Agent.loop = tmp_path, loop
    plan = settings(
        LONG if SECONDS else SHORT,
        database=None,
        phases=[Phase.generate],  # a shorter sequence is seldom worth the time that it takes to find it
        suppress_health_check=list(HealthCheck),
    )
    end = time.monotonic() + SECONDS
    run_state_machine_as_test(Agent, settings=plan)
    while time.monotonic() < end:
        run_state_machine_as_test(Agent, settings=plan)
