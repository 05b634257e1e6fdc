"""Sandboxes that are made ahead: who gets them, and that nothing is left of those that nobody got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.containers import Made
from agent.launcher.record import Exit
from agent.sandboxes import ID_RANGE_SIZE, ID_RANGE_START, NETWORKS, SPARES
from isolators.base import Sandbox
from model.task import Interface
from tests.unit.cluster import until
from tests.unit.control import task
from tests.unit.node import NETWORK, Life, World, settled

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.sandboxes.QUIET_S", 0)
    monkeypatch.setattr("agent.sandboxes.RETRY_S", 0.01)


@asynccontextmanager
async def agent(directory: Path, *networks: str) -> AsyncIterator[Life]:
    """That makes sandboxes ahead for these networks. Checks at its end that nothing is left."""
    life = Life(World(directory))
    for network in networks:
        assert life.sandboxes.take(network) is None
    life.sandboxes.begin()
    await settled(life.world)
    yield life
    await life.sandboxes.close()
    assert life.world.alive == {} and life.world.prepared == set() and life.world.keepers == {}


async def put_away(life: Life, made: Made) -> None:
    await made.launch.abort()
    await life.containers.cleanup(made.sandbox)
    life.sandboxes.release(made.sandbox)


def taken(life: Life, network: str = NETWORK) -> list[Made]:
    found = []
    while (made := life.sandboxes.take(network)) is not None:
        found.append(made)
    return found


async def test_none_is_made_before_one_was_asked_for_nor_before_the_networks_are_there(tmp_path: Path) -> None:
    life = Life(World(tmp_path))
    life.ready.clear()
    life.sandboxes.begin()
    await settled(life.world)
    assert life.sandboxes.take(NETWORK) is None
    await settled(life.world)
    assert life.world.prepared == set()
    life.ready.set()
    await settled(life.world)
    assert len(life.world.waiting()) == SPARES
    await life.sandboxes.close()
    assert life.world.prepared == set()


async def test_each_is_taken_once_and_made_up_for(tmp_path: Path) -> None:
    async with agent(tmp_path, NETWORK) as life:
        first = taken(life)
        assert len(first) == SPARES and {made.sandbox.id for made in first} == life.world.waiting()
        assert {made.sandbox.network for made in first} == {NETWORK}
        await settled(life.world)
        second = taken(life)
        ids = [made.sandbox.id for made in (*first, *second)]
        assert len(set(ids)) == 2 * SPARES == len({made.sandbox.id_base for made in (*first, *second)})
        for made in (*first, *second):
            await put_away(life, made)


@pytest.mark.parametrize("own", [{"address": "100.64.255.7"}, {"interfaces": (Interface("back", "10.0.0.9"),)}])
async def test_who_asks_for_an_address_or_several_networks_gets_a_sandbox_of_its_own(
    tmp_path: Path, own: dict[str, Any]
) -> None:
    async with agent(tmp_path, NETWORK) as life:
        wanted = replace(task("web.1"), **own)
        assert life.sandboxes.take_for(wanted) is None and len(life.world.waiting()) == SPARES
        mine = await life.sandboxes.make_for(wanted)
        assert (mine.sandbox.address, mine.sandbox.interfaces) == (wanted.address, wanted.interfaces)
        await put_away(life, mine)
        any_other = life.sandboxes.take_for(task("web.2"))
        assert any_other is not None and any_other.sandbox.address == ""
        await put_away(life, any_other)


async def test_none_is_made_while_somebody_asks(tmp_path: Path) -> None:
    """Whoever waits for a container goes first."""
    async with agent(tmp_path) as life:
        for _ in range(50):
            life.sandboxes.take(NETWORK)
            await asyncio.sleep(0)
        assert life.world.prepared == set()
        await settled(life.world)
        assert len(life.world.waiting()) == SPARES


async def test_one_that_was_killed_while_it_waited_is_not_given_out(tmp_path: Path) -> None:
    async with agent(tmp_path, NETWORK) as life:
        victims = sorted(life.world.waiting())[:2]
        for victim in victims:
            life.world.end(victim, Exit(signal=9))
        found = taken(life)
        assert len(found) == SPARES - 2 and not {made.sandbox.id for made in found} & set(victims)
        await settled(life.world)
        assert not set(victims) & (life.world.prepared | life.world.keepers.keys())
        for made in found:
            await put_away(life, made)


async def test_ids_of_one_that_was_killed_are_given_again_when_it_is_cleared_away(tmp_path: Path) -> None:
    async with agent(tmp_path, NETWORK) as life:
        for _ in range(10):
            for victim in life.world.waiting():
                life.world.end(victim, Exit(signal=9))
            assert taken(life) == []
            await settled(life.world)
        assert max(life.world.alive.values()) < ID_RANGE_START + 2 * SPARES * ID_RANGE_SIZE


async def test_those_of_a_network_are_dropped_and_those_of_others_are_not(tmp_path: Path) -> None:
    async with agent(tmp_path, "a", "b") as life:
        await life.sandboxes.drop("a")
        assert len(life.world.prepared) == SPARES and life.sandboxes.take("a") is None
        kept = life.sandboxes.take("b")
        assert kept is not None
        await put_away(life, kept)


async def test_one_that_is_made_while_its_network_is_dropped_is_dropped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has an address of before."""
    life = Life(World(tmp_path))
    made_for_long, go = asyncio.Event(), asyncio.Event()
    make = life.containers.make

    async def slow(sandbox: Sandbox) -> Made:
        made = await make(sandbox)
        made_for_long.set()
        await go.wait()
        return made

    monkeypatch.setattr(life.containers, "make", slow)
    life.sandboxes.take(NETWORK)
    life.sandboxes.begin()
    await made_for_long.wait()
    (before,) = life.world.prepared
    dropping = asyncio.create_task(life.sandboxes.drop(NETWORK))
    await asyncio.sleep(0)
    go.set()
    await dropping
    assert before not in life.world.prepared
    await settled(life.world)
    assert before not in {made.sandbox.id for made in taken(life)}
    await life.end()


