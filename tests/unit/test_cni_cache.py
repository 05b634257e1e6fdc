"""Attachments and networks on disk, and the gate between adding and collecting."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from netns.cni.cache import Cache, Record, Setting
from netns.cni.gate import Gate

pytestmark = pytest.mark.anyio

SETTING = Setting("sdn", "{}", "1.0.0")
RECORD = Record("web", "eth0", SETTING, 4026531840, {"ips": ["10.1.0.2/24"]})


async def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    done = replace(RECORD, attempted=2, result={"ips": []}, complete=True)
    await cache.configure(SETTING)
    async with cache.hold(RECORD):
        await cache.put(RECORD)
        assert Cache(tmp_path).of("web") == [RECORD]
        await cache.put(done)
    again = Cache(tmp_path)
    assert (again.of("web"), again.of("we"), again.settings) == ([done], [], {"sdn": SETTING})
    await again.drop(done)
    await again.remove("sdn")
    await again.remove("sdn")
    assert (Cache(tmp_path).records, Cache(tmp_path).settings) == ({}, {})
    assert list((tmp_path / "attachments").iterdir()) == []


async def test_file_of_a_failed_disk_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for name in ("web", "other", "third"):
        await cache.put(replace(RECORD, container=name))
    (tmp_path / "attachments" / "web:eth0" / "record").write_bytes(b"\0\0")
    (tmp_path / "attachments" / "third:eth0" / "record").write_text("{}")
    assert [container for container, _ in Cache(tmp_path).records] == ["other"]
    assert (tmp_path / "attachments" / "web:eth0" / "record").exists()


async def test_holding_what_is_not_recorded_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    async with cache.hold(RECORD):
        assert (tmp_path / "attachments" / "web:eth0").is_dir()
    assert list((tmp_path / "attachments").iterdir()) == []


async def test_gate_lets_many_in_or_one_alone() -> None:
    gate, seen, leave = Gate(), list[str](), asyncio.Event()

    async def one(name: str) -> None:
        async with gate.shared():
            seen.append(f"+{name}")
            await leave.wait()
            seen.append(f"-{name}")

    async def alone() -> None:
        async with gate.exclusive():
            seen.append("alone")

    first, second = asyncio.create_task(one("a")), asyncio.create_task(one("b"))
    await asyncio.sleep(0)
    collecting = asyncio.create_task(alone())
    await asyncio.sleep(0)
    late = asyncio.create_task(one("c"))
    await asyncio.sleep(0)
    assert seen == ["+a", "+b"]
    leave.set()
    await asyncio.gather(first, second, collecting, late)
    assert seen == ["+a", "+b", "-a", "-b", "alone", "+c", "-c"]


async def test_gate_opens_again_when_who_waits_to_be_alone_gives_up() -> None:
    gate = Gate()
    async with gate.shared():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), gate.exclusive():
                raise AssertionError("somebody is inside")
        async with gate.shared():
            pass
    async with gate.exclusive():
        pass
