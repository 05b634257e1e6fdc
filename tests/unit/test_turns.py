"""Turns: who comes when, and that all else comes in between."""

from __future__ import annotations

import asyncio

import pytest

from master.turns import Turns

pytestmark = pytest.mark.anyio


async def test_one_has_its_turn_in_each_round_in_the_order_in_which_they_came() -> None:
    turns, rounds, seen = Turns(), 0, []

    async def busy(name: int) -> None:
        for _ in range(3):
            await turns.next()
            seen.append((name, rounds))

    waiting = [asyncio.create_task(busy(name)) for name in range(4)]
    while not all(task.done() for task in waiting):
        rounds += 1
        await asyncio.sleep(0)
    assert [name for name, _ in seen] == [0, 1, 2, 3] * 3
    at = [number for _, number in seen]
    assert len(set(at)) == len(at)


async def test_who_is_cancelled_holds_nobody_up() -> None:
    turns = Turns()
    first, second, third = (asyncio.create_task(turns.next()) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    async with asyncio.timeout(5):
        await third
        await turns.next()
    assert first.cancelled() and second.cancelled()