async def test_only_the_networks_that_were_asked_for_last_have_some(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(NETWORKS + 2)]
    async with agent(tmp_path, *names) as life:
        assert len(life.world.prepared) == NETWORKS * SPARES
        found = {name: life.sandboxes.take(name) for name in names}
        assert [name for name, made in found.items() if made is not None] == names[-NETWORKS:]
        for made in found.values():
            if made is not None:
                await put_away(life, made)


async def test_a_network_in_which_none_can_be_made_leaves_nothing_and_does_not_keep_others_from_having_some(
    tmp_path: Path,
) -> None:
    with capture_logs() as logs:
        async with agent(tmp_path, "fail create", NETWORK) as life:
            await until(lambda: len(life.world.waiting()) == SPARES)
            assert life.world.prepared == life.world.waiting()
    assert {entry["log_level"] for entry in logs} == {"warning"}


async def test_a_network_that_is_asked_for_does_not_wait_for_one_in_which_none_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sandboxes.RETRY_S", 3600)
    life = Life(World(tmp_path))
    life.sandboxes.take("fail create")
    life.sandboxes.begin()
    with capture_logs() as logs:
        await until(lambda: bool(logs))
        assert life.sandboxes.take(NETWORK) is None
        await until(lambda: len(life.world.waiting()) == SPARES)
    assert [entry["network"] for entry in logs] == ["fail create"]
    await life.end()


async def test_it_goes_on_when_one_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(World(tmp_path))
    calls = []

    async def full(sandbox: Sandbox) -> Made:
        calls.append(sandbox)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(life.containers, "make", full)
        life.sandboxes.take(NETWORK)
        life.sandboxes.begin()
        await until(lambda: len(calls) > 2)
    await until(lambda: len(life.world.waiting()) == SPARES)
    await life.sandboxes.close()
    assert life.world.prepared == set()


async def test_ids_of_an_earlier_agents_containers_are_not_given(tmp_path: Path) -> None:
    async with agent(tmp_path, NETWORK) as life:
        in_use = sorted(life.world.alive.values())
    again = Life(World(tmp_path))
    for base in in_use[::2]:
        again.sandboxes.occupy(again.containers.sandbox("c", base, NETWORK))
    made = [await again.sandboxes.make(NETWORK) for _ in in_use]
    assert not {each.sandbox.id_base for each in made} & set(in_use[::2])
    assert set(in_use[1::2]) < {each.sandbox.id_base for each in made}


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_the_end_at_any_time_leaves_nothing(tmp_path: Path, turns: int) -> None:
    life = Life(World(tmp_path))
    life.sandboxes.take(NETWORK)
    life.sandboxes.begin()
    for _ in range(turns):
        await asyncio.sleep(0)
    await life.sandboxes.close()
    await settled(life.world)
    assert life.world.alive == {} and life.world.prepared == set() and life.world.keepers == {}
