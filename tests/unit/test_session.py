"""The agent's session against the real dispatcher, and against masters that misbehave. Over mutual TLS on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from agent.launcher.record import Exit
from agent.node_network import NodeNetwork
from agent.session import Session
from agent.streams import Streams
from agent.volumes import VolumeRemovals
from isolators.persistent import PersistentVolumes
from model.task import TaskState, Usage
from pki.credentials import CredentialError, Credentials
from pki.identity import Role
from tests.unit.cluster import node, until
from tests.unit.control import POOL, Certificates, Master, certificates, master, serving, task
from tests.unit.node import Driver, Firewall, Life, Names, Vips, World
from wire import control_pb2 as pb
from wire import control_pb2_grpc, convert
from wire.control_pb2_grpc import add_ControlServicer_to_server
from wire.tls import SERVER_OPTIONS, channel, server_credentials

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]

GREAT = 1 << 62  # more than any sequence


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.session.BACKOFF_FIRST_S", 0.02)
    monkeypatch.setattr("agent.session.BACKOFF_MOST_S", 0.1)
    monkeypatch.setattr("agent.session.RETRY_AFTER_S", 0.02)


class Agent:
    def __init__(self, directory: Path, target: str, credentials: Credentials) -> None:
        self.world = World(directory)
        self.driver = Driver()
        self.vips = Vips(self.driver)
        self.firewall = Firewall(self.driver)
        self.target = target
        self.refusing = ""
        self.credentials = credentials
        self.dialled = 0

    def dial(self) -> grpc.aio.Channel:
        self.dialled += 1
        if self.refusing:
            raise CredentialError(self.refusing)
        return channel(self.target, self.credentials)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Life]:
        life = Life(self.world)
        life.ready.clear()
        network = NodeNetwork(
            "n1", self.driver, self.vips, self.firewall, Names(self.driver), (POOL,), life.sandboxes.drop
        )
        session = Session(node(self.credentials.identity.name), self.dial, network, life.ready)
        life.reconciler.books.report = session.report
        await life.reconciler.recover()
        self.session = session
        removals = VolumeRemovals(PersistentVolumes(self.world.directory), session.wake)
        running = asyncio.create_task(session.run(life.reconciler, removals, Streams({})))
        removing = asyncio.create_task(removals.run())
        try:
            yield life
        finally:
            running.cancel()
            removing.cancel()
            assert [type(e) for e in await asyncio.gather(running, return_exceptions=True)] == [asyncio.CancelledError]
            await life.end()


class Bed:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificates: Certificates = certificates(directory)

    @asynccontextmanager
    async def master(self) -> AsyncIterator[tuple[Master, str]]:
        issued = self.certificates.issue(Role.MASTER, "m1")
        async with master(self.directory) as parts, serving(parts, issued) as target:
            yield parts, target

    def agent(self, name: str, target: str) -> Agent:
        return Agent(self.directory / name, target, self.certificates.issue(Role.AGENT, name))


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def state(parts: Master, task_id: str) -> TaskState | None:
    record = parts.tasks.get(task_id)
    return record.status.state if record else None


async def test_the_whole_path_of_a_task(bed: Bed) -> None:
    async with bed.master() as (parts, target):
        agent = bed.agent("n1", target)
        async with agent.running() as life:
            await until(lambda: "overlay" in agent.driver.configured)
            await parts.tasks.add("n1", [replace(task("a", vip="/web:80"), argv=("sleep",))])
            await until(lambda: state(parts, "a") is TaskState.RUNNING)
            await until(lambda: agent.vips.backends() == ["a"])
            await parts.tasks.mark("a")
            await until(lambda: state(parts, "a") is TaskState.KILLED)
            assert agent.vips.backends() == []
            await parts.tasks.acknowledge("a", parts.record("a").status.sequence)
            await until(lambda: life.reconciler.books.statuses() == [])


async def test_what_happened_while_the_master_was_away_is_told_later(bed: Bed) -> None:
    async with bed.master() as (parts, target):
        agent = bed.agent("n1", target)
        running = agent.running()
        life = await running.__aenter__()
        await until(lambda: bool(parts.nodes.all()))
        await parts.tasks.add("n1", [replace(task(name), argv=("sleep",)) for name in "ab"])
        await until(lambda: {state(parts, "a"), state(parts, "b")} == {TaskState.RUNNING})
    try:
        agent.world.exit("a", Exit(code=4))
        await until(lambda: life.reconciler.books.over("a"))
        async with bed.master() as (parts, target):
            agent.target = target
            await until(lambda: state(parts, "a") is TaskState.FAILED)
            assert parts.record("a").status.exit_code == 4 and state(parts, "b") is TaskState.RUNNING
            await until(lambda: life.reconciler.books.unacknowledged("a") is None)
            assert set(agent.world.running()) == {"b"} and len(agent.world.alive) == 1
    finally:
        await running.__aexit__(None, None, None)


async def test_a_restarted_agent_goes_on_and_what_it_must_not_have_goes(bed: Bed) -> None:
    async with bed.master() as (parts, target):
        agent = bed.agent("n1", target)
        async with agent.running():
            await until(lambda: bool(parts.nodes.all()))
            await parts.tasks.add("n1", [replace(task(name), argv=("sleep",)) for name in "ab"])
            await until(lambda: {state(parts, "a"), state(parts, "b")} == {TaskState.RUNNING})
        await parts.tasks.end("b", TaskState.LOST, "given up meanwhile")
        async with agent.running() as life:
            await until(lambda: set(agent.world.running()) == {"a"} and len(agent.world.alive) == 1)
            await until(lambda: [status.task_id for status in life.reconciler.books.statuses()] == ["a"])
            assert agent.world.launched == {"a": 1, "b": 1}


async def test_what_the_kernel_refuses_is_told_and_tried_again(bed: Bed) -> None:
    async with bed.master() as (parts, target):
        agent = bed.agent("n1", target)
        agent.driver.failing = {"configure overlay"}
        async with agent.running():
            await until(lambda: bool(parts.nodes.all()) and bool(parts.nodes.all()[0].errors))
            assert parts.nodes.all()[0].errors == ("configure overlay: not possible",)
            agent.driver.failing.clear()
            await until(lambda: parts.nodes.all()[0].errors == ())
            assert "overlay" in agent.driver.configured


async def test_no_container_before_the_networks_are_there(bed: Bed) -> None:
    async with bed.master() as (parts, target):
        agent = bed.agent("n1", target)
        agent.driver.gate.clear()
        async with agent.running():
            await until(lambda: bool(parts.nodes.all()))
            await parts.tasks.add("n1", [replace(task("a"), argv=("sleep",))])
            await until(lambda: state(parts, "a") is TaskState.ACCEPTED)
            assert agent.world.prepared == set()
            agent.driver.gate.set()
            await until(lambda: state(parts, "a") is TaskState.RUNNING)


async def test_a_block_that_retires_is_given_back_when_nothing_of_it_is_in_use(bed: Bed) -> None:
    async with bed.master() as (parts, target):
        agent = bed.agent("n1", target)
        async with agent.running():
            await until(lambda: "overlay" in agent.driver.configured)
            await parts.tasks.add("n1", [replace(task(name), argv=("sleep",)) for name in "ab"])
            both = [replace(task(f"t{number}"), argv=("sleep",)) for number in range(253)]
            await parts.blocks.ensure("n1", both)
            first, second = (block for block in parts.blocks.of("overlay", "n1") if block.subnet.version == 4)
            agent.driver.in_use.add(second)
            await until(lambda: state(parts, "a") is TaskState.RUNNING)
            await parts.tasks.mark("a")
            await until(lambda: agent.driver.configured["overlay"].retiring == (second,))
            assert parts.blocks.of("overlay", "n1")[:2] == [first, second]
            agent.driver.in_use.clear()
            await parts.tasks.mark("b")
            await until(lambda: parts.blocks.of("overlay", "n1")[:1] == [first])
            await until(lambda: second not in parts.blocks.of("overlay", "n1"))
            await until(lambda: agent.driver.configured["overlay"].blocks[0] == first)
            await until(lambda: second not in agent.driver.configured["overlay"].blocks)


async def test_it_waits_for_credentials(bed: Bed) -> None:
    async with bed.master() as (parts, target):
        agent = bed.agent("n1", target)
        agent.refusing = "cert.pem: expired"
        async with agent.running():
            await until(lambda: agent.dialled > 2)
            agent.refusing = ""
            await until(lambda: bool(parts.nodes.all()))


async def test_a_task_that_can_not_be_written_down_comes_again(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bed.master() as (parts, target):
        agent = bed.agent("n1", target)
        async with agent.running() as life:
            await until(lambda: bool(parts.nodes.all()))
            begin, refused = life.checkpoint.begin, []

            def full(record: object) -> None:
                refused.append(record)
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(life.checkpoint, "begin", full)
            await parts.tasks.add("n1", [replace(task("a"), argv=("sleep",))])
            await until(lambda: len(refused) > 2)
            monkeypatch.setattr(life.checkpoint, "begin", begin)
            await until(lambda: state(parts, "a") is TaskState.RUNNING)


class Script(control_pb2_grpc.ControlServicer):
    """A master that says what it was told to say to each session, then waits for the agent to leave."""

    def __init__(self, *sessions: list[pb.MasterMessage]) -> None:
        self.sessions = list(sessions)
        self.hellos: list[pb.Hello] = []
        self.heard: list[pb.AgentMessage] = []
        self.left = 0

    async def Session(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: object
    ) -> AsyncIterator[pb.MasterMessage]:
        self.hellos.append((await anext(request_iterator)).hello)
        for message in self.sessions.pop(0) if self.sessions else []:
            yield message
        async for said in request_iterator:
            self.heard.append(said)
        self.left += 1

    def Stream(self, request_iterator: AsyncIterator[pb.Frame], context: object) -> AsyncIterator[pb.Frame]:
        raise NotImplementedError

    def applied(self, revision: int) -> bool:
        return any(said.HasField("applied") and said.applied.revision == revision for said in self.heard)


@asynccontextmanager
async def playing(bed: Bed, script: Script) -> AsyncIterator[Agent]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_ControlServicer_to_server(script, server)
    master = bed.certificates.issue(Role.MASTER, "m1")
    port = server.add_secure_port("127.0.0.1:0", server_credentials(lambda: master))
    await server.start()
    try:
        yield bed.agent("n1", f"127.0.0.1:{port}")
    finally:
        await server.stop(grace=None)


def change(revision: int, *items: pb.Item, full: bool = False, remove: tuple[str, ...] = ()) -> pb.MasterMessage:
    return pb.MasterMessage(change=pb.Change(revision=revision, full=full, put=items, remove=remove))


def assignment(task_id: str) -> pb.Item:
    spec = replace(task(task_id), argv=("sleep",))
    return pb.Item(key=f"task/{task_id}", task=pb.Assignment(task=convert.task_to_wire(spec)))


BAD: list[list[pb.MasterMessage]] = [
    [change(1, assignment("a"), full=True), change(3)],
    [change(1, assignment("a"), full=True), change(1)],
    [change(1)],
    [change(2)],
    [change(1, pb.Item(key="moon/1"), full=True)],
    [change(1, pb.Item(key="vip/x", vip=pb.Vip(address="nowhere", protocol="tcp")), full=True)],
    [change(1, pb.Item(key="task/x", task=pb.Assignment(task=pb.Task(id="../x"))), full=True)],
]


@pytest.mark.parametrize("bad", BAD)
async def test_a_gap_or_nonsense_ends_the_session_and_the_next_begins_afresh(
    bed: Bed, bad: list[pb.MasterMessage]
) -> None:
    script = Script(bad, [change(1, assignment("a"), full=True)])
    async with playing(bed, script) as agent, agent.running() as life:
        await until(lambda: len(script.hellos) == 2)
        await until(lambda: script.applied(1) and not life.reconciler.books.over("a"))
        await until(lambda: agent.world.launched == {"a": 1})
        assert len(script.hellos) == 2


GREAT = 1 << 60  # more than any agent of a test counts to


async def test_hello_says_what_it_runs_and_statuses_are_repeated_until_acknowledged(bed: Bed) -> None:
    script = Script([change(1, assignment("a"), full=True)], [change(1, assignment("a"), full=True)])
    async with playing(bed, script) as agent:
        for _ in range(2):
            async with agent.running():
                await until(lambda: any(said.status.state == TaskState.RUNNING for said in script.heard))
                sequence = next(s.status.sequence for s in script.heard if s.status.state == TaskState.RUNNING)
            script.heard.clear()
        assert [list(hello.tasks) == [] for hello in script.hellos] == [True, False]
        (known,) = script.hellos[1].tasks
        assert (known.task_id, known.sequence) == ("a", sequence)
    done = pb.MasterMessage(status_ack=pb.StatusAck(task_id="a", sequence=GREAT))
    script = Script([done, change(1, assignment("a"), full=True)])
    async with playing(bed, script) as again:
        again.world = agent.world
        async with again.running() as life:
            await until(lambda: script.applied(1))
            assert life.reconciler.books.unacknowledged("a") is None
            assert script.hellos[0].tasks[0].sequence > sequence


async def test_an_end_that_a_full_change_does_not_want_any_more_is_forgotten(bed: Bed) -> None:
    script = Script([change(1, assignment("a"), full=True)], [change(1, full=True), change(2, assignment("b"))])
    async with playing(bed, script) as agent:
        async with agent.running():
            await until(lambda: "a" in agent.world.running())
        async with agent.running() as life:
            await until(lambda: set(agent.world.running()) == {"b"} and len(agent.world.alive) == 1)
            await until(lambda: [status.task_id for status in life.reconciler.books.statuses()] == ["b"])


async def test_what_tasks_take_is_told_and_told_again_to_another_master(bed: Bed) -> None:
    def seen(parts: Master) -> list[int]:
        records = [parts.tasks.get(name) for name in "ab"]
        return [record.status.usage.mem_bytes for record in records if record is not None]

    agent = bed.agent("n1", "")
    async with bed.master() as (parts, target):
        agent.target = target
        running = agent.running()
        await running.__aenter__()
        await until(lambda: bool(parts.nodes.all()))
        await parts.tasks.add("n1", [replace(task(name), argv=("sleep",)) for name in "ab"])
        await until(lambda: {state(parts, "a"), state(parts, "b")} == {TaskState.RUNNING})
        agent.session.report_usages({"a": Usage(mem_bytes=1), "b": Usage(mem_bytes=2), "unknown": Usage(mem_bytes=3)})
        await until(lambda: seen(parts) == [1, 2])
        agent.session.report_usages({"a": Usage(mem_bytes=4), "b": Usage(mem_bytes=2)})
        await until(lambda: seen(parts) == [4, 2])
    try:
        async with bed.master() as (parts, target):
            agent.target = target
            await until(lambda: seen(parts) == [4, 2])
    finally:
        await running.__aexit__(None, None, None)


async def test_what_a_task_passes_through_is_told_when_it_stays_there(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.session.PASSING_S", 0.3)
    seen: list[TaskState] = []
    async with bed.master() as (parts, target):
        parts.tasks.listen(lambda before, after: seen.append(after.status.state) if after else None)
        async with bed.agent("n1", target).running():
            spec = replace(task("a", vip="/web:80"), argv=("stubborn",), kill_grace_s=1.0)
            await parts.tasks.add("n1", [spec])
            await until(lambda: state(parts, "a") is TaskState.RUNNING)
            assert set(seen) == {TaskState.ASSIGNED, TaskState.RUNNING}
            await parts.tasks.mark("a")
            await until(lambda: state(parts, "a") is TaskState.KILLING)
            await until(lambda: state(parts, "a") is TaskState.KILLED)
