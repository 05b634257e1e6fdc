"""The sampler: what it looks at, and when it tells."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.usage import REPORT_EVERY, Sampler
from isolators.base import Container, IsolatorError, Sandbox
from model.resources import Resources
from model.task import TaskSpec, Usage

pytestmark = pytest.mark.anyio


def container(name: str) -> Container:
    task = TaskSpec(name, "services", "/a", ("true",), Resources(), "none")
    return Container(task, Sandbox(f"c-{name}", Path("/nowhere"), Path("/nowhere"), 0, "none"))


async def read(asked: Container) -> Usage:
    if asked.task.id == "gone":
        raise IsolatorError("no such cgroup")
    return Usage(pids=len(asked.task.id))


async def test_a_look_at_all_that_run_leaves_out_what_is_gone() -> None:
    sampler = Sampler(lambda: [container(name) for name in ("a", "gone", "bb")], read)
    await sampler.look()
    assert sampler.usages == {"a": Usage(pids=1), "bb": Usage(pids=2)}


async def test_others_have_their_turn_while_it_looks_at_many() -> None:
    sampler = Sampler(lambda: [container(str(number)) for number in range(100)], read)
    looking = asyncio.create_task(sampler.look())
    turns = 0
    while not looking.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 10


async def test_it_reports_every_so_many_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.usage.INTERVAL_S", 0.001)
    looks = 0

    def running() -> list[Container]:
        nonlocal looks
        looks += 1
        return [container("a")]

    reports: list[int] = []
    told = asyncio.Event()

    def report(usages: dict[str, Usage]) -> None:
        assert usages == {"a": Usage(pids=1)}
        reports.append(looks)
        if len(reports) == 3:
            told.set()

    work = asyncio.create_task(Sampler(running, read).run(report))
    await asyncio.wait_for(told.wait(), 10)
    work.cancel()
    assert reports == [REPORT_EVERY, 2 * REPORT_EVERY, 3 * REPORT_EVERY]
