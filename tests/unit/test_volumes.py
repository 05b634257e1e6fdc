"""Persistent volumes at the master and on the way to the node: made with a task, held, destroyed once and said so."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agent.volumes import VolumeRemovals
from isolators.persistent import PersistentVolumes
from master.offers import Offer, UnknownVolume
from master.rest.app import create_app
from master.rest.volumes import volumes_router
from master.store.base import StoreError
from model.resources import Resources
from model.rights import volume as right
from model.task import TaskSpec, TaskState
from model.volume import HostVolume, PersistentVolume, VolumeKind, VolumeMount
from tests.unit.cluster import node, until
from tests.unit.control import Master, cluster, master, task
from tests.unit.test_allocator import running
from wire import control_pb2 as pb

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]

KEPT = PersistentVolume("db.1.data", "services", "/db", "db.1", "data", 100)
MOUNT = VolumeMount("/data", VolumeKind.PERSISTENT, KEPT.id, size=100)


def user(task_id: str, *mounts: VolumeMount) -> TaskSpec:
    return replace(task(task_id), volumes=mounts or (MOUNT,))


async def begun(parts: Master, task_id: str = "a", on: str = "n1") -> None:
    """A task with its volume, as if it had been accepted."""
    with parts.volumes.claimed(on, "services", [user(task_id)], [KEPT]) as puts:
        await parts.tasks.add(on, [user(task_id)], puts)


async def test_task_and_volume_are_on_disk_together_and_found_again(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        parts.store.full = ("volumes/",)
        with pytest.raises(StoreError):
            await begun(parts)
        assert parts.tasks.all() == [] and parts.volumes.all() == []
        parts.store.full = ()
        await begun(parts)
    async with master(tmp_path) as again:
        assert [(record.volume, record.node) for record in again.volumes.all()] == [(KEPT, "n1")]
        assert again.volumes.user(again.volumes.all()[0]) == "a"


async def test_it_holds_its_disk_used_or_not(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1"))
        framework = subscribe()
        offer = await framework.offer()
        await framework.subscription.accept(offer.id, [user("a")], [KEPT])
        smaller = await framework.offer(lambda o: o.id != offer.id)
        assert smaller.resources.disk == offer.resources.disk - 100
        await parts.saw("a", TaskState.FAILED)
        assert parts.allocator.used("n1") == Resources(disk=100)
        assert [(view.node, view.task) for view in framework.subscription.volumes()] == [("n1", "")]


@pytest.mark.parametrize(
    ("tasks", "made", "says"),
    [
        ([user("b")], [], "volume db.1.data is not on node n2"),
        ([user("b", replace(MOUNT, source="x"))], [], "volume x is not on node"),
        ([user("b"), user("c")], [KEPT], "volume db.1.data is in use"),
        ([user("b", replace(MOUNT, size=1))], [KEPT], "has another size"),
        ([], [replace(KEPT, id="../x")], "not one for services"),
        ([], [replace(KEPT, framework="other")], "not one for services"),
        ([], [replace(KEPT, size=0)], "not one for services"),
        ([], [replace(KEPT, size=1 << 40)], "more than was offered"),
        ([user("b")], [KEPT], "volume db.1.data: this id was used before"),
    ],
)
async def test_what_an_accept_can_not_have(tmp_path: Path, tasks: Any, made: Any, says: str) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        if "used before" in says:
            await begun(parts, on="n1")
            await parts.tasks.end("a", TaskState.FAILED, "")
        await parts.nodes.connected(node("n2"))
        framework = subscribe()
        offer = await framework.offer(lambda offer: offer.node.id == "n2")
        with pytest.raises(ValueError, match=says):
            await framework.subscription.accept(offer.id, tasks, made)
        assert parts.volumes.get("../x") is None and not parts.tasks.on("n2")


async def test_a_volume_of_another_task_or_framework_or_one_that_goes_is_refused(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1"))
        framework, other = subscribe(), subscribe("other")
        await begun(parts)
        offer = await framework.offer()
        with pytest.raises(ValueError, match="is in use"):
            await framework.subscription.accept(offer.id, [user("b")])
        await parts.saw("a", TaskState.FAILED)
        for unknown in (KEPT.id, "nothing"):
            with pytest.raises(UnknownVolume):
                await other.subscription.destroy(unknown)
        assert other.subscription.volumes() == ()
        await framework.subscription.destroy(KEPT.id)
        with pytest.raises(ValueError, match="is not on node n1"):
            await framework.subscription.accept(offer.id, [user("b")])


async def test_two_accepts_that_race_for_a_volume(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        await begun(parts)
        await parts.saw("a", TaskState.FAILED)
        claimed = partial(parts.volumes.claimed, "n1", "services")
        # The first is on its way to the store.
        with claimed([user("b")], []), pytest.raises(ValueError, match="is in use"), claimed([user("c")], []):
            pass
        with claimed([user("d")], []):
            pass


async def test_one_that_a_task_is_about_to_use_is_destroyed_after_it(tmp_path: Path) -> None:
    key = f"volume/{KEPT.id}"
    async with cluster(tmp_path) as (parts, dial), dial("n1") as agent:
        await agent.join()
        await begun(parts)
        await parts.saw("a", TaskState.FAILED)
        with pytest.raises(StoreError), parts.volumes.claimed("n1", "services", [user("b")], []):
            await parts.volumes.destroy(KEPT.id)
            await parts.tasks.add("n1", [task("c")])
            await agent.until(lambda agent: "task/c" in agent.items)
            assert key not in agent.items
            raise StoreError("disk full")
        await agent.until(lambda agent: key in agent.items)


async def test_host_volumes_go_where_they_are_permitted(tmp_path: Path) -> None:
    host = VolumeMount("/data", VolumeKind.HOST, "/srv/data/below")
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1"))
        permitting = frozenset({right(HostVolume("/srv/data", "rw"))})
        await parts.nodes.connected(replace(node("n2"), rights=permitting))
        framework = subscribe()

        async def accept(on: str) -> None:
            offer: Offer = await framework.offer(lambda offer: offer.node.id == on)
            await framework.subscription.accept(offer.id, [user(on, host)])

        with pytest.raises(ValueError, match="n1 does not permit volume /srv/data/below:rw"):
            await accept("n1")
        await accept("n2")


async def test_it_is_destroyed_when_its_task_is_over_and_forgotten_when_the_node_says_so(tmp_path: Path) -> None:
    key = f"volume/{KEPT.id}"
    async with cluster(tmp_path) as (parts, dial):
        async with dial("n1") as agent:
            await agent.join()
            await begun(parts)
            await parts.volumes.destroy(KEPT.id)
            await parts.tasks.mark("a", drained=True)
            await agent.until(lambda agent: agent.kills("a"))
            assert key not in agent.items  # its task is not over
            await agent.status("a", TaskState.KILLED, 6)
            await agent.until(lambda agent: key in agent.items)
            assert agent.items[key].volume_removal.id == KEPT.id
        assert parts.volumes.get(KEPT.id) is not None
        async with dial("n1") as agent:  # it had not heard of it, or could not say that it is done
            await agent.join()
            assert key in agent.items
            for _ in range(2):
                await agent.send(pb.AgentMessage(volume_removed=KEPT.id))
            await agent.until(lambda agent: key not in agent.items)
        assert parts.volumes.all() == []
    async with master(tmp_path) as again:
        assert again.volumes.all() == []


async def test_after_a_restart_of_the_master_it_is_still_to_be_destroyed(tmp_path: Path) -> None:
    async with master(tmp_path) as before:
        await before.nodes.connected(node("n1"))
        await begun(before)
        await before.tasks.end("a", TaskState.FAILED, "")
        await before.volumes.destroy(KEPT.id)
    async with cluster(tmp_path) as (_, dial), dial("n1") as agent:
        await agent.join()
        assert f"volume/{KEPT.id}" in agent.items


async def test_who_says_that_a_volume_is_gone_must_have_it_and_must_have_been_asked(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        await begun(parts)
        await parts.volumes.removed("n1", KEPT.id)
        await parts.volumes.removed("n1", "nothing")
        assert parts.volumes.get(KEPT.id) is not None
        await parts.volumes.destroy(KEPT.id)
        await parts.volumes.removed("n2", KEPT.id)
        assert parts.volumes.get(KEPT.id) is not None
        await parts.volumes.removed("n1", KEPT.id)
        assert parts.volumes.get(KEPT.id) is None


async def test_the_api(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        await parts.nodes.connected(node("n1"))
        await begun(parts)
        app = create_app(lambda token: True, [volumes_router(parts.volumes, parts.nodes)])
        transport = httpx2.ASGITransport(app=app)
        api = httpx2.AsyncClient(transport=transport, base_url="http://m", headers={"Authorization": "Bearer x"})
        (listed,) = (await api.get("/api/v1/volumes")).json()["volumes"]
        assert listed == {
            "id": KEPT.id,
            "owner": "/db",
            "framework": "services",
            "instance": "db.1",
            "name": "data",
            "size": 100,
            "node": "n1",
            "node_state": "online",
            "task": "a",
            "state": "used",
        }
        assert (await api.get("/api/v1/volumes/db")).json() == {"volume": listed}
        assert (await api.get("/api/v1/volumes/x")).status_code == 404
        refused = await api.delete(f"/api/v1/volumes/{KEPT.id}")
        assert refused.status_code == 409 and "in use by task 'a'" in refused.json()["message"]
        assert parts.volumes.all()[0].destroying is False
        await parts.tasks.end("a", TaskState.FAILED, "")
        parts.nodes.disconnected("n1")  # to give up the volume of a node that is away
        answer = await api.delete(f"/api/v1/volumes/{KEPT.id}")
        assert answer.status_code == 202 and answer.json()["volume"]["state"] == "destroying"


async def test_the_agent_destroys_what_nobody_uses_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.volumes.RETRY_S", 0.01)
    kept, woken = PersistentVolumes(tmp_path), asyncio.Event()
    monkeypatch.setattr("os.chown", lambda path, uid, gid: None)
    path = kept.take("v", "c1", 1, (0, 0))
    (path / "file").write_text("x")
    removals = VolumeRemovals(kept, woken.set)
    running = asyncio.create_task(removals.run())
    try:
        removals.put("v")
        removals.put("never-made")
        await until(lambda: removals.removed == {"never-made"})
        assert path.exists()  # its container has it
        kept.release("c1")
        await until(lambda: removals.removed == {"v", "never-made"})
        assert not path.exists() and woken.is_set()
        removals.put("v")
        removals.keep_only({"v"})
        assert removals.removed == {"v"}
        removals.withdraw("v")
        assert removals.removed == set()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
