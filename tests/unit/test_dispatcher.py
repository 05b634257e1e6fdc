"""Sessions over mutual TLS on loopback, with agents that are driven by hand and do not always behave."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from master.desired import Desired
from master.dispatcher import _Session
from master.turns import Turns
from model.node import NodeState
from model.pod import Pod
from model.task import TaskState, TaskStatus
from pki.identity import Role
from tests.unit.cluster import node, until
from tests.unit.control import Agent, Master, cluster, master, task
from wire import control_pb2 as pb

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]
SHORT_S = 0.2
DEADLINE_S = 10.0


def connected(parts: Master, name: str) -> bool:
    view = parts.nodes.get(name)
    return view is not None and view.connected


async def refusal(agent: Agent) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await agent.read() is not None:
            pass
    return caught.value.code(), str(caught.value.details())


def backends(agent: Agent) -> list[str]:
    return [b.task_id for item in agent.items.values() if item.HasField("vip") for b in item.vip.backends]


async def test_a_task_from_assignment_to_oblivion(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), dial("n1") as agent:
        await agent.join()
        assert connected(parts, "n1")
        assert set(agent.items) == {f"network/{name}" for name in ("bridge", "host", "none", "overlay")}
        await parts.tasks.add("n1", [task("a")])
        await agent.until(lambda agent: "task/a" in agent.items)
        assert not agent.kills("a")
        await agent.status("a", TaskState.RUNNING, 4, addresses=("100.64.0.2",))
        while agent.acknowledged.get("a") != 4:
            await agent.read()
        assert parts.record("a").status.state is TaskState.RUNNING  # on disk before it was acknowledged
        await parts.tasks.mark("a")
        await agent.until(lambda agent: agent.kills("a"))
        await agent.status("a", TaskState.KILLED, 6)
        await until(lambda: parts.record("a").over)
        assert "task/a" in agent.items
        await parts.tasks.acknowledge("a", 6)
        await agent.until(lambda agent: "task/a" not in agent.items)


async def test_nodes_learn_of_each_other_but_not_of_themselves(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, dial), dial("n1") as one, dial("n2") as two:
        await one.join()
        await two.join()
        assert "peer/overlay/n1" in two.items and "peer/overlay/n2" not in two.items
        await one.until(lambda agent: "peer/overlay/n2" in agent.items)
        assert "peer/overlay/n1" not in one.items


async def test_a_node_hears_only_of_its_own_tasks(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), dial("n1") as one, dial("n2") as two:
        await one.join()
        await two.join()
        await parts.tasks.add("n1", [task("a")])
        await parts.tasks.add("n2", [task("b")])
        await two.until(lambda agent: "task/b" in agent.items)
        assert "task/a" not in two.items
        await two.status("a", TaskState.FAILED, 9)  # which is none of its business
        while two.acknowledged.get("a") != 9:
            await two.read()
        assert parts.record("a").status.state is TaskState.ASSIGNED


async def test_only_agents_have_sessions(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, dial):
        for role in (Role.ADMIN, Role.MASTER):
            async with dial("op", role) as agent:
                code, reason = await refusal(agent)
                assert code is grpc.StatusCode.PERMISSION_DENIED and "is no agent" in reason


async def test_who_says_nothing_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("master.dispatcher.HELLO_DEADLINE_S", SHORT_S)
    async with cluster(tmp_path) as (parts, dial), dial("n1") as agent:
        assert await refusal(agent) == (grpc.StatusCode.FAILED_PRECONDITION, "no Hello")
        assert parts.nodes.all() == []


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (pb.AgentMessage(), "the first message must be Hello"),
        (pb.AgentMessage(applied=pb.Applied(revision=7)), "the first message must be Hello"),
        (pb.AgentMessage(hello=pb.Hello(address="here")), "does not appear to be an IPv4 or IPv6 address"),
        (pb.AgentMessage(hello=pb.Hello(address="10.0.0.1", resources=pb.Resources(cpus=-1))), "must not be negative"),
        (pb.AgentMessage(hello=pb.Hello(address="10.0.0.1", tasks=[pb.Status(state=5)])), "not a valid TaskState"),
    ],
)
async def test_a_bad_beginning_is_refused_with_the_reason(tmp_path: Path, first: pb.AgentMessage, reason: str) -> None:
    async with cluster(tmp_path) as (parts, dial), dial("n1") as agent:
        await agent.send(first)
        code, said = await refusal(agent)
        assert code is grpc.StatusCode.FAILED_PRECONDITION and reason in said
        assert parts.nodes.all() == []


@pytest.mark.parametrize(
    "message",
    [
        pb.AgentMessage(),
        pb.AgentMessage(hello=pb.Hello(address="10.0.0.1")),
        pb.AgentMessage(status=pb.Status(task_id="a", state=3)),
        pb.AgentMessage(status=pb.Status(task_id="a", state=320, addresses=["0xmoon"])),
        pb.AgentMessage(status=pb.Status(task_id="a", state=320, at=float("nan"))),
    ],
)
async def test_nonsense_ends_the_session_and_nothing_else(tmp_path: Path, message: pb.AgentMessage) -> None:
    async with cluster(tmp_path) as (parts, dial), dial("n2") as other:
        await parts.tasks.add("n1", [task("a", vip="/web:80")])
        await other.join()
        async with dial("n1") as agent:
            await agent.join()
            await agent.send(message)
            while await agent.read() is not None:
                pass
        await until(lambda: not connected(parts, "n1"))
        assert parts.record("a").status.state is TaskState.ASSIGNED
        await parts.tasks.add("n2", [task("b")])
        await other.until(lambda agent: "task/b" in agent.items)
    async with master(tmp_path) as again:  # nothing that was stored trips it
        assert {record.spec.id for record in again.tasks.all()} == {"a", "b"}


async def test_a_second_session_of_a_node_ends_the_first(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), dial("n1") as first, dial("n1") as second:
        await first.join()
        await second.join()
        while await first.read() is not None:
            pass
        await parts.tasks.add("n1", [task("a")])
        await second.until(lambda agent: "task/a" in agent.items)
        assert connected(parts, "n1")


async def test_a_session_that_breaks_is_over_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path, unreachable_after_s=0.05) as (parts, dial):
        for _ in range(3):
            async with dial("n1") as agent:
                await agent.join()
                assert connected(parts, "n1")
            await until(lambda: not connected(parts, "n1"))
        await until(lambda: parts.nodes.all()[0].state is NodeState.UNREACHABLE)
        assert parts.desired._feeds == {} and parts.dispatcher._sessions == {}


async def test_a_reader_who_never_reads_costs_no_more_than_its_keys(tmp_path: Path) -> None:
    """Far more is changed than the connection's buffers hold; others hear of everything meanwhile, and when the
    connection of the one who sleeps ends, its session does."""
    keys = 2000
    async with cluster(tmp_path) as (parts, dial), dial("n2") as other:
        await other.join()
        async with dial("n1") as sleeper:
            await sleeper.join()
            for version in range(5):
                for number in range(keys):
                    name = f"{version} " + "x" * 400
                    parts.desired.share(pb.Item(key=f"vip/{number}", vip=pb.Vip(name=name)))
                await other.until(
                    lambda agent, version=version: (  # type: ignore[misc]
                        len(agent.items) > keys
                        and all(i.vip.name.startswith(str(version)) for k, i in agent.items.items() if "vip/" in k)
                    )
                )
            feed = parts.desired._feeds["n1"]
            assert len(feed.dirty) <= keys
            await sleeper.until(lambda agent: agent.revision == feed.revision and not feed.dirty)
            assert all(item.vip.name.startswith("4") for key, item in sleeper.items.items() if "vip/" in key)
            for number in range(keys):
                parts.desired.share(pb.Item(key=f"vip/{number}", vip=pb.Vip(name="y" * 4000)))
            await until(lambda: not feed.dirty)  # it hangs in the connection now
            parts.desired.share(pb.Item(key="vip/last"))
        await until(lambda: not connected(parts, "n1"))
        assert "n1" not in parts.desired._feeds


async def test_what_is_for_all_goes_in_turns_and_what_is_new_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("master.dispatcher._Session.TURN_S", 0.25)
    desired = Desired()
    session = _Session(desired.open("n1"), Turns())
    messages = session.messages(desired)

    async def told() -> list[str]:
        async with asyncio.timeout(DEADLINE_S):
            change = pb.MasterMessage.FromString(await anext(messages)).change
        return [item.key for item in change.put] + [f"-{key}" for key in change.remove]

    assert await told() == []
    began = time.monotonic()
    desired.share(pb.Item(key="vip/1"))
    waiting = asyncio.create_task(told())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    desired.put("n1", pb.Item(key="task/1"))
    assert await waiting == ["task/1"]
    desired.remove("n1", "task/1")
    assert sorted(await told()) == ["-task/1", "vip/1"] and time.monotonic() - began > 0.2
    session.feed.close()


async def test_what_an_agent_says_meanwhile_is_written_down_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as (parts, dial), dial("n1") as agent:
        await agent.join()
        await parts.tasks.add("n1", [task(name) for name in "abc"])
        observe, written, free = parts.tasks.observe, [], asyncio.Event()

        async def slow(node_id: str, *statuses: TaskStatus) -> None:
            written.append({status.task_id: status.state for status in statuses})
            await free.wait()
            await observe(node_id, *statuses)

        monkeypatch.setattr(parts.tasks, "observe", slow)
        await agent.status("a", TaskState.ACCEPTED, 1)
        await until(lambda: written == [{"a": TaskState.ACCEPTED}])
        for sequence, state in enumerate((TaskState.STARTING, TaskState.RUNNING), 2):
            for name in "abc":
                await agent.status(name, state, sequence)
        seen = parts.dispatcher._sessions["n1"].seen
        await until(lambda: {each.state for each in seen._statuses.values()} == {TaskState.RUNNING})
        free.set()
        await agent.until(lambda agent: agent.acknowledged == dict.fromkeys("abc", 3))
        assert written[1:] == [dict.fromkeys("abc", TaskState.RUNNING)]
        assert {parts.record(name).status.state for name in "abc"} == {TaskState.RUNNING}


async def test_take_out_wait_then_stop(tmp_path: Path) -> None:
    """Law 6: the agent hears of the kill only after every node said that its table is without the backend."""
    async with cluster(tmp_path) as (parts, dial), dial("n1") as runs_it, dial("n2") as slow:
        await runs_it.join()
        await slow.join()
        await parts.run("a", "n1", vip="/web:80")
        for agent in (runs_it, slow):
            await agent.until(lambda agent: backends(agent) == ["a"])
        await parts.tasks.mark("a")
        await runs_it.until(lambda agent: backends(agent) == [])
        while backends(slow):
            await slow.take()  # and does not say that it applied it
        await parts.tasks.add("n1", [task("later")])
        await runs_it.until(lambda agent: "task/later" in agent.items)
        assert not parts.record("a").drained and not runs_it.kills("a")
        await slow.applied()
        await runs_it.until(lambda agent: agent.kills("a"))


async def test_a_pod_leaves_its_vips_as_a_whole_before_any_of_it_is_stopped(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), dial("n1") as runs_it:
        await runs_it.join()
        pod = Pod("p", "", ("a", "b"))
        await parts.tasks.add("n1", [task(member, vip="/web:80", pod=pod) for member in pod.members])
        for each in "ab":
            await parts.saw(each, TaskState.RUNNING, addresses=("100.64.0.2",))
        await runs_it.until(lambda agent: backends(agent) == ["a", "b"])
        await parts.tasks.mark("b")
        await runs_it.until(lambda agent: backends(agent) == [])
        await runs_it.until(lambda agent: agent.kills("a") and agent.kills("b"))
        assert parts.record("a").drained and parts.record("b").drained


async def test_a_silent_node_holds_a_kill_up_no_longer_than_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("master.dispatcher.DRAIN_DEADLINE_S", SHORT_S)
    async with cluster(tmp_path) as (parts, dial), dial("n1") as runs_it, dial("n2") as silent:
        await runs_it.join()
        await silent.hello()
        await silent.take()
        await parts.run("a", "n1", vip="/web:80")
        began = time.monotonic()
        await parts.tasks.mark("a")
        await runs_it.until(lambda agent: agent.kills("a"))
        assert time.monotonic() - began >= SHORT_S


async def test_after_a_restart_of_the_master_kills_wait_for_the_nodes_to_come_back(tmp_path: Path) -> None:
    async with master(tmp_path) as before:
        for name in ("n1", "n2"):
            await before.nodes.connected(node(name))
        await before.run("a", "n1", vip="/web:80")
        await before.run("b", "n1", vip="/web:80", address="100.64.0.3")
        await before.tasks.mark("a")
        await before.tasks.mark("b", drained=True)
    running = [
        TaskStatus(name, TaskState.RUNNING, 1, addresses=(address,))
        for name, address in [("a", "100.64.0.2"), ("b", "100.64.0.3")]
    ]
    async with cluster(tmp_path) as (parts, dial), dial("n1") as runs_it:
        await runs_it.join(*running)
        assert runs_it.kills("b") and not runs_it.kills("a") and backends(runs_it) == []
        async with dial("n2") as other:  # until now it had a table with the backend
            await other.hello()
            await other.take()
            assert not parts.record("a").drained
            await other.applied()
            await runs_it.until(lambda agent: agent.kills("a"))


async def test_the_kill_of_a_task_is_written_down_when_the_disk_takes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("master.dispatcher.STORE_RETRY_S", 0.01)
    async with cluster(tmp_path) as (parts, dial), dial("n1") as agent:
        await agent.join()
        await parts.run("a", "n1")
        await parts.tasks.mark("a")
        parts.store.full = ("tasks/",)
        killed = asyncio.create_task(agent.until(lambda agent: agent.kills("a")))
        await until(lambda: parts.store.refused > 1)
        assert not parts.record("a").drained
        parts.store.full = ()
        await killed


async def test_tasks_of_a_lost_node_are_lost_and_gone_when_it_returns(tmp_path: Path) -> None:
    async with cluster(tmp_path, unreachable_after_s=0.02, lost_after_s=0.05) as (parts, dial):
        async with dial("n1") as agent:
            await agent.join()
            await parts.run("a", "n1")
        await until(lambda: parts.record("a").over)
        assert parts.record("a").status.state is TaskState.LOST
        assert "has been away for 0.05 s" in parts.record("a").status.reason
        async with dial("n1") as agent:
            await agent.hello(TaskStatus("a", TaskState.RUNNING, 9, addresses=("100.64.0.2",)))
            change = await agent.take()
            assert change.full and "task/a" not in agent.items
            assert parts.record("a").status.state is TaskState.LOST


async def test_what_a_node_no_longer_knows_is_lost_or_told_again(tmp_path: Path) -> None:
    """A node whose disk was replaced. What it ran is lost, what ended does not run again, the rest is news to it."""
    async with cluster(tmp_path) as (parts, dial):
        await parts.nodes.connected(node("n1"))
        for name in ("running", "ended", "assigned", "known"):
            await parts.tasks.add("n1", [task(name)])
        await parts.saw("running", TaskState.RUNNING, addresses=("100.64.0.2",))
        await parts.saw("known", TaskState.RUNNING, addresses=("100.64.0.3",))
        await parts.saw("ended", TaskState.FINISHED)
        async with dial("n1") as agent:
            await agent.join(TaskStatus("known", TaskState.FAILED, 9))
            assert agent.items.keys() >= {"task/assigned", "task/known"}
            assert not agent.items.keys() & {"task/running", "task/ended"}
            states = {record.spec.id: record.status.state for record in parts.tasks.all()}
            assert states == {
                "running": TaskState.LOST,
                "ended": TaskState.FINISHED,
                "assigned": TaskState.ASSIGNED,
                "known": TaskState.FAILED,
            }
            while agent.acknowledged.get("known") != 9:
                await agent.read()


async def test_a_node_that_can_not_be_written_down_is_told_so(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial):
        for full in ("blocks/", "nodes/"):
            parts.store.full = (full,)
            async with dial("n1") as agent:
                await agent.hello()
                assert await refusal(agent) == (grpc.StatusCode.FAILED_PRECONDITION, "disk full")
            assert parts.desired._feeds == {} == parts.dispatcher._sessions
        parts.store.full = ()
        async with dial("n1") as agent:
            await agent.join()


async def test_a_status_that_can_not_be_stored_is_not_acknowledged(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial):
        async with dial("n1") as agent:
            await agent.join()
            await parts.tasks.add("n1", [task("a")])
            parts.store.full = ("tasks/",)
            await agent.status("a", TaskState.RUNNING, 4)
            while await agent.read() is not None:
                pass
            assert agent.acknowledged == {}
        parts.store.full = ()
        async with dial("n1") as agent:
            await agent.join(TaskStatus("a", TaskState.RUNNING, 4))
            assert parts.record("a").status.state is TaskState.RUNNING


async def test_errors_of_a_node_are_seen_and_gone_when_mended(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial), dial("n1") as agent:
        await agent.join()
        await agent.applied(errors=["no bridge"])
        await until(lambda: parts.nodes.all()[0].errors == ("no bridge",))
        await agent.applied()
        await until(lambda: parts.nodes.all()[0].errors == ())


async def test_a_node_that_moved_is_found_at_its_new_address(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, dial), dial("n2") as other:
        await other.join()
        async with dial("n1") as agent:
            await agent.join()
        moved = replace(node("n1"), address=node("n1").address + 7)
        async with dial("n1") as agent:
            await agent.hello(node=moved)
            await other.until(
                lambda agent: (
                    (item := agent.items.get("peer/overlay/n1")) is not None
                    and item.peer.underlay == str(moved.address)
                )
            )
